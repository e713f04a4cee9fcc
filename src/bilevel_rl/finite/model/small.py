"""Reductions over a short last axis, written out term by term, and unchecked table access: what makes a step fast.

A step of a solver is a hundred tiny operations. Written out, a sum over four actions fuses with its neighbours into one
compiled kernel, and its order is fixed, so that a run gives the same bits alone and in any batch. `rows` and `add_rows`
skip the bounds checks of indexing: indices come from our own draws.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

SHORT = 16  # ours: longer axes are left to the compiler


def _fold(step: Callable, x: Array) -> Array:
    return reduce(step, [x[..., j] for j in range(x.shape[-1])])


def total(x: Float[Array, "*N A"]) -> Float[Array, "*N"]:
    """Sum over the last axis, left to right where it is short."""
    return _fold(jnp.add, x) if x.shape[-1] <= SHORT else jnp.sum(x, axis=-1)


def largest(x: Float[Array, "*N A"]) -> Float[Array, "*N"]:
    """Maximum over the last axis."""
    return _fold(jnp.maximum, x) if x.shape[-1] <= SHORT else jnp.max(x, axis=-1)


def softmax(logits: Float[Array, "*N A"]) -> Float[Array, "*N A"]:
    """Softmax over the last axis."""
    weights = jnp.exp(logits - jax.lax.stop_gradient(largest(logits))[..., None])
    return weights / total(weights)[..., None]


def log_sum_exp(x: Float[Array, "*N A"], b: Float[Array, "*N A"] | None = None) -> Float[Array, "*N"]:
    """log of the sum of (b times) exp(x) over the last axis."""
    top = jax.lax.stop_gradient(largest(x))
    weights = jnp.exp(x - top[..., None])
    return top + jnp.log(total(weights if b is None else b * weights))


def rows(table: Shaped[Array, "S ..."], index: Int[Array, "*N"]) -> Shaped[Array, "..."]:
    """`table[index]` without bounds checks."""
    return table.at[index].get(mode="promise_in_bounds", wrap_negative_indices=False)


def add_rows(table: Shaped[Array, "S ..."], index: Int[Array, " N"], values: Shaped[Array, "N ..."]) -> Array:
    """`table` with `values` added at `index`, in order where indices repeat; no bounds checks."""
    index, values = two(index), two(values, 0.0)
    return table.at[index].add(values, mode="promise_in_bounds", wrap_negative_indices=False)


def set_rows(table: Shaped[Array, "S ..."], index: Int[Array, " N"], values: Shaped[Array, "N ..."]) -> Array:
    """`table` with `values` at `index`; no bounds checks."""
    index, values = two(index), two(values)
    return table.at[index].set(values, mode="promise_in_bounds", wrap_negative_indices=False)


def after(values: Float[Array, "N ..."], *reads: Array) -> Array:
    """`values`, made to wait for `reads`: where a table is updated with values, everything read from it must come first.

    Otherwise the compiler can't see that the old table is done with, and copies it whole every iteration. Adds zero
    times the reads, which must be finite.
    """
    return values + 0.0 * sum(jnp.sum(read) for read in reads)


def two(batch: Array, times: float = 1.0) -> Array:
    """A batch of one, written twice (the second time multiplied by `times`); larger batches as they are.

    XLA turns a scatter of one row into an update that it fuses with the reads before it, and then copies the whole table
    every iteration; a scatter of two rows stays in place.
    """
    return batch if batch.shape[0] > 1 else jnp.concatenate([batch, batch * jnp.asarray(times, batch.dtype)])
