"""Fields of a solver by dotted names, what is allowed in them, and its temperature wherever it keeps one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from bilevel_rl.errors import InvalidConfig, did_you_mean, message
from bilevel_rl.loop.solver import Solver

AnySolver = TypeVar("AnySolver", bound=Solver)


def with_options(solver: AnySolver, options: Mapping[str, Any]) -> AnySolver:
    """The solver with some fields changed, named by dotted paths.

    Raises:
        InvalidConfig: an unknown field.

    Example:
        >>> from bilevel_rl.finite.solvers.coupled_penalty import CoupledPenalty
        >>> with_options(CoupledPenalty(), {"scales.zeta.initial": 0.4}).scales.zeta.initial
        0.4
    """
    for path, value in options.items():
        solver = _replace(solver, path.split("."), value, path)
    return solver


def _replace(node: Any, names: list[str], value: Any, path: str) -> Any:
    fields = [field.name for field in dataclasses.fields(node)] if dataclasses.is_dataclass(node) else []
    if names[0] not in fields:
        raise InvalidConfig(
            message(f"option {path}", repr(names[0]), did_you_mean(names[0], fields), "Name an existing field")
        )
    inner = value if len(names) == 1 else _replace(getattr(node, names[0]), names[1:], value, path)
    return dataclasses.replace(node, **{names[0]: inner})


def check_fields(where: str, *fields: tuple[str, Any, bool, str]) -> None:
    """Raise `InvalidConfig` for the first field (name, value, is it good, what is allowed) that is not good."""
    for field, value, good, allowed in fields:
        if not good:
            raise InvalidConfig(message(f"{where}.{field}", value, allowed, f"Change {field}"))


def has_temperature(solver: Solver) -> bool:
    """Whether a solver keeps a temperature of its own: `tau`, or that of its five sequences."""
    return hasattr(solver, "tau") or hasattr(solver, "scales")


def temperature(solver: Any, k: int) -> float:
    """The solver's own at iteration k."""
    return float(solver.tau if hasattr(solver, "tau") else solver.scales.at(k).tau)


def temperature_note(solver: Any, grade: float) -> str | None:
    """A sentence where a solver's constant temperature is another than that of the grade; None where all is well.

    Args:
        solver: any; schedules that fade are on their way to the unregularised problem, and fine.
        grade: the temperature at which results are graded.

    Example:
        >>> from bilevel_rl.finite.solvers import ExactDescent
        >>> temperature_note(ExactDescent(tau=0.05), 0.05) is None
        True
        >>> temperature_note(ExactDescent(tau=0.05), 5.0)
        'solved at temperature 0.05, graded at 5: the x of another follower. Give --solver.tau 5, or grade with --tau 0.05'
    """
    scales = getattr(solver, "scales", None)
    if not has_temperature(solver) or (scales is not None and float(scales.tau.power) > 0):
        return None
    own = temperature(solver, 0)
    if abs(own - grade) <= 1e-12 * max(abs(own), abs(grade)):
        return None
    option = "--solver.tau" if hasattr(solver, "tau") else "--solver.scales.tau.initial"
    raised = f"Give {option} {grade:g}" if grade > 0 else f"Lower {option}, or let it fade"
    differ = f"solved at temperature {own:g}, graded at {grade:g}: the x of another follower"
    return f"{differ}. {raised}, or grade with --tau {own:g}"


def heated(solver: Any, heat: float) -> Any:
    """The solver at a temperature so many times as high."""
    if heat == 1.0:
        return solver
    field = "tau" if hasattr(solver, "tau") else "scales.tau.initial"
    value = solver.tau if hasattr(solver, "tau") else solver.scales.tau.initial
    return with_options(solver, {field: value * heat})
