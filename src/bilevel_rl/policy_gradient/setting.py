"""`Setting`: what a run knows before it starts; components take their limits from it and say when they can't act."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.policy_gradient.component import parts


@dataclasses.dataclass(frozen=True)
class Setting:
    """The configuration as far as components care; None is "not known", and nothing is concluded from it.

    Attributes:
        epochs: gradient steps on each batch; at one, new and old policy are the same and every ratio is 1.
        group: responses a prompt.
        max_new_tokens: longest response, in tokens.
        turns: whether responses have more than one turn.
        truncates: whether a response can be cut by the limit.
        answers: number of correct final answers that a prompt has.
    """

    epochs: int | None = None
    group: int | None = None
    max_new_tokens: int | None = None
    turns: bool | None = None
    truncates: bool | None = None
    answers: int | None = None

    @property
    def one_step(self) -> bool:
        """Known to take a single gradient step a batch."""
        return self.epochs == 1


def configured(component: Any, setting: Setting) -> Any:
    """The component, and what it wraps, with the limits that it leaves open taken from the setting.

    A component that has such limits has a method `configured(setting)`.
    """
    if dataclasses.is_dataclass(component) and not isinstance(component, type):
        changed = {}
        for field in dataclasses.fields(component):
            value = getattr(component, field.name)
            new = (
                tuple(configured(one, setting) for one in value)
                if isinstance(value, tuple)
                else configured(value, setting)
                if hasattr(value, "card")
                else value
            )
            if new is not value and new != value:
                changed[field.name] = new
        if changed:
            component = dataclasses.replace(component, **changed)
    return component.configured(setting) if hasattr(component, "configured") else component


def idle(component: Any, setting: Setting) -> Iterator[str]:
    """Sentences, one for each part of the component that can't act in this setting.

    A component that can be inert has a method `idle(setting)` that says why, or gives an empty string.
    """
    for part in parts(component):
        why = part.idle(setting) if hasattr(part, "idle") else ""
        if why:
            yield f"{part.card.slot} '{part.card.name}' can't act here: {why}"


def unset(component: Any, option: str, do: str) -> InvalidConfig:
    """The error of a component that is called before the limit it takes from the run is known."""
    return InvalidConfig(
        message(f"{component.card.slot} '{component.card.name}'", f"{option}=None outside a run",
                "it takes this limit from the configuration", do)
    )  # fmt: skip


RATIO_ONE = (
    "one gradient step a batch (epochs: 1) keeps the ratio of new to old policy at 1, so nothing is clipped or pulled "
    "back. Set epochs to 2 or more"
)
ONE_TURN = "every response has one turn, so steps are whole responses. Choose a task with turns"
ONE_ANSWER = "every prompt has one correct answer, so right answers don't differ. Choose a task with several"
