r"""BC-HG: the hyper-gradient as a covariance under the Boltzmann policy, one trajectory at a time.

$$g = \nabla_x c - E_d[\nabla_x u] - E_d\Big[\tfrac1\tau\, \partial_x Q_L(s,a)\, A_U(s,a)\Big], \qquad
A_U = Q_U - E_\pi Q_U$$
"""

from __future__ import annotations

from typing import ClassVar, Literal

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel_rl.finite.learn import rollouts
from bilevel_rl.finite.learn.followers import check_fields
from bilevel_rl.finite.learn.rollouts import TrajectorySolver
from bilevel_rl.finite.model import planning
from bilevel_rl.finite.problem import BilevelProblem
from bilevel_rl.finite.solver import State


class CovarianceState(State):
    """The follower's and the leader's tables.

    Attributes:
        Q: [S, A] value of the follower, entropy-regularised.
        Q_u: [S, A] leader's value, a discounted sum.
    """

    Q: Float[Array, "S A"]
    Q_u: Float[Array, "S A"]


class BoltzmannCovariance(TrajectorySolver):
    r"""Boltzmann-covariance hyper-gradient with a leader's critic that is carried from one iteration to the next.

    $A_U$ has mean zero under pi, so no $\partial_x V_L$ is needed, and no pair must be seen twice: each visit weighs its
    own return of $\partial_x r$ by the table's $A_U$. Given the table the estimate is unbiased but for the horizon. The
    table learns by SARSA from the same trajectories, after it was used; with `order="learn"` before, as in the authors'
    code: it is then fresher, and depends on what it weighs.

    The follower: `"q_learning"`, a soft Q table, carried and taught by the same transitions; or `"soft_vi"`, which plans
    with the model, so that only the leader samples. Supports kernels that depend on x, and every objective: where f is not
    linear in the visitation, $-g_\theta/\pi$ of its own sample stands in for $A_U$ in the states visited (ours).

    Args:
        scales: zeta, beta and tau are used.
        clip: bound on the length of g.
        optimism: initial value of Q.
        hold: iterations for which x stays while the tables catch up.
        trajectories: N an iteration.
        horizon: T transitions each; what lies beyond is cut off, a bias of order $\gamma^T$.
        episode: None for one episode a trajectory; else a trajectory is a stream of episodes of at most that many
            transitions, a new one beginning where one has ended: no transition is spent where all is over.
        follower: `"q_learning"` or `"soft_vi"`.
        passes: over the batch by Q-learning and SARSA, an iteration.
        sweeps: of soft value iteration, an iteration; None for as many as passes.
        explore: `"extra"` adds one transition of a random action from each state seen, for Q-learning only; `"none"`.
        order: whether the leader's table is used on a batch before it learns from it, `"use"`, or after, `"learn"`.
        baseline: `"visits"` subtracts from each visit's return of $\partial_x r$ the mean over its state's other visits,
            an estimate of $\partial_x V_L$, and V(s) from the V(s') that derivatives of log P weigh (ours): less variance
            where states are seen often; `"none"`.

    References:
        arXiv 2603.14867 (BC-HG). Cost O(N T (passes + A) + S A + d) an iteration.
    """

    trajectories: int = eqx.field(static=True, default=8)
    order: Literal["use", "learn"] = eqx.field(static=True, default="use")

    name: ClassVar[str] = "boltzmann_covariance"
    references: ClassVar[tuple[str, ...]] = ("bchg2026",)

    def check(self, problem: BilevelProblem) -> None:
        super().check(problem)
        check_fields(
            self.name, ("order", self.order, self.order in ("use", "learn"), "it must be 'use' or 'learn'")
        )

    def init(self, problem: BilevelProblem, x0, key) -> CovarianceState:
        shape = problem.mdp.n_states, problem.mdp.n_actions
        return CovarianceState(
            x0, jnp.zeros((), int), jnp.full(shape, jnp.asarray(self.optimism, float)), jnp.zeros(shape)
        )

    def step(self, problem: BilevelProblem, state: CovarianceState, k, noise) -> CovarianceState:
        now, gamma, x = self.scales.at(k), problem.mdp.discount, state.x
        mdp, tau, objective = problem.transitions(x), now.tau, problem.objective
        N, T, centred = self.trajectories, self.horizon, self.baseline == "visits"
        Q, pi, seen = self.play(problem, mdp, x, state.Q, tau, noise)
        s, a, Q_u = seen.s.ravel(), seen.a.ravel(), state.Q_u

        # c_t = (1 - gamma) gamma^t A_U(s_t, a_t) / (N tau) weighs the trajectory's own d_x Q_L
        used = N * T
        if objective.linear:
            # Q_U <- Q_U + beta (u + gamma Q_U(s', a') - Q_U), by SARSA
            u = objective.bonus_at(x, s, a).reshape(N, T)
            learnt = rollouts.sarsa(Q_u, pi, seen, u, gamma, now.beta, self.passes)
            if self.order == "learn":
                Q_u = learnt
            V_u = jnp.sum(pi * Q_u, -1)
            A_u = Q_u - V_u[:, None]
            c = rollouts.discounts(seen, gamma) * A_u[seen.s, seen.a] / tau
            ahead = V_u[seen.s_next] - V_u[seen.s] if centred else V_u[seen.s_next]
            g = rollouts.direct(problem, x, seen, ahead, V_u[seen.s])
            Q_u = learnt
        else:
            # the mean over a state's visits of g_theta / pi times d_x Q_L is the sum over its actions
            xi = objective.sample(x, pi, problem, noise["upper"])
            visits = jnp.sum(rollouts.totals(seen, Q.shape, jnp.ones((N, T)))[0], -1)
            c = -(xi.grad_theta / pi)[seen.s, seen.a] / (visits[seen.s] * tau)
            g, used = xi.grad_x, used + xi.transitions
        if centred:
            c = rollouts.less_others(c, seen, Q.shape[0])
        g = g + rollouts.response(problem, x, seen, c, mdp.ongoing(planning.soft_value(Q, tau)), centred)

        Q, beside = self.learn(problem, mdp, x, Q, seen, now, noise)
        # x <- x - zeta g
        return CovarianceState(self.moved(problem, x, g, k, now.zeta), state.samples + used + beside, Q, Q_u)

    def tracked(self, problem, state, k):
        return planning.soft_policy(state.Q, self.scales.at(k).tau)
