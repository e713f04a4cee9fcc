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
from bilevel_rl.finite.solver import Solver
from bilevel_rl.loop import leader
from bilevel_rl.loop.leader import MovingState
from bilevel_rl.loop.noise import Draws
from bilevel_rl.schedules import TimeScales


class PartialState(MovingState):
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
        momentum: x moves along an average of its direction with this weight on the past.
        average: x is reported as an average of its iterates (`loop.leader`).

    References:
        A baseline of arXiv 2601.16399. Cost O(N A + d) an iteration.
    """

    scales: TimeScales = TimeScales.constant_entropy(alpha=0.3)
    reward_bound: float = 1.0
    hold: float = 0.0
    momentum: float = 0.0
    average: float = 0.0
    chains: int = eqx.field(static=True, default=1)

    name: ClassVar[str] = "partial_sgd"
    action_sets: ClassVar[bool] = True
    references: ClassVar[tuple[str, ...]] = ("zeng2026hessianfree",)

    def check(self, problem: BilevelProblem) -> None:
        self.scales.check(f"{self.name}.scales")
        followers.check_chains(self.name, self.chains)
        followers.check_fields(
            self.name,
            ("reward_bound", self.reward_bound, self.reward_bound > 0, "it must be above 0"),
        )
        leader.check_motion(self.name, self.momentum, self.hold, self.average)

    def draws(self, problem: BilevelProblem) -> Draws:
        return {"chains": (3, self.chains), "upper": problem.objective.draws(problem)}

    def init(self, problem: BilevelProblem, x0, key) -> PartialState:
        follower = followers.start(problem.mdp, jax.random.uniform(key, (self.chains,)))
        return PartialState(x0, jnp.zeros((), int), follower, jnp.zeros_like(follower.V), **leader.at_rest(x0))

    def step(self, problem: BilevelProblem, state: PartialState, k, noise) -> PartialState:
        now, gamma, x, objective = self.scales.at(k), problem.mdp.discount, state.iterate, problem.objective
        seen, follower, used = followers.draw(
            problem.transitions(x), state.follower, noise["chains"]
        )
        r = problem.reward_at(x, seen.s, seen.a)
        follower = followers.learn(follower, seen, r, now, gamma, followers.value_bound(problem, now, self.reward_bound))
        V_u = state.V_u
        if objective.linear:
            if problem.moves_transitions:
                u = objective.bonus_at(x, seen.s, seen.a)
                V_u = followers.learn_value(V_u, seen, u, now.beta, gamma)

            def partial(x):
                ahead = gamma * followers.kernel_score(problem, x, seen, V_u) if problem.moves_transitions else 0.0
                first = (1 - gamma) * jnp.dot(problem.transitions(x).start, V_u) if problem.moves_start else 0.0
                return objective.linear_value(x, seen.s, seen.a) - ahead - first

            g_x = jax.grad(partial)(x)
        else:
            xi = objective.sample(x, jax.nn.softmax(follower.theta), problem, noise["upper"])
            g_x, used = xi.grad_x, used + xi.transitions
        moved = leader.move(problem, state, k, g_x, now.zeta, self.momentum, self.hold, self.average)
        return PartialState(samples=state.samples + used, follower=follower, V_u=V_u, **moved)

    def tracked(self, problem, state, k):
        return jax.nn.softmax(state.follower.theta)
