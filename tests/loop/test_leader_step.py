"""How x moves: the three aids do what they say, for every solver that has them, and nothing where they are off."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel_rl.errors import InvalidConfig
from bilevel_rl.finite import solve
from bilevel_rl.finite.problems.goal_placement import GoalPlacement
from bilevel_rl.finite.problems.probes import Bandit
from bilevel_rl.finite.solvers import FiniteDifference, NestedPenalty, PartialSGD, PenaltyActorCritic
from bilevel_rl.loop import leader, noise

SOLVERS = (
    PenaltyActorCritic(chains=4), NestedPenalty(chains=4, inner=4), PartialSGD(chains=4),
    FiniteDifference(chains=4, inner=4),
)  # fmt: skip


def path(momentum=0.0, hold=0.0, average=0.0, steps=12):
    """Reported x and iterates of a walk along given directions in the unit square, one step after the other."""
    it = GoalPlacement()
    D = np.random.default_rng(0).normal(size=(steps, 2))
    state = leader.MovingState(it.x0, jnp.zeros((), int), **leader.at_rest(it.x0))
    xs, ys = [], []
    for k in range(steps):
        state = leader.MovingState(
            samples=state.samples, **leader.move(it, state, jnp.array(k), jnp.asarray(D[k]), 0.1, momentum, hold, average)
        )
        xs.append(np.asarray(state.x))
        ys.append(np.asarray(state.iterate))
    return np.array(xs), np.array(ys), D, np.asarray(it.x0)


def test_without_aids_x_is_projected_gradient_descent():
    xs, ys, D, x = path()
    for k, d in enumerate(D):
        x = np.clip(x - 0.1 * d, 0, 1)
        np.testing.assert_array_equal(xs[k], x)
    np.testing.assert_array_equal(xs, ys)


def test_momentum_moves_along_the_running_mean_and_hold_keeps_x_while_it_forms():
    xs, _, D, x = path(momentum=0.5, hold=3)
    mean = np.zeros(2)
    for k, d in enumerate(D):
        mean = 0.5 * mean + 0.5 * d
        x = np.clip(x - (0.1 if k >= 3 else 0.0) * mean, 0, 1)
        np.testing.assert_allclose(xs[k], x, atol=1e-15)


@pytest.mark.parametrize("a", [1, 3])
def test_the_average_weighs_iterates_by_a_power_and_does_not_touch_them(a):
    """Weight of iterate i is proportional to (i+1)(i+2)...(i+a-1): the plain mean at a = 1."""
    xs, ys, _, _ = path(average=a)
    np.testing.assert_allclose(ys, path()[0], atol=1e-14)
    for k in range(len(xs)):
        i = np.arange(k + 1)
        weight = np.prod([i + j for j in range(1, a)], axis=0) if a > 1 else np.ones(k + 1)
        np.testing.assert_allclose(xs[k], weight @ ys[: k + 1] / weight.sum(), atol=1e-14)


EACH = [SOLVERS[0], *(pytest.param(solver, marks=pytest.mark.slow) for solver in SOLVERS[1:])]


@pytest.mark.parametrize("solver", EACH, ids=lambda s: s.name)
def test_every_descending_solver_takes_the_aids_and_averaging_only_reports(solver):
    it = Bandit()
    plain = solve(it, solver, iterations=6, record_every=1, seed=3)
    averaged = solve(it, dataclasses.replace(solver, average=1.0), iterations=6, record_every=1, seed=3)
    np.testing.assert_allclose(averaged.x[0, 1:], np.cumsum(plain.x[0, 1:], 0) / np.arange(1, 7)[:, None], atol=1e-12)
    held = solve(it, dataclasses.replace(solver, hold=4.0, momentum=0.5), iterations=6, record_every=1, seed=3)
    assert (held.x[0, :5] == held.x[0, 0]).all()
    assert (held.x[0, 6] != held.x[0, 0]).any()
    for field, value in (("momentum", 1.0), ("hold", -1.0), ("average", -1.0)):
        with pytest.raises(InvalidConfig, match=field):
            solve(it, dataclasses.replace(solver, **{field: value}), iterations=1)


@pytest.mark.slow
def test_finite_differences_with_numbers_of_their_own_have_more_noise():
    """Common numbers cancel in the difference: at a follower that stands still its spread is far smaller."""
    it = GoalPlacement()

    def spread(common: bool) -> float:
        one = FiniteDifference(chains=8, inner=20, common_noise=common, perturbation="two_sided")
        scales = dataclasses.replace(one.scales, zeta=dataclasses.replace(one.scales.zeta, initial=1e-6))
        one = dataclasses.replace(one, scales=scales)
        state = one.init(it, it.x0, jax.random.key(0))
        u = noise.uniforms(noise.Times(64, one.draws(it)), jax.random.key(1))
        moved = jax.lax.map(lambda z: one.step(it, state, jnp.array(0), z).x - it.x0, u)
        return float(moved.std(0).mean())

    assert spread(True) < 0.7 * spread(False)


@pytest.mark.parametrize("size", [1.0, 1e3])
def test_noise_of_any_size_makes_steps_of_the_same_root_mean_square(size):
    """Directions that are noise alone, far too long for x's set: what is left is its share over the root of k + 1."""
    span, reach, squares = jnp.array([0.3, 3.0]), 0.1, jnp.zeros(2)
    D = size * np.random.default_rng(0).normal(size=(400, 2))

    def step(squares, d):
        k, D = d
        zeta = 5.0 / (k + 1) ** 0.3
        moved, squares = leader.within_reach(D, squares, span, k, zeta, reach)
        return squares, zeta * moved * jnp.sqrt(k + 1)

    _, steps = jax.lax.scan(step, squares, (jnp.arange(400.0), jnp.asarray(D)))
    # the first coordinate is the one that would leave its set
    np.testing.assert_allclose(jnp.sqrt(jnp.mean(steps[50:, 0] ** 2)), reach * 0.3, rtol=0.05)
    np.testing.assert_allclose(steps[:, 1] * D[:, 0], steps[:, 0] * D[:, 1], rtol=1e-9)  # not turned


def test_steps_that_are_short_for_the_set_keep_their_bits():
    D, squares = jnp.array([0.01, -0.02]), jnp.zeros(2)
    for k in range(5):
        moved, squares = leader.within_reach(D, squares, jnp.ones(2), k, 0.2, 0.1)
        assert (moved == D).all()
    np.testing.assert_allclose(squares, D**2)
