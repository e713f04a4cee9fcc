"""The problems of other work, to the digits that are published or known of them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel_rl.finite import oracles
from bilevel_rl.finite.checks import check_problem
from bilevel_rl.finite.problems import Synthetic


def test_synthetic_optimum_is_known():
    it = Synthetic()
    best = oracles.hyper_objective(it, jnp.zeros(100), 1.0)
    assert float(best) == pytest.approx(1.0, abs=1e-12)
    plan = oracles.lower_optimum(it, jnp.zeros(100), 1.0)
    np.testing.assert_allclose(plan.pi, 1 / 5, atol=1e-14)
    near = 0.05 * jnp.asarray(np.random.default_rng(0).normal(size=(4, 100)))
    assert min(float(oracles.hyper_objective(it, x, 1.0)) for x in near) > 1.0
    counts = (it.mdp.probabilities > 0).sum(-1)
    assert int(counts.min()) >= 1
    assert int(counts.max()) <= 9


@pytest.mark.slow
def test_synthetic_is_seeded_before_anything_is_drawn():
    one, two, other = Synthetic(dimension=4), Synthetic(dimension=4), Synthetic(dimension=4, seed=1)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(one.mdp.probabilities, other.mdp.probabilities)
    check_problem(Synthetic(dimension=3))
