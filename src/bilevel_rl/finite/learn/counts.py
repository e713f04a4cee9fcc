"""Counts of transitions whose memory does not grow with the square of the states: K slots a pair of state and action.

A pair with at most K successors is counted exactly. One with more keeps the most frequent: a successor without a slot
takes over that of the least frequent, count included (the Space-Saving sketch of Metwally, Agrawal, El Abbadi 2005), so
that the counts of a pair always add up to how often it was tried, and each is too high by at most the least of them.
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bilevel_rl.finite.model.mdp import FiniteMDP


class Counts(eqx.Module):
    """How often each transition was seen.

    Attributes:
        successors: [S, A, K] next states; S where a slot is empty.
        seen: [S, A, K] how often; 0 in empty slots.
    """

    successors: Int[Array, "S A K"]
    seen: Float[Array, "S A K"]

    @classmethod
    def empty(cls, states: int, actions: int, slots: int) -> Counts:
        """Before anything is seen, with `slots` a pair, or as many as there are states."""
        shape = states, actions, min(slots, states)
        return cls(jnp.full(shape, states, jnp.int32), jnp.zeros(shape))

    @property
    def tried(self) -> Float[Array, "S A"]:
        """How often each pair was tried."""
        return jnp.sum(self.seen, -1)

    def plus(self, s: Int[Array, " M"], a: Int[Array, " M"], s_next: Int[Array, " M"]) -> Counts:
        """With M transitions added, one after the other. Cost O(M K)."""

        def add(table, transition):
            successors, seen = table
            s, a, s_next = transition
            there = successors[s, a] == s_next
            # its own slot, else the least seen one, which is empty as long as any is
            slot = jnp.where(jnp.any(there), jnp.argmax(there), jnp.argmin(seen[s, a]))
            return (successors.at[s, a, slot].set(s_next), seen.at[s, a, slot].add(1.0)), None

        rows = s.astype(jnp.int32), a.astype(jnp.int32), s_next.astype(jnp.int32)
        return Counts(*jax.lax.scan(add, (self.successors, self.seen), rows)[0])

    def dense(self) -> Float[Array, "S A S"]:
        """Written out; for small S."""
        S, A, _ = self.seen.shape
        s, a = jnp.arange(S)[:, None, None], jnp.arange(A)[None, :, None]
        return jnp.zeros((S, A, S + 1)).at[s, a, self.successors].add(self.seen)[..., :-1]

    def model(self, mdp: FiniteMDP, begins: Float[Array, " S"]) -> FiniteMDP:
        """The MDP as counted; a pair never tried leads back to its own state.

        Args:
            mdp: whose discount, ends and action sets are known.
            begins: [S] how often an episode began in s.
        """
        tried = self.tried[..., None]
        stay = jnp.zeros_like(self.seen).at[..., 0].set(1.0)
        P = jnp.where(tried > 0, self.seen / jnp.maximum(tried, 1.0), stay)
        here = jnp.arange(mdp.n_states)[:, None, None]
        successors = jnp.where(self.seen > 0, self.successors, here).astype(mdp.successors.dtype)
        rest = mdp.discount, False, mdp.ends, mdp.allowed
        return FiniteMDP(successors, P, begins / jnp.sum(begins), None, None, *rest)
