"""The best x of a problem whose hyper-objective is known, by descents from several starts."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np
import scipy.optimize
from jaxtyping import Array, Float

from bilevel_rl.loop import precision
from bilevel_rl.loop.problem import Optimum

STARTS = 8  # ours: beside x0, drawn in the box


@precision.double
def best(truth: Callable[[Array], Array], x0: Float[Array, " d"], box: tuple[Array, Array] | None) -> Optimum | None:
    """By quasi-Newton with bounds from x0 and points of the box; None where no start has a finite value.

    Args:
        truth: x -> the exact hyper-objective, differentiable.
        box: bounds of x, None where it is free.
    """
    both = jax.jit(jax.value_and_grad(truth))

    def asked(x: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope = (np.asarray(v, float) for v in both(x))
        if np.isfinite(value) and np.isfinite(slope).all():
            return float(value), slope
        return 1e10, np.zeros_like(x)  # outside of what has a value: the line search comes back

    low, high = (np.full(x0.shape, b) for b in (-np.inf, np.inf)) if box is None else (np.asarray(b, float) for b in box)
    generator = np.random.default_rng(0)
    inside = np.where(np.isfinite(low), low, np.asarray(x0) - 1), np.where(np.isfinite(high), high, np.asarray(x0) + 1)
    starts = [np.asarray(x0, float), *generator.uniform(*inside, (STARTS, x0.shape[0]))]
    found = [
        scipy.optimize.minimize(asked, start, jac=True, method="L-BFGS-B", bounds=list(zip(low, high, strict=True)))
        for start in starts
    ]
    first = min(found, key=lambda one: one.fun)
    if first.fun >= 1e9:
        return None
    return Optimum(np.asarray(first.x), float(first.fun), float(first.fun))
