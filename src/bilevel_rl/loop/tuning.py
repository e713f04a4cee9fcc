"""Choosing among settings: every combination of a grid, under an equal sample budget."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bilevel_rl import metrics as M
from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.loop import precision
from bilevel_rl.loop.driver import solve
from bilevel_rl.loop.meter import iterations_for, samples_per_iteration
from bilevel_rl.loop.problem import Problem
from bilevel_rl.loop.settings import with_options
from bilevel_rl.loop.solver import Solver
from bilevel_rl.loop.trace import Trace

PIECES = 10  # ours: records of a sweep that is kept in a folder


@dataclasses.dataclass(frozen=True)
class SweepResult:
    """Every setting tried and the one chosen.

    Attributes:
        grid: the values tried for each dotted field.
        settings: [H] one dict a setting.
        scores: [H] mean of the final hyper-objective over runs, or less the outcome where none is exact; infinite where
            a run failed.
        best: index of the chosen setting.
        solver: the chosen solver.
        budget: transitions each run was given; None for solvers that use none.
        runs: seeds a setting.
    """

    grid: dict[str, list[Any]]
    settings: list[dict[str, Any]]
    scores: list[float]
    best: int
    solver: Solver
    budget: int | None
    runs: int

    def to_json(self) -> dict[str, Any]:
        """The committed record of a sweep: grid, every score, choice, budget."""
        return {
            "solver": self.solver.name, "grid": self.grid, "budget": self.budget, "runs": self.runs,
            "settings": self.settings, "scores": [s if np.isfinite(s) else None for s in self.scores],
            "chosen": self.settings[self.best],
        }  # fmt: skip


@precision.double
def sweep(
    problem: Problem,
    solver: Solver,
    grid: Mapping[str, Sequence[Any]],
    *,
    samples: int,
    runs: int = 10,
    seed: int = 1000,
    tau: float | None = None,
    iterations: int = 300,
    folder: str | Path | None = None,
) -> SweepResult:
    """Try every combination of a grid under an equal sample budget; all numeric settings run in one compiled program.

    Args:
        grid: dotted field -> values, e.g. `{"scales.zeta.initial": [0.1, 0.3], "chains": [8, 32]}`.
        samples: transitions each run may use.
        runs: seeds a setting; use other seeds for the final comparison (the default seed differs from `solve`'s).
        iterations: for solvers that draw no samples.
        folder: keeps a run folder for each compiled program; a second call with the same folder goes on.

    Raises:
        InvalidConfig: an empty grid or an unknown field.
    """
    if not grid or not all(len(values) for values in grid.values()):
        raise InvalidConfig(
            message("sweep.grid", dict(grid), "at least one field with at least one value is needed",
                    "Give for instance {'scales.zeta.initial': [0.1, 0.3]}")
        )  # fmt: skip
    settings, solvers, groups = programs(solver, grid)
    scores = np.full(len(settings), np.inf)
    for number, indices in enumerate(groups):
        trace = program(
            problem, [solvers[i] for i in indices], [settings[i] for i in indices], samples=samples, runs=runs, seed=seed,
            tau=tau, iterations=iterations, folder=None if folder is None else place(folder, number),
        )  # fmt: skip
        # where nothing is graded exactly, what the leader got along the run
        reached = trace[M.OBJECTIVE.key] if M.OBJECTIVE.key in trace.metrics else -trace[M.OUTCOME.key]
        final = np.where(trace.status == 0, reached[:, -1], np.inf).reshape(len(indices), runs)
        for i, values in zip(indices, final, strict=True):
            # the mean, not the interquartile mean: a setting that loses some of its runs must not be chosen
            scores[i] = values.mean()
    best = int(np.argmin(scores))
    return SweepResult(
        {key: list(values) for key, values in grid.items()}, settings, [float(s) for s in scores], best, solvers[best],
        samples if samples_per_iteration(problem, solver) else None, runs,
    )  # fmt: skip


def programs(
    solver: Solver, grid: Mapping[str, Sequence[Any]]
) -> tuple[list[dict[str, Any]], list[Solver], list[list[int]]]:
    """The settings of a grid, their solvers, and which are one compiled program: those that differ in numbers only."""
    settings = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    solvers = [with_options(solver, setting) for setting in settings]
    groups: dict[Any, list[int]] = {}
    for i, one in enumerate(solvers):
        groups.setdefault(jax.tree.structure(one), []).append(i)
    return settings, solvers, list(groups.values())


def place(folder: str | Path, number: int) -> Path:
    """Where a sweep keeps one of its programs."""
    return Path(folder) / f"settings-{number}"


@precision.double
def program(
    problem: Problem,
    solvers: Sequence[Solver],
    settings: Sequence[Mapping[str, Any]],
    *,
    samples: int,
    runs: int,
    seed: int,
    iterations: int,
    tau: float | None = None,
    folder: Path | None = None,
) -> Trace:
    """One compiled program of a sweep; from its checkpoint where its folder has one.

    Args:
        solvers, settings: those of the program.
        folder: its own; None: nothing is kept.
        samples, runs, seed, iterations, tau: as for `sweep`.
    """
    count = iterations_for(problem, solvers[0], samples, iterations)
    every = count if folder is None else max(1, count // PIECES)  # records are where a stopped sweep goes on
    return solve(
        problem, solvers, iterations=count, record_every=every, runs=runs, seed=seed, tau=tau, folder=folder,
        resume=folder is not None and (folder / "run.json").exists(), config={"sweep": list(settings), "runs": runs},
    )  # fmt: skip
