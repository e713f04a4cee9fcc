"""The GridWorld experiment: settings are those that the search chose, equally searched; a second call reuses its work."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from bilevel_rl import records
from bilevel_rl.cli import main
from bilevel_rl.experiments import gridworld
from bilevel_rl.launch import execute
from bilevel_rl.machines import job, where

ROOT = Path(__file__).parents[1]
SEARCH = json.loads((ROOT / "benchmarks/results/gridworld_search.json").read_text())
TABLE = json.loads((ROOT / "benchmarks/results/gridworld.json").read_text())
NAMES = {"goal_placement": "position", "goal_distribution": "distribution"}
AIDS = ("hold", "momentum", "average")


def test_settings_are_what_the_committed_search_chose():
    for row in gridworld.rows():
        cell = SEARCH["cells"][f"{NAMES[row.problem]} | {row.label}"]
        setting = cell["final"]["setting"]
        if not setting:
            assert row.options == {}  # as shipped
            continue
        assert setting in [search["chosen"] for search in cell["searches"]]
        used = {name: row.options["scales"][name]["initial"] for name in ("zeta", "alpha", "beta", "tau")}
        if "ratio" in setting:
            assert used["alpha"] <= (1 - 0.95 + 1e-12) * used["beta"]  # the paper's condition
        assert {name: value for name, value in used.items() if name in setting}.items() <= setting.items(), row.label
        ask = execute.named(
            row.problem, row.solver, problem_options=row.problem_options, solver_options=row.options, iterations=1,
            search=False,
        )  # fmt: skip
        made = execute.prepare(ask).solver  # checks its fields
        assert made.scales.zeta.power == row.options["scales"]["zeta"]["power"]


def test_every_searched_method_had_the_same_number_of_settings_and_seeds():
    sizes = {
        (len(search["settings"]), len(search["first"]), len(search["second"]))
        for key, cell in SEARCH["cells"].items()
        for search in cell["searches"]
        if not key.startswith("subsidy")
    }
    assert len(sizes) == 1
    assert sizes.pop()[0] >= 100
    finals = [np.shape(cell["final"]["unregularised"]) for cell in SEARCH["cells"].values() if "final" in cell]
    assert {runs for runs, _ in finals} == {30}


def test_the_rows_called_published_have_no_aid_of_ours():
    for row in gridworld.rows():
        if "as published" in row.label:
            assert row.options["common_noise"] is False
            assert not any(row.options[name] for name in AIDS)
        if row.label.startswith(("as published", "+ common random numbers")):
            powers = {name: row.options["scales"][name]["power"] for name in ("zeta", "alpha", "beta", "w", "tau")}
            assert powers == {"zeta": 9 / 10, "alpha": 1 / 2, "beta": 1 / 2, "w": 3 / 20, "tau": 1 / 20}


def test_the_table_is_what_the_seeds_say():
    for part, facts in TABLE["parts"].items():
        for label, row in facts["rows"].items():
            final = SEARCH["cells"][f"{part} | {label}"]["final"]
            hard = np.array(final["unregularised"])
            np.testing.assert_allclose(hard.mean(0), row["mean"], atol=1e-4)
            np.testing.assert_array_equal((hard <= 0.95 * facts["best"]).sum(0), row["within"])


@pytest.mark.slow
def test_a_second_call_reuses_finished_runs_and_refuses_other_settings_here_and_elsewhere(tmp_path, monkeypatch, capsys):
    few = [
        dataclasses.replace(row, options=row.options | {"chains": 16})
        for row in gridworld.rows()
        if row.label == "partial_sgd"
    ]
    monkeypatch.setattr(gridworld, "rows", lambda full: few)
    argv = ["experiments", "gridworld", "--samples", "2000", "--runs", "2", "--out", str(tmp_path / "g")]
    assert main(argv) == 0
    assert "report:" in capsys.readouterr().out
    found = [records.Run.read(folder) for folder in records.find_runs(tmp_path)]
    assert {run.problem for run in found} == {row.problem for row in few}
    for run in found:
        assert 1900 <= run.trace["samples"][:, -1].min() <= 2000
        assert run.trace["regularised"].shape == run.trace["objective"].shape
        assert (run.trace["regularised"] != run.trace["objective"]).any()

    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("metrics.npz")}
    assert main(argv) == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("metrics.npz")} == before

    capsys.readouterr()
    assert main([*argv[:-2], "--seed", "1", "--out", str(tmp_path / "g")]) == 2
    assert "runs of an earlier experiment" in capsys.readouterr().err
    monkeypatch.setattr(where, "worker", lambda *_: (job.here, 2))
    assert main([*argv[:-1], str(tmp_path / "there"), "--ray", "auto"]) == 0
    assert "2 jobs, 2 to do" in capsys.readouterr().out
    for run in records.find_runs(tmp_path / "g"):
        ours, theirs = (records.read_arrays(folder / "metrics.npz")
                        for folder in (run, tmp_path / "there" / run.relative_to(tmp_path / "g")))  # fmt: skip
        assert ours.keys() == theirs.keys()
        assert all((ours[key] == theirs[key]).all() for key in ours)
