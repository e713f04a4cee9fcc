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
import gridworld_edges as edges  # noqa: E402
import gridworld_forms as forms  # noqa: E402
import gridworld_search as search  # noqa: E402
from gridworld import tolerance  # noqa: E402

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


def test_what_is_tried_beyond_an_edge_changes_that_constant_alone_and_lies_outside_its_range():
    ranges = {"zeta": (0.1, 10.0), "alpha": (0.01, 1.0), "beta": (0.05, 1.9), "hold": [0, 100], "chains": [16, 64],
              "momentum": [0.0, 0.9]}  # fmt: skip
    setting = {"zeta": 9.9, "alpha": 0.1, "beta": 0.051, "hold": 100, "chains": 16, "momentum": 0.9}
    found = edges.beyond(ranges, setting)
    assert set(found) == {"zeta", "beta", "hold", "chains", "momentum"}
    for name, settings in found.items():
        assert settings
        for other in settings:
            assert [key for key in setting if other[key] != setting[key]] == [name]
            assert not min(ranges[name]) <= other[name] <= max(ranges[name])
    assert edges.beyond(ranges, setting | {"beta": 1.89})["beta"] == []  # a critic's step of 2 and more is not stable


def test_an_edge_is_examined_from_the_setting_that_the_search_chose_and_its_rule_decides():
    found, optima = read("gridworld_edges"), read("gridworld_optima")["optima"]
    for key, row in found["rows"].items():
        chosen = SEARCH[key]["searches"][0]
        assert {name: edge["end"] for name, edge in row["edges"].items()} == chosen["edges"]
        assert row["score"] == pytest.approx(chosen["score"], abs=1e-4)
        beyond = [score for edge in row["edges"].values() for _, score in edge["beyond"] if score is not None]
        gain = max([row["score"] - score for score in beyond], default=0)
        assert row["search again"] == (gain > found["gain"] * abs(optima[key.split(" | ")[0]]["value"]))
        assert not row["search again"] or len(SEARCH[key]["searches"]) > 1, f"{key}: search it again in wider ranges"


def test_longer_runs_begin_as_the_searchs_own():
    optima = read("gridworld_optima")["optima"]
    for key, row in read("gridworld_longer")["cells"].items():
        optimum = optima[key.split(" | ")[0]]
        known = np.array(SEARCH[key]["final"]["unregularised"])[: row["runs"]]
        within = (known <= optimum["value"] + tolerance(optimum)).sum(0)
        assert row["within"][: len(within)] == within.tolist()
        assert row["setting"] == SEARCH[key]["final"]["setting"]
