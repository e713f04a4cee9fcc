"""How the comparison of recipes measures and judges: finished runs on file, settings chosen, intervals, claims."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _recipes_variants import MENDED, TABLES

from bilevel_rl import records
from bilevel_rl.statistics import bootstrap, coverage, holm, mean_interval, paired_test, studentised

TUNING = (1000, 1001, 1002)  # seeds on which a learning rate is chosen
BEYOND = 2  # rates tried beyond an edge before a choice is refused
LEVEL = 0.05  # of a family's claims together


class Cells:
    """Finished runs, a file each, by what they are."""

    def __init__(self, folder: Path) -> None:
        self.folder = records.make_folder(folder / "runs")

    def get(self, key: Sequence[Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The run of that key, read back or made now."""
        name = hashlib.sha256(json.dumps(list(key)).encode()).hexdigest()[:16]
        path = self.folder / f"{key[0]}-{key[1]}-{name}.json"
        if not path.exists():
            records.write_json(path, {"key": list(key), **make()})
        return records.read_json(path)


def chosen(choices: Sequence[Any], score: Callable[[Any], float]) -> tuple[Any, dict[str, float], bool]:
    """The best setting, what was tried, and whether the choice is refused because the best rate stayed at an edge.

    Args:
        choices: settings whose last (or only) entry is a learning rate, the rates in increasing order.
        score: of a setting, on the tuning seeds.
    """
    tried = {json.dumps(c): score(c) for c in choices}
    for _ in range(BEYOND + 1):
        settings = [json.loads(c) for c in tried]
        best = max(settings, key=lambda c: tried[json.dumps(c)])
        same = sorted(rate_of(c) for c in settings if rest_of(c) == rest_of(best))
        beyond = {same[0]: same[0] / 3, same[-1]: same[-1] * 3}
        if len(same) == 1 or rate_of(best) not in beyond:
            return best, tried, False
        if len(tried) >= len(choices) + BEYOND:
            return best, tried, True
        more = with_rate(best, beyond[rate_of(best)])
        tried[json.dumps(more)] = score(more)
    raise AssertionError("a choice is made or refused")


def rate_of(setting: Any) -> float:
    """The learning rate of a setting."""
    return setting[-1] if isinstance(setting, list) else setting


def rest_of(setting: Any) -> Any:
    """A setting without its learning rate."""
    return setting[:-1] if isinstance(setting, list) else None


def with_rate(setting: Any, rate: float) -> Any:
    """A setting with another learning rate."""
    return [*setting[:-1], rate] if isinstance(setting, list) else rate


def measure(cells: Cells, name: str, label: str, choices: Sequence[Any], make: Any, seeds: int, tokens: int) -> dict:
    """A variant: its setting chosen on the tuning seeds, then every seed.

    Args:
        choices: settings to choose from.
        make: (setting, seed, tokens) -> a run.
    """

    def one(setting: Any, seed: int, spend: int = tokens) -> dict[str, Any]:
        return cells.get((name, label, setting, seed, spend), lambda: make(setting, seed, spend))

    best, tried, refused = choices[0], {}, False
    if len(choices) > 1:
        best, tried, refused = chosen(choices, lambda c: float(np.mean([one(c, s)["score"] for s in TUNING])))
    runs = [one(best, seed) for seed in range(seeds)]
    row = {
        "chosen": best, "tuning": tried, "refused": refused, "scores": [r["score"] for r in runs],
        "tokens": int(np.mean([r["tokens"] for r in runs])), "seconds": float(np.mean([r["seconds"] for r in runs])),
        "gradient_steps": int(np.mean([r["gradient_steps"] for r in runs])),
        "steps_a_batch": round(runs[0]["gradient_steps"] / max(runs[0]["iterations"], 1)),
    }  # fmt: skip
    if row["steps_a_batch"] > 1:
        fewer = [one(best, seed, tokens // row["steps_a_batch"]) for seed in range(seeds)]
        row["scores_at_equal_steps"] = [r["score"] for r in fewer]
    return row | interval(row["scores"])


def interval(scores: Sequence[float]) -> dict[str, float]:
    """Mean over seeds with Student's interval."""
    found = mean_interval(scores)
    return {"mean": found.value, "low": found.low, "high": found.high}


def paired(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """Difference of two variants, seed by seed, with its interval and the p-value of the paired t-test."""
    number = min(len(ours), len(theirs))
    return interval(np.array(ours[:number]) - np.array(theirs[:number])) | {"p": paired_test(ours[:number], theirs[:number])}


def corrected(rows: Mapping[str, dict[str, Any]], key: str) -> list[str]:
    """Write Holm's p into the comparison `key` of all rows; the labels of those that may be claimed to be better."""
    asked = [label for label, row in rows.items() if key in row]
    for label, p in zip(asked, holm([rows[label][key]["p"] for label in asked]), strict=True):
        rows[label][key]["holm"] = float(p)
    return [
        label for label in asked
        if rows[label][key]["holm"] < LEVEL and rows[label][key]["mean"] > 0 and not rows[label].get("refused")
    ]  # fmt: skip


def compared(rows: Mapping[str, dict[str, Any]], base: dict[str, Any], key: str, skip: str = "") -> list[str]:
    """Each row against one of them at the same seeds, at equal tokens and at equal gradient steps; who is better at both."""
    equal = base.get("scores_at_equal_steps", base["scores"])
    for label, row in rows.items():
        row |= interval(row["scores"])
        row.pop(key, None)
        if label != skip:
            row[key] = paired(row["scores"], base["scores"])
            more = row.get("steps_a_batch", 1) > base.get("steps_a_batch", 1)
            known = not more or "scores_at_equal_steps" in row
            if known:
                row[f"{key}_at_equal_steps"] = paired(row["scores_at_equal_steps"] if more else row["scores"],
                                                      base["scores"] if more else equal)  # fmt: skip
    both = set(corrected(rows, f"{key}_at_equal_steps"))
    return [label for label in corrected(rows, key) if label in both]


def assess(results: dict[str, Any], repeats: int = 400) -> None:
    """What each component does against the family's plain baseline, and against TRL, at the same seeds.

    Args:
        repeats: simulated samples that the coverage of an interval is a share of.
    """
    for name, found in results["families"].items():
        reference = {"sort": "group_norm", "grid": "group_norm", "tweets": "rloo"}[name]
        base = found["variants"].get(reference)
        for label, row in found["variants"].items():
            own = TABLES[name].get(label, ("", "", {}))
            row.setdefault("steps_a_batch", own[2].get("epochs", 1))
        if base is not None:
            found["better"] = compared(found["variants"], base, "against_baseline", reference)
        found["baseline"] = reference
    if "trl" in results:
        rows = results["recipes"]
        for row in [results["trl"], *rows.values()]:
            row.setdefault("steps_a_batch", row["chosen"][0])
        results["trl"] |= interval(results["trl"]["scores"])
        results["better_than_trl"] = compared(rows, results["trl"], "against_trl")
        results["at_least_as_good_as_trl"] = sorted(
            (label for label, row in rows.items() if row["against_trl"]["mean"] >= 0), key=lambda n: -rows[n]["mean"]
        )
    results["coverage"] = {str(n): simulated(n, repeats) for n in sorted({results["seeds"], 10})}
    results["without_record"] = unrecorded(results["families"])
    results["mended_since"] = [label for label in MENDED if results["seeds"] < 10]


def unrecorded(found: Mapping[str, Any]) -> dict[str, list[str]]:
    """Labels of each family's table that its record lacks: added since, or not asked for."""
    return {name: [label for label in TABLES[name] if label not in family["variants"]] for name, family in found.items()}


def simulated(seeds: int, repeats: int) -> dict[str, dict[str, float]]:
    """Coverage of the three intervals (.95 wanted) at this number of runs, for scores that are normal and shares that are
    skewed.
    """
    laws = {
        "normal": (lambda rng: rng.normal(size=seeds), 0.0),
        "skewed (beta 2, 8)": (lambda rng: rng.beta(2, 8, size=seeds), 0.2),
    }
    kinds = {
        "percentile bootstrap": lambda v: bootstrap(v, statistic=np.mean), "student t": mean_interval,
        "studentised bootstrap": lambda v: studentised(v, resamples=499),
    }  # fmt: skip
    return {
        law: {kind: round(coverage(made, draw, truth, repeats=repeats), 3) for kind, made in kinds.items()}
        for law, (draw, truth) in laws.items()
    }
