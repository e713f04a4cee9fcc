r"""Baseline: zeroth-order descent with Gaussian directions; the hyper-objective is a black box that the model answers.

$$\text{two-point:}\quad g = \frac{\Phi(x + \delta z) - \Phi(x)}{\delta}\, z, \qquad
\text{central:}\quad g = \frac{\Phi(x + \delta z) - \Phi(x - \delta z)}{2\delta}\, z, \qquad
\text{one-point:}\quad g = \frac{\Phi(x + \delta z)}{\delta}\, z$$
"""

from __future__ import annotations

from typing import ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri
from jaxtyping import Array, Float

from bilevel_rl.finite import oracles
from bilevel_rl.finite.learn import rollouts
from bilevel_rl.finite.learn.followers import check_fields
from bilevel_rl.finite.model import planning
from bilevel_rl.finite.problem import BilevelProblem
from bilevel_rl.finite.solver import Solver, State
from bilevel_rl.loop.noise import Draws
from bilevel_rl.schedules import TEMPERATURE, PowerDecay


class WarmState(State):
    """What evaluations start from.

    Attributes:
        V: [S] value of the follower at the last x; None where every solve starts from zero.
    """

    V: Float[Array, " S"] | None


class ZeroOrder(Solver):
    r"""Gaussian smoothing: the mean of g is the gradient of $E_z \Phi_\tau(x + \delta z)$; uses the model, no samples.

    Each evaluation solves the lower level exactly. Points are projected on x's set, and z is then the displacement that
    is left, over $\delta$. With samples in place of the model take `finite_difference`, whose simultaneous perturbation is
    the same idea with signs for Gaussians.

    Args:
        step_size: zeta.
        radius: delta, in units of x; $c/(k+1)$ is what HPGD's authors compare with.
        tau: temperature of the hyper-objective, in units of reward.
        clip: bound on the length of g.
        points: `"two"`, `"central"` or `"one"`, whose variance grows as $\Phi^2/\delta^2$.
        directions: N, averaged.
        warm: whether Newton's method starts from the last x's solution: the same answers to its tolerance, in fewer steps.

    References:
        Two-point: the baseline of Thoma et al. 2024; Gaussian smoothing: Nesterov & Spokoiny 2017; one-point: Flaxman,
        Kalai, McMahan 2005. Cost N + 1, 2 N or N lower-level solves, O(S^3) each, an iteration.
    """

    step_size: PowerDecay = PowerDecay(0.05)
    radius: PowerDecay = PowerDecay(0.05)
    tau: float = TEMPERATURE
    clip: float = 10.0
    points: Literal["two", "central", "one"] = eqx.field(static=True, default="two")
    directions: int = eqx.field(static=True, default=1)
    warm: bool = eqx.field(static=True, default=False)

    name: ClassVar[str] = "zero_order"
    action_sets: ClassVar[bool] = True
    references: ClassVar[tuple[str, ...]] = ("nesterov2017random", "flaxman2005bandit", "thoma2024hpgd")

    def check(self, problem: BilevelProblem) -> None:
        self.step_size.check(f"{self.name}.step_size")
        self.radius.check(f"{self.name}.radius")
        check_fields(
            self.name,
            ("tau", self.tau, self.tau > 0, "it must be above 0"),
            ("clip", self.clip, self.clip > 0, "it must be above 0"),
            ("points", self.points, self.points in ("one", "two", "central"), "it must be 'one', 'two' or 'central'"),
            ("directions", self.directions, self.directions >= 1, "it must be at least 1"),
        )  # fmt: skip

    def draws(self, problem: BilevelProblem) -> Draws:
        return {"directions": (self.directions, problem.x0.shape[0])}

    def init(self, problem: BilevelProblem, x0, key) -> WarmState:
        return WarmState(x0, jnp.zeros((), int), jnp.zeros(problem.mdp.n_states) if self.warm else None)

    def step(self, problem: BilevelProblem, state: WarmState, k, noise) -> WarmState:
        x, delta, V = state.x, self.radius(k), state.V
        Phi_x = jnp.zeros(())
        if V is not None:
            plan = self._answer(problem, x, V)
            V, Phi_x = plan.V, problem.objective.value(x, plan.pi, problem)
        elif self.points == "two":
            Phi_x = oracles.hyper_objective(problem, x, self.tau)

        def value(y):
            if V is None:
                return oracles.hyper_objective(problem, y, self.tau)
            return problem.objective.value(y, self._answer(problem, y, V).pi, problem)

        z = ndtri(jnp.maximum(noise["directions"], 1e-15))  # [N, d]
        signs = jnp.array([1.0, -1.0] if self.points == "central" else [1.0])
        away = delta * signs[:, None, None] * z
        reached = jax.vmap(jax.vmap(problem.project))(x + away)
        Phi = jax.vmap(jax.vmap(value))(reached)  # [1 or 2, N]
        z = (reached - x) / delta
        if self.points == "two":
            Phi = Phi - Phi_x
        g = rollouts.clipped(jnp.mean(jnp.sum(Phi[..., None] * z, 0), 0) / (delta * len(signs)), self.clip)
        return WarmState(problem.project(x - self.step_size(k) * g), state.samples, V)

    def _answer(self, problem: BilevelProblem, x, V) -> planning.Plan:
        return planning.soft_optimal(problem.transitions(x), problem.reward(x), self.tau, V)
