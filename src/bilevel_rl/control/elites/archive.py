"""An archive of elites on a grid of descriptors: each cell keeps the best that was found for it."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

EMPTY = -1e30  # fitness of a cell without an elite


class Archive(eqx.Module):
    """C = G^2 cells.

    Attributes:
        params: of the elites, stacked [C, ...].
        fitness: [C]; `EMPTY` where there is none.
        descriptor: [C, 2] of the elites.
        low, high: [2] of what the grid covers; beyond it the nearest cell counts.
        cells: G.
    """

    params: Any
    fitness: Float[Array, " C"]
    descriptor: Float[Array, "C 2"]
    low: Float[Array, " 2"]
    high: Float[Array, " 2"]
    cells: int = eqx.field(static=True)

    @classmethod
    def empty(cls, like: Any, low: Any, high: Any, cells: int) -> Archive:
        """Without elites.

        Args:
            like: parameters of one policy.
        """
        n = cells * cells
        params = jax.tree.map(lambda v: jnp.zeros((n, *v.shape), v.dtype), like)
        f32 = lambda v: jnp.asarray(v, jnp.float32)  # noqa: E731
        return cls(params, jnp.full(n, EMPTY, jnp.float32), jnp.zeros((n, 2), jnp.float32), f32(low), f32(high), cells)

    def cell(self, descriptor: Float[Array, "n 2"]) -> Int[Array, " n"]:
        """The cells of descriptors."""
        share = (descriptor - self.low) / (self.high - self.low)
        at = jnp.clip((share * self.cells).astype(jnp.int32), 0, self.cells - 1)
        return at[:, 0] * self.cells + at[:, 1]

    @property
    def filled(self) -> Bool[Array, " C"]:
        """Which cells have an elite."""
        return self.fitness > EMPTY / 2

    def add(self, params: Any, fitness: Float[Array, " n"], descriptor: Float[Array, "n 2"]) -> Archive:
        """With those that are better than what their cells have; of several for one cell the best, of equals the first."""
        fitness, descriptor = (jnp.asarray(v, jnp.float32) for v in (fitness, descriptor))
        n, at = fitness.shape[0], self.cell(descriptor)
        fitness = jnp.where(jnp.isfinite(fitness), fitness, EMPTY)
        best = jnp.full_like(self.fitness, EMPTY).at[at].max(fitness)
        first = jnp.full(self.fitness.shape, n, jnp.int32)
        first = first.at[at].min(jnp.where(fitness == best[at], jnp.arange(n, dtype=jnp.int32), n))
        wins = (first[at] == jnp.arange(n)) & (fitness > self.fitness[at])
        to = jnp.where(wins, at, self.fitness.shape[0])  # others fall off the end
        put = lambda old, new: old.at[to].set(new, mode="drop")  # noqa: E731
        return Archive(jax.tree.map(put, self.params, params), put(self.fitness, fitness),
                       put(self.descriptor, descriptor), self.low, self.high, self.cells)  # fmt: skip

    def parents(self, count: int, key: Array) -> Int[Array, " n"]:
        """Cells with elites, drawn alike; the first cell where there is none."""
        return jax.random.categorical(key, jnp.where(self.filled, 0.0, -1e9), shape=(count,)).astype(jnp.int32)

    def coverage(self) -> Float[Array, ""]:
        """Share of cells that have an elite."""
        return jnp.mean(self.filled)

    def score(self, worst: float = 0.0) -> Float[Array, ""]:
        """The QD score: what elites have above the worst there can be, summed; it never falls."""
        return jnp.sum(jnp.where(self.filled, self.fitness - worst, 0.0))
