"""What a solver is: frozen hyper-parameters with `init` and `step`. The loop owns everything else."""

from __future__ import annotations

import abc
from typing import Any, ClassVar, TypeVar

import equinox as eqx
import jax
from jaxtyping import Array, Float, Int

from bilevel_rl.errors import InvalidProblem, message
from bilevel_rl.loop.noise import Draws
from bilevel_rl.loop.pieces import Ring
from bilevel_rl.loop.problem import Problem
from bilevel_rl.schedules import PowerDecay, TimeScales, Unstated

# The schedules know no array library; here JAX learns that their numbers may be traced and batched.
jax.tree_util.register_dataclass(PowerDecay, ["initial", "power", "floor"], [])
jax.tree_util.register_dataclass(TimeScales, ["zeta", "alpha", "beta", "w", "tau"], [])

Same = TypeVar("Same")  # a solver's own class: run-time checkers do not take typing.Self in a method


class State(eqx.Module):
    """What a step carries. Subclasses add followers, critics and chains.

    Attributes:
        x: [d] the upper variable.
        samples: environment transitions used so far.
    """

    x: Float[Array, " d"]
    samples: Int[Array, ""]


class Solver(eqx.Module):
    """Frozen hyper-parameters, a pure `init` and a pure `step`."""

    name: ClassVar[str] = "solver"
    references: ClassVar[tuple[str, ...]] = ()

    @property
    def requires(self) -> tuple[str, ...]:
        """What a problem must offer, by the names that the problem's engine gives such things; see `check_fits`."""
        return ()

    @abc.abstractmethod
    def draws(self, problem: Problem) -> Draws:
        """Which uniform random numbers one step consumes: how many, their shape, or several shapes by name."""

    @abc.abstractmethod
    def init(self, problem: Problem, x0: Float[Array, " d"], key: Array) -> State:
        """The first state."""

    @abc.abstractmethod
    def step(self, problem: Problem, state: State, k: Int[Array, ""], noise: Any) -> State:
        """One iteration. `noise` is `draws(problem)` with uniform numbers in [0, 1) for its shapes."""

    def tracked(self, problem: Problem, state: State, k) -> Any | None:
        """The tracked answer to x, in the engine's terms; None for solvers that track none."""
        return None

    def on(self: Same, problem: Problem) -> Same:
        """The solver with the problem's follower temperature wherever it was told none; what was stated is kept.

        Example:
            >>> from bilevel_rl.finite.problems import PreferenceLearning
            >>> from bilevel_rl.finite.solvers import ExactDescent
            >>> ExactDescent().on(PreferenceLearning()).tau, ExactDescent(tau=0.05).on(PreferenceLearning()).tau
            (0.5, 0.05)
        """
        tau = float(problem.follower_temperature())
        return jax.tree.map(lambda leaf: tau if isinstance(leaf, Unstated) else leaf, self)

    def check(self, problem: Problem) -> None:
        """Raise `InvalidConfig` or `InvalidProblem` when the settings are wrong on this problem."""

    def checkpointed(self, state: State) -> Any:
        """What of a state is saved; by default all of it. Leave out what `restored` can make again."""
        return state

    def restored(self, state: State, saved: Any) -> State:
        """The state of which `checkpointed` saved this; `state` is the first one of the same run."""
        return saved

    def ring(self, states: State) -> Ring | None:
        """The replay of a batch of states, where it is too large to be saved whole; it then is saved in pieces."""
        return None

    def with_ring(self: Same, states: State, rows: Array) -> State:
        """The states with these rows for their replay."""
        return states


def check_fits(solver: Solver, problem: Problem) -> None:
    """Check a solver's settings, and that the problem offers what it needs.

    Raises:
        InvalidConfig: a setting that is not allowed.
        InvalidProblem: something is missing; the message names it, and the library's solvers that do without.
    """
    problem.accept(solver)
    solver.check(problem)


def check_compiled(where: str, problem: Problem) -> None:
    """Raise `InvalidProblem` where a problem's runs step outside compiled code: what copies states can't follow them."""
    if problem.stepper() is not None:
        raise InvalidProblem(
            message(f"{where} on {problem.name}", "a world that steps outside compiled code",
                    "its states can't be copied or put back", "Take solve, or run, compare and sweep")
        )  # fmt: skip
