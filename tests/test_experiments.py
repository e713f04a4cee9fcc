"""The GridWorld experiment: equal samples, shipped and tuned settings, and a second call that finds its work done."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bilevel_rl import records
from bilevel_rl.cli import main
from bilevel_rl.experiments import gridworld
from bilevel_rl.launch import execute

ROOT = Path(__file__).parents[1]


def test_partial_settings_keep_the_solvers_own_powers():
    options = gridworld.METHODS["nested_penalty"]
    ask = execute.named(
        "goal_placement", "nested_penalty", solver_options=options, iterations=1, search=False
    )
    made = execute.prepare(ask).solver
    default = execute.named("goal_placement", "nested_penalty").solver.build({})
    assert made.scales.zeta.initial == 0.3
    assert made.scales.zeta.power == default.scales.zeta.power != 0
    assert made.scales.w == default.scales.w


def test_settings_are_what_the_committed_sweep_chose():
    file = ROOT / "benchmarks/results/quality.json"
    if not file.exists():
        pytest.skip("no benchmarks/results/quality.json: python benchmarks/quality.py makes it")
    cells = json.loads(file.read_text())["cells"]
    for name, options in gridworld.METHODS.items():
        if name != "coupled_penalty":  # runs as shipped
            chosen = cells[f"goal_placement | {name}"]["tuning"]["chosen"]
            used = {f"scales.{key}.initial": value["initial"] for key, value in options["scales"].items()}
            assert used == chosen, name


@pytest.mark.slow
def test_a_second_call_reuses_finished_runs_and_refuses_other_settings(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gridworld, "METHODS", {"coupled_penalty": {}, "partial_sgd": {"chains": 32}})
    argv = ["experiments", "gridworld", "--samples", "2000", "--runs", "2", "--out", str(tmp_path / "g")]
    assert main(argv) == 0
    text = capsys.readouterr().out
    assert "report:" in text
    samples = {
        run.name: run.trace["samples"][:, -1] for run in map(records.Run.read, records.find_runs(tmp_path))
    }
    assert set(samples) == {"coupled_penalty", "partial_sgd", "exact_descent"}
    assert all(
        1900 <= used.min() <= used.max() <= 2000 for name, used in samples.items() if name != "exact_descent"
    )

    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("metrics.npz")}
    assert main(argv) == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("metrics.npz")} == before

    capsys.readouterr()
    assert main([*argv[:-2], "--seed", "1", "--out", str(tmp_path / "g")]) == 2
    assert "runs of an earlier experiment" in capsys.readouterr().err
