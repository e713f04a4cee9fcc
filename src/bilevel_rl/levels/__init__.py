"""Bi-level learning of any Torch policy: what does not depend on what the policy acts in."""

from __future__ import annotations

from typing import Any

__all__ = ["check_engine"]


def __getattr__(name: str) -> Any:
    if name == "check_engine":  # Torch is imported where it is asked for
        from bilevel_rl.levels.checks import check_engine

        return check_engine
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
