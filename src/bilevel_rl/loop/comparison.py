"""How a search compares starts by samples: the hook that an engine fills, and the guard under which starts settle."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from bilevel_rl.loop.noise import Draws
from bilevel_rl.loop.problem import Problem
from bilevel_rl.loop.solver import Solver, State
from bilevel_rl.loop.stages import Stage
from bilevel_rl.loop.stepping import COMPARING


class Comparison(abc.ABC):
    """Measures the outcome at each start's x from transitions, of which it draws no more than it is given.

    Attributes:
        least: the fewest transitions of one start from which it can be measured.
    """

    least: int = 0

    def marked(self, plan: tuple[Stage, ...]) -> tuple[Stage, ...]:
        """The stages, with `model` set where what the samples of all starts teach serves each of them."""
        return plan

    def nothing(self) -> dict[str, np.ndarray]:
        """What is kept from comparison to comparison, before the first; saved with every checkpoint."""
        return {}

    @abc.abstractmethod
    def measure(
        self, solvers: Solver, states: State, keys: Array, number: int, k: int, stage: Stage, tau: float,
        seen: dict[str, np.ndarray],
    ) -> tuple[Float[np.ndarray, " n"], Int[np.ndarray, " n"], dict[str, np.ndarray]]:
        """The outcome of each start that goes on.

        Args:
            solvers, states: of the starts, batched, at the stage's temperature.
            keys: [n] of the starts; draw from the `comparison_key` of them.
            number, stage: of the stage that ends; `stage.measure` transitions of each start may be drawn.
            k: iterations so far.
            tau: temperature of grading.
            seen: what was kept so far.

        Returns:
            Estimates, the transitions that each took, and what is to be kept.
        """


# (problem, solver, by, tau) -> how to compare; None compares by the objective that the problem's `measures` report
MakeComparison = Callable[[Any, Any, str, float | None], Comparison | None]


def comparison_key(key: Array, number: Int[Array, ""] | int) -> Array:
    """Of the comparison after a stage; of a fold that no iteration uses."""
    return jax.random.fold_in(jax.random.fold_in(key, COMPARING), number)


class Limited(Solver):
    """A solver whose x can be held and whose transitions end at a limit: an iteration that would pass it is not taken.

    Attributes:
        solver: the solver.
        held: 1 where x stays and everything else learns on, else 0.
        limit: of the state's `samples`.
        limited: whether the limit is watched; needed only where iterations differ in cost.
    """

    solver: Solver
    held: Float[Array, ""] | float = 0.0
    limit: Float[Array, ""] | float = math.inf
    limited: bool = eqx.field(static=True, default=False)

    def draws(self, problem: Problem) -> Draws:
        return self.solver.draws(problem)

    def init(self, problem: Problem, x0, key) -> State:
        return self.solver.init(problem, x0, key)

    def step(self, problem: Problem, state: State, k, noise) -> State:
        new = self.solver.step(problem, state, k, noise)
        new = eqx.tree_at(lambda s: s.x, new, jnp.where(self.held > 0, state.x, new.x))
        if self.limited:
            new = jax.tree.map(lambda a, b: jnp.where(new.samples <= self.limit, a, b), new, state)
        return new
