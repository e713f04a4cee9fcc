"""Upper objective of a leader that is paid itself: its own return over a horizon, with its own discount."""

from __future__ import annotations

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel_rl.errors import InvalidProblem, message
from bilevel_rl.finite.model import sampling
from bilevel_rl.finite.problem import BilevelProblem, ObjectiveSample, UpperObjective


class LeaderReturn(UpperObjective):
    r"""The leader's own return, whose discount $\gamma_U$ need not be the follower's and may be 1.

    $$f(x, \pi) = -E\Big[\sum_{t < T} \gamma_U^t\, u(s_t, a_t)\Big]$$

    over trajectories of $\pi$ from the start distribution. `sample` draws B of them and uses the score function with a
    leave-one-out baseline of the rewards to go, from B T transitions.

    Args:
        utility: [S, A] or [S] u, in units of the objective.
        horizon: T >= 1.
        discount: $\gamma_U$ in [0, 1].
        trajectories: B >= 1, of an estimate.

    Raises:
        InvalidProblem: T or B below 1, or a discount outside [0, 1].

    References:
        The score function estimator, Williams 1992. Cost O(T S A K) of `value`, O(B T) of `sample`.
    """

    utility: Float[Array, "S A"]
    discount: float
    horizon: int = eqx.field(static=True)
    trajectories: int = eqx.field(static=True)

    name: ClassVar[str] = "leader_return"
    references: ClassVar[tuple[str, ...]] = ("williams1992reinforce",)

    def __init__(self, utility, horizon: int = 100, discount: float = 0.99, trajectories: int = 4):
        if horizon < 1 or trajectories < 1 or not 0 <= discount <= 1:
            raise InvalidProblem(
                message("LeaderReturn", f"horizon={horizon}, trajectories={trajectories}, discount={discount}",
                        "the first two must be at least 1, the discount in [0, 1]", "Mend the numbers")
            )  # fmt: skip
        utility = jnp.asarray(utility, float)
        self.utility = utility[:, None] if utility.ndim == 1 else utility
        self.discount, self.horizon, self.trajectories = float(discount), horizon, trajectories

    def value(self, x, pi, problem: BilevelProblem):
        mdp = problem.transitions(x)
        u = jnp.sum(pi * self.utility, -1)

        def step(d, weight):
            return mdp.flow(d[:, None] * pi), weight * jnp.dot(d, u)

        _, paid = jax.lax.scan(step, mdp.start, self.discount ** jnp.arange(self.horizon))
        return -jnp.sum(paid)

    def draws(self, problem):
        return {"start": (self.trajectories,), "steps": (self.trajectories, self.horizon, 2)}

    def sample(self, x, pi, problem: BilevelProblem, noise):
        B, T = self.trajectories, self.horizon
        mdp = problem.transitions(x)
        y = sampling.trajectories(mdp, pi, noise["start"], noise["steps"])  # [B, T]
        paid = self.discount ** jnp.arange(T) * self.utility[y.s, jnp.minimum(y.a, self.utility.shape[1] - 1)]
        to_go = jnp.cumsum(paid[:, ::-1], 1)[:, ::-1]
        # the other trajectories' mean: independent of the actions it is weighed with
        weight = -(to_go - (jnp.sum(to_go, 0) - to_go) / (B - 1) if B > 1 else to_go) / B
        score = (jax.nn.one_hot(y.a, mdp.n_actions) - pi[y.s]) * weight[..., None]
        grad_theta = jnp.zeros_like(pi).at[y.s].add(score)

        def surrogate(x):
            """Its gradient is that of the trajectories' law in x."""
            total, at = jnp.zeros(()), problem.transitions(x)
            if problem.moves_transitions and T > 1:
                total = total + jnp.sum(weight[:, 1:].ravel() * jnp.log(sampling.transition_probability(at, *y.steps)))
            if problem.moves_start:
                total = total + jnp.sum(weight[:, 0] * jnp.log(at.start[y.s[:, 0]]))
            return total

        return ObjectiveSample(-jnp.mean(to_go[:, 0]), jax.grad(surrogate)(x), grad_theta, jnp.asarray(B * T), y.steps)
