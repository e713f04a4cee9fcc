r"""Baseline: the penalty method with an inner loop, many steps of both followers for each step of x.

$$\theta_{t+1} = \theta_t + \alpha F_0,\quad \theta^L_{t+1} = \theta^L_t + \alpha F_w \quad (t < T), \qquad
x \leftarrow \Pi_X\Big(x - \zeta_k \tfrac{2}{T} \textstyle\sum_{t \ge T/2} D_t\Big)$$
"""

from __future__ import annotations

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp

from bilevel_rl.finite.learn import followers
from bilevel_rl.finite.learn.followers import Follower
from bilevel_rl.finite.problem import BilevelProblem
from bilevel_rl.finite.solver import Solver
from bilevel_rl.loop import leader
from bilevel_rl.loop.leader import MovingState
from bilevel_rl.loop.noise import Draws, Times
from bilevel_rl.schedules import TEMPERATURE, PowerDecay, TimeScales


class NestedState(MovingState):
    """Both followers, kept from one x to the next."""

    follower: Follower
    follower_l: Follower


class NestedPenalty(Solver):
    r"""Double-loop penalty method: the followers run T steps at fixed x, then x moves once.

    The updates are those of the single loop (`penalty_actor_critic`); x's direction is the mean of D over the second
    half of the inner loop, when the followers have caught up. The followers start each inner loop from where the last
    one ended. k counts steps of x, so alpha and beta are constant within an inner loop. Supports kernels that depend
    on x, and every objective.

    Args:
        scales: the five sequences, by steps of x.
        chains: N, transitions a follower and inner step.
        inner: T, at least 2.
        common_noise: both followers' chains share their random numbers, so that much of their error cancels.
        reward_bound: |r|_max of the critic's ball.
        hold: steps for which x stays while the followers catch up.
        momentum: x moves along an average of its direction with this weight on the past.
        average: x is reported as an average of its iterates (`loop.leader`).

    References:
        The nested-loop baseline of arXiv 2601.16399; double-loop penalty methods are Shen et al. 2024. Cost
        O(T (N A) + d) a step of x, 2 T N transitions.
    """

    scales: TimeScales = TimeScales(
        # ours: constant steps within the loop; found by a small sweep on goal placement
        PowerDecay(0.05, 1 / 3), PowerDecay(0.1), PowerDecay(0.5), PowerDecay(3.0, 1 / 6), PowerDecay(TEMPERATURE),
    )  # fmt: skip
    reward_bound: float = 1.0
    hold: float = 0.0
    momentum: float = 0.0
    average: float = 0.0
    chains: int = eqx.field(static=True, default=64)
    inner: int = eqx.field(static=True, default=100)
    common_noise: bool = eqx.field(static=True, default=True)

    name: ClassVar[str] = "nested_penalty"
    action_sets: ClassVar[bool] = True
    references: ClassVar[tuple[str, ...]] = ("zeng2026hessianfree", "shen2024pbrl")

    def check(self, problem: BilevelProblem) -> None:
        self.scales.check(f"{self.name}.scales")
        followers.check_chains(self.name, self.chains)
        followers.check_fields(
            self.name,
            ("inner", self.inner, self.inner >= 2, "it must be at least 2"),
            ("reward_bound", self.reward_bound, self.reward_bound > 0, "it must be above 0"),
        )
        leader.check_motion(self.name, self.momentum, self.hold, self.average)

    def draws(self, problem: BilevelProblem) -> Draws:
        return Times(self.inner, {"chains": (2, 3, self.chains), "upper": problem.objective.draws(problem)})

    def init(self, problem: BilevelProblem, x0, key) -> NestedState:
        u = jax.random.uniform(key, (2, self.chains))
        pair = [followers.start(problem.mdp, u[0 if self.common_noise else i]) for i in range(2)]
        return NestedState(x0, jnp.zeros((), int), pair[0], pair[1], **leader.at_rest(x0))

    def step(self, problem: BilevelProblem, state: NestedState, k, noise) -> NestedState:
        now, gamma, x = self.scales.at(k), problem.mdp.discount, state.iterate
        mdp, bound = problem.transitions(x), followers.value_bound(problem, now, self.reward_bound)

        def inner(carry, z):
            f, f_l, used = carry
            u = z["chains"]
            seen, f, n = followers.draw(mdp, f, u[0])
            seen_l, f_l, n_l = followers.draw(mdp, f_l, u[0 if self.common_noise else 1])
            upper = followers.upper_terms(problem, x, f_l, seen_l, now.w, z["upper"])
            f = followers.learn(f, seen, problem.reward_at(x, seen.s, seen.a), now, gamma, bound)
            f_l = followers.learn(f_l, seen_l, upper.r, now, gamma, bound, upper.penalty)
            return (f, f_l, used + n + n_l + upper.transitions), (seen, seen_l, upper.grad_x)

        start = (state.follower, state.follower_l, state.samples)
        (follower, follower_l, used), out = jax.lax.scan(inner, start, noise)
        # D over the second half of the inner loop
        late = jax.tree.map(lambda v: v[self.inner // 2 :], out)
        seen, seen_l = jax.tree.map(jnp.ravel, late[:2])
        D = followers.penalty_direction(problem, x, seen, seen_l, follower.V, follower_l.V, now.w)
        D = D if late[2] is None else D + jnp.mean(late[2], 0)
        moved = leader.move(problem, state, k, D, now.zeta, self.momentum, self.hold, self.average)
        return NestedState(samples=used, follower=follower, follower_l=follower_l, **moved)

    def policies(self, problem, state, k):
        return jax.nn.softmax(state.follower.theta), jax.nn.softmax(state.follower_l.theta)
