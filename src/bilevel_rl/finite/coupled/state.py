r"""What the coupled penalty method carries: both critics, the chains of $\pi$, and what one step adds to them."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bilevel_rl.finite.estimators import Passage
from bilevel_rl.finite.learn.replay import Replay
from bilevel_rl.finite.problem import ObjectiveSample
from bilevel_rl.finite.solver import State


class Crowd(NamedTuple):
    r"""What the chains say of the population, where rewards depend on it.

    Attributes:
        mu: [S, A] running mean of its flow.
        kappa: [S, A] running mean of $c\,1(s,a)$: how the flow answers to the leader's wishes, $(\mu - \mu^L)/\bar w$.
    """

    mu: Float[Array, "S A"]
    kappa: Float[Array, "S A"]

    def after(self, seen: Passage, c: Float[Array, " N"], rate) -> Crowd:
        """With what one passage says."""
        N = seen.s.shape[0]
        here = jnp.zeros_like(self.mu).at[seen.s, seen.a]
        return Crowd(
            self.mu + rate * (here.add(1 / N) - self.mu), self.kappa + rate * (here.add(c / N) - self.kappa)
        )


class CoupledState(State):
    r"""Coupled critics, the chains of $\pi$, and what the estimator carries.

    Attributes:
        Q: [S, A] value of the follower, entropy-regularised; centred, less its level over $1-\gamma$.
        D: [S, A] what the upper objective adds to it: $Q^L = Q + \bar w D$; centred alike.
        levels: [2] running means of the errors of Q and D; None where they are not centred.
        direct: [S, A] running mean of $g_\theta$; None when f is linear in the visitation.
        visits: [S] running mean of the chains' law; None when f is linear.
        estimate: what the estimator carries.
        s: [N] where the chains are.
        wanderers: [N] where the exploring chains are; None without them.
        replay: past transitions; None without replay.
        direction: [d] running mean of x's direction.
        crowd: the population's flow; None where one follower is all there is.
        squares: [d] running mean of the squares of x's direction, before it is averaged; None where x is free.
    """

    Q: Float[Array, "S A"]
    D: Float[Array, "S A"]
    levels: Float[Array, " 2"] | None
    direct: Float[Array, "S A"] | None
    visits: Float[Array, " S"] | None
    estimate: Any
    s: Int[Array, " N"]
    wanderers: Int[Array, " N"] | None
    replay: Replay | None
    direction: Float[Array, " d"]
    crowd: Crowd | None = None
    squares: Float[Array, " d"] | None = None


class Direct(NamedTuple):
    r"""What an objective that is not linear in the visitation adds at one step.

    Attributes:
        b: [S, A] what it adds to the logits of $\pi^L$ over $\bar w/\tau$; None where f is linear, as is the rest.
        xi: the sample of f.
        mean: [S, A] running mean of $g_\theta$.
        visits: [S] running mean of the chains' law.
    """

    b: Float[Array, "S A"] | None = None
    xi: ObjectiveSample | None = None
    mean: Float[Array, "S A"] | None = None
    visits: Float[Array, " S"] | None = None


class Errors(NamedTuple):
    """Temporal-difference errors of Q and D on a batch of B transitions, and pi in their next states [B, A]."""

    Q: Float[Array, " B"]
    D: Float[Array, " B"]
    pi_next: Float[Array, "B A"]
