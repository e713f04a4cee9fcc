"""How the comparison of recipes measures and judges: finished runs on file, settings chosen, intervals, claims."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _recipes_variants import BASELINES, TABLES

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


def measure(
    cells: Cells, name: str, label: str, choices: Sequence[Any], make: Any, seeds: int, tokens: int, steps: int
) -> dict[str, Any]:
    """A variant: its setting chosen on the tuning seeds, then every seed.

    Args:
        choices: settings to choose from, by the mean score at equal tokens.
        make: (setting, seed, tokens, steps) -> a run.
        steps: gradient steps at which the score is taken too.
    """

    def one(setting: Any, seed: int) -> dict[str, Any]:
        return cells.get((name, label, setting, seed, tokens, steps), lambda: make(setting, seed, tokens, steps))

    best, tried, refused = choices[0], {}, False
    if len(choices) > 1:
        best, tried, refused = chosen(choices, lambda c: float(np.mean([one(c, s)["score"] for s in TUNING])))
    runs = [one(best, seed) for seed in range(seeds)]
    row = {
        "chosen": best, "tuning": tried, "refused": refused, "scores": [r["score"] for r in runs],
        "scores_at_equal_steps": [r["score_at_steps"] for r in runs], "before": float(np.mean([r["before"] for r in runs])),
        "steps_a_batch": runs[0]["epochs"],
    }  # fmt: skip
    means = ("tokens", "gradient_steps", "tokens_at_steps", "seconds")
    row |= {key: float(np.mean([r[key] for r in runs])) for key in means}
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


def compared(rows: Mapping[str, dict[str, Any]], base: dict[str, Any], key: str, skip: str = "") -> None:
    """Each row against one of them at the same seeds, at equal tokens and at equal gradient steps."""
    for label, row in rows.items():
        row |= interval(row["scores"])
        for name in (key, f"{key}_at_equal_steps"):
            row.pop(name, None)
        if label == skip:
            continue
        row[key] = paired(row["scores"], base["scores"])
        both = "scores_at_equal_steps" in row and "scores_at_equal_steps" in base
        if both:
            row[f"{key}_at_equal_steps"] = paired(row["scores_at_equal_steps"], base["scores_at_equal_steps"])
        elif row.get("steps_a_batch", 1) == base.get("steps_a_batch", 1):
            row[f"{key}_at_equal_steps"] = dict(row[key])


def claimed(rows: Mapping[str, dict[str, Any]], key: str) -> list[str]:
    """Labels of rows that are better at equal tokens and at equal gradient steps, each after Holm's correction."""
    both = set(corrected(rows, f"{key}_at_equal_steps"))
    return [label for label in corrected(rows, key) if label in both]


def assess(results: dict[str, Any], repeats: int = 400) -> None:
    """What each component does against its family's plain baseline, and recipes against TRL, at the same seeds.

    Components are corrected over their family; recipes beside TRL over all families together.

    Args:
        repeats: simulated samples that the coverage of an interval is a share of.
    """
    for name, found in results["families"].items():
        reference = BASELINES.get(name, "group_norm")
        base = found["variants"].get(reference)
        if base is not None:
            compared(found["variants"], base, "against_baseline", reference)
            found["better"] = claimed(found["variants"], "against_baseline")
        found["baseline"] = reference
    together: dict[str, dict[str, Any]] = {}
    for name, found in results["beside_trl"].items():
        found["trl"] |= interval(found["trl"]["scores"])
        compared(found["recipes"], found["trl"], "against_trl")
        together |= {f"{name}: {label}": row for label, row in found["recipes"].items()}
    results["better_than_trl"] = claimed(together, "against_trl")
    numbers = {found.get("seeds", 10) for kind in ("families", "beside_trl") for found in results[kind].values()}
    results["coverage"] = {str(n): simulated(n, repeats) for n in sorted(numbers | {10})}
    results["without_record"] = unrecorded(results["families"])


def unrecorded(found: Mapping[str, Any]) -> dict[str, list[str]]:
    """Labels of each family's table that its record lacks: not asked for yet."""
    empty: dict[str, Any] = {"variants": {}}
    return {name: [n for n in table if n not in found.get(name, empty)["variants"]] for name, table in TABLES.items()}


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
