"""Where searches begin: the problem's own x0, what it knows to be promising, and random points."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel_rl.finite.problem import BilevelProblem


def points(
    problem: BilevelProblem, count: int, key: Array, spread: float = 1.0, first: Float[Array, " d"] | None = None
) -> Float[Array, "N d"]:
    """x0 (or `first`), the problem's `structured_starts()` where it has any, then random points; projected on x's set.

    Random points are uniform in the box, or normal around x0 with standard deviation `spread` where x is free.
    """
    d = problem.x0.shape[0]
    own = getattr(problem, "structured_starts", None)
    given = [(problem.x0 if first is None else first)[None]]
    if own is not None:
        given.append(jnp.asarray(own(), float).reshape(-1, d))
    box = problem.box()
    if box is None:
        drawn = problem.x0 + spread * jax.random.normal(key, (count, d))
    else:
        drawn = box[0] + (box[1] - box[0]) * jax.random.uniform(key, (count, d))
    return jax.vmap(problem.project)(jnp.concatenate([*given, drawn])[:count])
