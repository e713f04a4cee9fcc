"""Problems are what they say: optima inside the box, starts that are worse, numbers that follow from the seed."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel_rl.finite import oracles
from bilevel_rl.finite.problems import (
    ALL,
    CliffWalking,
    FrozenLake,
    GoalDistribution,
    RandomMDP,
    WalledGoalPlacement,
)


def test_names_are_distinct_and_defaults_build():
    assert len({kind.name for kind in ALL}) == len(ALL)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "at", "value"), [
    (FrozenLake, (0.2, 0.15), -0.25), pytest.param(CliffWalking, (0.1, 0.1), -0.08, marks=pytest.mark.slow)],
                         ids=lambda v: getattr(v, "name", None))  # fmt: skip
def test_best_offers_lie_inside_the_box(kind, at, value):
    """Neither offering nothing nor offering everything is best, and the start is far from the optimum."""
    it = kind()
    found = oracles.brute_force(it, it.temperature(), points=11, polish=2)
    low, high = it.box()
    assert np.all(found.x > np.asarray(low) + 0.02)
    assert np.all(found.x < np.asarray(high) - 0.02)
    np.testing.assert_allclose(found.x, at, atol=0.1)
    assert found.value == pytest.approx(value, abs=0.03)
    objective = jax.jit(lambda x: oracles.hyper_objective(it, x, it.temperature()))
    assert float(objective(it.x0)) > found.value + 0.1
    assert float(objective(jnp.zeros(2))) > found.value + 0.02


def test_random_mdp_follows_from_its_seed():
    one, two, other = RandomMDP(seed=1), RandomMDP(seed=1), RandomMDP(seed=2)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(one.base, other.base)


def test_moving_kernel_keeps_rows_and_reaches_the_plain_one():
    it = RandomMDP(6, 2, 3, features=2, moving=True)
    np.testing.assert_allclose(it.transitions(jnp.array([0.7, -0.3])).probabilities.sum(-1), 1, atol=1e-12)
    np.testing.assert_allclose(it.transitions(jnp.zeros(2)).probabilities, it.mdp.probabilities, atol=1e-12)
    assert it.moves_transitions
    assert not RandomMDP(6, 2, 3).moves_transitions


def test_walls_block_and_doors_let_through():
    it = WalledGoalPlacement()
    cells = {tuple(cell): s for s, cell in enumerate(it.layout().cells)}
    assert it.mdp.n_states == 100 - len(it.walls)
    P = np.asarray(it.mdp.dense())
    right = 1
    assert P[cells[0, 3], right, cells[0, 3]] >= 0.9  # a wall stands at (0, 4)
    assert P[cells[1, 3], right, cells[1, 4]] == pytest.approx(0.9)  # a door
    reachable = np.linalg.matrix_power((P.sum(1) > 0).astype(float) + np.eye(len(P)), 60) > 0
    assert reachable.all()


def test_goal_distribution_pays_the_mean_over_goals():
    it = GoalDistribution()
    sure = jnp.full(36, -1e3).at[14].set(0.0)
    point = jnp.asarray(it.position[14])
    want = jnp.exp(-jnp.sum((it.position - point) ** 2, -1) / (2 * it.width**2))
    np.testing.assert_allclose(it.reward(sure)[:, 0], want, atol=1e-12)
    np.testing.assert_allclose(it.marker(sure), it.layout().cells[14], atol=1e-9)
    half = jnp.full(36, -1e3).at[jnp.array([3, 14])].set(0.0)
    both = (it.reward(sure) + it.reward(jnp.full(36, -1e3).at[3].set(0.0))) / 2
    np.testing.assert_allclose(it.reward(half), both, atol=1e-12)
