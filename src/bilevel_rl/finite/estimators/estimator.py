r"""What every estimator of the coupled penalty is given, and what it returns.

With $\rho_t$ the ratio of the two followers' laws along a chain and $c_t = (1-\rho_t)/\bar w$, the penalty's part of the
hyper-gradient is $E_d[c\, \nabla r]$. Estimators differ in how they know c, and in whether they use it at all.
"""

from __future__ import annotations

import abc
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from bilevel_rl.finite.problem import BilevelProblem

LEAST_MEAN = 0.1  # ours: ratios are not divided by a batch mean below this


class Passage(NamedTuple):
    r"""One transition along each of N chains of $\pi$.

    Attributes:
        s, a, s_next: [N] the transitions.
        onward: [N] where the chains go on from: s_next, or a first state after a restart.
        restart: [N] whether they restarted.
        pi, pi_l: [N, A] both followers' policies in s.
        log_q: [N] $\log \pi^L/\pi(a|s)$, clipped.
        mine: [N] which chains followed this $\pi$; None for all of them.
    """

    s: Int[Array, " N"]
    a: Int[Array, " N"]
    s_next: Int[Array, " N"]
    onward: Int[Array, " N"]
    restart: Bool[Array, " N"]
    pi: Float[Array, "N A"]
    pi_l: Float[Array, "N A"]
    log_q: Float[Array, " N"]
    mine: Bool[Array, " N"] | None = None


class Lesson(NamedTuple):
    """Transitions that teach critics, the passage's N first, then others, of any policy.

    Attributes:
        s, a, s_next: [B] the transitions.
        pi_next: [B, A] the follower's policy in s_next.
        error_Q: [B] their temporal-difference errors under Q.
        weight: [B] by how much each counts; None for equally.
    """

    s: Int[Array, " B"]
    a: Int[Array, " B"]
    s_next: Int[Array, " B"]
    pi_next: Float[Array, "B A"]
    error_Q: Float[Array, " B"]
    weight: Float[Array, " B"] | None


class Estimate(NamedTuple):
    r"""What one passage says.

    Attributes:
        after: [N] $c$ after the action; weighs what follows the transition.
        rho: [N] $\rho$ after the action.
        weights: [N] c of $\nabla r(s,a)$; None where `terms` hold that part.
        terms: [d] each, what is known of the penalty's part without it.
    """

    after: Float[Array, " N"]
    rho: Float[Array, " N"]
    weights: Float[Array, " N"] | None
    terms: tuple[Float[Array, " d"], ...] = ()


class Estimator(eqx.Module):
    """How c is known.

    Attributes:
        clip: bound on the logarithm of a product of ratios.
        centre: whether what is known to have mean 0 is kept at it by batch means.
    """

    clip: Float[Array, ""] | float = 3.0
    centre: bool = eqx.field(static=True, default=True)

    name: ClassVar[str] = "estimator"

    @abc.abstractmethod
    def init(self, problem: BilevelProblem, x: Float[Array, " d"], chains: int) -> Any:
        """What it carries from step to step."""

    @abc.abstractmethod
    def step(
        self,
        problem: BilevelProblem,
        x: Float[Array, " d"],
        carry: Any,
        seen: Passage,
        lesson: Lesson,
        w,
        beta,
    ) -> tuple[Any, Estimate]:
        r"""What it carries after a passage, and what the passage says.

        Args:
            w: $\bar w = (1-\gamma) w$.
            beta: the critics' step size.
        """


Mine = Bool[Array, " N"] | None


def mean(values: Float[Array, "N ..."], mine: Mine = None) -> Float[Array, "..."]:
    """Mean over the chains that are mine, all of them when None; 0 over none."""
    if mine is None:
        return jnp.mean(values, axis=0)
    counted = jnp.where(mine.reshape(mine.shape + (1,) * (values.ndim - 1)), values, 0.0)
    return jnp.sum(counted, axis=0) / jnp.maximum(jnp.sum(mine), 1)


def centred(c: Float[Array, " N"], mine: Mine = None) -> Float[Array, " N"]:
    """c less the mean of the other chains' c: the mean of c is 0, and the mean of a product with c stays what it was."""
    N = c.shape[0]
    if mine is None:
        return (c - jnp.mean(c)) * N / (N - 1) if N > 1 else c
    n = jnp.sum(mine)
    return jnp.where(n > 1, (c - mean(c, mine)) * n / jnp.maximum(n - 1, 1), c)


def over_mean(rho: Float[Array, " N"], mine: Mine = None) -> Float[Array, " N"]:
    """Ratios over their batch mean, since their true mean is 1."""
    return rho / jnp.maximum(mean(rho, mine), LEAST_MEAN)


def of_rewards(
    problem: BilevelProblem, before: Float[Array, " N"], after: Float[Array, " N"], mine: Mine = None
) -> Float[Array, " N"]:
    r"""The c that weighs $\nabla r$: before the action where r depends on the state alone."""
    return centred(before if problem.state_reward else after, mine)
