r"""How the critics get to see what the follower would not do.

Critics that are learnt off policy take the expectation over the next action themselves, so any stream of transitions
teaches them. `Beside` asks the simulator for one from each chain's state; `Wanderers` walk on their own and are never
put anywhere, so that a real environment will do; on a `Ladder` they follow the follower for part of the way.
"""

from __future__ import annotations

import abc
from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bilevel_rl.finite.model import sampling
from bilevel_rl.finite.model.mdp import FiniteMDP

PATIENCE = 10.0  # ours: horizons after which a walk that has met no end is begun anew; it may never meet one

Policy = Callable[[Int[Array, " N"]], Float[Array, "N A"]] | None  # the follower's, in some states; few look at it


class Exploration(eqx.Module):
    """Transitions for the critics alone, as many as there are chains."""

    rows: int = eqx.field(static=True, default=2)  # uniform numbers a chain, beside the three of its own step

    @abc.abstractmethod
    def init(self, mdp: FiniteMDP, u: Float[Array, " N"]) -> Int[Array, " N"] | None:
        """Where its own walks begin; None where it has none."""

    @abc.abstractmethod
    def step(
        self, mdp: FiniteMDP, s: Int[Array, " N"], at: Int[Array, " N"] | None, policy: Policy, u: Float[Array, "rows N"]
    ) -> tuple[Int[Array, "3 M"] | None, Int[Array, " N"] | None]:
        """Transitions [3, M], None for none, and where its walks go on from, given that the chains are in s."""


class Nothing(Exploration):
    """The chains' own transitions are all there is."""

    def init(self, mdp, u):
        return None

    def step(self, mdp, s, at, policy, u):
        return None, None


class Beside(Exploration):
    """A uniformly random action from each chain's state: the simulator must be one that can be set to a state."""

    def init(self, mdp, u):
        return None

    def step(self, mdp, s, at, policy, u):
        a = sampling.any_action(mdp, s, u[0])
        return jnp.stack([s, a, sampling.next_state(mdp, s, a, u[1])]), None


class Wanderers(Exploration):
    r"""As many chains again, under uniformly random actions; episodes of their own, as long as the others' on average.

    Where the environment has ends, an episode goes on until one is reached, or for ten times as long where none is: a walk
    that is cut off after $1/(1-\gamma)$ steps seldom meets a goal that is far, and one that waits at an end sees nothing.
    """

    rows: int = eqx.field(static=True, default=3)

    def init(self, mdp, u):
        return sampling.start_state(mdp, u)

    def step(self, mdp, s, at, policy, u):
        a = self.action(mdp, at, policy, u[0])
        s_next = sampling.next_state(mdp, at, a, u[1])
        return jnp.stack([at, a, s_next]), _onward(mdp, s_next, u[2])

    def action(self, mdp: FiniteMDP, at: Int[Array, " N"], policy: Policy, u: Float[Array, " N"]) -> Int[Array, " N"]:
        """What they do in the states `at`."""
        return sampling.any_action(mdp, at, u)


class Ladder(Wanderers):
    r"""Chain n of N acts at random with probability n/N, and as the follower does otherwise: greedy to uniform."""

    def action(self, mdp, at, policy, u):
        N = at.shape[0]
        share = jnp.arange(1, N + 1) / N
        bold = u < share
        again = jnp.where(bold, u / share, (u - share) / jnp.maximum(1 - share, 1e-12))
        return jnp.where(bold, sampling.any_action(mdp, at, again), sampling.choose(policy(at), again).astype(at.dtype))


def _onward(mdp: FiniteMDP, s_next: Int[Array, " N"], u: Float[Array, " N"]) -> Int[Array, " N"]:
    """Where walks go on: from a first state after an end, or when it is late; as the chains do where nothing ends."""
    if mdp.ends is None:
        return sampling.continue_chain(mdp, s_next, u)[0]
    rate = (1 - mdp.discount) / PATIENCE
    late = u < rate
    first = sampling.start_state(mdp, jnp.minimum(jnp.where(late, u / rate, (u - rate) / (1 - rate)), 1 - 1e-12))
    return jnp.where(late | mdp.ends[s_next], first.astype(s_next.dtype), s_next)


KINDS = {"chains": Wanderers(), "ladder": Ladder(), "extra": Beside(), "none": Nothing()}
