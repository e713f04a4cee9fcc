"""Networks as plain arrays, their optimiser, and the 32 bits in which all of it stays."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

Tree = TypeVar("Tree")
ADAM = optax.scale_by_adam()


def narrow(tree: Tree) -> Tree:
    """Every 64-bit float of a tree in 32 bits: with one wide number among them, a network runs at half its speed.

    Example:
        >>> narrow({"x": jnp.ones(2, jnp.float64), "n": jnp.ones((), int)})["x"].dtype
        dtype('float32')
    """

    wide = lambda leaf: eqx.is_array(leaf) and leaf.dtype == jnp.float64  # noqa: E731
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32) if wide(leaf) else leaf, tree)


class MLP(eqx.Module):
    """A fully connected network with rectified units.

    Attributes:
        weights: [fan_in, fan_out] of each layer.
        biases: [fan_out] of each layer.
    """

    weights: tuple[Float[Array, "_ _"], ...]
    biases: tuple[Float[Array, " _"], ...]

    @classmethod
    def make(cls, sizes: tuple[int, ...], key: Array, last: float = 1.0) -> MLP:
        """Random weights: uniform, of variance 2 / fan_in in hidden layers; the last layer's times `last` / 2.

        Args:
            sizes: inputs, hidden units, outputs.
            last: scale of the outputs; small ones make a policy begin near its mean action.
        """
        keys, weights = jax.random.split(key, len(sizes) - 1), []
        for i, (a, b) in enumerate(itertools.pairwise(sizes)):
            bound = (6.0 / a) ** 0.5 if i < len(sizes) - 2 else last * (1.5 / a) ** 0.5
            weights.append(jax.random.uniform(keys[i], (a, b), jnp.float32, -bound, bound))
        return cls(tuple(weights), tuple(jnp.zeros(b, jnp.float32) for b in sizes[1:]))

    def __call__(self, v: Float[Array, "*batch i"], act: Callable = jax.nn.relu) -> Float[Array, "*batch o"]:
        for W, b in zip(self.weights[:-1], self.biases[:-1], strict=True):
            v = act(v @ W + b)
        return v @ self.weights[-1] + self.biases[-1]


class Trained(eqx.Module):
    """Parameters with the optimiser's memory.

    Attributes:
        params: any tree of float32 arrays.
        memory: of Adam.
    """

    params: Any
    memory: Any

    @classmethod
    def begin(cls, params: Any) -> Trained:
        """Before the first step."""
        return cls(params, ADAM.init(params))

    def descend(self, slope: Any, rate) -> Trained:
        """One step of Adam down the slope.

        Args:
            rate: step size, a number or a traced scalar.
        """
        step, memory = ADAM.update(slope, self.memory)
        rate = jnp.asarray(rate, jnp.float32)
        return Trained(jax.tree.map(lambda v, s: v - rate * s, self.params, step), memory)


def follow(slow: Tree, fast: Tree, polyak) -> Tree:
    """The slow copy a share `polyak` of the way to the fast one."""
    polyak = jnp.asarray(polyak, jnp.float32)
    return jax.tree.map(lambda a, b: a + polyak * (b - a), slow, fast)


def key_of(uniform: Float[Array, " 2"]) -> Array:
    """A key from two uniform numbers in [0, 1): what a step's named randomness becomes for an engine that draws much."""
    return jax.random.wrap_key_data((uniform * 2.0**32).astype(jnp.uint32))
