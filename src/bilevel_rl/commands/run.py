"""`bilevel-rl run PROBLEM [SOLVER]`: one solver, many seeds, one run folder."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from bilevel_rl import versions
from bilevel_rl.commands import heads, screen
from bilevel_rl.commands import words as words_
from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.launch import limits, options

if TYPE_CHECKING:
    from bilevel_rl.launch import execute

arg = tyro.conf.arg


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Options of a run that belong to no solver and no problem."""

    iterations: Annotated[int | None, arg(help="steps a run; give this or --samples")] = None
    samples: Annotated[int | None, arg(help="transitions a run, an equal budget for every solver")] = None
    runs: Annotated[int, arg(help="independent seeds, run side by side")] = 10
    seed: Annotated[int, arg(help="the one integer from which all randomness follows")] = 0
    out: Annotated[Path | None, arg(help="run folder; by default a new one below runs/")] = None
    resume: Annotated[
        Literal["never", "auto"], arg(help="where --out holds this very run: an error (never), or gone on with (auto)")
    ] = "never"
    accept_versions: Annotated[
        bool, arg(help="go on under other versions than it was begun with, and write that down")
    ] = False
    label: Annotated[str, arg(help="name of the method in tables and figures; the solver's when empty")] = ""
    records: Annotated[int, arg(help="how many times a run is graded by the exact oracles")] = 100
    tau: Annotated[
        float | None, arg(help="temperature at which results are graded; the problem's own when absent")
    ] = None
    no_optimum: Annotated[bool, arg(help="do not search for the best known value by brute force")] = False
    tensorboard: Annotated[bool, arg(help="also write TensorBoard events (extra: tensorboard)")] = False
    loggers: Annotated[tuple[str, ...], arg(help="tensorboard, wandb, trackio: write there as well")] = ()


USAGE = """usage: bilevel-rl run PROBLEM [SOLVER] [options]
       bilevel-rl run --from FOLDER [--out FOLDER]
       bilevel-rl run --from FILE.yaml [options]

PROBLEM and SOLVER are names that `bilevel-rl list` explains, or FILE.py:NAME for your own.
Without SOLVER the recommended one is taken. With --from, the run of a folder is started anew,
or the one that a YAML file describes.

  bilevel-rl run goal_placement --samples 400000 --runs 10
  bilevel-rl run goal_placement penalty_actor_critic --help     what is set most, of both
  bilevel-rl run goal_placement penalty_actor_critic --help-all every option
  bilevel-rl run my_problem.py:problem --iterations 2000

options of the run:"""


def main(argv: Sequence[str]) -> int:
    """Run a solver on a problem; return 0, or 1 when every seed became non-finite."""
    words, rest = heads.split_words(argv)
    if rest[:1] == ["--from"]:
        return _anew(words, rest)
    if not words:
        if set(rest) & heads.HELP:
            print(USAGE)
            words_.print_settings(Settings)
            return 0
        raise InvalidConfig(
            message("bilevel-rl run", "no problem", "PROBLEM comes first", "`bilevel-rl list` names them")
        )
    ask, settings = read(words, rest)
    folder = settings.out or screen.new_folder(
        Path("runs"), f"{_stem(ask.problem.name)}-{_stem(ask.solver.name)}"
    )
    from bilevel_rl.launch import execute

    versions.accept(settings.accept_versions)
    if settings.resume == "auto" and (folder / "run.json").exists():
        execute.check_same(folder, ask)
        if execute.finished(folder):
            print(f"{folder}: finished already; nothing to do")
            return 0
        ready, ask = execute.again(folder)
        return screen.show_run(ready, ask, folder, resume=True, loggers=screen.loggers(settings))
    execute.check_free(folder)
    return screen.show_run(execute.prepare(ask), ask, folder, loggers=screen.loggers(settings))


def read(words: Sequence[str], rest: Sequence[str]) -> tuple[execute.RunAsk, Any]:
    """Words and options of a run as a `RunAsk` and its settings."""
    if len(words) > 2:
        raise InvalidConfig(
            message(
                "bilevel-rl run",
                f"the words {' '.join(words)!r}",
                "PROBLEM and at most one SOLVER come first",
                "To run several solvers use `bilevel-rl compare`",
            )
        )
    from bilevel_rl.launch import execute, load

    problem = load.find_problem(words[0])
    solver = load.find_solver(words[1] if len(words) == 2 else load.recommended(problem), problem)
    kind = dataclasses.make_dataclass(
        "Options",
        [
            ("run", Annotated[Settings, tyro.conf.arg(name="")], dataclasses.field(default_factory=Settings)),
            *words_.groups(problem, solver, rest),
        ],
        frozen=True,
        kw_only=True,
    )
    kind.__doc__ = f"{problem.summary}\n\n{solver.summary}"
    given = options.parse(f"run {' '.join(words)}", kind, rest, kind.__doc__)
    settings = given.run
    limits.check("run", settings)
    ask = execute.RunAsk(
        problem,
        solver,
        options.values(given.problem) if hasattr(given, "problem") else {},
        options.values(given.solver) if hasattr(given, "solver") else {},
        settings.iterations,
        settings.samples,
        settings.runs,
        settings.seed,
        settings.label,
        settings.records,
        settings.tau,
        command=shlex.join(["bilevel-rl", "run", *words, *rest]),
        search=not settings.no_optimum,
    )
    return ask, settings


def _anew(words: Sequence[str], rest: Sequence[str]) -> int:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Anew:
        from_: Annotated[Path, arg(name="from", help="run folder whose configuration is used")]
        out: Annotated[Path | None, arg(help="run folder; by default a new one below runs/")] = None
        tensorboard: Annotated[bool, arg(help="also write TensorBoard events (extra: tensorboard)")] = False
        loggers: Annotated[tuple[str, ...], arg(help="tensorboard, wandb, trackio: write there as well")] = ()

    Anew.__annotations__["from_"] = Annotated[
        Path, arg(name="from", help="run folder whose configuration is used")
    ]
    given = options.parse("run --from", Anew, rest)
    from bilevel_rl.launch import execute

    limits.check("run", given)
    ready, ask = execute.again(given.from_)
    folder = given.out or screen.new_folder(
        Path("runs"), f"{_stem(ask.problem.name)}-{_stem(ask.solver.name)}"
    )
    return screen.show_run(ready, ask, folder, loggers=screen.loggers(given))


def _stem(name: str) -> str:
    return Path(name.rpartition(":")[0] or name).stem
