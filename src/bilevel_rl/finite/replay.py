"""A ring of past transitions. A finite MDP does not age: critics that are learnt off policy may visit them again."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class Replay(eqx.Module):
    """The last M transitions.

    Attributes:
        table: [3, M] states, actions, next states; M is a multiple of what one `extend` adds.
        count: transitions added so far.
    """

    table: Int[Array, "3 M"]
    count: Int[Array, ""]

    @classmethod
    def empty(cls, memory: int, batch: int) -> Replay:
        """Room for at least `memory` transitions that arrive `batch` at a time."""
        size = batch * max(1, -(-memory // batch))
        return cls(jnp.zeros((3, size), jnp.int32), jnp.zeros((), jnp.int32))

    def extend(self, s: Int[Array, " B"], a: Int[Array, " B"], s_next: Int[Array, " B"]) -> Replay:
        """Overwrite the oldest B transitions."""
        new = jnp.stack([s, a, s_next]).astype(jnp.int32)
        at = self.count % self.table.shape[1]
        table = jax.lax.dynamic_update_slice(self.table, new, (jnp.zeros_like(at), at))
        return Replay(table, self.count + s.shape[0])

    def draw(self, u: Float[Array, " R"]) -> Int[Array, "3 R"]:
        """R transitions, uniformly and with replacement."""
        filled = jnp.minimum(self.count, self.table.shape[1])
        return self.table[:, (u * filled).astype(jnp.int32)]
