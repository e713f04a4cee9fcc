"""The verbs on a user's own problem with a neural follower."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from bilevel_rl import records
from bilevel_rl.cli import main
from bilevel_rl.control import planning
from bilevel_rl.errors import typed
from bilevel_rl.launch import execute, load

SHOP = Path(__file__).parent / "shop_problem.py"
FILE = f"{SHOP}:Subsidy"
SMALL = [
    "--solver.chains", "4", "--solver.batch", "8", "--solver.capacity", "64", "--solver.recent", "8",
    "--solver.follower.soft-q.width", "8", "--solver.estimator.width", "8", "--solver.leader.hold", "4",
]  # fmt: skip


@pytest.mark.slow
def test_run_and_resume_to_a_larger_budget(tmp_path, capsys):
    """Its quick form is that of test_hosted_verbs.py, whose environment is outside."""
    assert main(["check", FILE, "covariance"]) == 0
    assert "shop: observations of 1 number, 3 actions" in capsys.readouterr().out
    folder = tmp_path / "run"
    assert main(["run", FILE, "--samples", "80", "--runs", "2", "--records", "5", "--out", str(folder), *SMALL]) == 0
    assert "outcome" in capsys.readouterr().out  # nothing exact is known here
    run = records.Run.read(folder)
    assert run.config["solver"] == "covariance"
    assert run.config["solver_options"]["follower"]["soft_q"]["width"] == 8
    assert run.trace["samples"][:, -1].tolist() == [80, 80]
    assert (folder / "problem.py").exists()
    assert main(["resume", str(folder), "--samples", "96"]) == 0
    longer = records.Run.read(folder).trace
    np.testing.assert_array_equal(longer["x"][:, :6], run.trace["x"])
    assert longer["samples"][:, -1].tolist() == [96, 96]


def test_a_file_of_forty_lines_is_enough():
    """An environment of one's own and a problem about it; the other tests here run it."""
    assert len(SHOP.read_text().splitlines()) <= 40


def test_a_slope_as_large_as_its_noise_is_not_called_clear(monkeypatch, capsys):
    """.0793 against .0796 was; the plan itself is not run here, the words are."""
    found = planning.Planned(0.0793, 0.0796, 1.0, 0.1, 1.0, 1.0, 100, 100)
    monkeypatch.setattr(planning, "plan", lambda *_, **__: found)
    assert main(["plan", FILE, "--iterations", "64", *SMALL, "--solver.leader.zeta.initial", "3"]) == 0
    said = capsys.readouterr().out.splitlines()[-1]
    assert "verdict: the slope can't be told from its noise" in said
    assert said.endswith(typed("run", FILE, "covariance", *SMALL, "--iterations", 64, "--solver.leader.zeta.initial", "0.1"))
    assert not found.clear
    assert dataclasses.replace(found, noise=0.0353).clear


@pytest.mark.slow
def test_environments_in_jax_go_through_plan_compare_sweep_and_report(tmp_path, capsys):
    assert main(["plan", FILE, "--iterations", "64", "--pilot", "64", *SMALL]) == 0
    assert "verdict" in capsys.readouterr().out
    both = ["--solvers", "covariance:chains=4,batch=8", "partial_sgd:chains=4,batch=8"]
    assert main(["compare", FILE, *both, "--samples", "80", "--runs", "2", "--out", str(tmp_path / "both")]) == 0
    grid = ["--grid", "leader.zeta.initial=0.1,0.4", "--samples", "80", "--runs", "2"]
    assert main(["sweep", FILE, "covariance", *grid, *SMALL]) == 0
    assert main(["run", FILE, "--samples", "80", "--runs", "2", "--out", str(tmp_path / "run"), *SMALL]) == 0
    assert main(["report", str(tmp_path / "run"), "--out", str(tmp_path / "page")]) == 0


def test_every_solver_is_rebuilt_from_its_own_options():
    """As a run folder does it: options to plain values and back; parts without options are left out."""
    problem = load.find_problem(FILE)
    for name in load.solver_classes(problem):
        target = load.find_solver(name, problem)
        built = target.build(execute.complete(target, {}))
        assert built == target.make(), name
