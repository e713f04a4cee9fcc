r"""The paper's algorithm, line by line: two followers, two critics, one loop, no Hessian.

$$V \leftarrow \Pi_B(V + \beta_k G), \quad \theta \leftarrow \theta + \alpha_k F_0, \quad
\theta^L \leftarrow \theta^L + \alpha_k F_w, \quad x \leftarrow \Pi_X(x - \zeta_k D)$$
"""

from __future__ import annotations

from typing import ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp

from bilevel_rl.finite.learn import followers
from bilevel_rl.finite.learn.followers import Follower
from bilevel_rl.finite.problem import BilevelProblem
from bilevel_rl.finite.solver import Solver
from bilevel_rl.loop import leader
from bilevel_rl.loop.leader import MovingState
from bilevel_rl.loop.noise import Draws
from bilevel_rl.schedules import TimeScales


class PenaltyState(MovingState):
    """Both followers."""

    follower: Follower
    follower_l: Follower


class PenaltyActorCritic(Solver):
    r"""Single-loop, first-order penalty actor-critic.

    Each iteration draws one transition of each of N chains of each follower and updates critics, actors and x from
    them. $F$ carries no $1/(1-\gamma)$: $\alpha_k$ is in the scale $(1-\gamma)\nabla_\theta J$. Where f is linear in the
    visitation its gradient in $\theta$ is the policy gradient of the reward $(1-\gamma) w u$, and the penalised critic
    learns the value of $r_x + (1-\gamma) w u$ (method page; ours). $\Pi_B$ clips each entry of the critic at
    $B = (|r|_{max} + \tau \log A)/(1-\gamma)$: the ball of the sup norm, which one transition touches in one entry (ours).

    Args:
        scales: the five sequences.
        chains: N, transitions a follower and iteration.
        sampling: `"chain"` (restart chains, the algorithm) or `"iid"` (fresh geometric trajectories, the analysis; every
            transition on the way is counted).
        common_noise: both followers' chains share their random numbers.
        momentum: x moves along an average of D with this weight on the past; 0 is the paper's.
        reward_bound: |r|_max of the critic's ball.
        hold: iterations for which x stays while the followers catch up; 0 is the paper's.
        average: x is reported as an average of its iterates (`loop.leader`); 0, the iterate itself, is the paper's.

    References:
        arXiv 2601.16399, Algorithm 1. Cost O(N A + d) an iteration, whatever S.
    """

    scales: TimeScales = TimeScales.attenuating()
    momentum: float = 0.0
    reward_bound: float = 1.0
    hold: float = 0.0
    average: float = 0.0
    chains: int = eqx.field(static=True, default=1)
    sampling: Literal["chain", "iid"] = eqx.field(static=True, default="chain")
    common_noise: bool = eqx.field(static=True, default=False)

    name: ClassVar[str] = "penalty_actor_critic"
    action_sets: ClassVar[bool] = True
    references: ClassVar[tuple[str, ...]] = ("zeng2026hessianfree",)

    def check(self, problem: BilevelProblem) -> None:
        self.scales.check(f"{self.name}.scales")
        followers.check_chains(self.name, self.chains)
        followers.check_fields(
            self.name,
            ("reward_bound", self.reward_bound, self.reward_bound > 0, "it must be above 0"),
            ("sampling", self.sampling, self.sampling in ("chain", "iid"), "it must be 'chain' or 'iid'"),
        )
        leader.check_motion(self.name, self.momentum, self.hold, self.average)

    def draws(self, problem: BilevelProblem) -> Draws:
        return {"chains": (2, 3, self.chains), "upper": problem.objective.draws(problem)}

    def init(self, problem: BilevelProblem, x0, key) -> PenaltyState:
        u = jax.random.uniform(key, (2, self.chains))
        pair = [followers.start(problem.mdp, u[0 if self.common_noise else i]) for i in range(2)]
        return PenaltyState(x0, jnp.zeros((), int), pair[0], pair[1], **leader.at_rest(x0))

    def step(self, problem: BilevelProblem, state: PenaltyState, k, noise) -> PenaltyState:
        now, gamma, x = self.scales.at(k), problem.mdp.discount, state.iterate
        mdp, u = problem.transitions(x), noise["chains"]

        # draw (s, a, s') with a ~ pi_theta, and (s_, a_, s_') with a_ ~ pi_theta^L
        seen, follower, used = followers.draw(mdp, state.follower, u[0], self.sampling)
        u_l = u[0 if self.common_noise else 1]
        seen_l, follower_l, used_l = followers.draw(mdp, state.follower_l, u_l, self.sampling)

        r = problem.reward_at(x, seen.s, seen.a)
        upper = followers.upper_terms(problem, x, follower_l, seen_l, now.w, noise["upper"])

        # V <- Pi_B(V + beta G);  theta <- theta + alpha F
        bound = followers.value_bound(problem, now, self.reward_bound)
        follower = followers.learn(follower, seen, r, now, gamma, bound)
        follower_l = followers.learn(follower_l, seen_l, upper.r, now, gamma, bound, upper.penalty)

        # x <- x - zeta D,   D = g_x + (grad r(s, a) - grad r(s_, a_)) / (w (1 - gamma))
        D = followers.penalty_direction(problem, x, seen, seen_l, follower.V, follower_l.V, now.w)
        D = D if upper.grad_x is None else D + upper.grad_x
        moved = leader.move(problem, state, k, D, now.zeta, self.momentum, self.hold, self.average)
        samples = state.samples + used + used_l + upper.transitions
        return PenaltyState(samples=samples, follower=follower, follower_l=follower_l, **moved)

    def policies(self, problem, state, k):
        return jax.nn.softmax(state.follower.theta), jax.nn.softmax(state.follower_l.theta)
