"""The judge and the gold scorer that a configuration names."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bilevel_rl import names
from bilevel_rl.errors import InvalidConfig, InvalidProblem, message
from bilevel_rl.llm.judges.builtin import ClassifierScore, HumanQueue, ScoreJudge
from bilevel_rl.llm.judges.endpoint import EndpointJudge, EndpointScore, is_endpoint, parse
from bilevel_rl.llm.judges.vader import Vader

SCORERS: dict[str, Callable[[], Any]] = {"vader": Vader}
QUEUE, FUNCTION = "queue:", "function:"


def make_judge(source: str, seed: int = 0) -> tuple[Any, Any]:
    """The judge and, where it is made of scores, the gold scorer that a configuration's `judge` names.

    Args:
        source: `queue:FOLDER` for labels by hand; `https://HOST/v1@MODEL`, a model behind a server; a judge of
            your own, `MODULE:NAME` or `FILE.py:NAME`; or a scorer, as `make_gold` reads it, whose higher score is preferred.
            `~SHARPNESS` behind a scorer draws the labels from a Bradley-Terry law; behind a name of your own it says that it
            names a scorer.
        seed: of drawn labels.

    Returns:
        (judge, gold): (None, None) for an empty source.

    Raises:
        InvalidConfig: no such thing, or a sharpness that is no number.
    """
    if not source:
        return None, None
    source = dotted(source)
    if source.startswith(QUEUE):
        return HumanQueue(Path(source.removeprefix(QUEUE)).expanduser(), wait_seconds=0), None
    name, sharpness = _sharpness(source)
    if sharpness is None and is_endpoint(name):
        return EndpointJudge(parse(name, "config.judge")), None
    if sharpness is None and names.is_name(name) and not name.startswith(names.BUILTIN):
        judge = names.find(name, {}, "config.judge")
        return (judge() if isinstance(judge, type) else judge), None
    gold = make_gold(name, "config.judge")
    return ScoreJudge(gold, math.inf if sharpness is None else sharpness, seed), gold


def make_gold(source: str, where: str = "config.gold") -> Any:
    """A scorer with the signature of TRL's reward functions, or None for an empty source.

    Args:
        source: `builtin:vader`; `https://HOST/v1@MODEL`; `MODULE:NAME` or `FILE.py:NAME`; or a classifier's folder or hub
            id, with `@LABEL` for the label whose probability counts (by default the last).
        where: for errors.

    Raises:
        InvalidConfig: no such thing.
    """
    if not source:
        return None
    source = dotted(source)
    if is_endpoint(source):
        return EndpointScore(parse(source, where))
    if names.is_name(source):
        found = names.find(source, SCORERS, where)
        found = found() if isinstance(found, type) else found
        if not callable(found):
            raise InvalidProblem(
                message(where, f"{source!r}, a {type(found).__name__}", "a scorer is called with prompts, completions",
                        "Name a function, or a class whose instances are called")
            )  # fmt: skip
        return found
    folder, label = _label(source)
    return ClassifierScore(str(Path(folder).expanduser()) if folder[:1] == "~" else folder, label=label or -1)


def dotted(source: str) -> str:
    """`function:MODULE.NAME`, an older form, as `MODULE:NAME`.

    Example:
        >>> dotted("function:mine.shorter"), dotted("mine.py:shorter")
        ('mine:shorter', 'mine.py:shorter')
    """
    path = source.removeprefix(FUNCTION)
    return path if path == source or ":" in path else ":".join(path.rsplit(".", 1))


def _sharpness(source: str) -> tuple[str, float | None]:
    """`NAME~SHARPNESS` in its parts; a home folder's `~` and one inside a path are no such sign."""
    name, sign, slope = source.rpartition("~")
    if not sign or not name or "/" in slope or Path(source).expanduser().exists():
        return source, None
    try:
        return name, float(slope)
    except ValueError:
        raise InvalidConfig(
            message("config.judge", repr(slope), "after ~ comes a number", "Write FOLDER@LABEL~8")
        ) from None


def _label(source: str) -> tuple[str, str]:
    """`FOLDER@LABEL` in its parts: the last `@` counts, and only where no folder has that name."""
    folder, sign, label = source.rpartition("@")
    if not sign or not folder or "/" in label or Path(source).expanduser().exists():
        return source, ""
    return folder, label
