"""Finite differences by their form: simultaneous, two-sided and one-sided, with common and with independent numbers.

    python benchmarks/gridworld_forms.py

The search (`gridworld_search.py`) gave each form of perturbation a quarter of its settings (simultaneous ones two: inner
loops of 100 and 400) and chose one setting over all. Here every form has its own: the best of its settings by the search's
scores (at 1 million transitions where it came so far, else at 300,000). 30 fresh seeds of the search's rows, the goal as a
position (coordinates one by one are out of reach in the 100 dimensions of a distribution). A form whose setting is the row's
own is read, not run. Writes `results/gridworld_forms.json`. One minute of processor time, 1 core.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gridworld_search as search
import jax
import jax.numpy as jnp
from gridworld import row

from bilevel_rl import records
from bilevel_rl.experiments.gridworld import problems
from bilevel_rl.loop import use_64_bit

use_64_bit()

RESULTS = Path(__file__).parent / "results" / "gridworld_forms.json"
METHODS = {"common": "finite_difference", "independent": "finite_difference, independent numbers"}
FORMS = ("simultaneous", "two_sided", "one_sided")


def best_of(found: dict[str, Any], form: str) -> dict[str, Any]:
    """The best setting of a form by the search's scores, how many there were, and how far it had come."""
    settings = [dict(zip(found["columns"], values, strict=True)) for values in found["settings"]]
    of_form = [i for i, s in enumerate(settings) if s["perturbation"] == form]
    late = {i: found["second"][str(i)] for i in of_form if found["second"].get(str(i)) is not None}
    scores = late or {i: found["first"][i] for i in of_form if found["first"][i] is not None}
    best = min(scores, key=lambda i: scores[i])
    return {
        "setting": settings[best], "score": scores[best], "settings": len(of_form),
        "at": search.SECOND if late else search.FIRST, "kept": len(late),
    }  # fmt: skip


def main() -> None:
    """Every form."""
    problem = jax.tree.map(jnp.asarray, problems()["position"])
    optimum = records.read_json(RESULTS.parent / "gridworld_optima.json")["optima"]["position"]
    rows = {}
    for numbers, label in METHODS.items():
        cell = search.stored()[f"position | {label}"]
        for form in FORMS:
            chosen = best_of(cell["searches"][0], form)
            final = cell["final"]
            if (setting := chosen["setting"]) != final["setting"]:
                final = search.final(problem, search.METHODS[label], setting, final["budgets"][-1]) | {"setting": setting}
            found = row(final, optimum) | {name: chosen[name] for name in ("score", "settings", "kept", "at")}
            rows[f"{form.replace('_', '-')}, {numbers} numbers"] = found
            print(form, numbers, found["within"], flush=True)
    records.write_json(RESULTS, {
        "rows": rows, "hardware": records.hardware(),
        "provenance": records.provenance("python benchmarks/gridworld_forms.py"),
    })  # fmt: skip


if __name__ == "__main__":
    main()
