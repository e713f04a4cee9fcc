"""Recipes as text, the way out: every slot, every field of every part; `composition` reads it back."""

from __future__ import annotations

import dataclasses
import inspect
import math
from typing import Any

from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.policy_gradient.component import Slot
from bilevel_rl.policy_gradient.credit.sums import Sum
from bilevel_rl.policy_gradient.lookup import FACTORIES, reference

SLOTS: dict[str, Slot] = {slot.value: slot for slot in Slot}
ONE = ("credit", "loss", "step")  # slots that take a single part


def composition(recipe: Any) -> str:
    """The text from which `compose` makes this recipe again: every slot, every field of every part.

    Args:
        recipe: a `Recipe`.

    Raises:
        InvalidConfig: a part, or an option of one, that no name finds again.

    Example:
        >>> from bilevel_rl.policy_gradient.recipe import Recipe
        >>> composition(Recipe())
        'credit=leave_one_out(), loss=policy_gradient(aggregate=sum_of_tokens)'
    """
    slots = []
    for slot in SLOTS:
        value = getattr(recipe, slot)
        if slot in ONE:
            if value is not None:
                slots.append(f"{slot}={_written(value)}")
        elif value:
            parts = [
                f"{k!r}*{_written(c)}" if slot == "regular" else _written(c) for c, k in _pairs(slot, value)
            ]
            slots.append(f"{slot}=[{', '.join(parts)}]" if len(parts) > 1 else f"{slot}={parts[0]}")
    return ", ".join(slots)


def _pairs(slot: str, value: tuple[Any, ...]) -> list[tuple[Any, float]]:
    return [(c, k) for k, c in value] if slot == "regular" else [(c, 1.0) for c in value]


def _written(value: Any) -> str:
    """One value as the text that reads back as it."""
    if isinstance(value, Sum):
        return (
            "("
            + " + ".join(f"{w!r}*{_written(t)}" for w, t in zip(value.weights, value.terms, strict=True))
            + ")"
        )
    if isinstance(value, tuple):
        return "(" + "".join(f"{_written(one)}, " for one in value) + ")"
    if value is None or isinstance(value, bool | int | str):
        return repr(value)
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else "inf" if value > 0 else "-inf"
    return _component(value) if hasattr(value, "card") else _made_or_named(value)


def _made_or_named(value: Any) -> str:
    """An option that a factory makes, or a function by its name."""
    for name, factory in FACTORIES.items():
        if type(value) is factory:
            return f"{name}({_options(value, inspect.signature(factory).parameters)})"
    return reference(value)


def _component(value: Any) -> str:
    if not dataclasses.is_dataclass(value):
        raise InvalidConfig(
            message(f"{value.card.slot} '{value.card.name}'", f"{type(value).__name__}, which is no dataclass",
                    "the fields of a component are what a run folder keeps of it", "Make it a frozen dataclass")
        )  # fmt: skip
    name = reference(type(value))
    fields = [f.name for f in dataclasses.fields(value) if f.init]
    return f"{'return_' if name == 'return' else name}({_options(value, fields)})"


def _options(value: Any, names: Any) -> str:
    return ", ".join(f"{name}={_written(getattr(value, name))}" for name in names)
