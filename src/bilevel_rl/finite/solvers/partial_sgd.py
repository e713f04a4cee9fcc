r"""Baseline: x follows the partial gradient of f, as if the follower did not answer to x.

$$x \leftarrow \Pi_X\big(x - \zeta_k\, g_x(x, \theta_k, \xi)\big), \qquad \mathbb{E}[g_x] = \nabla_x f(x, \pi_{\theta_k})$$
"""

from __future__ import annotations

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel_rl.finite.learn import followers
from bilevel_rl.finite.learn.followers import Follower
from bilevel_rl.finite.problem import BilevelProblem
from bilevel_rl.finite.solver import Solver, State
from bilevel_rl.schedules import TimeScales


class PartialState(State):
    """The follower, and a critic of the leader's utility where x moves the transitions.

    Attributes:
        V_u: [S] discounted sum of u under the follower.
    """

    follower: Follower
    V_u: Float[Array, " S"]


class PartialSGD(Solver):
    r"""Single loop with one actor-critic follower; x moves along $g_x$ alone.

    For an objective linear in the visitation $g_x = \nabla_x c(x) - \nabla_x u_x(s, a)$; where x moves the transitions,
    $-\gamma \nabla_x \log P_x(s'|s,a)\, V^u(s')$ joins it, with a critic $V^u$ of the utility. Otherwise $g_x$ is what the
    objective's `sample` gives. It ignores the response of the follower, so it is biased by design: where x enters f
    through the follower alone it does not move at all. Supports kernels that depend on x, and every objective.

    Args:
        scales: the five sequences; w is not used.
        chains: N, transitions an iteration.
        reward_bound: |r|_max of the critic's ball.
        hold: iterations for which x stays while the follower catches up.

    References:
        A baseline of arXiv 2601.16399. Cost O(N A + d) an iteration.
    """

    scales: TimeScales = TimeScales.constant_entropy(alpha=0.3)
    reward_bound: float = 1.0
    hold: float = 0.0
    chains: int = eqx.field(static=True, default=1)

    name: ClassVar[str] = "partial_sgd"
    references: ClassVar[tuple[str, ...]] = ("zeng2026hessianfree",)

    def check(self, problem: BilevelProblem) -> None:
        self.scales.check(f"{self.name}.scales")
        followers.check_chains(self.name, self.chains)
        followers.check_fields(
            self.name,
            ("reward_bound", self.reward_bound, self.reward_bound > 0, "it must be above 0"),
            ("hold", self.hold, self.hold >= 0, "it must be at least 0"),
        )

    def draws(self, problem: BilevelProblem) -> int:
        return 3 * self.chains + problem.objective.draws(problem)

    def init(self, problem: BilevelProblem, x0, key) -> PartialState:
        follower = followers.start(problem.mdp, jax.random.uniform(key, (self.chains,)))
        return PartialState(x0, jnp.zeros((), int), follower, jnp.zeros_like(follower.V))

    def step(self, problem: BilevelProblem, state: PartialState, k, noise) -> PartialState:
        now, gamma, x, objective = self.scales.at(k), problem.mdp.discount, state.x, problem.objective
        seen, follower, used = followers.draw(
            problem.transitions(x), state.follower, noise[: 3 * self.chains].reshape(3, self.chains)
        )
        r = problem.reward_at(x, seen.s, seen.a)
        follower = followers.learn(follower, seen, r, now, gamma, followers.value_bound(problem, now, self.reward_bound))
        V_u = state.V_u
        if objective.linear:
            if problem.moves_transitions:
                u = objective.bonus_at(x, seen.s, seen.a)
                V_u = followers.evaluate(V_u, seen, u, now.beta, gamma)

            def upper(x):
                ahead = gamma * followers.kernel_score(problem, x, seen, V_u) if problem.moves_transitions else 0.0
                first = (1 - gamma) * jnp.dot(problem.transitions(x).start, V_u) if problem.moves_start else 0.0
                return objective.cost(x) - jnp.mean(objective.bonus_at(x, seen.s, seen.a)) - ahead - first

            g_x = jax.grad(upper)(x)
        else:
            xi = objective.sample(x, jax.nn.softmax(follower.theta), problem, noise[3 * self.chains :])
            g_x, used = xi.grad_x, used + xi.transitions
        moved = problem.project(x - jnp.where(k < self.hold, 0.0, now.zeta) * g_x)
        return PartialState(moved, state.samples + used, follower, V_u)

    def tracked(self, problem, state, k):
        return jax.nn.softmax(state.follower.theta)
