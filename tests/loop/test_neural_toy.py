"""The loop drives a neural follower through every verb, in Python and from the command line."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from bilevel_rl import records
from bilevel_rl.cli import main
from bilevel_rl.errors import InvalidProblem
from bilevel_rl.loop import checkpoint, meter, solve
from bilevel_rl.loop.searching import search
from bilevel_rl.loop.tuning import sweep

FILE = Path(__file__).parent / "neural_toy.py"
spec = importlib.util.spec_from_file_location("neural_toy", FILE)
toy = importlib.util.module_from_spec(spec)
sys.modules["neural_toy"] = toy
spec.loader.exec_module(toy)

PROBLEM, SOLVER = f"{FILE}:problem", f"{FILE}:solver"


class Stop(Exception):
    pass


def test_a_neural_follower_is_led_and_its_weights_stay_in_32_bits():
    trace = solve(toy.Line(), toy.Differences(), iterations=600, runs=2, record_every=200)
    assert (trace.status == 0).all()
    assert (trace["objective"][:, -1] < 0.1 * trace["objective"][:, 0]).all()
    assert (trace.x[:, -1, 0] > 0.5).all()  # he must ask for more than he wants
    assert trace.state.pair.layers[0].weight.dtype == jnp.float32
    assert meter.iteration_cost(toy.Line(), toy.Differences()) == (96, False)


def test_a_run_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "SECONDS", 0.0)
    options = {"iterations": 20, "record_every": 5, "runs": 2}

    def stop(k, values):
        if k == 10:
            raise Stop

    whole = solve(toy.Line(), toy.Differences(), folder=tmp_path / "whole", **options)
    with pytest.raises(Stop):
        solve(toy.Line(), toy.Differences(), folder=tmp_path / "cut", on_record=stop, **options)
    rest = solve(toy.Line(), toy.Differences(), folder=tmp_path / "cut", resume=True, **options)
    np.testing.assert_array_equal(rest.x, whole.x)
    np.testing.assert_array_equal(rest["objective"], whole["objective"])


@pytest.mark.slow
def test_sweep_and_search_stay_within_the_budget():
    found = sweep(toy.Line(), toy.Differences(), {"zeta": [0.01, 0.3]}, samples=96 * 60, runs=2)
    assert found.best == 1
    best = search(toy.Line(), toy.Differences(), starts=4, eta=2, samples=96 * 4 * 30)
    assert best.samples <= 96 * 4 * 30
    assert best.value == best.values.min()
    assert [stage.measure for stage in best.stages] == [0, 0, 0]  # compared by what the problem reports


def test_a_search_needs_something_to_compare_by():
    class Silent(toy.Line):
        def measures(self, solver, state, k, tau):
            return {}, None

    with pytest.raises(InvalidProblem, match="no 'objective' among its values"):
        search(Silent(), toy.Differences(), starts=2, eta=2, samples=96 * 20)


def test_every_verb_takes_it(tmp_path, capsys):
    assert main(["check", PROBLEM, SOLVER]) == 0
    run = ["run", PROBLEM, SOLVER, "--solver.chains", "4", "--iterations", "12", "--records", "3", "--runs", "2"]
    assert main([*run, "--out", str(tmp_path / "run")]) == 0
    assert records.read_header(tmp_path / "run")["kind"] == "toy"
    records.write_json(tmp_path / "run" / "status.json", {"state": "stopped", "message": ""})
    before = records.read_arrays(tmp_path / "run" / "metrics.npz")
    assert main(["resume", str(tmp_path / "run")]) == 0
    after = records.read_arrays(tmp_path / "run" / "metrics.npz")
    np.testing.assert_array_equal(before["x"], after["x"])
    assert main(["sweep", PROBLEM, SOLVER, "--grid", "zeta=0.1,0.3", "--samples", "480", "--runs", "2"]) == 0
    samples = ["--samples", "480", "--runs", "2"]
    solvers = ["--solvers", SOLVER, f"{SOLVER}:zeta=0.1"]
    assert main(["compare", PROBLEM, *solvers, *samples, "--out", str(tmp_path / "both")]) == 0
    words = ["search", PROBLEM, SOLVER, "--starts", "2", "--eta", "2", "--samples", "1920"]
    assert main([*words, "--out", str(tmp_path / "search")]) == 0
    assert main(["report", str(tmp_path / "run"), "--out", str(tmp_path / "report.html")]) == 0
    assert "line" in (tmp_path / "report.html").read_text()
    assert "objective" in capsys.readouterr().out
