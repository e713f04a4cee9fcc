"""A run as a YAML file, and its metrics in other people's loggers."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from bilevel_rl import records
from bilevel_rl.cli import main
from bilevel_rl.commands import run
from bilevel_rl.errors import InvalidConfig, MissingDependency
from bilevel_rl.launch import loggers, options_file

WRITTEN = """
problem: {name: goal_placement, rows: 5}
solver: {name: penalty_actor_critic, chains: 32, common_noise: true, scales: {w: {initial: 9.0}}}
samples: 4000
runs: 3
no_optimum: true
"""


def asked(words: list[str]):
    cut = next(i for i, word in enumerate(words) if word.startswith("--"))
    return run.read(words[:cut], words[cut:])


def test_a_file_asks_for_what_the_command_line_would(tmp_path):
    pytest.importorskip("yaml")
    (tmp_path / "a.yaml").write_text(WRITTEN)
    ask, settings = asked(options_file.words(tmp_path / "a.yaml"))
    typed = (
        "goal_placement penalty_actor_critic --problem.rows 5 --solver.chains 32 --solver.common-noise "
        "--solver.scales.w.initial 9 --samples 4000 --runs 3 --no-optimum"
    )
    by_hand, same = asked(typed.split())
    assert settings == same
    assert (ask.problem_options, ask.solver_options, ask.samples) == (
        by_hand.problem_options, by_hand.solver_options, 4000,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("- a\n- b\n", "the key `problem`"),
        ("solver: hpgd\n", "the key `problem`"),
        ("problem: 3\n", "it must be a name"),
        ("problem: [unclosed\n", "the file must be YAML"),
    ],
)
def test_a_file_that_asks_for_nothing_is_refused(words, named, tmp_path):
    pytest.importorskip("yaml")
    (tmp_path / "a.yaml").write_text(words)
    with pytest.raises(InvalidConfig, match=named):
        options_file.words(tmp_path / "a.yaml")
    with pytest.raises(InvalidConfig, match="a YAML file, or a run folder"):
        options_file.words(tmp_path / "b.yaml")


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_services_get_interquartile_means_against_samples(name, tmp_path, monkeypatch):
    seen = []
    made = SimpleNamespace(log=lambda values, step: seen.append((step, values)))
    module = SimpleNamespace(init=lambda **options: (seen.append(options), made)[1])
    monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    (write,) = loggers.writers([name, name], tmp_path / "mine", {"seed": 3})
    write(7, {"samples": np.array([20, 20, 20, 20]), "gap": np.array([1.0, 2.0, 3.0, 100.0])})
    assert (seen[0]["project"], seen[0]["name"], seen[0]["config"]) == ("bilevel-rl", "mine", {"seed": 3})
    assert seen[1] == (20, {"samples": 20.0, "gap": 2.5})


def test_loggers_that_are_not_there_are_named(tmp_path, monkeypatch):
    with pytest.raises(InvalidConfig, match="tensorboard"):
        loggers.writers(["tensorbord"], tmp_path)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingDependency, match=r"install .\.\[wandb\]"):
        loggers.writers(["wandb"], tmp_path)


def test_a_run_from_a_file_writes_its_folder(tmp_path, monkeypatch, capsys):
    pytest.importorskip("yaml")
    monkeypatch.chdir(tmp_path)
    shutil.copy(Path(__file__).parent / "loop/echo_toy.py", "mine.py")
    counts = "iterations: 4\nruns: 2\nrecords: 2\nno_optimum: true\n"
    Path("mine.yml").write_text(f"problem: mine.py:problem\nsolver: mine.py:solver\n{counts}")
    assert main(["run", "--from", "mine.yml", "--out", "here"]) == 0
    made = records.Run.read("here")
    assert (made.config["problem"], made.config["iterations"], made.config["runs"]) == ("mine.py:problem", 4, 2)
    assert "here" in capsys.readouterr().out
    two = "problem: mine.py:problem\nsolvers: [mine.py:solver, 'mine.py:solver:chains=3']\nsamples: 24\nruns: 2\n"
    Path("two.yaml").write_text(two)
    assert main(["compare", "--from", "two.yaml", "--out", "both"]) == 0
    found = {records.Run.read(folder).name for folder in records.find_runs("both")}
    assert found == {"mine.py:solver", "mine.py:solver:chains=3"}
    assert main(["sweep", "--from", "three.yaml"]) == 2
    assert "bilevel-rl sweep --from: got three.yaml, which is not there" in capsys.readouterr().err
