"""`check_solver` finds what the loop could not live with; and named random numbers are the vector they are cut from."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float

from bilevel_rl.errors import InvalidConfig
from bilevel_rl.loop import Problem, Solver, State, noise
from bilevel_rl.loop.checking import check_solver


class Bowl(Problem):
    """Minimise x squared, in a box."""

    x0: Float[Array, " d"]

    def box(self):
        return -jnp.ones(2), jnp.ones(2)


class Noisy(Solver):
    """Descend along the gradient and some noise."""

    def draws(self, problem):
        return {"step": (2,), "more": {"unused": 3}}

    def init(self, problem, x0, key):
        return State(x0, jnp.zeros((), int))

    def step(self, problem, state, k, noise):
        return State(problem.project(state.x - 0.1 * state.x + 0.01 * (noise["step"] - 0.5)), state.samples + 2)


class Away(Noisy):
    def step(self, problem, state, k, noise):
        return State(state.x + 10, state.samples)


class Forgets(Noisy):
    def step(self, problem, state, k, noise):
        return State(state.x, state.samples - 1)


class Narrows(Noisy):
    def step(self, problem, state, k, noise):
        return State(state.x.astype(jnp.float32), state.samples)


class Explodes(Noisy):
    def step(self, problem, state, k, noise):
        return State(state.x / (state.samples - 1), state.samples + 1)


class Elsewhere(Noisy):
    def init(self, problem, x0, key):
        return State(x0 + 0.1, jnp.zeros((), int))


def test_a_solver_that_keeps_the_rules_passes():
    check_solver(Noisy(), Bowl(jnp.ones(2) / 2))


@pytest.mark.parametrize(("kind", "words"), [
    (Away, "outside its set at iteration 0"), (Forgets, "samples that fell"),
    (Narrows, r"x float64\[2\] became float32\[2\]"), (Explodes, "not finite at iteration 1"), (Elsewhere, "init put x at"),
])  # fmt: skip
def test_one_that_breaks_a_rule_is_told_which(kind, words):
    with pytest.raises(InvalidConfig, match=words):
        check_solver(kind(), Bowl(jnp.ones(2) / 2))


def test_named_numbers_are_cut_in_the_order_written():
    asked = {"b": (2, 3), "a": 2, "nested": {"z": (1,), "y": 1}}
    flat = jnp.arange(10.0)
    got = noise.fill(asked, flat)
    assert noise.size(asked) == 10
    np.testing.assert_array_equal(got["b"], flat[:6].reshape(2, 3))
    np.testing.assert_array_equal(jnp.concatenate([got["a"], got["nested"]["z"], got["nested"]["y"]]), flat[6:])
    drawn = noise.uniforms(asked, jax.random.key(3))
    np.testing.assert_array_equal(drawn["b"].ravel(), jax.random.uniform(jax.random.key(3), (10,))[:6])
