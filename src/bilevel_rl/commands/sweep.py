"""`bilevel-rl sweep PROBLEM [SOLVER] --grid FIELD=V,V ...`: tune under an equal sample budget, in one compiled program."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from bilevel_rl import records
from bilevel_rl.commands import screen, words
from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.finite import tuning
from bilevel_rl.launch import load

arg = tyro.conf.arg
USAGE = "usage: bilevel-rl sweep PROBLEM [SOLVER] --grid FIELD=V,V FIELD=V,V --samples N --runs R"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Try every combination of a grid under an equal sample budget; numbers are batched, choices compiled apart."""

    grid: Annotated[tuple[str, ...], arg(help="FIELD=V,V,V each; a field inside another is dotted")] = (
        "scales.zeta.initial=0.05,0.1,0.2,0.4",
    )
    samples: Annotated[int, arg(help="transitions of every run")] = 100_000
    iterations: Annotated[int, arg(help="iterations of solvers that use the model and no samples")] = 300
    runs: Annotated[int, arg(help="seeds of every setting")] = 10
    seed: Annotated[int, arg(help="other than that of the final comparison")] = 1000
    out: Annotated[Path | None, arg(help="JSON file for the grid, every score and the choice")] = None


def main(argv: Sequence[str]) -> int:
    """Print every setting by score, the best first."""
    asked = words.read("sweep", Settings, argv, USAGE, load.RECOMMENDED)
    if asked is None:
        return 0
    s, solver = asked.settings, asked.make_solver()
    found = tuning.sweep(
        asked.make_problem(), solver, grid(s.grid), samples=s.samples, runs=s.runs, seed=s.seed, iterations=s.iterations,
    )  # fmt: skip
    order = sorted(range(len(found.scores)), key=lambda i: found.scores[i])
    shown = [
        (_words(found.settings[i]), f"{found.scores[i]:.5g}", "chosen" if i == found.best else "")
        for i in order
    ]
    screen.show_rows(
        f"{solver.name} on {asked.problem.name}: {s.runs} runs of {s.samples:,} samples a setting",
        ("setting", "final objective (interquartile mean)", ""), shown,
    )  # fmt: skip
    if s.out is not None:
        records.make_folder(s.out.parent)
        records.write_json(s.out, found.to_json() | {"problem": asked.problem.name, "seed": s.seed,
                                                     "provenance": records.provenance()})  # fmt: skip
        print(f"written: {s.out}")
    return 0


def grid(parts: Sequence[str]) -> dict[str, list[Any]]:
    """`FIELD=V,V` words as a grid.

    Raises:
        InvalidConfig: a word without values.

    Example:
        >>> grid(["chains=8,32", "momentum=0.0,0.9"])
        {'chains': [8, 32], 'momentum': [0.0, 0.9]}
    """
    found: dict[str, list[Any]] = {}
    for part in parts:
        name, equals, values = part.partition("=")
        if not equals or not values:
            raise InvalidConfig(
                message("bilevel-rl sweep --grid", repr(part), "FIELD=V,V,V is expected", USAGE)
            )
        found[name.replace("-", "_")] = [_value(value) for value in values.split(",")]
    return found


def _value(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"True": True, "False": False}.get(text, text)


def _words(setting: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in setting.items())
