"""Code of the page on other tools, as a reader would save it: with the real packages where they are, else with stand-ins."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from bilevel_rl.finite.solvers import CoupledPenalty

PAGE = (Path(__file__).parents[1] / "docs/interop.md").read_text()


def block(word: str, language: str = "python") -> str:
    """The block of code that has a word in it, with fewer iterations, runs and trials."""
    (found,) = [code for code in re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL) if word in code]
    less = {"=2000, runs=8": "=4, runs=2", "100_000": "128", "runs=5": "runs=2", "n_trials=30": "n_trials=1"}
    for much, little in less.items():
        found = found.replace(much, little)
    return found


def missing(*names: str) -> bool:
    return any(importlib.util.find_spec(name) is None for name in names)


def module(monkeypatch, name: str, **contents) -> None:
    made = ModuleType(name)
    vars(made).update(contents)
    monkeypatch.setitem(sys.modules, name, made)


def test_optuna_sweeps_what_cannot_be_batched(monkeypatch):
    if missing("optuna"):  # the lowest of each range, the first of each choice
        trial = SimpleNamespace(suggest_float=lambda name, low, high, log: low,
                                suggest_categorical=lambda name, choices: choices[0])  # fmt: skip
        seen: list[float] = []
        optimize = lambda score, n_trials: seen.extend(score(trial) for _ in range(n_trials))  # noqa: E731
        module(monkeypatch, "optuna", create_study=lambda: SimpleNamespace(optimize=optimize, best_params={}, trials=seen))
    scope: dict = {}
    exec(compile(block("import optuna"), "interop.md", "exec"), scope)
    assert len(scope["study"].trials) == 1


def test_hydra_composes_a_solver(monkeypatch, tmp_path, capsys):
    yaml = pytest.importorskip("yaml")
    settings = block("_target_", "yaml")
    (tmp_path / "solver.yaml").write_text(settings)
    told = yaml.safe_load(settings)
    if missing("hydra"):
        def instantiate(config):
            place, _, name = config.pop("_target_").rpartition(".")
            return getattr(importlib.import_module(place), name)(**config)

        assert instantiate(dict(told)) == CoupledPenalty(chains=32)
        module(monkeypatch, "hydra", main=lambda **_: lambda work: lambda: work(dict(told)))
        module(monkeypatch, "hydra.utils", instantiate=instantiate)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["mine.py"])
    (tmp_path / "mine.py").write_text(block("import hydra"))
    scope: dict = {"__name__": "__main__", "__file__": str(tmp_path / "mine.py")}
    exec(compile((tmp_path / "mine.py").read_text(), str(tmp_path / "mine.py"), "exec"), scope)
    assert "256 a run" in capsys.readouterr().out  # 4 iterations of 32 chains, and as many that explore


def test_any_policy_is_a_follower_of_a_finite_problem(capsys):
    scope: dict = {}
    exec(compile(block("policy_from_sb3(PPO"), "interop.md", "exec"), scope)
    assert scope["pi"].shape == (16, 4)
    assert "the leader's loss" in capsys.readouterr().out
