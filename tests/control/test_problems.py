"""Problems with neural followers: well posed, and what is said to be exact is what the environment does."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel_rl.control import Transition
from bilevel_rl.control.problems import (
    ALL,
    ArmImitation,
    BoundedShaping,
    InventoryContract,
    LQGShaping,
    MarketSubsidy,
    MazeCurriculum,
    PendulumImitation,
    PendulumPreferences,
    experts,
)


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.name)
def test_well_posed(kind):
    problem = kind()
    problem.check(thorough=False)
    d = problem.x0.shape[0]
    assert d == len(problem.x_names)
    assert problem.box()[0].shape == (d,)
    assert len({k.name for k in ALL}) == len(ALL)


def simulated(problem, act, x, chains=4000, steps=120, seed=0):
    """(1 - gamma) sum gamma^t u of each chain, under a law of actions."""
    e, gamma = problem.environment, problem.discount_upper()

    def step(carry, key):
        state, obs = carry
        k_act, k_step = jax.random.split(key)
        action = jax.vmap(act)(obs, jax.random.split(k_act, chains)).astype(jnp.float32)
        found = jax.vmap(e.step)(state, action, jax.random.split(k_step, chains))
        t = Transition(obs, action, found.obs, found.reward, found.info, found.terminated)
        return (found.state, found.obs), jax.vmap(lambda t: problem.utility(x, t))(t)

    def run(key):
        k_reset, k_steps = jax.random.split(key)
        first = jax.vmap(e.reset)(jax.random.split(k_reset, chains))
        return jax.lax.scan(step, first, jax.random.split(k_steps, steps))[1]

    u = np.asarray(jax.jit(run)(jax.random.key(seed)), float)
    return (1 - gamma) * (gamma ** np.arange(steps)) @ u


def agrees(exact, found):
    return abs(found.mean() - exact) < 4.5 * found.std() / len(found) ** 0.5 + 1e-4


@pytest.mark.parametrize("problem", [
    LQGShaping(), MarketSubsidy(), pytest.param(LQGShaping(size=4, actions=4), marks=pytest.mark.slow),
], ids=["1", "market", "4"])  # fmt: skip
def test_exact_outcomes_are_those_of_the_environment(problem):
    x, tau = problem.x0 + 0.1, 0.05
    law = jax.jit(lambda x: problem.answer(x, tau))(x)
    root = jnp.linalg.cholesky(law.C)

    def act(obs, key):
        return law.K @ jnp.append(obs, 1.0) + root @ jax.random.normal(key, (root.shape[0],))

    truth = float(jax.jit(lambda x: problem.truth(x, tau))(x))
    assert agrees(float(problem.cost(x)) - truth, simulated(problem, act, x))


@pytest.mark.parametrize("terms", ["state", "all"])
def test_lqg_is_paid_by_its_matrix(terms):
    problem, rng = LQGShaping(terms=terms), np.random.default_rng(0)
    assert len(problem.x0) == (5 if terms == "state" else 9)
    x, s, a = rng.normal(size=len(problem.x0)), rng.normal(size=2), rng.normal(size=1)
    y, none = np.r_[s, 1.0, a], jnp.zeros(())
    t = Transition(jnp.asarray(s), jnp.asarray(a), jnp.asarray(s), none, jnp.zeros(0), none > 0)
    np.testing.assert_allclose(problem.reward(x, problem.features(t)), y @ problem.matrix(jnp.asarray(x)) @ y, rtol=1e-12)


@pytest.mark.slow
def test_lqg_has_a_finite_value_in_every_corner_of_its_box():
    for problem in (LQGShaping(gamma=0.98, terms="all"), LQGShaping(size=4, actions=4, gamma=0.98)):
        low, high = problem.box()
        sides = np.random.default_rng(0).integers(0, 2, (16, len(low)))
        values = jax.jit(jax.vmap(lambda x, p=problem: p.truth(x, 0.1)))(jnp.where(sides, high, low))
        assert jnp.all(jnp.isfinite(values))


def test_bounded_answer_is_the_best_of_its_kind_and_its_outcome_exact():
    """Among laws exp((k a - a^2/2)/tau) the follower's soft return is largest at its own k."""
    problem, x, tau = BoundedShaping(), jnp.array([0.8, -0.4]), 0.1
    A, B = problem.environment.matrices()
    gamma, nodes = problem.gamma, np.linspace(-1, 1, 20_001)

    def soft_return(kappa):
        density = np.exp((kappa[:, None] * nodes - nodes**2 / 2) / tau)
        density /= density.sum(1, keepdims=True)
        mean, square = density @ nodes, density @ nodes**2
        entropy = -np.sum(density * np.log(density / (nodes[1] - nodes[0])))
        state = np.linalg.solve(np.eye(2) / gamma - A, B @ mean / (1 - gamma))  # sum of gamma^t E s_t from 0
        paid = x @ (A @ state + B @ mean / (1 - gamma))
        return paid + (tau * entropy - square.sum() / 2) / (1 - gamma)

    v = np.linalg.solve(np.eye(2) - gamma * A.T, A.T @ x)
    own = B.T @ (np.asarray(x) + gamma * v)
    best = soft_return(own)
    assert all(soft_return(own + 0.1 * np.array(step)) < best for step in ((1, 0), (-1, 0), (0, 1), (0, -1)))

    law = jax.jit(lambda x: problem.answer(x, tau))(x)
    weights = np.exp((own[:, None] * nodes - nodes**2 / 2) / tau)
    tables = np.cumsum(weights, 1) / weights.sum(1, keepdims=True)
    np.testing.assert_allclose(law.K[:, -1], (weights @ nodes) / weights.sum(1), rtol=1e-3)

    def act(obs, key):
        return jnp.asarray(nodes)[jax.vmap(jnp.searchsorted)(jnp.asarray(tables), jax.random.uniform(key, (2,)))]

    outcome = jax.jit(lambda x: problem.cost(x) - problem.truth(x, tau))(x)
    assert agrees(float(outcome), simulated(problem, act, x))


def test_inventory_contract_makes_both_want_the_same():
    problem = InventoryContract()
    grid = jnp.linspace(0, 4, 401)
    for tau in (0.0, 0.005):
        values = jax.vmap(lambda v: problem.truth(v[None], tau))(grid)  # noqa: B023
        assert abs(float(grid[jnp.argmin(values)]) - problem.best(tau)) < 0.011
    x = jnp.array([problem.best()])
    level = problem.level(x)
    found = simulated(problem, lambda obs, key: jnp.clip(level - obs, 0.0, 2.0), x)
    assert agrees(-float(problem.truth(x, 0.0)), found)


@pytest.mark.slow
def test_inventory_scatter_costs_what_its_truth_says():
    problem, tau = InventoryContract(), 0.005
    for v in (0.5, 1.6):
        x = jnp.array([v])
        # noise that averages out where the truth is exact: two runs with the same demands
        level, sigma = problem.level(x), (tau / (problem.environment.holding + problem.environment.backlog + v)) ** 0.5
        act = lambda obs, key: jnp.clip(level + sigma * jax.random.normal(key, (1,)) - obs, 0.0, 2.0)  # noqa: E731, B023
        assert agrees(-float(problem.truth(x, tau)), simulated(problem, act, x))


@pytest.mark.slow
def test_market_subsidy_at_its_vertex_and_demands_of_its_consumers():
    problem = MarketSubsidy()
    grid = jnp.linspace(-1, 2, 301)
    values = jax.jit(jax.vmap(lambda v: problem.truth(v[None], 0.005)))(grid)
    assert abs(float(grid[jnp.argmin(values)]) - problem.best()) < 0.011
    # demands maximise utility less what is paid: its derivative in each quantity is that price
    e, p, z = problem.environment.replace, 0.7, 0.6
    sold = jnp.array([1 - p + e * z, 1 - z + e * p])
    slope = jax.grad(lambda q: problem._welfare(q[0], q[1]))(sold) + problem.environment.unit_cost
    np.testing.assert_allclose(slope, [p, z], rtol=1e-6)


@pytest.mark.slow
def test_experts_are_good():
    pendulum = PendulumImitation()
    shown = pendulum.demonstrations(jax.random.key(0))
    assert float(shown.reward.sum(1).mean()) > -250
    arm = ArmImitation()
    far = -arm.demonstrations(jax.random.key(0)).reward
    assert float(far[:, -1].mean()) < 0.12
    for problem, t in ((pendulum, shown), (arm, arm.demonstrations(jax.random.key(7)))):
        assert problem.shown.shape == problem.x0.shape
        assert problem.features(jax.tree.map(lambda v: v[0, 0], t)).shape == problem.x0.shape
    reach = experts.reach(jnp.zeros(8).at[0].set(1.0).at[1].set(1.0).at[7].set(0.1))
    assert reach.shape == (2,)


def test_preferences_determine_a_reward():
    """Descending the labels' loss gives weights that want the pendulum up."""
    problem, x = PendulumPreferences(), jnp.zeros(4)
    step = jax.jit(lambda x: x - 0.05 * jax.grad(problem.cost)(x))
    for _ in range(600):
        x = step(x)
    assert float(problem.cost(x)) < 0.6 * float(problem.cost(jnp.zeros(4)))
    assert float(x[0]) > 0.1


@pytest.mark.slow
def test_curriculum_moves_where_episodes_begin():
    problem = MazeCurriculum()
    near = problem.environment_at(np.array([-4.0, -4.0, -4.0, 4.0]))
    starts = jax.jit(jax.vmap(lambda k: near.reset(k)[0]))(jax.random.split(jax.random.key(0), 50))
    assert float(jnp.mean(jnp.abs(starts[:, :2] - jnp.array([5.0, 5.0])).sum(1) < 6)) > 0.9
