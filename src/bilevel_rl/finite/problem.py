"""The bi-level problem: tables of what happens and what is paid, graded by exact oracles."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bilevel_rl import metrics as M
from bilevel_rl.errors import InvalidProblem, Unsolved
from bilevel_rl.finite import checks, oracles, requirements
from bilevel_rl.finite.model import planning
from bilevel_rl.finite.model.mdp import FiniteMDP
from bilevel_rl.finite.tables import GraphLayout, GridLayout, ObjectiveSample, TableProblem, UpperObjective
from bilevel_rl.loop.problem import Optimum

__all__ = ["BilevelProblem", "GraphLayout", "GridLayout", "ObjectiveSample", "UpperObjective"]

MATRICES = 8  # ours: how many dense S x S matrices a run has at once
SCENE_STATES = 2500  # ours: larger grids are not drawn
LISTED_STATES = 500  # ours: of larger problems without a grid the policy is not kept
NETWORK_STATES = 40  # ours: larger networks are not drawn
GRADED_STATES = 5000  # ours: above this many states oracles are asked only where nothing else will do
BRUTE_FORCE_STATES = 200  # ours: above this, brute force would outlast the run it grades


class BilevelProblem(TableProblem):
    r"""Minimise $\Phi(x) = f(x, \pi^*(x))$ where $\pi^*(x)$ is optimal for the reward $r_x$.

    Subclass it and write `reward`; everything else has a default.

    Attributes:
        mdp: transitions, start, discount.
        objective: f.
        x0: [d] where x starts.

    Example:
        >>> class Toll(BilevelProblem):
        ...     def reward(self, x):  # [S, A], differentiable in x
        ...         return jnp.zeros((2, 2)).at[0, 1].set(1 - x[0])
    """

    def discount_factor(self) -> float:
        return 0.0 if self.mdp is None else float(self.mdp.discount)

    def check(self, thorough: bool = True) -> None:
        checks.check_problem(self, thorough)

    def described(self) -> tuple[str, str]:
        d = self.x0.shape[0]
        if self.mdp is None:
            return (
                f"A follower in closed form, {d} upper variable{'s' * (d > 1)}",
                "finite values, derivative of the hyper-objective against central differences, projection, at x0",
            )
        moved = "reward and transitions depend" if self.moves_transitions else "reward depends"
        return (
            f"{self.mdp.n_states} states, {self.mdp.n_actions} actions, discount {float(self.mdp.discount):g}, "
            f"{d} upper variable{'s' * (d > 1)}, {moved} on x, objective "
            f"{'linear' if self.objective.linear else 'not linear'} in the visitation, graded at temperature "
            f"{float(self.temperature()):g}{_learnt_at(self)}",
            "shapes, finite values, derivative of the reward against central differences, reward_at, projection, "
            "hyper-objective and hyper-gradient, at x0 and three points near it; probabilities, ends and steps at eight "
            "points",
        )

    def accept(self, solver: Any) -> None:
        requirements.check_fits(solver, self)

    def graded(self) -> bool:
        return self.mdp is None or self.mdp.n_states <= GRADED_STATES

    def best_known(self, tau: float) -> Optimum | None:
        """By brute force where x has a box of at most two dimensions and the MDP is small."""
        box, small = self.box(), self.mdp is None or self.mdp.n_states <= BRUTE_FORCE_STATES
        if not small or box is None or self.x0.shape[0] > 2:
            return None
        try:
            return oracles.brute_force(self, tau)
        except (InvalidProblem, Unsolved):
            if all(np.isfinite(bound).all() for bound in box):
                raise
            return None  # an open side: there need not be an optimum in reach

    def size_hint(self) -> int:
        S = 1 if self.mdp is None else self.mdp.n_states
        return MATRICES * 8 * min(S, planning.DENSE_LIMIT) ** 2

    def measures(self, solver: Any, state: Any, k, tau) -> tuple[dict[str, Array], Float[Array, "S A"] | None]:
        """The hyper-objective, its gradient, and how far the solver's followers are from the answer, by oracles."""
        # one solution of the lower level serves the hyper-objective, its gradient and the scene
        (phi, plan), exact = jax.value_and_grad(_answered, argnums=1, has_aux=True)(self, state.x, tau)
        values = {M.OBJECTIVE.key: phi, M.GRADIENT_NORM.key: jnp.linalg.norm(exact)}
        if plan is not None:
            values[M.FOLLOWER_VALUE.key] = jnp.dot(self.mdp.start, plan.V)
        followers = solver.policies(self, state, k)
        if followers is not None:
            pi, pi_l = followers
            mdp = self.transitions(state.x)
            V = planning.policy_value(mdp, self.reward(state.x), pi, tau)
            now = solver.scales.at(k)
            mean = oracles.penalty_estimate(self, state.x, pi, pi_l, now.w, now.tau)
            values[M.GRADIENT_ERROR.key] = jnp.linalg.norm(mean - exact)
            values[M.LOWER_GAP.key] = jnp.dot(mdp.start, plan.V - V)
            values[M.POLICY_GRADIENT.key] = jnp.sum(oracles.policy_gradient(self, state.x, pi, tau, V) ** 2)
        return values, plan.pi if plan is not None and self._drawn() else None

    def _drawn(self) -> bool:
        """Whether the follower's policy is kept at every record, for pictures and tables."""
        return self.mdp.n_states <= (SCENE_STATES if isinstance(self.layout(), GridLayout) else LISTED_STATES)

    def scene(self, x: Float[Array, " d"], found: Float[Array, "S A"] | None) -> dict[str, Array]:
        if found is None:
            return {}
        marker, mdp, layout = self.marker(x), self.transitions(x), self.layout()
        visitation = planning.visitation(mdp, found)
        arrays = {"policy": found, "visitation": visitation}
        if isinstance(layout, GridLayout):
            arrays["reward"] = jnp.max(self.reward(x), -1)
            arrays["marker"] = jnp.full(2, jnp.nan) if marker is None else marker
        elif mdp.n_states <= NETWORK_STATES:
            arrays["flow"] = _flow(mdp, found, visitation)
        return arrays

    def backdrop(self) -> dict[str, np.ndarray]:
        if self.mdp is None or not self._drawn():
            return {}
        layout = self.layout()
        arrays = {} if layout is None else {k: np.asarray(v) for k, v in dataclasses.asdict(layout).items()}
        names = {"state_names": self.state_names, "action_names": self.action_names}
        arrays |= {key: np.asarray(words, str) for key, words in names.items() if words}
        for key in ("allowed", "ends"):
            if getattr(self.mdp, key) is not None:
                arrays[key] = np.asarray(getattr(self.mdp, key))
        if not isinstance(layout, GridLayout):  # where each action leads most often: a name for those that have none
            likely = np.argmax(self.mdp.probabilities, axis=2)[:, :, None]
            arrays["leads"] = np.take_along_axis(np.asarray(self.mdp.successors), likely, axis=2)[:, :, 0]
        return arrays | {"start": np.asarray(self.mdp.start)}


def _flow(mdp: FiniteMDP, pi: Float[Array, "S A"], visitation: Float[Array, " S"]) -> Float[Array, "S S"]:
    """How much of the discounted time is spent in a step from s to s'; steps that end an episode are left out."""
    S = mdp.n_states
    steps = (visitation[:, None] * pi)[:, :, None] * mdp.probabilities
    return jnp.zeros((S, S + 1)).at[jnp.arange(S)[:, None, None], mdp.successors].add(steps)[:, :S]


def _learnt_at(problem: BilevelProblem) -> str:
    """The follower's own temperature, where it is another than that of the grade."""
    own = float(problem.follower_temperature())
    return "" if own == float(problem.temperature()) else f", its follower's own {own:g}"


def _answered(problem: BilevelProblem, x, tau) -> tuple[Array, planning.Plan | None]:
    """The hyper-objective, and the lower level's optimum with it."""
    plan = None if problem.mdp is None else oracles.lower_optimum(problem, x, tau)
    return oracles.hyper_objective(problem, x, tau, plan), plan
