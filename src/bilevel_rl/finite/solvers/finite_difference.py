r"""Baseline: finite differences of f in x around inner solves, one coordinate at a time or all at once.

$$\text{two-sided:}\quad g_i = \frac{\hat f(x + \delta e_i) - \hat f(x - \delta e_i)}{2\delta}, \qquad
\text{simultaneous:}\quad g_i = \frac{\hat f(x + \delta \Delta) - \hat f(x - \delta \Delta)}{2\delta \Delta_i}$$
"""

from __future__ import annotations

from typing import ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel_rl.finite.learn import followers
from bilevel_rl.finite.learn.followers import Follower
from bilevel_rl.finite.problem import BilevelProblem
from bilevel_rl.finite.solver import Solver, State
from bilevel_rl.schedules import PowerDecay, Sequences, TimeScales


class DifferenceState(State):
    """The follower from which every inner solve starts."""

    follower: Follower


class FiniteDifference(Solver):
    r"""Zeroth-order descent: the follower is solved anew around x, f is measured there, x moves along the difference.

    Each step moves x to 2d points (two-sided) or 2 (simultaneous, $\Delta_i = \pm 1$ at random), runs T actor-critic steps
    of N chains at each from the same follower with the same random numbers, and measures f over the second half of them
    (from fresh samples of the objective at the end where f is not linear in the visitation). The follower kept is the
    mean of all of them. Points are projected on x's set; quotients use the displacement that is left. Every transition at
    every point is counted. Supports kernels that depend on x, and every objective.

    Args:
        scales: zeta, alpha, beta, tau by steps of x; w is not used.
        radius: delta, in units of x.
        perturbation: `"simultaneous"` (2 inner solves whatever d) or `"two_sided"` (2d).
        chains: N.
        inner: T, at least 2.
        reward_bound: |r|_max of the critic's ball.

    References:
        The finite-difference baseline of arXiv 2601.16399; simultaneous perturbation: Spall 1992, whose exponent 1/6 of
        the radius is the default. Cost O(2 m T N A) a step of x, 2 m T N transitions, m = d or 1.
    """

    scales: TimeScales = TimeScales(
        # ours: constant steps within the inner solves; found by a small sweep on goal placement
        PowerDecay(0.5, 1 / 3), PowerDecay(0.5), PowerDecay(0.5), PowerDecay(1.0), PowerDecay(0.05),
    )  # fmt: skip
    radius: PowerDecay = PowerDecay(0.25, 1 / 6)
    reward_bound: float = 1.0
    chains: int = eqx.field(static=True, default=16)
    inner: int = eqx.field(static=True, default=1000)
    perturbation: Literal["simultaneous", "two_sided"] = eqx.field(static=True, default="simultaneous")

    name: ClassVar[str] = "finite_difference"
    references: ClassVar[tuple[str, ...]] = ("zeng2026hessianfree", "spall1992spsa")

    def check(self, problem: BilevelProblem) -> None:
        self.scales.check(f"{self.name}.scales")
        self.radius.check(f"{self.name}.radius")
        followers.check_chains(self.name, self.chains)
        known = ("simultaneous", "two_sided")
        followers.check_fields(
            self.name,
            ("inner", self.inner, self.inner >= 2, "it must be at least 2"),
            ("reward_bound", self.reward_bound, self.reward_bound > 0, "it must be above 0"),
            ("perturbation", self.perturbation, self.perturbation in known, f"it must be one of {known}"),
        )

    def draws(self, problem: BilevelProblem) -> int:
        return problem.x0.shape[0] + 3 * self.chains * self.inner + problem.objective.draws(problem)

    def init(self, problem: BilevelProblem, x0, key) -> DifferenceState:
        return DifferenceState(
            x0, jnp.zeros((), int), followers.start(problem.mdp, jax.random.uniform(key, (self.chains,)))
        )

    def step(self, problem: BilevelProblem, state: DifferenceState, k, noise) -> DifferenceState:
        now, x, d = self.scales.at(k), state.x, state.x.shape[0]
        u_inner = noise[d : d + 3 * self.chains * self.inner].reshape(self.inner, 3, self.chains)
        u_upper = noise[d + 3 * self.chains * self.inner :]
        if self.perturbation == "simultaneous":
            directions = jnp.where(noise[None, :d] < 0.5, -1.0, 1.0)  # [1, d]
        else:
            directions = jnp.eye(d)  # [d, d]
        away = self.radius(k) * directions
        points = jax.vmap(problem.project)(x + jnp.stack([away, -away]).reshape(-1, d))  # [2m, d]

        # the same follower and the same random numbers at every point
        measure = jax.vmap(lambda x: self._measure(problem, x, state.follower, now, u_inner, u_upper))
        f, solved, used = measure(points)

        rise, run = f[: len(away)] - f[len(away) :], points[: len(away)] - points[len(away) :]  # [m], [m, d]
        moved = jnp.abs(run) > 1e-12  # ours: a coordinate that the projection held gives no information
        quotient = jnp.where(moved & (directions != 0), rise[:, None] / jnp.where(moved, run, 1.0), 0.0)
        g = jnp.sum(quotient, 0)  # one direction moves each coordinate once
        kept = Follower(jnp.mean(solved.theta, 0), jnp.mean(solved.V, 0), solved.s[0])
        return DifferenceState(problem.project(x - now.zeta * g), state.samples + jnp.sum(used), kept)

    def tracked(self, problem, state, k):
        return jax.nn.softmax(state.follower.theta)

    def _measure(
        self, problem: BilevelProblem, x: Float[Array, " d"], follower: Follower, now: Sequences, u_inner, u_upper
    ) -> tuple[Array, Follower, Array]:
        """Inner solve at x: an estimate of f, the follower, and the transitions used."""
        objective, mdp = problem.objective, problem.transitions(x)
        bound = followers.value_bound(problem, now, self.reward_bound)

        def inner(carry, u):
            f, used = carry
            seen, f, n = followers.draw(mdp, f, u)
            f = followers.learn(f, seen, problem.reward_at(x, seen.s, seen.a), now, problem.mdp.discount, bound)
            gain = jnp.mean(objective.bonus_at(x, seen.s, seen.a)) if objective.linear else jnp.zeros(())
            return (f, used + n), gain

        (follower, used), gains = jax.lax.scan(inner, (follower, jnp.zeros((), int)), u_inner)
        if objective.linear:
            return objective.cost(x) - jnp.mean(gains[self.inner // 2 :]), follower, used
        xi = objective.sample(x, jax.nn.softmax(follower.theta), problem, u_upper)
        return xi.value, follower, used + xi.transitions
