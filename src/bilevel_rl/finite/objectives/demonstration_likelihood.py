"""Upper objective of inverse reinforcement learning: how badly the follower explains what an expert did."""

from __future__ import annotations

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bilevel_rl.errors import InvalidProblem, message
from bilevel_rl.finite.model import planning, sampling
from bilevel_rl.finite.problem import BilevelProblem, ObjectiveSample, UpperObjective


class DemonstrationLikelihood(UpperObjective):
    r"""Negative log-likelihood of demonstrated actions under the follower's policy.

    $$f(x, \pi) = -\sum_{s,a} n(s,a) \log \pi(a|s) + \lambda |x|^2$$

    with n the shares of the demonstrated pairs, which sum to one. `sample` draws B demonstrated pairs and uses no
    transition; with B = 0 it takes all of them, and is exact.

    Args:
        counts: [S, A] how often each pair was demonstrated.
        regulariser: $\lambda$.
        batch: B.

    Raises:
        InvalidProblem: no demonstration, a negative count, or B below 0.

    Example:
        >>> from bilevel_rl.finite.problems.probes import Bandit
        >>> f = DemonstrationLikelihood(jnp.array([[2.0, 1.0, 1.0]]))
        >>> round(float(f.value(jnp.zeros(3), jnp.array([[0.5, 0.25, 0.25]]), Bandit())), 4)
        1.0397
    """

    shares: Float[Array, "S A"]
    regulariser: float
    batch: int = eqx.field(static=True)

    name: ClassVar[str] = "demonstration_likelihood"
    references: ClassVar[tuple[str, ...]] = ("ziebart2010causal",)

    def __init__(self, counts, regulariser: float = 0.0, batch: int = 0):
        counts = np.asarray(counts, float)
        if counts.min() < 0 or not counts.sum() > 0 or batch < 0:
            raise InvalidProblem(
                message("DemonstrationLikelihood", f"counts in [{counts.min()}, {counts.max()}], batch={batch}",
                        "counts must be at least 0 and some above it, the batch at least 0", "Count the demonstrations")
            )  # fmt: skip
        self.shares, self.regulariser, self.batch = jnp.asarray(counts / counts.sum()), regulariser, batch

    def value(self, x, pi, problem: BilevelProblem):
        log_pi = jnp.log(jnp.where(self.shares > 0, pi, 1.0))
        return -jnp.sum(self.shares * log_pi) + self.regulariser * jnp.sum(x**2)

    def draws(self, problem):
        return self.batch

    def sample(self, x, pi, problem: BilevelProblem, noise):
        if not self.batch:
            return super().sample(x, pi, problem, noise)
        pair = sampling.choose(jnp.broadcast_to(self.shares.ravel(), (self.batch, self.shares.size)), noise)
        s, a = jnp.divmod(pair, self.shares.shape[1])
        ridge = self.regulariser * jnp.sum(x**2)
        score = (jax.nn.one_hot(a, pi.shape[1]) - pi[s]) / self.batch
        value = -jnp.mean(jnp.log(pi[s, a])) + ridge
        grad_theta = jnp.zeros_like(pi).at[s].add(-score)
        return ObjectiveSample(value, 2 * self.regulariser * x, grad_theta, jnp.zeros((), int))


def demonstrations(
    mdp, pi: Float[Array, "S A"], episodes: int | None, steps: int, seed: int = 0
) -> Float[Array, "S A"]:
    """How often an expert that follows pi visits each pair: in so many episodes of some steps; exactly, when None."""
    if episodes is None:
        return planning.visitation(mdp, pi)[:, None] * pi
    u = jnp.asarray(np.random.default_rng(seed).uniform(size=(episodes, 1 + 2 * steps)))
    y = sampling.trajectories(mdp, pi, u[:, 0], u[:, 1:].reshape(episodes, steps, 2))
    counted = jnp.zeros(pi.shape).at[y.s, y.a].add(1.0)
    return counted if mdp.ends is None else jnp.where(mdp.ends[:, None], 0.0, counted)
