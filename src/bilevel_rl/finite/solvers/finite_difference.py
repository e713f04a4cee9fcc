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
from bilevel_rl.finite.solver import Solver
from bilevel_rl.loop import leader
from bilevel_rl.loop.leader import MovingState
from bilevel_rl.loop.noise import Draws, Times
from bilevel_rl.schedules import TEMPERATURE, PowerDecay, Sequences, TimeScales

Perturbation = Literal["simultaneous", "two_sided", "one_sided"]


class DifferenceState(MovingState):
    """The follower from which every inner solve starts."""

    follower: Follower


class FiniteDifference(Solver):
    r"""Zeroth-order descent: the follower is solved anew around x, f is measured there, x moves along the difference.

    Each step moves x to 2d points (two-sided), d points beside x itself (one-sided) or 2 (simultaneous, $\Delta_i = \pm 1$
    at random), runs T actor-critic steps of N chains at each from the same follower, and measures f over the second half of
    them (from fresh samples of the objective at the end where f is not linear in the visitation). The follower kept is the
    mean of all of them. Points are projected on x's set; quotients use the displacement that is left. Every transition at
    every point is counted. Supports kernels that depend on x, and every objective.

    Args:
        scales: zeta, alpha, beta, tau by steps of x; w is not used.
        radius: delta, in units of x.
        perturbation: `"simultaneous"` (2 inner solves whatever d), `"two_sided"` (2d) or `"one_sided"` (d + 1).
        common_noise: all points share their random numbers, so that much of their error cancels in the difference.
        chains: N.
        inner: T, at least 2.
        reward_bound: |r|_max of the critic's ball.
        hold: steps for which x stays while the follower catches up.
        momentum: x moves along an average of its direction with this weight on the past.
        average: x is reported as an average of its iterates (`loop.leader`).

    References:
        The finite-difference baseline of arXiv 2601.16399; simultaneous perturbation: Spall 1992, whose exponent 1/6 of
        the radius is the default. Cost O(m T N A) a step of x, m T N transitions, m = 2d, d + 1 or 2.
    """

    scales: TimeScales = TimeScales(
        # ours: constant steps within the inner solves; found by a small sweep on goal placement
        PowerDecay(0.5, 1 / 3), PowerDecay(0.5), PowerDecay(0.5), PowerDecay(1.0), PowerDecay(TEMPERATURE),
    )  # fmt: skip
    radius: PowerDecay = PowerDecay(0.25, 1 / 6)
    reward_bound: float = 1.0
    hold: float = 0.0
    momentum: float = 0.0
    average: float = 0.0
    chains: int = eqx.field(static=True, default=16)
    inner: int = eqx.field(static=True, default=1000)
    perturbation: Perturbation = eqx.field(static=True, default="simultaneous")
    common_noise: bool = eqx.field(static=True, default=True)

    name: ClassVar[str] = "finite_difference"
    action_sets: ClassVar[bool] = True
    references: ClassVar[tuple[str, ...]] = ("zeng2026hessianfree", "spall1992spsa")

    def check(self, problem: BilevelProblem) -> None:
        self.scales.check(f"{self.name}.scales")
        self.radius.check(f"{self.name}.radius")
        followers.check_chains(self.name, self.chains)
        known = ("simultaneous", "two_sided", "one_sided")
        followers.check_fields(
            self.name,
            ("inner", self.inner, self.inner >= 2, "it must be at least 2"),
            ("reward_bound", self.reward_bound, self.reward_bound > 0, "it must be above 0"),
            ("perturbation", self.perturbation, self.perturbation in known, f"it must be one of {known}"),
        )
        leader.check_motion(self.name, self.momentum, self.hold, self.average)

    def draws(self, problem: BilevelProblem) -> Draws:
        solve = {"inner": (self.inner, 3, self.chains), "upper": problem.objective.draws(problem)}
        points = 1 if self.common_noise else self._points(problem)
        return {"signs": problem.x0.shape, "solves": Times(points, solve)}

    def _points(self, problem: BilevelProblem) -> int:
        """Points around x at which an inner solve runs in each step."""
        d = problem.x0.shape[0]
        return {"simultaneous": 2, "two_sided": 2 * d, "one_sided": d + 1}[self.perturbation]

    def init(self, problem: BilevelProblem, x0, key) -> DifferenceState:
        return DifferenceState(
            x0, jnp.zeros((), int), followers.start(problem.mdp, jax.random.uniform(key, (self.chains,))),
            **leader.at_rest(x0),
        )  # fmt: skip

    def step(self, problem: BilevelProblem, state: DifferenceState, k, noise) -> DifferenceState:
        now, x, d = self.scales.at(k), state.iterate, state.x.shape[0]
        if self.perturbation == "simultaneous":
            directions = jnp.where(noise["signs"][None] < 0.5, -1.0, 1.0)  # [1, d]
        else:
            directions = jnp.eye(d)  # [d, d]
        away = self.radius(k) * directions
        behind = jnp.zeros((1, d)) if self.perturbation == "one_sided" else -away
        points = jax.vmap(problem.project)(x + jnp.concatenate([away, behind]))  # [m + m or 1, d]

        # the same follower at every point, and the same random numbers
        def measure(x, u):
            return self._measure(problem, x, state.follower, now, u)

        if self.common_noise:
            f, solved, used = jax.vmap(measure, (0, None))(points, jax.tree.map(lambda u: u[0], noise["solves"]))
        else:
            f, solved, used = jax.vmap(measure)(points, noise["solves"])

        rise, run = f[: len(away)] - f[len(away) :], points[: len(away)] - points[len(away) :]  # [m], [m, d]
        moved = jnp.abs(run) > 1e-12  # ours: a coordinate that the projection held gives no information
        quotient = jnp.where(moved & (directions != 0), rise[:, None] / jnp.where(moved, run, 1.0), 0.0)
        g = jnp.sum(quotient, 0)  # one direction moves each coordinate once
        kept = Follower(jnp.mean(solved.theta, 0), jnp.mean(solved.V, 0), solved.s[0])
        moved = leader.move(problem, state, k, g, now.zeta, self.momentum, self.hold, self.average)
        return DifferenceState(samples=state.samples + jnp.sum(used), follower=kept, **moved)

    def tracked(self, problem, state, k):
        return jax.nn.softmax(state.follower.theta)

    def _measure(
        self, problem: BilevelProblem, x: Float[Array, " d"], follower: Follower, now: Sequences, noise
    ) -> tuple[Array, Follower, Array]:
        """Inner solve at x: an estimate of f, the follower, and the transitions used."""
        objective, mdp = problem.objective, problem.transitions(x)
        bound = followers.value_bound(problem, now, self.reward_bound)

        def inner(carry, u):
            f, used = carry
            seen, f, n = followers.draw(mdp, f, u)
            f = followers.learn(f, seen, problem.reward_at(x, seen.s, seen.a), now, problem.mdp.discount, bound)
            met = objective.linear_value(x, seen.s, seen.a) if objective.linear else jnp.zeros(())
            return (f, used + n), met

        (follower, used), met = jax.lax.scan(inner, (follower, jnp.zeros((), int)), noise["inner"])
        if objective.linear:
            return jnp.mean(met[self.inner // 2 :]), follower, used
        xi = objective.sample(x, jax.nn.softmax(follower.theta), problem, noise["upper"])
        return xi.value, follower, used + xi.transitions
