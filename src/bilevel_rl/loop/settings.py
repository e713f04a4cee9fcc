"""Fields of a solver by dotted names, and its temperature wherever it keeps one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from bilevel_rl.errors import InvalidConfig, did_you_mean, message
from bilevel_rl.loop.solver import Solver


def with_options(solver: Solver, options: Mapping[str, Any]) -> Solver:
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


def has_temperature(solver: Solver) -> bool:
    """Whether a solver keeps a temperature of its own: `tau`, or that of its five sequences."""
    return hasattr(solver, "tau") or hasattr(solver, "scales")


def temperature(solver: Any, k: int) -> float:
    """The solver's own at iteration k."""
    return float(solver.tau if hasattr(solver, "tau") else solver.scales.at(k).tau)


def heated(solver: Any, heat: float) -> Any:
    """The solver at a temperature so many times as high."""
    if heat == 1.0:
        return solver
    field = "tau" if hasattr(solver, "tau") else "scales.tau.initial"
    value = solver.tau if hasattr(solver, "tau") else solver.scales.tau.initial
    return with_options(solver, {field: value * heat})
