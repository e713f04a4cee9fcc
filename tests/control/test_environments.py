"""Environments of the library's own: their contract, their twins, and what is known of them in closed form."""

from __future__ import annotations

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel_rl.control import check_environment, quadratic
from bilevel_rl.control.environments import (
    ALL,
    LQG,
    Arm,
    CartPole,
    CombinationLock,
    Feed,
    Inventory,
    Market,
    Maze,
    Pendulum,
)
from bilevel_rl.control.environments import maze as maze_file

ENOUGH = (Pendulum, Feed, Maze)  # a vector and a number as actions, an end


@pytest.mark.parametrize(
    "kind",
    [kind if kind in ENOUGH else pytest.param(kind, marks=pytest.mark.slow) for kind in ALL],
    ids=lambda kind: kind.name,
)
def test_contract(kind):
    """Shapes, dtypes, spaces; and as many numbers of `info` as names."""
    environment = kind()
    check_environment(environment, steps=120)
    state, _ = environment.reset(jax.random.key(0))
    assert all(jnp.all(jnp.isfinite(v)) for v in environment.frame(state).values())


@pytest.mark.parametrize(("kind", "twin"), [(Pendulum, "Pendulum-v1"), (CartPole, "CartPole-v1")])
def test_agrees_with_gymnasium_for_1000_steps(kind, twin):
    """Along one path in 64 bits, and step by step in 32."""
    precise, single, rng = kind(precise=True), kind(), np.random.default_rng(0)
    other = gymnasium.make(twin).unwrapped
    other.reset(seed=0)
    step = [jax.jit(e.step) for e in (precise, single)]
    state = jnp.asarray(other.state, jnp.float64)
    for _ in range(1000):
        before = np.array(other.state)
        action = other.action_space.sample() if kind is CartPole else rng.uniform(-2, 2, 1).astype(np.float32)
        exact = action if kind is CartPole else action.astype(np.float64)  # else Gymnasium rounds the torque's product
        obs, reward, terminated, _, _ = other.step(exact)
        one = step[0](state, jnp.asarray(action), jax.random.key(0))
        if kind is Pendulum:
            before[0] = (before[0] + np.pi) % (2 * np.pi) - np.pi
        two = step[1](jnp.asarray(before, jnp.float32), jnp.asarray(action), jax.random.key(0))
        for found in (one, two):
            np.testing.assert_allclose(found.obs, obs, atol=1e-5)
            np.testing.assert_allclose(found.reward, reward, rtol=1e-6, atol=1e-5)
        assert bool(one.terminated) == terminated
        state = one.state
        if terminated:
            other.reset()
            state = jnp.asarray(other.state, jnp.float64)


@pytest.mark.slow
def test_quadratic_answers_satisfy_their_equations():
    """The soft Bellman equation at random states, by quadrature over actions; and the mean outcome by simulation."""
    environment, gamma, tau = LQG(), 0.9, 0.3
    A, B = environment.matrices()
    system = quadratic.System.of(A, B, 0.01 * np.eye(2), np.ones(2), 0.25 * np.eye(2), drift=[0.1, -0.2])
    M = jnp.diag(jnp.array([-1.0, -0.5, 0.0, -0.3])).at[0, 2].set(0.2).at[2, 0].set(0.2)
    law = jax.jit(quadratic.soft_optimal)(system, M, gamma, tau)
    constant = (jax.jit(quadratic.expected_soft_value)(system, law, gamma, tau) - _at_start(system, law.P)) * (1 - gamma)
    V = lambda s: jnp.append(s, 1.0) @ law.P @ jnp.append(s, 1.0) + constant / (1 - gamma)  # noqa: E731
    actions = jnp.linspace(-20, 20, 20001)
    for s in np.random.default_rng(0).normal(size=(3, 2)):
        y = jnp.stack([jnp.full_like(actions, v) for v in (*s, 1.0)] + [actions], 1)
        ahead = y @ system.F.T
        value = jnp.einsum("ai,ij,aj->a", ahead, law.P, ahead) + jnp.trace(law.P[:2, :2]) * 0.01 + constant / (1 - gamma)
        Q = jnp.einsum("ai,ij,aj->a", y, M, y) + gamma * value
        soft = tau * (jax.nn.logsumexp(Q / tau) + jnp.log(actions[1] - actions[0]))
        np.testing.assert_allclose(V(s), soft, rtol=1e-9)

    U = jnp.diag(jnp.array([1.0, 2.0, 0.5, 0.1]))
    rng = np.random.default_rng(1)
    s, total = 1 + 0.5 * rng.normal(size=(20_000, 2)), 0.0
    for t in range(150):
        z = np.c_[s, np.ones(len(s))]
        a = z @ np.array(law.K).T + np.sqrt(float(law.C[0, 0])) * rng.normal(size=(len(s), 1))
        y = np.c_[z, a]
        total += (1 - gamma) * gamma**t * np.einsum("ni,ij,nj->n", y, U, y)
        s = (y @ np.array(system.F).T)[:, :2] + 0.1 * rng.normal(size=s.shape)
    exact = float(jax.jit(quadratic.expected)(system, law, U, gamma))
    assert abs(total.mean() - exact) < 4.5 * total.std() / len(s) ** 0.5


def _at_start(system, P):
    first = jnp.append(system.mean, 1.0)
    return first @ P @ first + jnp.trace(P[:2, :2] @ system.covariance)


def test_quadratic_hyper_gradient_is_the_difference_quotient():
    environment = LQG(size=2, actions=2)
    A, B = environment.matrices()
    system = quadratic.System.of(A, B, 0.01 * np.eye(2), np.ones(2), 0.25 * np.eye(2))
    U = -jnp.diag(jnp.array([1.0, 1.0, 0.0, 0.1, 0.1]))

    @jax.jit
    def outcome(x):
        M = U.at[0, 2].add(x[0]).at[2, 0].add(x[0]).at[1, 1].add(x[1])
        return quadratic.expected(system, quadratic.soft_optimal(system, M, 0.9, 0.1), U, 0.98)

    x, h = jnp.array([0.3, -0.2]), 1e-5
    slope = jax.jit(jax.grad(outcome))(x)
    quotient = [(outcome(x + h * e) - outcome(x - h * e)) / (2 * h) for e in jnp.eye(2)]
    np.testing.assert_allclose(slope, jnp.stack(quotient), rtol=1e-6)


def test_without_a_finite_value_the_answer_is_not_a_number():
    environment = LQG()
    A, B = environment.matrices()
    system = quadratic.System.of(A, B, 0.01 * np.eye(2), np.ones(2), 0.25 * np.eye(2))
    paid = jnp.diag(jnp.array([1.0, 1.0, 0.0, 0.1]))  # large states and actions are rewarded
    assert jnp.all(jnp.isnan(jax.jit(quadratic.soft_optimal)(system, paid, 0.98, 0.1).K))


def test_inventory_follows_the_newsvendor():
    """Ordering up to any other level costs more, by simulation with the same demands."""
    environment, gamma, steps, n = Inventory(), 0.9, 60, 4000
    best = environment.level(gamma)

    @jax.jit
    def cost(level):
        def step(stock, key):
            q = jnp.clip(level - stock, 0.0, 2.0)
            found = jax.vmap(environment.step)(stock, q, jax.random.split(key, n))
            return found.state, found.reward

        rewards = jax.lax.scan(step, jnp.zeros((n, 1), jnp.float32), jax.random.split(jax.random.key(1), steps))[1]
        return -jnp.sum(gamma ** jnp.arange(steps) * jnp.mean(rewards, 1))

    levels = best + np.linspace(-0.3, 0.3, 13)
    costs = [float(cost(jnp.float32(level))) for level in levels]
    assert abs(levels[int(np.argmin(costs))] - best) < 0.06
    assert best < Inventory().level(0.9, backlog=2.0)  # who owes more stocks more


def test_market_profit_is_at_most_that_of_the_best_answer():
    environment = Market(noise=0.0)
    z = jnp.array([0.8], jnp.float32)
    prices = jnp.linspace(0, 2, 201, dtype=jnp.float32)
    profits = jax.vmap(lambda p: environment.step(z, p[None], jax.random.key(0)).reward)(prices)
    assert abs(prices[jnp.argmax(profits)] - (1 + 0.2 + 0.5 * 0.8) / 2) < 0.006


def test_maze_walls_stop_and_the_goal_ends():
    environment, rng = Maze(steps=400), np.random.default_rng(0)
    step, walls = jax.jit(environment.step), maze_file._walls()
    state, _ = environment.reset(jax.random.key(0))
    for _ in range(300):
        found = step(state, jnp.asarray(rng.uniform(-1, 1, 2), jnp.float32), jax.random.key(0))
        state = environment.reset(jax.random.key(1))[0] if bool(found.terminated) else found.state
        i, j = np.round(np.asarray(state[:2])).astype(int)
        assert not walls[i, j]
    near = jnp.array([5.0, 4.6, 0.0, 0.0, 1.0], jnp.float32)
    found = step(near, jnp.array([0.0, 1.0], jnp.float32), jax.random.key(0))
    assert bool(found.terminated)
    assert float(found.reward) == 1.0


def test_maze_starts_are_where_their_weights_say():
    goal = maze_file._goal()
    for region in range(4):
        environment = Maze(starts=tuple(float(i == region) for i in range(4)))
        places = np.stack([np.asarray(environment.reset(jax.random.key(k))[0][:2]) for k in range(5)])
        away = np.abs(places - goal).sum(1)
        assert (away > 7).all() if region == 0 else (away < 6).all() if region == 3 else True


def test_arm_reaches_where_its_links_point():
    environment = Arm()
    np.testing.assert_allclose(environment.places(jnp.zeros(4))[-1], [1.0, 0.0], atol=1e-7)
    np.testing.assert_allclose(environment.places(jnp.array([jnp.pi / 2, 0, 0, 0]))[-1], [0.0, 1.0], atol=1e-7)


def test_lock_opens_after_the_right_choices_only():
    environment, place = CombinationLock(), jnp.zeros((), jnp.int32)
    for i in range(environment.length):
        found = environment.step(place, jnp.int32((7 * i + 3) % 4), jax.random.key(0))
        place = found.state
        assert bool(found.terminated) == (i == environment.length - 1)
    assert float(found.reward) == 1.0
    wrong = environment.step(jnp.int32(3), jnp.int32(1), jax.random.key(0))
    assert int(wrong.state) == 0
    np.testing.assert_allclose(wrong.reward, 0.01)


@pytest.mark.slow
def test_feed_clickbait_earns_now_and_costs_later():
    """Who shows the most appealing topic gets clicks and loses trust; who shows the worthy one keeps the reader."""
    environment = Feed()

    def shown(topics, key):
        def step(state, inputs):
            found = environment.step(state, inputs[0], inputs[1])
            return found.state, (found.reward, found.info[1])

        _, (clicks, worth) = jax.lax.scan(step, environment.reset(key)[0], (topics, jax.random.split(key, len(topics))))
        return clicks.sum(), worth.sum()

    keys = jax.random.split(jax.random.key(0), 200)
    bait, good = (jax.vmap(lambda k, t=t: shown(jnp.asarray(t, jnp.int32), k))(keys) for t in ([0, 1] * 10, [3, 2] * 10))
    assert bait[0].mean() > good[0].mean()
    assert bait[1].mean() < good[1].mean()
