"""Numbers of the command line that no engine could make sense of: refused before anything is imported or started."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

from bilevel_rl.errors import InvalidConfig, message

MOST = 2**53  # counts above this are no exact numbers in the results
SEEDS = 2**63  # JAX's keys are made of 64-bit integers
LONG = 200  # characters of a name; files may have 255

# option -> (least, most); None: no bound
RANGES: dict[str, tuple[float | None, float | None]] = {
    "iterations": (1, MOST), "samples": (1, MOST), "runs": (1, 10**6), "seed": (0, SEEDS - 1), "records": (1, MOST),
    "tau": (0, None), "pilot": (2, MOST), "starts": (1, 10**6), "eta": (1, 10**6), "stages": (1, 10**3),
    "continuation": (0, None), "comparing": (0, 1), "settling": (0, 1), "spread": (0, None), "jobs": (1, 10**4),
}  # fmt: skip


def check(verb: str, settings: Any) -> None:
    """Check a verb's own options.

    Raises:
        InvalidConfig: a number that is not finite or out of its range, or a folder without a name.

    Example:
        >>> @dataclasses.dataclass
        ... class Settings:
        ...     runs: int = 0
        >>> check("run", Settings())
        Traceback (most recent call last):
        bilevel_rl.errors.InvalidConfig: bilevel-rl run --runs: got 0; it must be at least 1. Give another one.
    """
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        where = f"bilevel-rl {verb} --{field.name.replace('_', '-')}"
        for one in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(one, (int, float)) and not isinstance(one, bool):
                _number(where, one, *RANGES.get(field.name, (None, None)))
        if field.name in ("out", "keep", "best") and value is not None:
            place(where, str(value))


def _number(where: str, value: float, least: float | None, most: float | None) -> None:
    # an integer is finite, and may be too large to become a float
    finite = isinstance(value, int) or math.isfinite(value)
    if finite and (least is None or value >= least) and (most is None or value <= most):
        return
    if not finite or (least is None and most is None):
        allowed = "it must be a finite number"
    elif least is not None and value < least:
        allowed = f"it must be at least {least:,}"
    else:
        allowed = f"it must be at most {most:,}"
    raise InvalidConfig(message(where, value, allowed, "Give another one"))


def place(where: str, path: str) -> None:
    """Check the name of a file or folder.

    Raises:
        InvalidConfig: empty, the root, too long, or with a NUL in it.
    """
    long = any(len(part.encode(errors="replace")) > LONG for part in path.split("/"))
    if path in ("", ".") or "\0" in path or re.fullmatch(r"/+", path) or long:
        shown = path if len(path) < 40 else path[:40] + "..."
        raise InvalidConfig(
            message(where, repr(shown), f"a folder or file with a name of at most {LONG} bytes is expected", "Name another")
        )
