"""Four rooms: the published conventions, and the basins that decide there."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from bilevel_rl.finite import oracles, solve
from bilevel_rl.finite.checks import check_problem
from bilevel_rl.finite.model import planning, sampling
from bilevel_rl.finite.problems import FourRooms, OneGoalFourRooms
from bilevel_rl.finite.solvers import PenaltyActorCritic

LOW = 0.001
value_and_gradient = jax.jit(
    lambda it, x: jax.value_and_grad(lambda x: oracles.hyper_objective(it, x, it.temperature()))(x)
)

follower = jax.jit(oracles.lower_optimum)  # at a traced temperature


def climbed(it, x):
    """The leader's value where exact quasi-Newton ascent from x ends."""
    arrays = jax.tree.map(jnp.asarray, it)
    found = scipy.optimize.minimize(
        lambda x: tuple(np.asarray(v, float) for v in value_and_gradient(arrays, jnp.asarray(x))), np.asarray(x),
        jac=True, method="L-BFGS-B", options={"maxiter": 400},
    )  # fmt: skip
    return -found.fun


def test_map_and_ends():
    it = FourRooms()
    assert it.mdp.n_states == 2 * 105
    assert it.x0.shape == (105,)
    assert int(it.mdp.ends.sum()) == 2
    layout = it.layout()
    assert [tuple(layout.cells[int(s)]) for s in np.flatnonzero(it.gain)] == [(1, 9), (11, 11 + 14)]
    assert [tuple(layout.cells[int(s)]) for s in np.flatnonzero(it.mdp.start)] == [(4, 1), (4, 15)]
    goals = np.flatnonzero(it.gain)
    V = follower(jax.tree.map(jnp.asarray, it), it.x0, LOW).V
    np.testing.assert_allclose(V[goals], 1 + LOW * np.log(4), atol=1e-12)  # paid once, one choice, then nothing
    np.testing.assert_allclose(V[np.asarray(it.mdp.ends)], 0.0)


def test_penalties_are_a_budget():
    it = FourRooms()
    assert float(it.penalties(it.x0).sum()) < 0.2
    r = it.reward(it.x0)[:, 0]
    paying = (np.asarray(it.gain) == 0) & ~np.asarray(it.mdp.ends)
    assert float(r[paying].max()) < 0
    cells = np.argwhere(np.asarray(it.gain).reshape(2, 105))[:, 1]  # a goal costs nothing in its own context
    due = 2 * float(it.penalties(it.x0).sum()) - float(it.penalties(it.x0)[cells].sum())
    assert -float(r[paying].sum()) == pytest.approx(due, abs=1e-12)


def test_simulator_is_the_matrix():
    """Every state and action, stratified draws: the frequencies are the rows of P (a published simulator's were not)."""
    it = OneGoalFourRooms()
    n = 400
    s, a = (v.ravel() for v in jnp.meshgrid(jnp.arange(105), jnp.arange(4), indexing="ij"))
    u = (jnp.arange(n) + 0.5) / n
    drawn = jax.jit(jax.vmap(lambda u: sampling.next_state(it.mdp, s, a, jnp.full(s.shape, u))))(u)  # [n, S A]
    frequency = np.stack([np.bincount(column, minlength=105) / n for column in np.asarray(drawn).T])
    np.testing.assert_allclose(frequency, np.asarray(it.mdp.dense()).reshape(-1, 105), atol=2.5 / n)
    free = np.unique(np.round(np.asarray(it.mdp.dense()), 4))
    assert {0.56, 0.1467} <= set(free)


@pytest.mark.slow
def test_simulated_returns_are_the_planned_ones():
    it = jax.tree.map(jnp.asarray, FourRooms())
    pi = follower(it, it.x0, 0.005).pi
    u = jax.random.uniform(jax.random.key(0), (3000, 400, 2))
    y = jax.jit(sampling.trajectories)(it.mdp, pi, jax.random.uniform(jax.random.key(1), (3000,)), u)
    paid = jnp.sum(0.99 ** jnp.arange(400) * it.objective.bonus_at(it.x0, y.s, y.a), 1) * 0.01
    error = float(paid.std()) / np.sqrt(3000)
    exact = -float(it.objective.value(it.x0, pi, it))
    assert abs(float(paid.mean()) - exact) < 4.5 * error
    lower = jnp.sum(0.99 ** jnp.arange(400) * it.reward_at(it.x0, y.s, y.a), 1)
    want = float(planning.expected_return(it.mdp, it.reward(it.x0), pi))
    assert abs(float(lower.mean()) - want) < 4.5 * float(lower.std()) / np.sqrt(3000)


def test_four_rooms_are_well_posed():
    check_problem(FourRooms(temperature=0.005), thorough=False)


@pytest.mark.slow
def test_with_one_goal_it_is_well_posed_too():
    check_problem(OneGoalFourRooms(temperature=0.005))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_random_starts_end_in_poor_basins(seed):
    it = FourRooms(seed=seed)
    assert 0.5 < climbed(it, it.x0) < 0.6


@pytest.mark.slow
@pytest.mark.parametrize(("price", "logit", "known"), [(1.0, 2.0, 1.168), (3.0, 4.0, 0.940), (5.0, 2.0, 0.743)])
def test_structured_starts_reach_the_best_known(price, logit, known):
    """Most of the budget on the cell before the northern doorway."""
    it = FourRooms(price=price)
    start = it.start_at((3, 5), logit=logit)
    assert climbed(it, start) >= known
    assert any(bool(jnp.all(start == known)) for known in it.structured_starts())


@pytest.mark.slow
def test_runs_are_graded_by_the_exact_follower():
    """A learnt follower's error would change the objective: what is recorded is the exact follower's value."""
    it = FourRooms()
    trace = solve(it, PenaltyActorCritic(chains=4), iterations=3)
    exact = float(value_and_gradient(jax.tree.map(jnp.asarray, it), jnp.asarray(trace.x[0, -1]))[0])
    assert trace["objective"][0, -1] == pytest.approx(exact, abs=1e-9)
