"""The public names: a change here is a change for users."""

from __future__ import annotations

import importlib
import inspect

import pytest

MODULES = (
    "bilevel_rl", "bilevel_rl.schedules", "bilevel_rl.records", "bilevel_rl.json_lines", "bilevel_rl.metrics",
    "bilevel_rl.statistics",
    "bilevel_rl.references", "bilevel_rl.errors", "bilevel_rl.finite", "bilevel_rl.finite.problems",
    "bilevel_rl.finite.objectives", "bilevel_rl.finite.solvers", "bilevel_rl.finite.oracles",
    "bilevel_rl.finite.model.planning", "bilevel_rl.report",
)  # fmt: skip


def public(module) -> list[str]:
    """Names in `__all__`, or those defined here without an underscore."""
    if hasattr(module, "__all__"):
        return sorted(module.__all__)
    return sorted(
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    )


@pytest.mark.parametrize("name", MODULES)
def test_public_names(name, snapshot):
    assert public(importlib.import_module(name)) == snapshot


@pytest.mark.parametrize("name", [name for name in MODULES if name not in ("bilevel_rl",)])
def test_every_public_name_is_documented(name):
    module = importlib.import_module(name)
    assert module.__doc__
    missing = [
        entry
        for entry in public(module)
        if (inspect.isclass(value := getattr(module, entry)) or inspect.isfunction(value))
        and not inspect.getdoc(value)
    ]
    assert not missing
