"""The verbs on problems whose environments are Gymnasium's: by id, and from a user's own file."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest

from bilevel_rl import records
from bilevel_rl.cli import main
from bilevel_rl.control.problems import GymnasiumShaping
from bilevel_rl.control.solvers import PartialSGD
from bilevel_rl.loop import solve

FILE = f"{Path(__file__).parent / 'greenhouse_problem.py'}:problem"
SMALL = [
    "--solver.chains", "4", "--solver.batch", "8", "--solver.capacity", "64", "--solver.recent", "8",
    "--solver.follower.soft-q.width", "8", "--solver.estimator.width", "8", "--solver.leader.hold", "4",
]  # fmt: skip


def test_check_run_and_resume_say_what_is_not_restored(tmp_path, capsys):
    """The first records stay, bit for bit; a new process would find the same fingerprint, since it holds no address."""
    assert main(["check", FILE, "covariance"]) == 0
    assert "hosted: observations of 1 number, 2 actions" in capsys.readouterr().out
    folder = tmp_path / "run"
    assert main(["run", FILE, "--samples", "80", "--runs", "2", "--records", "5", "--out", str(folder), *SMALL]) == 0
    run = records.Run.read(folder)
    assert run.trace["samples"][:, -1].tolist() == [80, 80]
    assert np.isfinite(run.trace["outcome"]).all()
    with pytest.warns(UserWarning, match="can't be put back into a state"):
        assert main(["resume", str(folder), "--samples", "96"]) == 0
    longer = records.Run.read(folder).trace
    np.testing.assert_array_equal(longer["x"][:, :6], run.trace["x"])
    assert longer["samples"][:, -1].tolist() == [96, 96]


@pytest.mark.slow
def test_environments_of_gymnasium_go_through_check_plan_compare_sweep_and_report(tmp_path, capsys):
    assert main(["check", FILE, "covariance"]) == 0
    assert "hosted: observations of 1 number, 2 actions" in capsys.readouterr().out
    assert main(["plan", FILE, "--iterations", "64", "--pilot", "64", *SMALL]) == 0
    assert "verdict" in capsys.readouterr().out
    both = ["--solvers", "covariance:chains=4,batch=8", "partial_sgd:chains=4,batch=8"]
    assert main(["compare", FILE, *both, "--samples", "80", "--runs", "2", "--out", str(tmp_path / "both")]) == 0
    grid = ["--grid", "leader.zeta.initial=0.1,0.4", "--samples", "80", "--runs", "2"]
    assert main(["sweep", FILE, "covariance", *grid, *SMALL]) == 0
    assert main(["report", str(tmp_path / "both"), "--out", str(tmp_path / "page")]) == 0


def test_solvers_that_can_not_walk_outside_are_refused_in_a_sentence(capsys):
    for name, words in (("spsa", "inner loops are compiled"), ("coupled_pair", "chains of its own")):
        assert main(["run", "gymnasium_shaping", name, "--samples", "80"]) != 0
        assert words in "".join(capsys.readouterr())
    assert main(["compare", "gymnasium_shaping", "--solvers", "spsa", "covariance"]) != 0
    assert "inner loops are compiled" in "".join(capsys.readouterr())


@pytest.mark.slow
def test_a_run_of_a_batch_is_the_run_alone():
    """Copies, networks and x of run 0 do not know of run 1; what x is follows the leader's utility alone here."""
    problem, solver = GymnasiumShaping("CartPole-v1", scale=1.0), PartialSGD(chains=2, batch=4, recent=4, capacity=64)
    pair, alone = (solve(problem, solver, iterations=6, record_every=3, runs=n, seed=4) for n in (2, 1))
    for a, b in zip(jax.tree.leaves(pair.state.follower), jax.tree.leaves(alone.state.follower), strict=True):
        np.testing.assert_allclose(a[0], b[0], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(pair.state.chains.obs[0], alone.state.chains.obs[0], rtol=1e-6)
    assert np.abs(pair.state.chains.obs[0] - pair.state.chains.obs[1]).max() > 0
