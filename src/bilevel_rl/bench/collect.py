"""The suite's folder as one JSON file: every cell, every seed's end, mean curves; and the best known values beside them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from bilevel_rl import metrics as M
from bilevel_rl import records, statistics, versions
from bilevel_rl.bench import cell
from bilevel_rl.bench.tasks import Task

WITHIN = 0.05  # of the best known value
DIGITS = 6


def collect(
    cells: list[Path], best: dict[str, dict[str, Any]], settings: dict[str, Any], provenance: dict[str, Any]
) -> dict[str, Any]:
    """Everything that the tables and figures are made from.

    Args:
        cells: folders of cells, finished or not.
        best: task -> best known value and its source.
        settings: of the suite.
        provenance: of the call that makes the file.
    """
    asks = [cell.CellAsk.read(folder) for folder in cells]
    found = {ask.key: _cell(folder, ask) for folder, ask in zip(cells, asks, strict=True)}
    tasks: dict[str, dict[str, Any]] = {}
    for task in dict.fromkeys(ask.task.name for ask in asks):
        spec: Task = next(ask.task for ask in asks if ask.task.name == task)
        reached = {key: min(v for v in facts["final"] if v is not None) for key, facts in found.items()
                   if facts.get("task") == task and any(v is not None for v in facts.get("final", []))}  # fmt: skip
        known = best.get(task)
        if known is None and reached:  # graded against the table itself, and said so
            key = min(reached, key=lambda name: reached[name])
            known = {"value": reached[key], "source": f"this table ({key})"}
        tasks[task] = {
            "problem": spec.problem, "options": spec.options, "says": spec.says, "samples": spec.samples, "best": known,
            "better": {key: v for key, v in reached.items() if known and v < known["value"] - 1e-6 * abs(known["value"])},
        }  # fmt: skip
    for folder, facts in zip(cells, found.values(), strict=True):
        if facts["status"] == cell.DONE and tasks[facts["task"]]["best"]:
            _reached(folder, facts, tasks[facts["task"]]["best"]["value"])
    for facts in tasks.values():
        facts["better"] = _three_least(facts["better"])
    return {"format": 1, "settings": settings, "provenance": provenance, "tasks": tasks, "cells": found}


def _three_least(better: dict[str, float]) -> dict[str, float | None]:
    """The seeds that did better than what is known: the next to be written down."""
    return {key: _round(value) for key, value in sorted(better.items(), key=lambda i: i[1])[:3]}


def _cell(folder: Path, ask: cell.CellAsk) -> dict[str, Any]:
    for name in ("cell.json", "failed.json"):
        if (folder / name).exists():
            facts = records.read_json(folder / name)
            break
    else:
        facts = {"status": "missing"}
    facts |= {"task": ask.task.name, "method": ask.label, "solver": ask.method.solver, "starts": ask.starts}
    odd = versions.differing(facts.pop("provenance", {}).get("versions", {}), versions.OF_JAX)
    if odd:  # accepted when it was filled: the table says so
        facts["other_versions"] = odd
    if facts["status"] != cell.DONE:
        return facts
    trace = records.read_arrays(folder / "run" / "metrics.npz")
    objective, samples, status = trace[M.OBJECTIVE.key], trace[M.SAMPLES.key], trace["status"]
    facts["final"] = [_round(v) if ok else None for v, ok in zip(objective[:, -1], status == 0, strict=True)]
    facts["first"] = _round(float(np.mean(objective[:, 0])))
    facts["stopped"] = int((status != 0).sum())
    ticks = trace[M.ITERATION.key] if facts["kind"] == "model" and not ask.starts else samples
    facts["curve"] = {
        "at": [int(v) for v in ticks[0]], "objective": [_round(v) for v in statistics.interquartile_mean(objective)],
    }  # fmt: skip
    if "starts_mean" in trace:
        facts["starts_mean"] = [_round(v) for v in trace["starts_mean"][:, -1]]
    return facts


def _reached(folder: Path, facts: dict[str, Any], best: float) -> None:
    """Runs that end within 5 %, and from which sample on they stay there."""
    trace = records.read_arrays(folder / "run" / "metrics.npz")
    hits = (trace[M.OBJECTIVE.key] - best <= WITHIN * abs(best)) & (trace["status"] == 0)[:, None]
    at = trace[M.ITERATION.key] if facts["kind"] == "model" and not facts["starts"] else trace[M.SAMPLES.key]
    if facts["starts"]:  # what was found is known when the search ends
        hits, at = hits[:, -1:], at[:, -1:]
    first = statistics.samples_to_target(at, hits)
    facts["within"] = int(hits[:, -1].sum())
    facts["reached"] = [float(v) if np.isfinite(v) else None for v in first]


def _round(value: float) -> float | None:
    return float(f"{value:.{DIGITS}g}") if np.isfinite(value) else None


def write(path: Path, facts: dict[str, Any]) -> None:
    """JSON with lists of numbers on one line, atomically."""
    text = json.dumps(facts, indent=1, allow_nan=False)
    text = re.sub(r"\[[^\[\]{}\"]*\]", lambda m: " ".join(m[0].split()), text)
    records.make_folder(path.parent)
    records.write_bytes(path, (text + "\n").encode())
