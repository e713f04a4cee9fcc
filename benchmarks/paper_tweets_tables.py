"""From the rows of `paper_tweets.py` to its results: choices, summaries, paired differences, curves, equal KL.

python benchmarks/paper_tweets.py write --out FOLDER
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bilevel_rl import statistics

NEAR = 0.10  # the target: the lower end of the 95 % interval lies above -NEAR; a half-width above NEAR decides nothing
KL_BINS = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 64.0)
FEWEST = 3  # seeds that make an interval at all
LEAST = 5  # seeds that make an interval at equal KL
# what is compared with what: as many policy updates (40), or as many batches written (80)
COMPARED = {
    "updates": (("paired", "partial_sgd"), ("shared", "partial_sgd"), ("tilted", "partial_sgd")),
    "completions": (("paired", "partial_sgd_twice"), ("fixed_reward", "partial_sgd_twice"), ("paired", "fixed_reward")),
}
BI_LEVEL = ("paired", "shared", "tilted")


def read(path: Path) -> list[dict[str, Any]]:
    """Rows by key; where two processes made the same row, the first."""
    rows: dict[str, dict[str, Any]] = {}
    for line in path.read_text().splitlines():
        row = json.loads(line)
        rows.setdefault(json.dumps(row["key"]), row)
    return list(rows.values())


def picked(
    rows: list[dict[str, Any]], entry: str, seeds: Sequence[int], off: bool = False,
    setting: dict[str, Any] | None = None,
) -> dict[int, dict[str, Any]]:  # fmt: skip
    """An entry's rows by seed: of one setting, or of several the one with most of the seeds."""
    by: dict[str, dict[int, dict[str, Any]]] = {}
    wanted = setting
    for row in rows:
        name, setting, seed, is_off = row["key"]
        if name == entry and is_off == off and seed in seeds and wanted in (None, setting):
            by.setdefault(json.dumps(setting), {})[seed] = row
    return max(by.values(), key=len) if by else {}


def searched(rows: list[dict[str, Any]], entry: str, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Every setting that has all its tuning seeds, in the order of the search, with its mean."""
    by: dict[str, dict[int, float]] = {}
    for row in rows:
        name, setting, seed, off = row["key"]
        if name == entry and seed in seeds and not off:
            by.setdefault(json.dumps(setting), {})[seed] = row["gold"]
    return [
        {
            "setting": json.loads(setting), "gold": [found[s] for s in seeds],
            "mean": round(float(np.mean(list(found.values()))), 4),
        }
        for setting, found in by.items() if len(found) == len(seeds)
    ]  # fmt: skip


def best(tried: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The setting with the highest mean, or None where none was tried."""
    return max(tried, key=lambda line: line["mean"]) if tried else None


def summary(found: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds with Student's intervals, and the mean curve."""
    rows = list(found.values())
    line: dict[str, Any] = {"runs": len(rows)}
    for name in ("gold", "kl", "happy", "distinct", "length", "labels", "tokens", "seconds"):
        line[name] = [round(float(v), 4) for v in statistics.mean_interval([row[name] for row in rows])]
    line["broken"] = sum(bool(row["failure"]) for row in rows)
    line["curve"] = {
        name: [round(float(v), 3) for v in np.mean([row["curve"][name] for row in rows], 0)]
        for name in ("gold", "kl", "labels", "samples")
    }  # fmt: skip
    return line


def difference(ours: dict[int, dict[str, Any]], theirs: dict[int, dict[str, Any]]) -> dict[str, Any] | None:
    """Gold score of ours less theirs on the same seeds, with two intervals, and what it says of the target."""
    seeds = sorted(set(ours) & set(theirs))
    if len(seeds) < FEWEST:
        return None
    a, b = (np.array([rows[s]["gold"] for s in seeds]) for rows in (ours, theirs))
    student, bootstrap = statistics.mean_interval(a - b), statistics.studentised(a - b)
    half = (student.high - student.low) / 2
    verdict = "undecided" if half > NEAR else "met" if student.low > -NEAR else "missed"
    return {
        "seeds": len(seeds), "difference": [round(float(v), 4) for v in student],
        "studentised": [round(float(v), 4) for v in bootstrap], "half_width": round(float(half), 4),
        "ahead": int((a > b).sum()), "p": statistics.paired_test(a, b), "verdict": verdict,
    }  # fmt: skip


def at_equal_kl(
    ours: dict[int, dict[str, Any]], theirs: dict[int, dict[str, Any]]
) -> list[dict[str, Any] | None]:
    """Differences along the runs where both were as far from the reference, by bins of `KL_BINS`."""

    def binned(row: dict[str, Any]) -> list[float]:
        kl, gold = np.array(row["curve"]["kl"]), np.array(row["curve"]["gold"])
        inside = [(kl >= low) & (kl < high) for low, high in itertools.pairwise(KL_BINS)]
        return [float(gold[i].mean()) if i.any() else float("nan") for i in inside]

    seeds = sorted(set(ours) & set(theirs))
    if not seeds:
        return [None] * (len(KL_BINS) - 1)
    gaps = np.array([np.subtract(binned(ours[s]), binned(theirs[s])) for s in seeds])
    found: list[dict[str, Any] | None] = []
    for column in gaps.T:
        known = column[np.isfinite(column)]
        interval = statistics.mean_interval(known) if len(known) >= LEAST else None
        found.append(interval and {"seeds": len(known), "difference": [round(float(v), 4) for v in interval]})
    return found


def task_results(
    rows: list[dict[str, Any]], entries: Sequence[str], tuning: Sequence[int], fresh: Sequence[int],
    fixed: dict[str, dict[str, Any]] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Everything that is said of one task; `fixed` has settings that were given, not searched."""
    tried = {entry: searched(rows, entry, tuning) for entry in entries}
    chosen = {entry: line["setting"] for entry, by in tried.items() if (line := best(by))} | (fixed or {})
    found = {entry: picked(rows, entry, fresh, setting=chosen.get(entry)) for entry in entries}
    off = {entry: picked(rows, entry, fresh, True, chosen.get(entry)) for entry in entries if entry in BI_LEVEL}
    compared = {
        f"{ours} - {theirs}": (at, found[ours], found[theirs])
        for at, pairs in COMPARED.items() for ours, theirs in pairs
    } | {f"{entry} - {entry} without the bracket": ("bracket", found[entry], off[entry]) for entry in off}  # fmt: skip
    differences = {
        name: {"at": at} | gap for name, (at, a, b) in compared.items() if (gap := difference(a, b)) is not None
    }
    for gap, p in zip(
        differences.values(), statistics.holm([gap["p"] for gap in differences.values()]), strict=True
    ):
        gap["p_holm"] = float(p)
    everything = found | {f"{entry}_off": by for entry, by in off.items()}
    return {
        "search": tried, "chosen": chosen,
        "summary": {name: summary(by) for name, by in everything.items() if len(by) >= FEWEST},
        "differences": differences,
        "at_equal_kl": {
            f"{ours} - {theirs}": at_equal_kl(found[ours], found[theirs])
            for ours in BI_LEVEL for theirs in ("partial_sgd", "partial_sgd_twice") if found[ours] and found[theirs]
        } | {
            title: at_equal_kl(a, b)
            for entry, by in off.items() if by
            for title, a, b in (
                (f"{entry} - {entry} without the bracket", found[entry], by),
                (f"{entry} without the bracket - partial_sgd", by, found["partial_sgd"]),
            )
        },
        "gold_by_seed": {name: {seed: row["gold"] for seed, row in sorted(by.items())} for name, by in everything.items()},
        "runs": len(rows), "restored": sum(row.get("restored", False) for row in rows),
        "cpu_seconds": round(sum(row.get("seconds", 0) for row in rows)),
    }  # fmt: skip


def swapped(
    rows: list[dict[str, Any]], exchanged: dict[str, tuple[str, dict[str, Any], bool]], chosen: dict[str, Any],
    seeds: Sequence[int],
) -> dict[str, Any]:  # fmt: skip
    """The runs with another method's steps: a summary each, its difference from partial SGD, and what each thing left
    out of `paired` changes.

    Args:
        rows: of the task.
        exchanged: entry, setting and whether the bracket is left out, by name.
        chosen: the entries' own choices, which join the comparison.
        seeds: of the exchanged runs.
    """
    found = {name: picked(rows, entry, seeds, off, setting) for name, (entry, setting, off) in exchanged.items()}
    own = {
        entry: picked(rows, entry, seeds, setting=dataclasses.asdict(chosen[entry]))
        for entry in ("paired", "partial_sgd") if entry in chosen
    }  # fmt: skip
    everything = {name: by for name, by in (own | found).items() if by}
    if not any(found.values()):
        return {}
    ladder = [name for name, (entry, _, _) in exchanged.items() if entry == "paired" and name in everything]
    against = [(name, "partial_sgd") for name in everything if name != "partial_sgd" and "partial_sgd" in everything]
    gaps = {
        f"{a} - {b}": difference(everything[a], everything[b]) for a, b in [*against, *itertools.pairwise(ladder)]
    }
    return {
        "summary": {name: summary(by) for name, by in everything.items()},
        "differences": {title: gap for title, gap in gaps.items() if gap is not None},
    }


def again(rows: list[dict[str, Any]], others: list[dict[str, Any]], seeds: Sequence[int]) -> dict[str, Any]:
    """The same runs made a second time, on another machine or with other arithmetic: by entry, means over the seeds of both.

    Args:
        rows: of the task.
        others: its rows of the second time; only those with a run of the same key count.
        seeds: fresh ones.
    """
    first = {json.dumps(row["key"]): row for row in rows if row["key"][2] in seeds}
    pairs: dict[str, list[tuple[float, float]]] = {}
    for row in others:
        here = first.get(json.dumps(row["key"]))
        if here is not None:
            entry = row["key"][0] + ("_off" if row["key"][3] else "")
            pairs.setdefault(entry, []).append((here["gold"], row["gold"]))
    found = {}
    for entry, golds in pairs.items():
        a, b = np.array(golds).T
        if len(a) < FEWEST:
            continue
        intervals = {"first": statistics.mean_interval(a), "again": statistics.mean_interval(b),
                     "difference": statistics.mean_interval(b - a)}  # fmt: skip
        found[entry] = {name: [round(float(v), 4) for v in some] for name, some in intervals.items()} | {
            "seeds": len(a), "alike": int((a == b).sum()), "largest": round(float(np.abs(a - b).max()), 4),
        }  # fmt: skip
    return found
