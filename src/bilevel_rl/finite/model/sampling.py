"""Drawing from a finite MDP: restart chains whose law is the visitation, i.i.d. visitation draws, trajectories.

Every draw is a pure function of uniform numbers in [0, 1). Two chains fed the same numbers share their randomness
(common random numbers). Costs do not depend on the number of states.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from bilevel_rl.finite.model import small
from bilevel_rl.finite.model.mdp import FiniteMDP

COUNT_TABLE = 2**15  # ours: up to this many entries a table of counts is cleared every time


def choose(p: Float[Array, "*N A"], u: Float[Array, "*N"]) -> Int[Array, "*N"]:
    """Index drawn from each row of `p` by inverse CDF."""
    # scaled by the row's own sum, so that rounding never selects past the end
    threshold = u * small.total(p)
    if p.shape[-1] > small.SHORT:
        return jnp.sum(jnp.cumsum(p, axis=-1)[..., :-1] <= threshold[..., None], axis=-1)
    below, index = jnp.zeros_like(u), jnp.zeros(u.shape, jnp.int32)
    for j in range(p.shape[-1] - 1):
        below = below + p[..., j]
        index = index + (below <= threshold)
    return index


def start_state(mdp: FiniteMDP, u: Float[Array, "*N"]) -> Int[Array, "*N"]:
    """First states drawn from `mdp.start` by its alias table: O(1) each; by cumulated sums where there is none."""
    if mdp.start_alias is None:
        upto = jnp.cumsum(mdp.start)
        return jnp.searchsorted(upto[:-1], u * upto[-1], side="right").astype(jnp.int32)
    scaled = u * mdp.n_states
    cell = jnp.minimum(scaled.astype(jnp.int32), mdp.n_states - 1)
    return jnp.where(scaled - cell < small.rows(mdp.start_keep, cell), cell, small.rows(mdp.start_alias, cell))


def next_state(mdp: FiniteMDP, s: Int[Array, "*N"], a: Int[Array, "*N"], u: Float[Array, "*N"]) -> Int[Array, "*N"]:
    """Next states. Where the episode ends, what is left of `u` draws the new episode's first state."""
    A, K = mdp.n_actions, mdp.successors.shape[-1]
    pair = s * A + a
    p = mdp.rows(s, a)
    k = choose(p, u)
    s_next = small.rows(mdp.successors.ravel(), pair * K + k)
    if not mdp.episodic:
        return s_next
    chosen = jax.nn.one_hot(k, p.shape[-1])
    below = jnp.sum(p * (jnp.arange(p.shape[-1]) < k[..., None]), axis=-1)
    left = jnp.clip((u * jnp.sum(p, -1) - below) / jnp.sum(p * chosen, -1), 0.0, 1.0 - 1e-12)
    return jnp.where(s_next == mdp.n_states, start_state(mdp, left), s_next)


def any_action(mdp: FiniteMDP, s: Int[Array, " N"], u: Float[Array, " N"]) -> Int[Array, " N"]:
    """Actions drawn uniformly among those that the states s offer."""
    A = mdp.n_actions
    if mdp.allowed is None:
        return jnp.minimum((u * A).astype(s.dtype), A - 1)
    return choose(small.rows(mdp.allowed, s).astype(u.dtype), u).astype(s.dtype)


def transition_probability(
    mdp: FiniteMDP, s: Int[Array, " N"], a: Int[Array, " N"], s_next: Int[Array, " N"]
) -> Float[Array, " N"]:
    """$P(s'|s,a)$ of each transition, restarts of ended episodes included. Cost O(N K)."""
    successors = mdp.successors[s, a]  # [N, K]
    there = (successors == s_next[:, None]).astype(mdp.probabilities.dtype)
    if mdp.episodic:
        there = there + (successors == mdp.n_states) * mdp.start[s_next][:, None]
    return jnp.sum(mdp.rows(s, a) * there, -1)


def continue_chain(
    mdp: FiniteMDP, s_next: Int[Array, " N"], u: Float[Array, " N"]
) -> tuple[Int[Array, " N"], Bool[Array, " N"]]:
    r"""The restart chain: with probability $1-\gamma$ start anew from rho. Its stationary law is the visitation.

    Returns:
        The states to go on from, and which of them are restarts.
    """
    restart = u < 1 - mdp.discount
    fresh = start_state(mdp, jnp.minimum(u / (1 - mdp.discount), 1 - 1e-12))
    return jnp.where(restart, fresh, s_next), restart


def visit_mean(
    index: Int[Array, " N"], size: int, values: Float[Array, "N ..."], counts: Bool[Array, " N"] | None = None
) -> Float[Array, "N ..."]:
    """Divide each sample's value by how many samples of the batch share its index.

    Added up by index, the results are the mean over the samples that visit it.

    Args:
        counts: which samples are any; the value of the others becomes 0. None for all.
    """
    if counts is not None:
        values = jnp.where(counts.reshape(counts.shape + (1,) * (values.ndim - 1)), values, 0.0)
    if index.shape[0] == 1:
        return values
    ones = jnp.ones(index.shape, values.dtype) if counts is None else counts.astype(values.dtype)
    if size <= COUNT_TABLE:
        count = small.rows(small.add_rows(jnp.zeros(size, values.dtype), index, ones), index)
    else:  # clearing a table would cost more than sorting the batch
        count = _shared(index if counts is None else jnp.where(counts, index, size), size).astype(values.dtype)
    if counts is not None:
        count = jnp.maximum(count, 1.0)
    return values / count.reshape(count.shape + (1,) * (values.ndim - 1))


def _shared(index: Int[Array, " N"], size: int) -> Int[Array, " N"]:
    """How many entries of `index`, all at most `size`, equal each; O(N log N), whatever the size."""
    N = index.shape[0]
    # one number holds index and place: sorting single numbers is ten times as fast as sorting pairs or looking numbers up
    key = index.astype(int) * N + jnp.arange(N)
    assert (size + 1) * N <= jnp.iinfo(key.dtype).max, "64 bits are needed here, in which `solve` computes"
    key = jnp.sort(key)
    index, place = key // N, key % N
    group = jnp.cumsum(jnp.append(False, index[1:] != index[:-1]))
    members = small.rows(small.add_rows(jnp.zeros(N, int), group, jnp.ones(N, int)), group)
    return small.set_rows(jnp.zeros(N, int), place, members)


class Trajectories(NamedTuple):
    """N trajectories of T steps: states [N, T], actions [N, T]."""

    s: Int[Array, "N T"]
    a: Int[Array, "N T"]

    @property
    def steps(self) -> Int[Array, "3 M"]:
        """States, actions and next states of the N (T - 1) transitions whose end is among the states."""
        return jnp.stack([self.s[:, :-1].ravel(), self.a[:, :-1].ravel(), self.s[:, 1:].ravel()])


def trajectories(
    mdp: FiniteMDP, pi: Float[Array, "S A"], u_start: Float[Array, " N"], u: Float[Array, "N T 2"]
) -> Trajectories:
    """Trajectories from `start` under `pi`, without discount or restart of their own."""

    def step(s, u):
        a = choose(pi[s], u[:, 0])
        return next_state(mdp, s, a, u[:, 1]), (s, a)

    _, (s, a) = jax.lax.scan(step, start_state(mdp, u_start), jnp.moveaxis(u, 1, 0))
    return Trajectories(s.T, a.T)


def visitation_draws(
    mdp: FiniteMDP, logits: Float[Array, "S A"], key: Array, n: int
) -> tuple[Int[Array, " N"], Int[Array, ""]]:
    r"""n independent states from $d^\pi$, each the end of a fresh trajectory of geometric length.

    Honest i.i.d. sampling: every transition on the way is counted.

    Returns:
        states [n], and the number of transitions used.
    """
    key, first = jax.random.split(key)
    u = jax.random.uniform(first, (2, n))
    length = jnp.floor(jnp.log1p(-u[0]) / jnp.log(mdp.discount)).astype(jnp.int32)

    def walk(carry):
        t, s, key = carry
        key, sub = jax.random.split(key)
        v = jax.random.uniform(sub, (2, n))
        a = choose(jax.nn.softmax(logits[s]), v[0])
        return t + 1, jnp.where(t < length, next_state(mdp, s, a, v[1]), s), key

    _, s, _ = jax.lax.while_loop(lambda c: c[0] < jnp.max(length), walk, (0, start_state(mdp, u[1]), key))
    return s, jnp.sum(length)
