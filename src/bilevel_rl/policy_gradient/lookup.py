"""Components by name: the library's, those that installed packages offer, and your own, named by where they stand.

group_norm                  of the library, or of the entry points `bilevel_rl.components`
package.module:Class        importable
folder/file.py:Class        a file, run when it is named
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import inspect
import math
import pathlib
import re
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from bilevel_rl import names
from bilevel_rl.errors import InvalidConfig, InvalidProblem, did_you_mean, message
from bilevel_rl.policy_gradient import (
    aggregate,
    credit,
    losses,
    regularizers,
    reward,
    rollout,
    select,
    steps,
    weigh,
)
from bilevel_rl.policy_gradient.component import Card, Slot
from bilevel_rl.policy_gradient.losses import unified
from bilevel_rl.policy_gradient.regularizers import kl
from bilevel_rl.policy_gradient.reward import win_rate
from bilevel_rl.policy_gradient.select.replay import ReplayBuffer
from bilevel_rl.schedules import PowerDecay

FILES: dict[pathlib.Path, ModuleType] = {}  # components of your own, by the file they stand in
GROUP = "bilevel_rl.components"  # entry points of packages that offer components
OUTSIDE = re.compile(r"(?<![\w'\"./~-])([\w./~-]*[\w~-]):([A-Za-z_]\w*)")  # module:Name or file.py:Name

COMPONENTS: tuple[type, ...] = (
    *rollout.ALL, *reward.ALL, *select.ALL, *credit.ALL, *weigh.ALL, *losses.ALL, *regularizers.ALL, *steps.ALL,
)  # fmt: skip

# values that components take as options, by the names they have in the code
OPTIONS: dict[str, Any] = {
    f.__name__: f
    for f in (
        aggregate.per_token, aggregate.per_sequence, aggregate.sum_of_tokens, kl.k1, kl.k2, kl.k3, win_rate.by_score,
        win_rate.bradley_terry, unified.itself, unified.sampler, unified.behaviour, unified.one,
        unified.itself_on_demonstrations, unified.always,
    )
} | {"inf": math.inf}  # fmt: skip
FACTORIES: dict[str, Callable[..., Any]] = {
    "per_constant": aggregate.PerConstant,
    "clip_mask": unified.ClipMask,
    "replay_buffer": ReplayBuffer,
    "power_decay": PowerDecay,
}


def component(name: str, slot: Slot | None = None) -> type:
    """The class of the component of that name.

    Args:
        name: see the head of this file.
        slot: where it is to go, for the error's sake.

    Raises:
        InvalidConfig: there is none (the message has the nearest names), or what is found is no component.
    """
    if ":" in name:
        return _checked(attribute(name), name)
    for cls in COMPONENTS:
        if cls.card.name == name:  # type: ignore[attr-defined]
            return cls
    offered = {entry.name: entry for entry in importlib.metadata.entry_points(group=GROUP)}
    if name in offered:
        return _checked(_loaded(offered[name]), name)
    known = [
        cls.card.name  # type: ignore[attr-defined]
        for cls in COMPONENTS
        if slot is None or cls.card.slot == slot  # type: ignore[attr-defined]
    ]
    raise InvalidConfig(
        message("component" if slot is None else f"{slot} component", repr(name),
                did_you_mean(name, [*known, *offered]), "Choose one, or name your own: module:Class or file.py:Class")
    )  # fmt: skip


def attribute(reference: str) -> Any:
    """What `package.module:Name` or `file.py:Name` names.

    Raises:
        InvalidConfig: no such file, module or attribute, or it raises when imported.
    """
    where, _, name = reference.rpartition(":")
    module = _from_file(pathlib.Path(where).expanduser()) if where.endswith(".py") else _imported(where)
    if not hasattr(module, name):
        public = [key for key in vars(module) if not key.startswith("_")]
        raise InvalidConfig(
            message(reference, f"no {name!r} in {where}", did_you_mean(name, public), "Name one of these")
        )
    return getattr(module, name)


def reference(thing: Any) -> str:
    """The name under which `component` or an option finds a class or function again.

    Raises:
        InvalidConfig: it stands nowhere that can be named (a lambda, something local, something typed in).
    """
    for known, value in OPTIONS.items():
        if value is thing:
            return known
    if thing in COMPONENTS:
        return str(thing.card.name)
    module, name = getattr(thing, "__module__", None), getattr(thing, "__qualname__", "<nameless>")
    home = sys.modules.get(module or "")
    if home is None or module == "__main__" or getattr(home, name, None) is not thing:
        raise InvalidConfig(
            message("recipe", f"{name} of {module}, which has no name that finds it again",
                    "a recipe in a run folder is made of components and functions at the top level of a module or file",
                    "Put it in a file of its own, or run without a folder")
        )  # fmt: skip
    path = getattr(home, "_bilevel_rl_file", None)
    return f"{path or module}:{name}"


def has_slot(cls: Any) -> bool:
    """Whether this is a component: a class that can be called, with a card."""
    return inspect.isclass(cls) and isinstance(getattr(cls, "card", None), Card) and callable(cls)


def _checked(found: Any, name: str) -> type:
    if not has_slot(found):
        kind = "a class without a card" if inspect.isclass(found) else type(found).__name__
        raise InvalidConfig(
            message(f"component {name!r}", kind, "a component is a frozen dataclass with `card` (a Card) and `__call__`",
                    "Give it a card, and try check_component on it")
        )  # fmt: skip
    return found


def _loaded(entry: importlib.metadata.EntryPoint) -> Any:
    with _as_configuration():
        try:
            return entry.load()
        except Exception as error:
            raise names.broken(f"{entry.value} (entry point {entry.name!r} of {GROUP})", error) from error


def _imported(name: str) -> ModuleType:
    with _as_configuration():
        return names.load_module(name, "component")


def _from_file(path: pathlib.Path) -> ModuleType:
    """Loaded once: a component named twice is one class."""
    path = path.resolve()
    if path not in FILES:
        with _as_configuration():
            FILES[path] = names.load_file(path, "component")
        FILES[path]._bilevel_rl_file = str(path)  # type: ignore[attr-defined]
    return FILES[path]


@contextlib.contextmanager
def _as_configuration() -> Iterator[None]:
    """A file that does not load is, here, a wrong configuration, whose reader expects no other error."""
    try:
        yield
    except InvalidProblem as error:
        raise InvalidConfig(f"component file {error}") from error
