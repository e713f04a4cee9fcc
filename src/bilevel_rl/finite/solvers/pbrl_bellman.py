r"""PBRL with the Bellman penalty: how far a policy is from greedy with respect to $Q^*_x$, strongly convex in the policy.

$$p(x, \pi) = g(x, \pi) - \min_\pi g(x, \pi), \qquad
g(x, \pi) = \sum_s m(s) \Big[-\langle \pi(\cdot|s), Q^*_x(s, \cdot)\rangle - \tau E(\pi, s)\Big]$$
"""

from __future__ import annotations

from typing import ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel_rl.finite.learn.followers import check_fields
from bilevel_rl.finite.model import planning
from bilevel_rl.finite.problem import BilevelProblem
from bilevel_rl.finite.solver import Solver, State
from bilevel_rl.schedules import TEMPERATURE, PowerDecay, TimeScales


class BellmanPenaltyState(State):
    """The policy that moves with x, as logits [S, A], and the lower level's value [S], a warm start."""

    theta: Float[Array, "S A"]
    V: Float[Array, " S"]


class PBRLBellman(Solver):
    r"""Penalty-based bi-level RL, Bellman penalty; uses the model, no samples.

    $$\nabla_x p = -\sum_{s,a} m(s)\,(\pi - \pi^*_x)(a|s)\,\nabla_x Q^*_x(s,a), \qquad
    \pi^*_x = \mathrm{softmax}(Q^*_x/\tau)$$

    An iteration solves for $Q^*_x$, then moves pi by mirror descent on $f + p/w$ and x along its gradient. The weights m
    must be above zero wherever the policy matters, or nothing holds the policy there. Supports kernels that depend on x,
    and every objective.

    Args:
        scales: zeta of x; alpha of pi, in 1/reward, at most $1/\tau$; w; tau. beta is not used.
        weights: m; `"uniform"`, or `"start"`, the paper's $\rho$, which it takes to be positive everywhere.
        outer: steps of pi for each of x; the paper's one.

    References:
        Shen, Yang, Chen 2024 (PBRL, Bellman penalty). $Q^*$ is solved by Newton's method and differentiated implicitly
        (ours; the paper iterates). Cost O(S^3) an iteration.
    """

    scales: TimeScales = TimeScales(
        PowerDecay(0.1), PowerDecay(10.0), PowerDecay(1.0), PowerDecay(0.01), PowerDecay(TEMPERATURE),
    )  # fmt: skip
    weights: Literal["uniform", "start"] = eqx.field(static=True, default="uniform")
    outer: int = eqx.field(static=True, default=5)

    name: ClassVar[str] = "pbrl_bellman"
    references: ClassVar[tuple[str, ...]] = ("shen2024pbrl",)

    def check(self, problem: BilevelProblem) -> None:
        self.scales.check(f"{self.name}.scales")
        check_fields(
            self.name,
            ("weights", self.weights, self.weights in ("uniform", "start"), "it must be 'uniform' or 'start'"),
            ("outer", self.outer, self.outer >= 1, "it must be at least 1"),
        )
        if self.weights == "start":
            least = float(jnp.min(problem.mdp.start))
            check_fields(
                self.name,
                ("weights", self.weights, least > 0, f"the start gives a state {least}; it must be 'uniform' here"),
            )

    def draws(self, problem: BilevelProblem) -> int:
        return 0

    def init(self, problem: BilevelProblem, x0, key) -> BellmanPenaltyState:
        S, A = problem.mdp.n_states, problem.mdp.n_actions
        return BellmanPenaltyState(x0, jnp.zeros((), int), jnp.zeros((S, A)), jnp.zeros(S))

    def step(self, problem: BilevelProblem, state: BellmanPenaltyState, k, noise) -> BellmanPenaltyState:
        now, x, objective = self.scales.at(k), state.x, problem.objective
        mdp, tau, alpha = problem.transitions(x), now.tau, jnp.minimum(now.alpha, 1 / now.tau)
        S = mdp.n_states
        m = (jnp.full(S, 1 / S) if self.weights == "uniform" else mdp.start)[:, None]
        best = planning.soft_optimal(mdp, problem.reward(x), tau, V=state.V)

        # pi descends f + p/w: its stationary point is softmax((Q* - w grad_theta f / (m pi)) / tau)
        def descend(theta, _):
            slope = jax.grad(lambda t: objective.value(x, jax.nn.softmax(t), problem))(theta)
            pi, log_pi = jax.nn.softmax(theta), jax.nn.log_softmax(theta)
            direction = best.Q - tau * log_pi - now.w * slope / jnp.maximum(m * pi, 1e-12)
            return jax.nn.log_softmax(theta + alpha * direction), None

        theta, _ = jax.lax.scan(descend, state.theta, None, length=self.outer)
        pi = jax.nn.softmax(theta)

        def lagrangian(x):
            Q = planning.soft_optimal(problem.transitions(x), problem.reward(x), tau, V=best.V).Q
            gap = jnp.sum(m * (jax.lax.stop_gradient(best.pi) - pi) * Q)
            return objective.value(x, pi, problem) + gap / now.w

        D = jax.grad(lagrangian)(x)
        return BellmanPenaltyState(problem.project(x - now.zeta * D), state.samples, theta, best.V)
