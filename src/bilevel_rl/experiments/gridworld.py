"""The paper's GridWorld experiment: where should the leader put the goal? Every method at equal samples, equally searched.

A 10x10 grid and two parametrisations of the goal: a position, and a distribution over the cells. Graded by the
*unregularised* hyper-objective f(x, pi*(x)), pi* the limit of the soft optimum as the temperature falls, with the
regularised one beside it; both by exact oracles. Settings are those that `benchmarks/gridworld_search.py` chose, every
method from the same number of random ones; `gridworld_settings.json` holds them. By default a reduced form that takes
minutes: the main rows, fewer seeds and transitions. `--full` is the whole.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from bilevel_rl import metrics as M
from bilevel_rl import records, signals
from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.launch import execute, work
from bilevel_rl.machines import where

TAU = 0.05  # of the regularised grade that stands beside the unregularised one
CHOSEN = Path(__file__).with_name("gridworld_settings.json")
# of the reduced form; what is left out differs from one of these by a single aid
MAIN = (
    "as published", "+ common random numbers", "+ steady followers and w", "nested_penalty, as published", "partial_sgd",
    "finite_difference", "coupled_penalty",
)  # fmt: skip
REDUCED, FULL = (400_000, 10), (3_000_000, 30)  # transitions and seeds
arg = tyro.conf.arg
Watch = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


def problems() -> dict[str, Any]:
    """The goal on a 10x10 grid, as a position and as a distribution over cells; and where regularisation costs something."""
    from bilevel_rl.finite.problems.goal_placement import GoalDistribution, GoalPlacement
    from bilevel_rl.finite.problems.subsidy import Subsidy

    return {
        "position": GoalPlacement(rows=10, columns=10),
        "distribution": GoalDistribution(rows=10, columns=10),
        "subsidy": Subsidy(),
    }


@dataclasses.dataclass(frozen=True)
class Row:
    """A method with the setting that the search chose for it on a problem.

    Attributes:
        problem: the problem's name in the library, and
        problem_options: what makes it the experiment's.
        label: the row's name.
        solver, options: of the library; what is absent keeps its default.
        optimum: best known unregularised value, and x.
    """

    problem: str
    problem_options: dict[str, Any]
    label: str
    solver: str
    options: dict[str, Any]
    optimum: dict[str, Any]


def rows(full: bool = True) -> list[Row]:
    """Every row of both parametrisations, or the main ones."""
    found = []
    for part in json.loads(CHOSEN.read_text())["problems"].values():
        for label, method in part["methods"].items():
            if full or label in MAIN:
                found.append(
                    Row(part["problem"], part["options"], label, method["solver"], method["options"], part["optimum"])
                )
    return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(where.Where):
    """The paper's GridWorld experiment: its algorithm as published, with what we add, its baselines, at equal samples."""

    samples: Annotated[int, arg(help="transitions of every run")] = REDUCED[0]
    runs: Annotated[int, arg(help="independent seeds of every method")] = REDUCED[1]
    seed: Annotated[int, arg(help="the one integer from which all randomness follows")] = 0
    out: Annotated[Path, arg(help="folder for the run folders and the report")] = Path("runs/gridworld")
    resume: Annotated[
        Literal["auto", "never"], arg(help="a folder that holds this very experiment: gone on with, or refused")
    ] = "auto"
    full: Annotated[bool, arg(help=f"every row, {FULL[1]} seeds, {FULL[0]:,} transitions")] = False
    quick: Annotated[bool, arg(help="4 seeds and a quarter of the samples: a look, not a result")] = False

    @property
    def budget(self) -> tuple[int, int]:
        """(samples, runs) after `full` and `quick`."""
        if self.full:
            return FULL
        return (self.samples // 4, min(self.runs, 4)) if self.quick else (self.samples, self.runs)


def run(settings: Settings, watch: Watch) -> Path:
    """Run every method, or go on where an earlier call was stopped; return the folder of the run folders.

    Args:
        watch: makes a progress bar from a label and a total.

    Raises:
        InvalidConfig: the folder holds runs of other settings.
    """
    where.check("experiments gridworld", settings)
    jobs = []
    for row in rows(settings.full):
        folder, ask = _folder(settings, row), _ask(settings, row)
        if (folder / "run.json").exists() and (settings.resume == "never" or not _same(execute.again(folder)[0], ask)):
            raise InvalidConfig(
                message(str(folder), "runs of an earlier experiment", "one folder holds one experiment",
                        "Remove it or choose another --out")
            )  # fmt: skip
        if settings.elsewhere:
            if not (folder / "run.json").exists():
                records.make_folder(folder)
                execute.lay(execute.prepare(ask, _optimum(row)), folder)
            jobs.append(work.job(folder, f"{row.problem}: {row.label}"))
    again = f"{_command(settings)} --out {settings.out}"
    with signals.hinted(again):
        if jobs:
            where.do(settings, jobs)
            where.done(jobs, again)
        for row in rows(settings.full):
            _run(row, settings, watch)
    return settings.out


def _folder(settings: Settings, row: Row) -> Path:
    return settings.out / row.problem / row.label.replace(" ", "_").replace(",", "").replace("+_", "with_")


def _ask(settings: Settings, row: Row) -> execute.RunAsk:
    samples, runs = settings.budget
    return execute.named(
        row.problem, row.solver, problem_options=row.problem_options, solver_options=row.options, label=row.label,
        samples=samples, runs=runs, seed=settings.seed, records=20, tau=0.0, command=_command(settings),
    )  # fmt: skip


def _optimum(row: Row) -> Any:
    from bilevel_rl.finite import oracles

    found = row.optimum
    return oracles.Optimum(np.asarray(found["x"], float), found["value"], found["value"])


def _run(row: Row, settings: Settings, watch: Watch) -> None:
    """One row, or what an earlier call has left to do of it."""
    folder, ask = _folder(settings, row), _ask(settings, row)
    there = (folder / "run.json").exists()
    if there and work.over(folder) and M.REGULARISED.key in records.Run.read(folder).trace:
        return
    ready = execute.again(folder)[0] if there else execute.prepare(ask, _optimum(row))
    if there and work.over(folder):
        x = records.Run.read(folder).trace["x"]
    else:
        with watch(f"{row.problem}: {row.label}", ready.config["iterations"]) as advance:
            x = ready.start(folder, resume=there, on_record=lambda k, _, advance=advance: advance(k)).x
    _grade_regularised(folder, ready.problem, x)


def _grade_regularised(folder: Path, problem: Any, x: np.ndarray) -> None:
    """Write the regularised objective at every recorded x beside the unregularised one."""
    import equinox as eqx
    import jax
    import jax.numpy as jnp

    from bilevel_rl.finite import oracles

    @eqx.filter_jit
    def grade(problem, x):
        return jax.lax.map(lambda x: oracles.hyper_objective(problem, x, TAU), x)

    problem = jax.tree.map(jnp.asarray, problem)
    values = np.asarray(grade(problem, jnp.asarray(x.reshape(-1, x.shape[-1])))).reshape(x.shape[:2])
    file = folder / "metrics.npz"
    records.write_arrays(file, records.read_arrays(file) | {M.REGULARISED.key: values})


def _same(ready: execute.Ready, ask: execute.RunAsk) -> bool:
    """Whether the run of a folder is the one that is asked for."""
    config = ready.config
    options = execute.complete(ask.solver, ask.solver_options)
    return (config["runs"], config["seed"], config["samples"], config["solver_options"]) == (
        ask.runs, ask.seed, ask.samples, execute.plain(options),
    )  # fmt: skip


def _command(settings: Settings) -> str:
    words = ["bilevel-rl experiments gridworld"]
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if value != field.default and field.name != "out":
            flag = f"--{field.name.replace('_', '-')}"
            words.append(flag if value is True else f"{flag} {value}")
    return " ".join(words)
