r"""F2SA: fully first-order stochastic approximation, its two lower-level variables here two actor-critics.

$$z \leftarrow z - \alpha_k \nabla_z g, \qquad
y \leftarrow y - \alpha_k \big(\tfrac{1}{\lambda_k}\nabla_y f + \nabla_y g\big)\;
(T \text{ times}), \qquad
x \leftarrow x - \zeta_k \big(\nabla_x f + \lambda_k (\nabla_x g(x, y) - \nabla_x g(x, z))\big)$$
"""

from __future__ import annotations

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp

from bilevel_rl.finite.learn import followers
from bilevel_rl.finite.learn.followers import Follower
from bilevel_rl.finite.problem import BilevelProblem
from bilevel_rl.finite.solver import Solver, State
from bilevel_rl.loop import leader
from bilevel_rl.loop.noise import Draws, Times
from bilevel_rl.schedules import TEMPERATURE, PowerDecay, TimeScales


class F2SAState(State):
    """Both lower-level variables: z follows $\\max J$, y the penalised problem."""

    z: Follower
    y: Follower


class F2SA(Solver):
    r"""Fully first-order penalty method with $g = -J_\tau$ and a constant temperature; $\lambda_k = 1/w_k$ grows.

    T = 1 is the single loop, T > 1 the nested one. The followers take T steps, then x moves along fresh transitions of the
    followers that resulted. What sets it apart from the solvers of this library's paper: no attenuating entropy, a
    multiplier that grows by a power alone, and a direction of x that is drawn after the inner steps
    (`penalty_actor_critic` draws it with them, `nested_penalty` averages it over them). y's step is divided by
    $\lambda_k$, so that alpha is one scale for both (ours; the paper's y and z have a step each). Supports kernels that
    depend on x, and every objective.

    Args:
        scales: the five sequences; w is $1/\lambda$, tau must be constant.
        chains: N, transitions a follower and inner step.
        inner: T >= 1; 2 (T + 1) N transitions an iteration.
        common_noise: both followers' chains share their random numbers; the paper's do not.
        reward_bound: |r|_max of the critic's ball.
        hold: iterations for which x stays while the followers catch up; 0 is the paper's.

    References:
        Kwon et al. 2023, arXiv 2301.10945 (F2SA); a supervised method: actor-critics for its lower-level steps are ours.
        Cost O(T N A + d) an iteration.
    """

    scales: TimeScales = TimeScales(
        PowerDecay(0.2, 1 / 2), PowerDecay(0.3, 0.3), PowerDecay(0.5, 0.1), PowerDecay(3.0, 1 / 7), PowerDecay(TEMPERATURE),
    )  # fmt: skip
    reward_bound: float = 1.0
    hold: float = 0.0
    chains: int = eqx.field(static=True, default=32)
    inner: int = eqx.field(static=True, default=10)
    common_noise: bool = eqx.field(static=True, default=True)

    name: ClassVar[str] = "f2sa"
    action_sets: ClassVar[bool] = True
    references: ClassVar[tuple[str, ...]] = ("kwon2023f2sa",)

    def check(self, problem: BilevelProblem) -> None:
        self.scales.check(f"{self.name}.scales")
        followers.check_chains(self.name, self.chains)
        followers.check_fields(
            self.name,
            ("inner", self.inner, self.inner >= 1, "it must be at least 1"),
            ("reward_bound", self.reward_bound, self.reward_bound > 0, "it must be above 0"),
            leader.held(self.hold),
            ("scales.tau.power", self.scales.tau.power, self.scales.tau.power == 0, "tau is constant: it must be 0"),
        )

    def draws(self, problem: BilevelProblem) -> Draws:
        one = {"chains": (2, 3, self.chains), "upper": problem.objective.draws(problem)}
        return {"inner": Times(self.inner, one), "outer": one}

    def init(self, problem: BilevelProblem, x0, key) -> F2SAState:
        u = jax.random.uniform(key, (2, self.chains))
        z, y = (followers.start(problem.mdp, u[0 if self.common_noise else i]) for i in range(2))
        return F2SAState(x0, jnp.zeros((), int), z, y)

    def step(self, problem: BilevelProblem, state: F2SAState, k, noise) -> F2SAState:
        now, gamma, x = self.scales.at(k), problem.mdp.discount, state.x
        mdp, bound = problem.transitions(x), followers.value_bound(problem, now, self.reward_bound)

        def sample(z, y, u):
            """One transition of each chain of both, and the terms of the upper objective."""
            pair = u["chains"]
            seen, z, n = followers.draw(mdp, z, pair[0])
            seen_l, y, n_l = followers.draw(mdp, y, pair[0 if self.common_noise else 1])
            upper = followers.upper_terms(problem, x, y, seen_l, now.w, u["upper"])
            return seen, seen_l, upper, z, y, n + n_l + upper.transitions

        def inner(carry, u):
            z, y, used = carry
            seen, seen_l, upper, z, y, n = sample(z, y, u)
            # z <- z - alpha grad g,  y <- y - alpha (grad f / lambda + grad g)
            z = followers.learn(z, seen, problem.reward_at(x, seen.s, seen.a), now, gamma, bound)
            y = followers.learn(y, seen_l, upper.r, now, gamma, bound, upper.penalty)
            return (z, y, used + n), None

        (z, y, used), _ = jax.lax.scan(inner, (state.z, state.y, state.samples), noise["inner"])
        # x <- x - zeta (grad_x f + lambda (grad_x g(x, y) - grad_x g(x, z))), at y and z as they now are
        seen, seen_l, upper, z, y, n = sample(z, y, noise["outer"])
        D = followers.penalty_direction(problem, x, seen, seen_l, z.V, y.V, now.w)
        D = D if upper.grad_x is None else D + upper.grad_x
        moved = leader.descend(problem, x, D, k, now.zeta, self.hold)
        return F2SAState(moved, used + n, z, y)

    def policies(self, problem, state, k):
        return jax.nn.softmax(state.z.theta), jax.nn.softmax(state.y.theta)
