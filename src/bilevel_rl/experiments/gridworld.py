"""The paper's GridWorld experiment: where should the leader put the goal? Every method at equal samples.

Goal placement on a 6x6 grid whose optimum is known by brute force.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Any

import tyro

from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.launch import execute

PROBLEM = "goal_placement"
TAU = 0.05  # of the regularised grade that stands beside the unregularised one
arg = tyro.conf.arg
Watch = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


def _steps(zeta: float, alpha: float) -> dict[str, Any]:
    return {"zeta": {"initial": zeta}, "alpha": {"initial": alpha}}


# solver -> its options; what is absent keeps the solver's default. The recommended solver runs as shipped; the others
# with what a sweep under the same budget chose for them (benchmarks/quality.py, its grid in benchmarks/results).
METHODS: dict[str, dict[str, Any]] = {
    "coupled_penalty": {},
    "penalty_actor_critic": {"chains": 32, "scales": _steps(0.1, 1.0)},
    "nested_penalty": {"scales": _steps(0.3, 0.1)},
    "partial_sgd": {"chains": 32, "scales": _steps(0.03, 0.1)},
    "finite_difference": {"scales": _steps(0.3, 1.0)},
}
EXACT = {"exact_descent": {"step_size": 0.1}}


def problems() -> dict[str, Any]:
    """The goal on a 10x10 grid, as a position and as a distribution over cells; and where regularisation costs something."""
    from bilevel_rl.finite.problems.goal_placement import GoalDistribution, GoalPlacement
    from bilevel_rl.finite.problems.subsidy import Subsidy

    return {
        "position": GoalPlacement(rows=10, columns=10),
        "distribution": GoalDistribution(rows=10, columns=10),
        "subsidy": Subsidy(),
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """The paper's GridWorld experiment: the recommended solver, the paper's and the baselines, at equal samples."""

    samples: Annotated[int, arg(help="transitions of every run")] = 400_000
    runs: Annotated[int, arg(help="independent seeds of every method")] = 30
    seed: Annotated[int, arg(help="the one integer from which all randomness follows")] = 0
    out: Annotated[Path, arg(help="folder for the run folders and the report")] = Path("runs/gridworld")
    quick: Annotated[bool, arg(help="8 seeds and a quarter of the samples: a look, not a result")] = False

    @property
    def budget(self) -> tuple[int, int]:
        """(samples, runs) after `quick`."""
        return (self.samples // 4, min(self.runs, 8)) if self.quick else (self.samples, self.runs)


def run(settings: Settings, watch: Watch) -> Path:
    """Run every method, or go on where an earlier call was stopped; return the folder of the run folders.

    Args:
        watch: makes a progress bar from a label and a total.

    Raises:
        InvalidConfig: the folder holds runs of other settings.
    """
    samples, runs = settings.budget
    optimum = None
    for name, given in (METHODS | EXACT).items():
        length: dict[str, Any] = {"iterations": 100} if name in EXACT else {"samples": samples}
        ask = execute.named(
            PROBLEM, name, solver_options=given, runs=1 if name in EXACT else runs, seed=settings.seed,
            records=50, command=_command(settings), **length,
        )  # fmt: skip
        folder = settings.out / name
        if (folder / "run.json").exists():
            ready, _ = execute.again(folder)
            if not _same(ready, ask):
                raise InvalidConfig(
                    message(str(folder), "runs of an earlier experiment", "one folder holds one experiment",
                            "Remove it or choose another --out")
                )  # fmt: skip
            optimum = ready.optimum
            if execute.finished(folder):
                continue
            resume = True
        else:
            ready, resume = execute.prepare(ask, optimum), False
            optimum = ready.optimum
        with watch(name, ready.config["iterations"]) as advance:
            ready.start(folder, resume=resume, on_record=lambda k, _, advance=advance: advance(k))
    return settings.out


def _same(ready: execute.Ready, ask: execute.Ask) -> bool:
    """Whether the run of a folder is the one that is asked for."""
    config = ready.config
    length = "iterations" if ask.samples is None else "samples"
    options = execute.complete(ask.solver, ask.solver_options)
    return (config["runs"], config["seed"], config[length], config["solver_options"]) == (
        ask.runs, ask.seed, getattr(ask, length), execute.plain(options),
    )  # fmt: skip


def _command(settings: Settings) -> str:
    words = ["bilevel-rl experiments gridworld"]
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if value != field.default and field.name != "out":
            words.append(f"--{field.name}" if value is True else f"--{field.name} {value}")
    return " ".join(words)
