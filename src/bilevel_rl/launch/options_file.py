"""A run as a YAML file: what one would type behind `bilevel-rl run` (or `compare`, `sweep`, ...), written down.

```yaml
problem: goal_placement            # or {name: goal_placement, rows: 8}
solver: {name: penalty_actor_critic, chains: 32, scales: {w: {initial: 9}}}
samples: 400000
runs: 10
```
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bilevel_rl.errors import InvalidConfig, message, require


def words(path: str | Path, verb: str = "run") -> list[str]:
    """The file as words of the command line; the same parser then reads them, so that errors and defaults are the same.

    Args:
        path: the file.
        verb: that is asked for, to name in errors.

    Raises:
        InvalidConfig: the file is not there, is no YAML, or does not name a problem.
        MissingDependency: without a reader of YAML.
    """
    yaml = require("yaml", "llm")
    path = Path(path)
    if not path.is_file():
        allowed = "a YAML file, or a run folder" if verb == "run" else "a YAML file"
        raise InvalidConfig(message(f"bilevel-rl {verb} --from", f"{path}, which is not there", allowed, "Check the path"))
    try:
        told = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise InvalidConfig(
            message(str(path), " ".join(str(error).split()), "the file must be YAML", "Mend that line")
        ) from error
    if not isinstance(told, Mapping) or "problem" not in told:
        raise InvalidConfig(
            message(str(path), type(told).__name__ if not isinstance(told, Mapping) else ", ".join(map(str, told)),
                    "the file must be a mapping with the key `problem`", "Write problem: NAME")
        )  # fmt: skip
    told = dict(told)
    named = [_name(path, key, told.pop(key)) for key in ("problem", "solver") if key in told]
    made = [name for name, _ in named]
    for key, (_, options) in zip(("problem", "solver"), named, strict=False):
        made += flags(options, f"{key}.")
    return made + list(flags(told))


def flags(options: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Settings as options of the command line.

    Example:
        >>> list(flags({"runs": 3, "solver": {"common_noise": True}, "solvers": ["a", "b"]}))
        ['--runs', '3', '--solver.common-noise', '--solvers', 'a', 'b']
    """
    for key, value in options.items():
        name = f"{prefix}{key}".replace("_", "-")
        if isinstance(value, Mapping):
            yield from flags(value, f"{prefix}{key}.")
        elif isinstance(value, bool):
            head, dot, last = name.rpartition(".")
            yield f"--{name}" if value else f"--{head}{dot}no-{last}"
        elif isinstance(value, list):
            yield from (f"--{name}", *map(str, value))
        elif value is not None:
            yield from (f"--{name}", str(value))


def _name(path: Path, key: str, value: Any) -> tuple[str, Mapping[str, Any]]:
    """A problem's or solver's name with its options."""
    if isinstance(value, str):
        return value, {}
    if isinstance(value, Mapping) and isinstance(value.get("name"), str):
        return value["name"], {k: v for k, v in value.items() if k != "name"}
    raise InvalidConfig(
        message(f"{path}: {key}", repr(value), "it must be a name, or a mapping with the key `name`", f"Write {key}: NAME")
    )
