r"""HPGD: stochastic hyper policy gradient descent from trajectories of a soft-optimal follower.

$$g = \nabla_x c - E_d[\nabla_x u] - E_d\Big[
\tfrac1\tau \hat A_U(s,a)\,\big(\partial_x \hat Q_L(s,a) - \partial_x \hat V_L(s)\big)\Big], \qquad
x \leftarrow \Pi_X(x - \zeta_k\, g)$$
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


class HPGDState(State):
    """The follower, and the leader's critic where it is carried.

    Attributes:
        Q: [S, A] value of the follower, entropy-regularised.
        Q_u: [S, A] leader's value, a discounted sum; None with Monte-Carlo means.
    """

    Q: Float[Array, "S A"]
    Q_u: Float[Array, "S A"] | None


class HPGD(TrajectorySolver):
    r"""Hyper policy gradient descent: the leader needs trajectories of the follower, and no more.

    Hats are every-visit Monte-Carlo means over the batch: $\hat Q(s,a)$ of what followed the visits of $(s,a)$,
    $\hat V(s)$ of what followed those of $s$. With `critic="sarsa"` $\hat A_U$ comes from a table that is carried from one
    iteration to the next and learns from its transitions; $\partial_x \hat Q_L - \partial_x \hat V_L$ remains Monte Carlo.
    Every pair's means share their visits, so the estimate has a bias that falls as one over the visits; a pair that is the
    only one seen in its state counts for nothing.

    The follower: `"q_learning"` is a soft Q table, carried and taught by the same transitions; `"soft_vi"` plans with the
    model, as in the paper's experiments, so that only the leader samples. Supports kernels that depend on x, and every
    objective: where f is not linear in the visitation, $-g_\theta(s,a)$ of its own sample stands in for $E_d[A_U]$ (ours).

    Args:
        scales: zeta, beta and tau are used.
        clip: bound on the length of g; the paper's experiments clip at 1.
        optimism: initial value of Q.
        hold: iterations for which x stays while the tables catch up.
        trajectories: N an iteration.
        horizon: T transitions each; what lies beyond is cut off, a bias of order $\gamma^T$.
        episode: None for one episode a trajectory; else a trajectory is a stream of episodes of at most that many
            transitions, a new one beginning where one has ended: no transition is spent where all is over.
        critic: of the leader, `"monte_carlo"` or `"sarsa"`.
        follower: `"q_learning"` or `"soft_vi"`.
        passes: over the batch by Q-learning and SARSA, an iteration.
        sweeps: of soft value iteration, an iteration; None for as many as passes.
        baseline: `"visits"` takes V(s) from the V(s') that derivatives of log P weigh (ours; the means over visits are
            subtracted anyway): less variance where x moves the kernel; `"none"`.
        explore: `"extra"` adds one transition of a random action from each state seen, for Q-learning only; `"none"`.

    References:
        Thoma et al. 2024, arXiv 2406.01575 (HPGD). The sums are those of the paper; that $\partial_x \hat Q_L$ is never
        formed but read off a trace of its weights is ours. Cost O(N T (passes + A) + S A + d) an iteration.
    """

    critic: Literal["monte_carlo", "sarsa"] = eqx.field(static=True, default="monte_carlo")

    name: ClassVar[str] = "hpgd"
    references: ClassVar[tuple[str, ...]] = ("thoma2024hpgd",)

    def check(self, problem: BilevelProblem) -> None:
        super().check(problem)
        check_fields(
            self.name,
            ("critic", self.critic, self.critic in ("monte_carlo", "sarsa"), "it must be 'monte_carlo' or 'sarsa'"),
        )  # fmt: skip

    def init(self, problem: BilevelProblem, x0, key) -> HPGDState:
        shape = problem.mdp.n_states, problem.mdp.n_actions
        Q = jnp.full(shape, jnp.asarray(self.optimism, float))
        return HPGDState(x0, jnp.zeros((), int), Q, jnp.zeros(shape) if self.critic == "sarsa" else None)

    def step(self, problem: BilevelProblem, state: HPGDState, k, noise) -> HPGDState:
        now, gamma, x = self.scales.at(k), problem.mdp.discount, state.x
        mdp, tau, objective = problem.transitions(x), now.tau, problem.objective
        N, T = self.trajectories, self.horizon
        Q, pi, seen = self.play(problem, mdp, x, state.Q, tau, noise)
        s, a = seen.s.ravel(), seen.a.ravel()
        # what weighs d_x Q - d_x V of a pair, summed over its visits: -E_d[1{(s,a)} A_U] / tau for a linear f
        count, discounted = rollouts.totals(seen, Q.shape, jnp.ones((N, T)), rollouts.discounts(seen, gamma))
        Q_u, used = state.Q_u, N * T
        if objective.linear:
            u = objective.bonus_at(x, s, a).reshape(N, T)
            returns = rollouts.returns_to_go(u, gamma, rollouts.last(seen))
            if Q_u is None:
                A_u = rollouts.less_state_mean(*rollouts.totals(seen, Q.shape, returns), count)
            else:
                Q_u = rollouts.sarsa(Q_u, pi, seen, u, gamma, now.beta, self.passes)
                A_u = Q_u - jnp.sum(pi * Q_u, -1, keepdims=True)
            c = discounted * A_u / tau
            g = rollouts.direct(problem, x, seen, rollouts.following(returns, seen), returns)
        else:
            xi = objective.sample(x, pi, problem, noise["upper"])
            c, g, used = -jnp.where(count > 0, xi.grad_theta, 0.0) / tau, xi.grad_x, used + xi.transitions

        # d_x Q^ - d_x V^: each visit carries its share of the pair's mean and of the state's
        share = rollouts.less_state_mean(c, count)
        V = mdp.ongoing(planning.soft_value(Q, tau))
        g = g + rollouts.response(problem, x, seen, share[seen.s, seen.a], V, self.baseline == "visits")

        Q, beside = self.learn(problem, mdp, x, Q, seen, now, noise)
        # x <- x - zeta g
        return HPGDState(self.moved(problem, x, g, k, now.zeta), state.samples + used + beside, Q, Q_u)

    def tracked(self, problem, state, k):
        return planning.soft_policy(state.Q, self.scales.at(k).tau)
