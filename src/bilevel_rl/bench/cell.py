"""One cell: a method on a task. Refused early, or tuned, run on fresh seeds, graded by exact oracles, and written whole.

ask.json      what the cell is
tuning.json   the grid, every score and the choice, once tuning is done
run/          an ordinary run folder with its checkpoint: a cell that was killed goes on from there
cell.json     the result; a cell that has it is finished
"""

from __future__ import annotations

import dataclasses
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np

from bilevel_rl import metrics as M
from bilevel_rl import records
from bilevel_rl.bench.methods import HOLD, Contender
from bilevel_rl.bench.tasks import Task
from bilevel_rl.errors import InvalidConfig, InvalidProblem
from bilevel_rl.finite import BilevelProblem, Solver, solve, tuning
from bilevel_rl.launch import load, sources
from bilevel_rl.loop.solver import check_fits
from bilevel_rl.machines.job import FOLDER, Job

DONE, REFUSED = "done", "not applicable"
TUNING_SEED = 1000  # other than that of the final runs
SEARCH_SHARE = 3  # ours: a search is run on a third of the seeds, being many runs itself
MODEL_RUNS = 5  # ours: solvers that use the model vary only with their start


@dataclasses.dataclass(frozen=True)
class CellAsk:
    """What a cell is.

    Attributes:
        task, method: the pair.
        runs: seeds of the final runs.
        seed: the one integer.
        tuning_runs: seeds of every setting, on half the samples.
        starts: 0, or how many starts a search of the same budget gets.
        chosen: a setting tuned earlier, in place of tuning.
        sources: digests of the user's own files, `problem` and `solver`, of which the folder has copies.
    """

    task: Task
    method: Contender
    runs: int = 24
    seed: int = 0
    tuning_runs: int = 3
    starts: int = 0
    chosen: dict[str, float] | None = None
    sources: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def label(self) -> str:
        """The method's name in the table."""
        return f"{self.method.label}, {self.starts} starts" if self.starts else self.method.label

    @property
    def key(self) -> str:
        """The cell's name in the results."""
        return f"{self.task.name} | {self.label}"

    @property
    def place(self) -> str:
        """The cell's folder below `cells/`."""
        return self.key.replace(" | ", "--").replace(", ", "-").replace(" ", "_")

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return dataclasses.asdict(self)

    @classmethod
    def read(cls, folder: Path) -> CellAsk:
        """From `ask.json`."""
        facts = records.read_json(folder / "ask.json")
        second = facts["method"]["second"]
        method = facts["method"] | {"second": None if second is None else (second[0], tuple(second[1]))}
        method |= {"travels": tuple(method["travels"])}
        return cls(**facts | {"task": Task(**facts["task"]), "method": Contender(**method)})

    def same(self, folder: Path) -> bool:
        """Whether the cell of a folder is this one."""
        return records.plain(CellAsk.read(folder).to_json()) == records.plain(self.to_json())

    def located(self, folder: Path) -> CellAsk:
        """With the copies of the user's own files in a folder, wherever it has been carried."""
        task, method = self.task, self.method
        if "problem" in self.sources:
            task = dataclasses.replace(task, problem=sources.named(folder, "problem", task.problem))
        if "solver" in self.sources:
            method = dataclasses.replace(method, solver=sources.named(folder, "solver", method.solver))
        return dataclasses.replace(self, task=task, method=method)


def job(folder: Path) -> Job:
    """The cell of a folder as a piece of work."""
    return Job(folder, ("bilevel_rl.bench.work", FOLDER), finished, CellAsk.read(folder).key)


def finished(folder: Path) -> bool:
    """Whether a cell has its result."""
    return (folder / "cell.json").exists()


def fill(folder: Path) -> None:
    """Fill the cell of a folder, or go on with it; a finished one is left alone.

    Raises:
        StorageFailed: another process fills it.
        InvalidConfig, InvalidProblem: no such problem or solver, which says nothing about the pair.
    """
    with records.locked(folder):
        if finished(folder):
            return
        ask = CellAsk.read(folder)
        began = time.perf_counter()
        idle = peak_memory()
        result = {"task": ask.task.name, "method": ask.label, "solver": ask.method.solver}
        ask = ask.located(folder)
        load.find_solver(ask.method.solver, load.find_problem(ask.task.problem))  # a file that is missing is no result
        try:
            problem = ask.task.make()
            solver = ask.method.make(ask.task, problem)
            check_fits(solver, problem)
            each = tuning.samples_per_iteration(problem, solver)
            iterations = tuning.iterations_for(problem, solver, ask.task.samples, ask.task.iterations)
        except (InvalidProblem, InvalidConfig) as error:
            records.write_json(folder / "cell.json", result | {"status": REFUSED, "reason": str(error)})
            return
        tuned = _tuned(folder, ask, problem, solver, each, iterations)
        if ask.starts:
            facts = _search(folder, ask, problem, solver, tuned["chosen"], each, iterations)
        else:
            chosen = ask.method.settle(solver, tuned["chosen"], ask.task, iterations)
            facts = _run(folder, ask, problem, chosen, each, iterations)
        records.write_json(folder / "cell.json", result | {"status": DONE} | facts | {
            "tuning": tuned, "seconds": round(time.perf_counter() - began, 1),
            "peak_memory_mib": peak_memory(), "idle_memory_mib": idle, "provenance": records.provenance(),
        })  # fmt: skip


def _every(ask: CellAsk, iterations: int) -> int:
    return max(1, iterations // ask.task.records)


def _tuned(
    folder: Path, ask: CellAsk, problem: BilevelProblem, solver: Solver, each: int, iterations: int
) -> dict:
    """The setting with the least mean final hyper-objective, by oracle, on half the budget and on seeds of its own."""
    if ask.chosen is not None:
        return {"chosen": ask.chosen, "from": "an earlier table"}
    if (folder / "tuning.json").exists():
        return records.read_json(folder / "tuning.json")
    if (single := _single(folder, ask)) is not None:
        return single
    grid, every = ask.method.grid(), _every(ask, iterations)
    settings = [ask.method.settle(solver, one, ask.task, iterations) for one in grid]
    count = max(every, iterations // 2 // every * every)
    # what the final runs use, so that both are one compiled program: settings x tuning seeds = runs by default
    runs = ask.tuning_runs if each else 1
    x0 = np.tile(ask.task.starts(problem, runs, TUNING_SEED), (len(grid), 1))
    trace = solve(problem, settings, iterations=count, record_every=every, runs=runs, seed=TUNING_SEED, x0=x0)
    final = np.where(trace.status == 0, trace[M.OBJECTIVE.key][:, -1], np.inf)
    # the mean, not the interquartile mean: a setting that loses some of its runs must not be chosen
    scores = final.reshape(len(grid), runs).mean(1)
    tuned = {
        "settings": grid, "scores": [float(s) if np.isfinite(s) else None for s in scores], "runs": runs,
        "samples": int(trace[M.SAMPLES.key][0, -1]), "chosen": grid[int(np.argmin(scores))],
    }  # fmt: skip
    records.write_json(folder / "tuning.json", tuned)
    return tuned


def _single(folder: Path, ask: CellAsk) -> dict | None:
    """What the same method's cell with one start was tuned to, if that is done: several starts have its setting."""
    alone = dataclasses.replace(ask, starts=0)
    beside = folder.parent / alone.place
    if not ask.starts or not (beside / "tuning.json").exists() or not alone.same(beside):
        return None
    return records.read_json(beside / "tuning.json") | {"from": alone.key}


def _run(
    folder: Path, ask: CellAsk, problem: BilevelProblem, solver: Solver, each: int, iterations: int
) -> dict[str, Any]:
    """The final runs in one program, and what an iteration costs once it is compiled."""
    model = each == 0
    runs = min(ask.runs, MODEL_RUNS) if model else ask.runs
    if model and ask.task.start == "own" and not solver.draws(problem):
        runs = 1  # nothing varies
    every = _every(ask, iterations)
    iterations -= iterations % every
    x0 = ask.task.starts(problem, runs, ask.seed)
    place = folder / "run"
    common: dict[str, Any] = {"runs": runs, "seed": ask.seed, "record_every": every, "x0": x0}
    solve(problem, solver, iterations=iterations, folder=place, resume=(place / "run.json").exists(),
          config={"label": ask.label}, **common)  # fmt: skip
    # one interval more, with everything compiled; not graded
    cost = solve(problem, solver, iterations=every, evaluate=False, **common).seconds
    return {
        "kind": "model" if model else "planned" if ask.method.plans else "samples", "runs": runs,
        "iterations": iterations, "samples": each * iterations, "iteration_seconds": cost / every / runs,
        "sample_seconds": None if model else cost / every / runs / each,
    }  # fmt: skip


def _search(
    folder: Path,
    ask: CellAsk,
    problem: BilevelProblem,
    solver: Solver,
    chosen: dict[str, float],
    each: int,
    iterations: int,
) -> dict[str, Any]:
    """The best of N starts, by samples, all starts and comparisons within the budget of one run."""
    from bilevel_rl.finite import multistart

    budget: dict[str, Any] = (
        {"samples": ask.task.samples} if each else {"iterations": iterations * ask.starts}
    )
    # a travel is that of the start that goes all the way; x must have moved before starts are compared first
    stages = multistart.arrange(solver, each, multistart.Shape(ask.starts, **budget))
    solver = ask.method.settle(solver, chosen, ask.task, sum(stage.iterations for stage in stages))
    if HOLD in chosen:
        solver = tuning.with_options(solver, {"hold": float(int(chosen[HOLD] * stages[0].iterations))})
    runs = max(1, ask.runs // SEARCH_SHARE)
    final, first, used, mean = [], [], [], []
    for run in range(runs):
        seed = ask.seed * 10_000 + run
        if ask.task.start == "own" or problem.structured_starts() is not None:
            points = multistart.starting_points(problem, ask.starts, seed)
        else:
            points = ask.task.starts(problem, ask.starts, seed)
        found = multistart.search(problem, solver, starts=ask.starts, seed=seed, x0=points, **budget)
        final.append(found.value)
        mean.append(found.mean)
        used.append(found.samples)
        first.append(found.metrics[M.OBJECTIVE.key][found.chosen, 0])
    trace = {
        M.OBJECTIVE.key: np.array([first, final]).T, M.SAMPLES.key: np.array([np.zeros(runs), used]).T,
        "starts_mean": np.array([mean, mean]).T, "status": np.zeros(runs, int),
    }  # fmt: skip
    config: dict[str, Any] = {"label": ask.label}
    status = {"state": "finished", "message": ""}
    records.Run(
        "finite", ask.label, ask.task.name, config, trace, status, records.provenance(), ask.seed
    ).write(folder / "run")
    return {
        "kind": "samples" if each and not ask.method.plans else "planned" if each else "model", "runs": runs,
        "iterations": iterations, "samples": int(np.max(used)), "iteration_seconds": None, "sample_seconds": None,
    }  # fmt: skip


def peak_memory() -> int:
    """Of this process so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
