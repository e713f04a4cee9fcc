"""What some solvers ask of a problem, by name. A solver declares names in `requires`; `check_fits` refuses the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from bilevel_rl.errors import InvalidProblem, message
from bilevel_rl.finite.tables import TableProblem, UpperObjective
from bilevel_rl.loop.solver import Solver


class Requirement(NamedTuple):
    """Whether a problem offers something, and what to say where it does not."""

    met: Callable[[TableProblem], bool]
    missing: str


REQUIREMENTS: dict[str, Requirement] = {
    "linear objective": Requirement(
        lambda p: p.objective.linear, "an upper objective that is not linear in the visitation (it has no `bonus`)"
    ),
    "sampled objective": Requirement(
        lambda p: type(p.objective).sample is not UpperObjective.sample,
        "an upper objective without sampled gradients, such as preference data (it has no `sample` of its own)",
    ),
    "fixed transitions": Requirement(
        lambda p: not (p.moves_transitions or p.moves_start), "transitions or a start that depend on x"
    ),
}


def unmet(names: tuple[str, ...], problem: TableProblem) -> list[str]:
    """The names of what a problem does not offer.

    Example:
        >>> from bilevel_rl.finite.problems import GoalPlacement
        >>> unmet(("linear objective", "sampled objective"), GoalPlacement())
        ['sampled objective']
    """
    return [name for name in names if not REQUIREMENTS[name].met(problem)]


def check_fits(solver: Solver, problem: TableProblem) -> None:
    """Check that the problem offers what a solver needs.

    Raises:
        InvalidProblem: something is missing; the message names it, and the library's solvers that do without.
    """
    if problem.mdp is None and not getattr(solver, "closed_form", False):
        able = sorted(name for name, kind in known_solvers().items() if kind.closed_form)
        raise InvalidProblem(
            message(f"{solver.name} on {problem.name}", "a problem without a table of states and actions",
                    f"{solver.name} needs a finite MDP", f"Take {' or '.join(able) or 'oracles.brute_force'}")
        )  # fmt: skip
    if problem.mdp is not None and problem.mdp.allowed is not None and not getattr(solver, "action_sets", False):
        able = sorted(name for name, kind in known_solvers().items() if getattr(kind, "action_sets", False))
        raise InvalidProblem(
            message(f"{solver.name} on {problem.name}", "an MDP in which states offer different actions",
                    f"{solver.name} takes every action in every state", f"Take one of {', '.join(able)}")
        )  # fmt: skip
    if problem.mean_field and not getattr(solver, "crowds", False):
        able = sorted(name for name, kind in known_solvers().items() if getattr(kind, "crowds", False))
        raise InvalidProblem(
            message(f"{solver.name} on {problem.name}", "rewards that depend on what a population of followers does",
                    f"{solver.name} takes one follower", f"Take one of {', '.join(able)}")
        )  # fmt: skip
    missing = unmet(solver.requires, problem)
    if missing:
        able = [name for name, kind in known_solvers().items() if not unmet(kind().requires, problem)]
        raise InvalidProblem(
            message(f"{solver.name} on {problem.name}", " and ".join(REQUIREMENTS[name].missing for name in missing),
                    f"{solver.name} needs: {', '.join(solver.requires)}",
                    f"Take one of {', '.join(sorted(able))}" if able else "Take a solver without this requirement")
        )  # fmt: skip


def known_solvers() -> dict[str, Any]:
    """Name -> class of every solver of this library that has been imported."""
    found: dict[str, Any] = {}
    rest = list(Solver.__subclasses__())
    while rest:
        kind = rest.pop()
        rest += kind.__subclasses__()
        if kind.__module__.startswith("bilevel_rl.finite.solvers."):
            found[kind.name] = kind
    return found
