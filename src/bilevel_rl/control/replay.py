"""A ring of transitions, one flat float32 row each: what rewards are made of is kept, rewards are not.

A row holds the features of the reward beside the transition, so that the reward of an old transition follows x. Rows are
written in the order in which they come, at places that the iteration alone decides: all runs of a batch share them, and a
checkpoint need write each piece of the ring once (`loop.pieces`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from bilevel_rl.control import nets
from bilevel_rl.control.problem import ControlProblem, Transition
from bilevel_rl.control.walk import Seen


class Rows(eqx.Module):
    """Transitions as estimators and followers take them, batched [B].

    Attributes:
        t: the transitions.
        features: [B, p] what the reward is made of.
        first: [B] whether each began its episode.
        over: [B] whether its chain was begun anew after it.
    """

    t: Transition
    features: Float[Array, "B p"]
    first: Bool[Array, " B"]
    over: Bool[Array, " B"]


class Layout:
    """Which columns of a row hold what, for one problem.

    Args:
        problem: whose transitions are stored.
    """

    def __init__(self, problem: ControlProblem):
        t = jax.eval_shape(problem.example, jax.random.key(0))
        # features that are the environment's info, as by default, are not stored twice
        self.own = type(problem).features is not ControlProblem.features
        self.features = problem.features
        p = jax.eval_shape(problem.features, t).shape[0] if self.own else 0
        example = (t, jax.ShapeDtypeStruct((p,), jnp.float32), *(jax.ShapeDtypeStruct((), jnp.bool_),) * 2)
        leaves, self.structure = jax.tree.flatten(example)
        self.shapes = [(leaf.shape, leaf.dtype) for leaf in leaves]
        self.ends = np.cumsum([math.prod(shape) for shape, _ in self.shapes]).tolist()

    @property
    def width(self) -> int:
        """Columns of a row."""
        return self.ends[-1]

    def pack(self, seen: Seen) -> Float[Array, "N W"]:
        """Rows from one step of chains."""
        n = seen.over.shape[0]
        features = jax.vmap(self.features)(seen.t) if self.own else jnp.zeros((n, 0), jnp.float32)
        leaves = jax.tree.leaves((seen.t, features, seen.first, seen.over))
        return jnp.concatenate([v.reshape(n, -1).astype(jnp.float32) for v in leaves], 1)

    def unpack(self, rows: Float[Array, "B W"]) -> Rows:
        """What `pack` stored."""
        pieces, at = [], 0
        for (shape, dtype), end in zip(self.shapes, self.ends, strict=True):
            pieces.append(_back(rows[:, at:end].reshape((rows.shape[0], *shape)), dtype))
            at = end
        t, features, first, over = jax.tree.unflatten(self.structure, pieces)
        return Rows(t, features if self.own else t.info, first, over)


def _back(values: Array, dtype: Any) -> Array:
    return values > 0.5 if dtype == jnp.bool_ else values.astype(dtype)  # small integers are exact in 32-bit floats


def empty(layout: Layout, capacity: int) -> Float[Array, "C W"]:
    """A ring without rows."""
    return jnp.zeros((capacity, layout.width), jnp.float32)


def push(ring: Float[Array, "C W"], rows: Float[Array, "N W"], written: Int[Array, ""]) -> Float[Array, "C W"]:
    """The ring with N more rows; C is a multiple of N, so that they lie in one piece.

    Args:
        written: rows that were ever written before.
    """
    return jax.lax.dynamic_update_slice(ring, rows, (written % ring.shape[0], jnp.zeros_like(written)))


def sample(
    ring: Float[Array, "C W"], written: Int[Array, ""], batch: int, key: Array, ages: Callable | None = None
) -> Float[Array, "B W"]:
    """Drawn rows, with replacement; uniformly where nothing else is asked for.

    Args:
        written: rows that were ever written, at least one.
        ages: (rows held, rows ever written, B, key) -> [B] how many rows ago each was written, from 0 on; or None.
    """
    held = jnp.minimum(written, ring.shape[0])
    chosen = None if ages is None else ages(held, written, batch, key)
    if chosen is not None:
        return ring[(written - 1 - jnp.clip(chosen, 0, held - 1)) % ring.shape[0]]
    held = held.astype(jnp.float32)
    at = (jax.random.uniform(key, (batch,), jnp.float32) * held).astype(jnp.int32)
    return ring[jnp.minimum(at, held.astype(jnp.int32) - 1)]


def newest(ring: Float[Array, "C W"], steps: Int[Array, ""], count: int, chains: int, stride: int) -> Float[Array, "R W"]:
    """The last rows of the follower's own chains, oldest first; where fewer have been written, some of them again.

    Args:
        steps: iterations that have been written, at least one.
        count: R.
        chains: rows of an iteration that are the follower's own; they come first.
        stride: all rows of an iteration.
    """
    back = jnp.arange(count - 1, -1, -1, dtype=steps.dtype) % (steps * chains)
    i = steps * chains - 1 - back
    return ring[(i // chains * stride + i % chains) % ring.shape[0]]


def newest_worth(
    problem: ControlProblem, ring: Float[Array, "C W"], x: Float[Array, " d"], steps: Int[Array, ""], count: int,
    chains: int, stride: int,
) -> tuple[Float[Array, ""], Float[Array, ""]]:  # fmt: skip
    """What the present x pays a step, and what a step is worth to the leader, over the last rows; 0 before there are any.

    Args:
        steps, count, chains, stride: as for `newest`; steps may be 0.
    """
    p, x = nets.narrow(problem), jnp.asarray(x, jnp.float32)
    rows = Layout(p).unpack(newest(ring, jnp.maximum(steps, 1), count, chains, stride))
    paid = jax.vmap(lambda features: p.reward(x, features))(rows.features)
    gained = jax.vmap(lambda t: p.utility(x, t))(rows.t)
    mean = lambda each: jnp.where(steps > 0, jnp.mean(each), 0.0).astype(float)  # noqa: E731
    return mean(paid), mean(gained)
