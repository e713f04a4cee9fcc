"""Verbs of many runs, done elsewhere: the same bits as here, whatever did the work; and requeued jobs go on by themselves.

The worker is this machine's, a process for each job; what a cluster adds to that is tried in `test_machines`.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bilevel_rl import records
from bilevel_rl.cli import main
from bilevel_rl.machines import job, where

FILE = Path(__file__).parent / "loop/echo_toy.py"
ECHO = [f"{FILE}:problem", f"{FILE}:solver"]  # compiles in no time
PROBLEM = ["goal_placement", "--problem.rows", "3", "--problem.columns", "3"]


@pytest.fixture
def cluster(monkeypatch):
    """`--ray` is answered by processes of this machine."""
    monkeypatch.setattr(where, "worker", lambda *_: (job.here, 2))


def same(one, two) -> None:
    """Every array of both folders, bit by bit."""
    ours, theirs = (
        {path.relative_to(folder): records.read_arrays(path) for path in folder.rglob("metrics.npz")}
        for folder in (one, two)
    )
    assert ours.keys() == theirs.keys()
    assert ours
    for name, arrays in ours.items():
        assert all((arrays[key] == theirs[name][key]).all() for key in arrays), name


VERBS = {
    "compare": ["compare", *PROBLEM, "--solvers", "exact_descent", "penalty_actor_critic:chains=4", "--samples", "400",
                "--iterations", "8", "--runs", "2"],
    "sweep": ["sweep", PROBLEM[0], "penalty_actor_critic", *PROBLEM[1:], "--grid", "chains=2,4", "momentum=0.0,0.5",
              "--samples", "200", "--runs", "2"],
    "search": ["search", PROBLEM[0], "exact_descent", *PROBLEM[1:], "--starts", "4", "--iterations", "48", "--eta", "2"],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_what_is_done_elsewhere_is_what_is_done_here(verb, cluster, tmp_path, capsys):
    assert main([*VERBS[verb], "--out", str(tmp_path / "here")]) == 0
    assert main([*VERBS[verb], "--out", str(tmp_path / "there"), "--ray", "auto"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"done\s+\S+", said)
    same(tmp_path / "here", tmp_path / "there")


def test_a_search_that_is_queued_again_goes_on_if_it_is_the_same(tmp_path, capsys):
    words = ["search", *ECHO, "--starts", "4", "--eta", "2", "--samples", "960", "--out", str(tmp_path / "a")]
    assert main([*words, "--resume", "auto"]) == 0
    assert main(words) == 2
    assert "a folder that already holds a search" in capsys.readouterr().err
    assert main([*words, "--resume", "auto"]) == 0
    assert "finished already" in capsys.readouterr().out
    assert main([*words, "--resume", "auto", "--seed", "3"]) == 2
    assert "a search with another seed" in capsys.readouterr().err


def test_a_run_that_is_queued_again_goes_on_if_it_is_the_same(tmp_path, capsys):
    words = ["run", *ECHO, "--iterations", "6", "--runs", "1", "--no-optimum", "--out", str(tmp_path / "a")]
    assert main([*words, "--resume", "auto"]) == 0
    metrics = (tmp_path / "a/metrics.npz").read_bytes()
    (tmp_path / "a/checkpoint.npz").unlink()  # as if it had been killed before its first checkpoint
    records.write_json(tmp_path / "a/status.json", {"state": "running", "message": ""})
    assert main([*words, "--resume", "auto"]) == 0
    assert (tmp_path / "a/metrics.npz").read_bytes() == metrics
    capsys.readouterr()
    assert main([*words, "--resume", "auto", "--seed", "2"]) == 2
    assert "got a run with seed=0 where 2 is asked for" in capsys.readouterr().err
    assert (tmp_path / "a/metrics.npz").read_bytes() == metrics


@pytest.mark.slow
def test_a_comparison_may_be_told_to_begin_anew_only(tmp_path, capsys):
    words = ["compare", *PROBLEM, "--solvers", "exact_descent", "--iterations", "4", "--runs", "1",
             "--out", str(tmp_path / "c")]  # fmt: skip
    assert main(words) == 0
    assert main([*words, "--resume", "never"]) == 2
    assert "a compare that is there already" in capsys.readouterr().err
    assert main(words) == 0
