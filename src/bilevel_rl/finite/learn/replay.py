"""A ring of past transitions: critics that are learnt off policy may visit them again."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bilevel_rl.finite.model import sampling
from bilevel_rl.finite.model.mdp import FiniteMDP

WEIGHT_LIMIT = 10.0  # ours: of a replayed transition whose probability x has raised since


class Replay(eqx.Module):
    """The last M transitions.

    A finite MDP does not age. Where x moves its transitions, what was drawn under another x is weighed anew.

    Attributes:
        table: [3, M] states, actions, next states; M is a multiple of what one `extend` adds.
        count: transitions added so far.
        likelihood: [M] $P_x(s'|s,a)$ when each was drawn; None where x does not move the transitions.
    """

    table: Int[Array, "3 M"]
    count: Int[Array, ""]
    likelihood: Float[Array, " M"] | None = None

    @classmethod
    def empty(cls, memory: int, batch: int, moving: bool = False) -> Replay:
        """Room for at least `memory` transitions that arrive `batch` at a time."""
        size = batch * max(1, -(-memory // batch))
        return cls(
            jnp.zeros((3, size), jnp.int32), jnp.zeros((), jnp.int32), jnp.ones(size) if moving else None
        )

    def extend(self, transitions: Int[Array, "3 B"], likelihood: Float[Array, " B"] | None = None) -> Replay:
        """Overwrite the oldest B transitions; with their likelihoods where these are kept."""
        at = self.count % self.table.shape[1]
        new = transitions.astype(jnp.int32)
        table = jax.lax.dynamic_update_slice(self.table, new, (jnp.zeros_like(at), at))
        held = self.likelihood
        if held is not None:
            assert likelihood is not None, "kept where x moves the transitions"
            held = jax.lax.dynamic_update_slice(held, likelihood, (at,))
        return Replay(table, self.count + transitions.shape[1], held)

    def draw(self, u: Float[Array, " R"]) -> tuple[Int[Array, "3 R"], Float[Array, " R"] | None]:
        r"""R transitions, uniformly and with replacement, and how likely each was when drawn; None where it still is."""
        filled = jnp.minimum(self.count, self.table.shape[1])
        at = (u * filled).astype(jnp.int32)
        return self.table[:, at], None if self.likelihood is None else self.likelihood[at]


def remembered(batch: Int[Array, "3 B"], drawn: Float[Array, " B"] | None, replay: Replay | None, u):
    """The batch with what is replayed, how likely each was when drawn (None where it still is), and the memory.

    Args:
        batch: states, actions and next states of this iteration.
        drawn: how likely each was; None where x does not move the transitions.
        replay: None where nothing is remembered.
        u: uniform numbers, one for each transition that is replayed.
    """
    if replay is None:
        return batch, drawn, None
    replay = replay.extend(batch, drawn)
    past, then = replay.draw(u)
    batch = jnp.concatenate([batch, past], axis=1)
    return batch, None if drawn is None or then is None else jnp.concatenate([drawn, then]), replay


def weight_now(mdp: FiniteMDP, batch: Int[Array, "3 B"], drawn: Float[Array, " B"] | None, used_now: int = 0):
    """How much likelier each transition is under `mdp` than when drawn; 1 for the first `used_now`, drawn under it."""
    if drawn is None:
        return None
    past = batch[:, used_now:]
    if not past.shape[1]:
        return None
    likelier = sampling.transition_probability(mdp, *past) / drawn[used_now:]
    return jnp.concatenate([jnp.ones(used_now), jnp.minimum(likelier, WEIGHT_LIMIT)])
