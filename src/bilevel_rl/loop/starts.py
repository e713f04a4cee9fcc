"""Where runs and searches begin: given points, or x0, what the problem knows to be promising, and random points."""

from __future__ import annotations

import operator
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.loop.problem import Problem


def points(
    problem: Problem, count: int, key: Array, spread: float = 1.0, first: Float[Array, " d"] | None = None
) -> Float[Array, "N d"]:
    """x0 (or `first`), the problem's `structured_starts()` where it has any, then random points; projected on x's set.

    Random points are uniform in the box (in `Problem.bounded_part` of it, where a side is open), or normal around x0 with
    standard deviation `spread` where x is free.
    """
    d = problem.x0.shape[0]
    own = problem.structured_starts()
    given = [(problem.x0 if first is None else first)[None]]
    if own is not None:
        given.append(jnp.asarray(own, float).reshape(-1, d))
    box = problem.bounded_part()
    if box is None:
        drawn = problem.x0 + spread * jax.random.normal(key, (count, d))
    else:
        drawn = box[0] + (box[1] - box[0]) * jax.random.uniform(key, (count, d))
    return jax.vmap(problem.project)(jnp.concatenate([*given, drawn])[:count])


def starting_points(problem: Problem, count: int, seed: int = 0, spread: float = 1.0) -> Float[Array, "N d"]:
    """The starts of a search with this seed: `points`, from a key that no run uses."""
    return points(problem, count, jax.random.fold_in(jax.random.key(seed), 2**31), spread)


def checked_seed(seed: Any) -> int:
    """The seed as an integer.

    Raises:
        InvalidConfig: it is none, or has more than 64 bits.

    Example:
        >>> import numpy as np
        >>> checked_seed(np.int32(7))
        7
    """
    try:
        whole = operator.index(seed)
    except TypeError:
        whole = None
    if whole is None or isinstance(seed, bool) or not -(2**63) <= whole < 2**63:
        raise InvalidConfig(
            message("solve.seed", repr(seed), "it must be an integer of at most 64 bits", "Set for instance seed=0")
        )
    return whole


def checked(problem: Problem, x0: Any, batch: int) -> Float[Array, "B d"]:
    """Where each run of a batch starts.

    Args:
        x0: [d] or [B, d]; the problem's when None.

    Raises:
        InvalidConfig: another shape, or a point outside x's set.
    """
    x = jnp.asarray(problem.x0 if x0 is None else x0, float)
    d = problem.x0.shape[0]
    if x.shape not in {(d,), (batch, d)}:
        raise InvalidConfig(
            message("solve.x0", f"shape {x.shape}", f"it must be [{d}] or [{batch}, {d}]", "Give one x, or one a run")
        )
    x = jnp.broadcast_to(x, (batch, d))
    if not bool(jnp.all(jnp.isfinite(x))) or bool(jnp.any(jnp.abs(jax.vmap(problem.project)(x) - x) > 1e-9)):
        raise InvalidConfig(
            message("solve.x0", x[0].tolist(), "x must start inside its feasible set", "Use problem.project(x) first")
        )
    return x
