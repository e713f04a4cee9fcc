"""Exact answers as one program: the same values, one trace for all temperatures, and what is refused is still said."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel_rl.errors import Unsolved
from bilevel_rl.finite import oracles
from bilevel_rl.finite.model import planning
from bilevel_rl.finite.problems import GoalPlacement
from bilevel_rl.loop import whole


def test_one_trace_serves_every_temperature_but_zero():
    traces = []

    @whole.compiled
    def f(x, tau=0.0):
        traces.append(tau)
        return x.sum() if isinstance(tau, float) else x.sum() * tau

    assert float(f(jnp.ones(3), 0.5)) == 1.5
    assert float(f(jnp.ones(3), 0.25)) == 0.75
    assert len(traces) == 1
    assert float(f(jnp.ones(3))) == 3.0
    assert len(traces) == 2


def test_within_another_program_it_is_the_function_itself():
    f = whole.compiled(lambda x: x**2)
    assert "jit" not in str(jax.make_jaxpr(f)(2.0))
    assert float(jax.grad(f)(3.0)) == 6.0


def test_what_can_not_be_one_program_is_tried_as_it_stands_and_says_what_is_wrong():
    f = whole.tried(lambda x: x if x.sum() > 0 else float("no number"))  # a branch: no program
    assert f(jnp.ones(2)).tolist() == [1.0, 1.0]
    with pytest.raises(ValueError, match="no number"):
        f(-jnp.ones(2))
    traced = []
    twice = whole.tried(lambda x: traced.append(x) or 2 * x)
    assert (twice(jnp.ones(2)) + twice(jnp.zeros(2))).tolist() == [2.0, 2.0]
    assert len(traced) == 1


def test_what_can_not_be_finite_is_computed_step_by_step_and_says_why():
    calls = []

    @whole.compiled
    def f(x):
        calls.append(isinstance(x, jax.core.Tracer))
        if not calls[-1]:
            raise Unsolved("in words")
        return jnp.log(x)

    assert float(f(jnp.array(1.0))) == 0.0
    with pytest.raises(Unsolved, match="in words"):
        f(jnp.array(-1.0))
    assert calls == [True, False]

    it = GoalPlacement(rows=2, columns=2)
    with pytest.raises(Unsolved, match="a linear system of 4 states"):
        planning.soft_optimal(it.mdp, it.reward(it.x0) * jnp.nan, 0.1)


@pytest.mark.slow
def test_oracles_give_what_they_give_operation_by_operation():
    it = GoalPlacement(rows=2, columns=3, discount=0.8)
    for of, tau in ((oracles.hyper_gradient, 0.2), (oracles.hyper_objective, 0)):
        plain = of.__wrapped__.__wrapped__(it, it.x0, tau)
        np.testing.assert_allclose(of(it, it.x0, tau), plain, rtol=1e-11, atol=1e-13)
