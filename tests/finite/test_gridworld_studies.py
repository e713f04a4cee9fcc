"""The studies beside the paper's GridWorld table: they change what they name, and start from the search's own rows."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks/results"
sys.path.insert(0, str(ROOT / "benchmarks"))  # the studies' files import each other, as a script's do
import gridworld_aids as aids  # noqa: E402
import gridworld_forms as forms  # noqa: E402
import gridworld_search as search  # noqa: E402

from bilevel_rl.experiments.gridworld import problems  # noqa: E402
from bilevel_rl.finite.tuning import samples_per_iteration  # noqa: E402

SEARCH = json.loads((RESULTS / "gridworld_search.json").read_text())["cells"]


def read(name):
    return json.loads((RESULTS / f"{name}.json").read_text())


@pytest.mark.parametrize("label", aids.CHANGES)
def test_a_change_changes_one_thing_and_an_exponent_keeps_its_value_on_the_way(label):
    problem = problems()["position"]
    base = search.made(search.METHODS[label], problem, SEARCH[f"position | {label}"]["final"]["setting"])
    each = samples_per_iteration(problem, base)
    names = ("zeta", "alpha", "beta", "w", "tau")

    def rest(solver):
        return {name: getattr(solver, name) for name in ("common_noise", "hold", "momentum", "average", "chains")}

    for name, change in aids.CHANGES[label].items():
        changed = change(base, each)
        moved = [n for n in names if jax.tree.leaves(getattr(changed.scales, n)) != jax.tree.leaves(getattr(base.scales, n))]
        others = [n for n, value in rest(base).items() if getattr(changed, n) != value]
        assert len(moved) + len(others) == (2 if " and " in name else 1), name
        k = aids.MIDDLE / each
        for n in moved:
            before, after = getattr(base.scales, n), getattr(changed.scales, n)
            np.testing.assert_allclose(float(after(k)), float(before(k)), rtol=1e-9)
            assert float(after(0)) != pytest.approx(float(before(0)), rel=1e-3)


def test_the_unchanged_row_is_the_searchs_own():
    table, found = read("gridworld")["parts"], read("gridworld_aids")
    for key, cell in found["cells"].items():
        part, label = key.split(" | ")
        row = table[part]["rows"][label]
        count = len(found["budgets"])
        assert cell["unchanged"]["within"] == row["within"][:count]
        np.testing.assert_allclose(cell["unchanged"]["mean"], row["mean"][:count], atol=1e-4)
        assert set(cell) == {"unchanged", *aids.CHANGES[label]}


def test_a_form_of_finite_differences_has_the_best_of_its_own_settings():
    for name, row in read("gridworld_forms")["rows"].items():
        form, numbers = name.split(", ")
        found = SEARCH[f"position | {forms.METHODS[numbers.split()[0]]}"]["searches"][0]
        assert row["setting"]["perturbation"] == form.replace("-", "_")
        chosen = forms.best_of(found, form.replace("-", "_"))
        assert row["setting"] == chosen["setting"]
        if chosen["kept"]:
            settings = [dict(zip(found["columns"], values, strict=True)) for values in found["settings"]]
            of_form = [v for i, v in found["second"].items() if settings[int(i)]["perturbation"] == form.replace("-", "_")]
            assert row["score"] == min(of_form)
