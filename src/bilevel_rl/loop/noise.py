"""Named randomness: a solver says which uniform numbers a step needs, by name and shape, and is handed exactly those.

The numbers come from one flat vector, cut in the order in which the shapes are written, so that giving a name to a piece of
it changes no bit.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
from jaxtyping import Array, Float


@dataclasses.dataclass(frozen=True)
class Times:
    """The same draws so many times, as an inner loop takes them: every array gets a first axis of that length.

    Attributes:
        count: how many times.
        each: the draws of one time.
    """

    count: int
    each: Draws


# n numbers [n], an array of a shape, several of those by name, or any of these several times
Draws = int | tuple[int, ...] | Mapping[str, Any] | Times


def size(draws: Draws) -> int:
    """How many numbers that is.

    Example:
        >>> size({"chains": (2, 3, 4), "upper": 5})
        29
        >>> size(Times(10, {"chains": (2, 3), "upper": 5}))
        110
    """
    if isinstance(draws, Times):
        return draws.count * size(draws.each)
    if isinstance(draws, Mapping):
        return sum(size(part) for part in draws.values())
    return draws if isinstance(draws, int) else math.prod(draws)


def fill(draws: Draws, flat: Float[Array, " M"]) -> Any:
    """The structure of `draws` with numbers for shapes, taken from a vector in the order written.

    Example:
        >>> import jax.numpy as jnp
        >>> filled = fill({"pair": (2, 2), "one": 1}, jnp.arange(5.0))
        >>> filled["pair"].tolist(), filled["one"].tolist()
        ([[0.0, 1.0], [2.0, 3.0]], [4.0])
        >>> fill(Times(2, {"pair": 2, "one": 1}), jnp.arange(6.0))["pair"].tolist()
        [[0.0, 1.0], [3.0, 4.0]]
    """
    if isinstance(draws, Times):
        return jax.vmap(lambda row: fill(draws.each, row))(flat.reshape(draws.count, size(draws.each)))
    if isinstance(draws, int):
        return flat
    if not isinstance(draws, Mapping):
        return flat.reshape(draws)
    filled, at = {}, 0
    for name, part in draws.items():
        end = at + size(part)
        filled[name] = fill(part, flat[at:end])
        at = end
    return filled


def uniforms(draws: Draws, key: Array) -> Any:
    """The structure of `draws` filled with uniform numbers in [0, 1)."""
    return fill(draws, jax.random.uniform(key, (size(draws),)))
