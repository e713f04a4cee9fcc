r"""The paper's single loop with its expectations taken exactly: what the sampled algorithm does on average.

$$V \leftarrow V + \beta_k \,\mathbb{E}[G], \quad \theta \leftarrow \theta + \alpha_k \,\mathbb{E}[F_0], \quad
\theta^L \leftarrow \theta^L + \alpha_k \,\mathbb{E}[F_w], \quad x \leftarrow \Pi_X(x - \zeta_k \,\mathbb{E}[D])$$
"""

from __future__ import annotations

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel_rl.finite.learn import followers
from bilevel_rl.finite.model import planning
from bilevel_rl.finite.problem import BilevelProblem
from bilevel_rl.finite.solver import Solver, State
from bilevel_rl.loop import leader
from bilevel_rl.schedules import TimeScales


class Tables(eqx.Module):
    """One lower level without chains: theta [S, A] logits, V [S] critic."""

    theta: Float[Array, "S A"]
    V: Float[Array, " S"]


class ExactPenaltyState(State):
    """Both followers."""

    follower: Tables
    follower_l: Tables


class ExactPenalty(Solver):
    r"""Single-loop penalty actor-critic with expected updates; uses the model, no samples.

    $$\mathbb{E}[G](s) = m(s)\, \textstyle\sum_a \pi(a|s)\, \delta(s,a), \qquad
    \mathbb{E}[F](s,a) = m(s)\, \Big(\pi(a|s)\,\big(\delta(s,a) - \textstyle\sum_b \pi(b|s)\,\delta(s,b)\big)
    + \tau\, \partial_{\theta(s,a)} E(\pi, s)\Big)$$

    with $\delta(s,a) = r_x(s,a) + \tau E(\pi,s) + \gamma (PV)(s,a) - V(s)$. The weight m is the visitation, the mean of
    `penalty_actor_critic` with one chain; or 1, its mean with infinitely many chains, where samples of a state are
    averaged. Supports kernels that depend on x, and every objective.

    Args:
        scales: the five sequences.
        per_state: m = 1 (True) or the visitation (False).
        hold: iterations for which x stays while the followers catch up; 0 is the paper's.

    Example:
        >>> from bilevel_rl.finite import solve
        >>> from bilevel_rl.finite.problems.goal_placement import GoalPlacement
        >>> trace = solve(GoalPlacement(), ExactPenalty(hold=200.0), iterations=2000)
        >>> bool(trace["objective"][0, -1] < trace["objective"][0, 0])
        True

    References:
        arXiv 2601.16399, Algorithm 1, in expectation. Cost of two linear solves, O(S^3), an iteration.
    """

    scales: TimeScales = TimeScales.constant_entropy(zeta=1.0, alpha=2.0, beta=1.0, w=1.0)
    hold: float = 0.0
    per_state: bool = eqx.field(static=True, default=True)

    name: ClassVar[str] = "exact_penalty"
    references: ClassVar[tuple[str, ...]] = ("zeng2026hessianfree",)

    def check(self, problem: BilevelProblem) -> None:
        self.scales.check(f"{self.name}.scales")
        followers.check_fields(self.name, leader.held(self.hold))

    def draws(self, problem: BilevelProblem) -> int:
        return 0

    def init(self, problem: BilevelProblem, x0, key) -> ExactPenaltyState:
        S, A = problem.mdp.n_states, problem.mdp.n_actions
        follower = Tables(jnp.zeros((S, A)), jnp.zeros(S))
        return ExactPenaltyState(x0, jnp.zeros((), int), follower, follower)

    def step(self, problem: BilevelProblem, state: ExactPenaltyState, k, noise) -> ExactPenaltyState:
        now, gamma, x, objective = self.scales.at(k), problem.mdp.discount, state.x, problem.objective
        mdp, r = problem.transitions(x), problem.reward(x)
        pi, pi_l = jax.nn.softmax(state.follower.theta), jax.nn.softmax(state.follower_l.theta)
        d, d_l = planning.visitation(mdp, pi), planning.visitation(mdp, pi_l)

        if objective.linear:
            r_l, penalty = problem.penalised_reward(x, now.w), 0.0
        else:
            grad_theta = jax.grad(lambda t: objective.value(x, jax.nn.softmax(t), problem))(state.follower_l.theta)
            r_l, penalty = r, (1 - gamma) * now.w * grad_theta

        # V <- V + beta E[G];  theta <- theta + alpha E[F]
        follower = self._learn(mdp, state.follower, pi, d, r, now)
        follower_l = self._learn(mdp, state.follower_l, pi_l, d_l, r_l, now, penalty)

        # x <- x - zeta E[D]: rewards and kernel under the visitations, values by the critics
        def lagrangian(x):
            def mean(d, pi, V, moved=problem.moves_transitions):
                ahead = gamma * problem.transitions(x).expect(V) if moved else 0.0
                first = (1 - gamma) * jnp.dot(problem.transitions(x).start, V) if problem.moves_start else 0.0
                return jnp.sum(d[:, None] * pi * (problem.reward(x) + ahead)) + first

            rewards = mean(d, pi, follower.V) - mean(d_l, pi_l, follower_l.V)
            if objective.linear:
                upper = objective.visited_value(x, d_l[:, None] * pi_l)
            else:
                upper = objective.value(x, pi_l, problem)
            return upper + rewards / (now.w * (1 - gamma))

        D = jax.grad(lagrangian)(x)
        moved = leader.descend(problem, x, D, k, now.zeta, self.hold)
        return ExactPenaltyState(moved, state.samples, follower, follower_l)

    def policies(self, problem, state, k):
        return jax.nn.softmax(state.follower.theta), jax.nn.softmax(state.follower_l.theta)

    def _learn(self, mdp, f: Tables, pi, d, r, now, penalty=0.0) -> Tables:
        m = jnp.ones_like(d) if self.per_state else d
        E = planning.counted_entropy(mdp, pi)
        delta = r + (now.tau * E - f.V)[:, None] + mdp.discount * mdp.expect(f.V)
        mean = jnp.sum(pi * delta, -1)
        entropy_slope = jax.scipy.special.entr(pi) - pi * planning.entropy(pi)[:, None]  # of E(pi, s) in the logits of s
        if mdp.ends is not None:
            entropy_slope = jnp.where(mdp.ends[:, None], 0.0, entropy_slope)
        F = pi * (delta - mean[:, None]) + now.tau * entropy_slope
        theta = f.theta + now.alpha * (m[:, None] * F - penalty)
        return Tables(theta, f.V + now.beta * m * mean)
