r"""Counts of transitions in sparse storage, and the MDP that they make: memory linear in the transitions seen.

One row a distinct (s, a, s'), sorted, so that sums over a pair are sums over neighbours. Where x moves the kernel, what was
drawn under another x counts by the known likelihoods: with $n(s,a)$ tries of a pair in all,

$$\hat P_x(s'|s,a) \propto P_x(s'|s,a) \sum_i \frac{1[s'_i = s']}{P_{x_i}(s'|s,a)}$$

The mean of that sum is n(s,a) for every s' that can come, whichever x they were drawn under; so $\hat P_x$ is differentiable
in x through the known $P_x$, and where x moves nothing it is the share n(s,a,s')/n(s,a).
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bilevel_rl.finite.model import sampling
from bilevel_rl.finite.model.mdp import FiniteMDP

LIKELY = 1e-12  # ours: a drawn transition counts as if it had been at least so likely


class Counts(eqx.Module):
    """How often each transition was seen, in C rows, the empty ones last.

    Attributes:
        key: [C] (s A + a) S + s', in order; S A S where a row is empty.
        seen: [C] how often; 0 in empty rows.
        weight: [C] the sum over those of one over their likelihood; None where x does not move the kernel.
        states, actions: S and A.
    """

    key: Int[Array, " C"]
    seen: Float[Array, " C"]
    weight: Float[Array, " C"] | None
    states: int = eqx.field(static=True)
    actions: int = eqx.field(static=True)

    @classmethod
    def empty(cls, states: int, actions: int, rows: int, moving: bool = False) -> Counts:
        """Before anything is seen, with room for `rows` distinct transitions, or for all there can be."""
        C = min(rows, states * actions * states)
        zeros = jnp.zeros(C)
        return cls(jnp.full(C, states * actions * states, int), zeros, zeros if moving else None, states, actions)

    @property
    def pair(self) -> Int[Array, " C"]:
        """s A + a of each row; S A where it is empty."""
        return self.key // self.states

    @property
    def tried(self) -> Float[Array, "S A"]:
        """How often each pair was tried."""
        size = self.states * self.actions
        sums = jax.ops.segment_sum(self.seen, self.pair, size + 1, indices_are_sorted=True)
        return sums[:-1].reshape(self.states, self.actions)

    def plus(
        self, s: Int[Array, " M"], a: Int[Array, " M"], s_next: Int[Array, " M"],
        likelihood: Float[Array, " M"] | None = None,
    ) -> Counts:  # fmt: skip
        """With M transitions added; where there is no room, those seen least often are forgotten. Cost O((C + M) log)."""
        C, M = self.key.shape[0], s.shape[0]
        none = self.states * self.actions * self.states
        new = (s.astype(int) * self.actions + a) * self.states + s_next
        key = jnp.concatenate([self.key, new])
        order = jnp.argsort(key)
        key = key[order]
        row = jnp.cumsum(jnp.append(False, key[1:] != key[:-1]))  # of each, among the distinct ones

        def summed(old: Float[Array, " C"], fresh: Float[Array, " M"]) -> Float[Array, " CM"]:
            return jax.ops.segment_sum(jnp.concatenate([old, fresh])[order], row, C + M, indices_are_sorted=True)

        distinct = jnp.full(C + M, none, int).at[row].set(key)
        seen = summed(self.seen, jnp.ones(M))
        kept = jnp.arange(C)
        if none > C:  # the most frequent ones, in the order of their keys; empty rows come last in both
            kept = jnp.sort(jnp.argsort(-seen, stable=True)[:C])
        weight = None
        if self.weight is not None:
            assert likelihood is not None, "known where x moves the kernel"
            weight = summed(self.weight, 1 / jnp.maximum(likelihood, LIKELY))[kept]
        return Counts(distinct[kept], seen[kept], weight, self.states, self.actions)

    def dense(self) -> Float[Array, "S A S"]:
        """Written out; for small S."""
        S, A = self.states, self.actions
        return jnp.zeros(S * A * S).at[self.key].add(self.seen, mode="drop").reshape(S, A, S)

    def model(self, mdp: FiniteMDP, begins: Float[Array, " S"]) -> CountedMDP:
        """The MDP as counted.

        Args:
            mdp: the problem's own, whose discount, ends and action sets are known; and, where x moves it, how.
            begins: [S] how often an episode began in s, or where x moves the start the sum of one over its likelihood.
        """
        used = self.seen if self.weight is None else self.weight
        return CountedMDP(
            mdp.successors, mdp.probabilities, begins / jnp.sum(begins), None, None, mdp.discount, False, mdp.ends,
            mdp.allowed, known=mdp, pair=self.pair, to=(self.key % self.states).astype(jnp.int32), weight=used,
            share=_shares(used, self.pair, self.states * self.actions), begins=begins,
        )  # fmt: skip


class CountedMDP(FiniteMDP):
    """Transitions as rows of (s, a), s' and a probability; a pair never tried leads back to its own state.

    `successors` and `probabilities` are the known MDP's: what x does to them (`with_probabilities`) is done to the counts.

    Attributes:
        known: the MDP of which x moves the known part.
        pair, to: [C] s A + a, and s'; S A in empty rows.
        weight: [C] counts, or sums of inverse likelihoods.
        share: [C] the probability.
        begins: [S] as `Counts.model` was given them.
    """

    known: FiniteMDP = eqx.field(kw_only=True)
    pair: Int[Array, " C"] = eqx.field(kw_only=True)
    to: Int[Array, " C"] = eqx.field(kw_only=True)
    weight: Float[Array, " C"] = eqx.field(kw_only=True)
    share: Float[Array, " C"] = eqx.field(kw_only=True)
    begins: Float[Array, " S"] = eqx.field(kw_only=True)

    @property
    def untried(self) -> Float[Array, "S A"]:
        """1 where a pair was never tried, else 0."""
        S, A = self.n_states, self.n_actions
        return 1.0 - jnp.zeros(S * A + 1).at[self.pair].set(1.0)[:-1].reshape(S, A)

    def expect(self, v):
        S, A = self.n_states, self.n_actions
        sums = jax.ops.segment_sum(self.share * v[self.to], self.pair, S * A + 1, indices_are_sorted=True)
        return sums[:-1].reshape(S, A) + self.untried * v[:, None]

    def flow(self, mu):
        mass = self.share * jnp.append(mu.ravel(), 0.0)[self.pair]
        return jnp.sum(self.untried * mu, axis=1).at[self.to].add(mass)

    def arrows(self, pi):
        S, A = self.n_states, self.n_actions
        stay = jnp.sum(self.untried * pi, axis=1)
        weight = jnp.concatenate([self.share * jnp.append(pi.ravel(), 0.0)[self.pair], stay])
        here = jnp.arange(S, dtype=self.to.dtype)
        row = jnp.minimum(self.pair // A, S - 1).astype(self.to.dtype)
        return jnp.concatenate([row, here]), jnp.concatenate([self.to, here]), weight

    def under(self, pi):
        s, to, weight = self.arrows(pi)
        return jnp.zeros((self.n_states, self.n_states)).at[s, to].add(weight)

    def dense(self):
        S, A = self.n_states, self.n_actions
        P = jnp.zeros((S * A + 1, S)).at[self.pair, self.to].add(self.share)[:-1].reshape(S, A, S)
        return P + self.untried[..., None] * jnp.eye(S)[:, None, :]

    def mean_reward(self, reward):
        S, A = self.n_states, self.n_actions
        paid = self.share * jnp.append(reward.reshape(S * A, S), jnp.zeros((1, S)), axis=0)[self.pair, self.to]
        sums = jax.ops.segment_sum(paid, self.pair, S * A + 1, indices_are_sorted=True)
        return sums[:-1].reshape(S, A) + self.untried * jnp.diagonal(reward, axis1=0, axis2=2).T

    def with_probabilities(self, probabilities):
        moved = self.known.with_probabilities(probabilities)
        s, a = jnp.divmod(jnp.minimum(self.pair, self.n_states * self.n_actions - 1), self.n_actions)
        weight = self.weight * sampling.transition_probability(moved, s, a, self.to)
        share = _shares(weight, self.pair, self.n_states * self.n_actions)
        return eqx.tree_at(lambda m: (m.share, m.known), self, (share, moved))

    def with_start(self, start):
        begins = self.begins * start
        known = self.known.with_start(start)
        return eqx.tree_at(lambda m: (m.start, m.known), self, (begins / jnp.sum(begins), known))


def _shares(weight: Float[Array, " C"], pair: Int[Array, " C"], size: int) -> Float[Array, " C"]:
    """Each row's part of what its pair has."""
    total = jax.ops.segment_sum(weight, pair, size + 1, indices_are_sorted=True)[pair]
    return jnp.where(total > 0, weight / jnp.where(total > 0, total, 1.0), 0.0)
