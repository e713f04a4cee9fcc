"""`bilevel-rl compare PROBLEM --solvers A B`: several solvers at an equal number of samples."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.markup import escape

from bilevel_rl import records, signals
from bilevel_rl.commands import heads, screen, unfinished
from bilevel_rl.commands import words as words_
from bilevel_rl.errors import InvalidConfig, message, typed
from bilevel_rl.launch import RECOMMENDED, limits, options
from bilevel_rl.machines import where

if TYPE_CHECKING:
    from bilevel_rl.launch import execute, load

arg = tyro.conf.arg


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(where.Where):
    """Options of a comparison."""

    solvers: Annotated[
        tuple[str, ...],
        arg(
            help="names, each with its own settings if wanted: coupled_penalty:chains=32,scales.w.initial=0.05"
        ),
    ] = (RECOMMENDED, "penalty_actor_critic")
    samples: Annotated[int, arg(help="transitions of every run")] = 200_000
    iterations: Annotated[int, arg(help="iterations of solvers that use the model and no samples")] = 200
    runs: Annotated[int, arg(help="independent seeds")] = 10
    seed: Annotated[int, arg(help="the one integer from which all randomness follows")] = 0
    out: Annotated[Path | None, arg(help="folder for the run folders; by default a new one below runs/")] = (
        None
    )
    resume: Annotated[
        Literal["auto", "never"], arg(help="a folder that holds this very comparison: gone on with, or refused")
    ] = "auto"


USAGE = "usage: bilevel-rl compare PROBLEM --solvers A B ... --samples N --runs R [--problem.*]"


def main(argv: Sequence[str]) -> int:
    """Run the solvers one after the other, print one table and x; what is finished already is read from the folder."""
    from bilevel_rl.commands.run import _stem

    words, rest = heads.split_words(argv)
    if not words and set(rest) & heads.HELP:
        print(USAGE)
        words_.print_settings(Settings)
        return 0
    if len(words) != 1:
        raise InvalidConfig(
            message("bilevel-rl compare", f"the words {words}", "one PROBLEM comes first", USAGE)
        )
    for word in rest:
        if word.startswith("--solver."):
            field = word.removeprefix("--solver.").partition("=")[0].replace("-", "_")
            raise InvalidConfig(
                message("bilevel-rl compare", f"{word}, which is of one solver", "here each has its own, after its name",
                        f"Write --solvers A:{field}=VALUE B:{field}=VALUE; several are parted by commas")
            )  # fmt: skip
    from bilevel_rl.launch import load

    problem = load.find_problem(words[0])
    kind = dataclasses.make_dataclass(
        "Options",
        [
            ("compare", Annotated[Settings, arg(name="")], dataclasses.field(default_factory=Settings)),
            *words_.groups(problem, None, rest),
        ],
        frozen=True,
        kw_only=True,
    )
    kind.__doc__ = f"Several solvers on one problem, at equal samples. {problem.summary}"
    given = options.parse(f"compare {words[0]}", kind, rest, kind.__doc__)
    settings = given.compare
    limits.check("compare", settings)
    where.check("compare", settings)
    folder = settings.out or screen.new_folder(Path("runs"), f"compare-{_stem(words[0])}")
    problem_options = options.values(given.problem) if problem.options else {}
    problem.build(problem_options).check(thorough=False)  # before the folder is made
    asks = [ask(text, problem, problem_options, settings) for text in settings.solvers]
    if len({a.label for a in asks}) != len(asks):
        raise InvalidConfig(
            message(
                "bilevel-rl compare --solvers",
                "the same solver twice",
                "each row needs a name of its own",
                "Give them different settings: NAME:field=value",
            )
        )
    hidden = {"out", "resume", *where.OPTIONS}
    facts = {key: value for key, value in dataclasses.asdict(settings).items() if key not in hidden}
    words = unfinished.without_out(argv)
    unfinished.begin("compare", folder, words, problem.source, facts | {"problem": problem_options}, settings.resume)
    with signals.hinted(typed("resume", folder)):
        if settings.elsewhere:
            _elsewhere(asks, folder, settings)
        rows, exact, remarks = _fill(asks, folder)
    title = f"{problem.name}: {settings.runs} runs of {settings.samples:,} samples"
    screen.console().print(screen.results_table(title, rows))
    screen.show_x([(label, trace) for label, trace, _ in rows], exact)
    for label, heading, text in remarks:
        screen.say(f"[yellow]{escape(label)}, {heading}:[/] {escape(text)}")
    screen.say(f"run folders: {folder}   report: {typed('report', folder)}")
    return 0


def _place(folder: Path, one: execute.RunAsk) -> Path:
    return folder / one.label.replace(":", "-").replace("/", "-")


def _elsewhere(asks: Sequence[execute.RunAsk], folder: Path, settings: Settings) -> None:
    """Have every run done on the machines that are asked for; their folders are filled as if it had been here."""
    from bilevel_rl.launch import execute, work

    jobs, optimum = [], None
    for one in asks:
        place = _place(folder, one)
        if not (place / "run.json").exists():
            ready = execute.prepare(one, optimum)
            optimum = ready.optimum
            records.make_folder(place)
            execute.keep_sources(one, ready.config, place)
            execute.lay(ready, place)
        jobs.append(work.job(place, one.label))
    where.do(settings, jobs, say=screen.say)
    where.done(jobs, typed("resume", folder))


def _fill(
    asks: Sequence[execute.RunAsk], folder: Path
) -> tuple[list[Any], execute.Exact | None, list[tuple[str, str, str]]]:
    """Run what is not there, go on with what was stopped, read what is finished; rows, the answer, what runs say."""
    from bilevel_rl.launch import execute, work

    rows: list[Any] = []
    remarks: list[tuple[str, str, str]] = []
    optimum, exact = None, None
    for one in asks:
        place = _place(folder, one)
        there = (place / "run.json").exists()
        if there:
            ready, _ = execute.again(place)
        else:
            ready = execute.prepare(one, optimum)
            execute.keep_sources(one, ready.config, place)
        optimum = ready.optimum
        exact = execute.exact_answer(ready) if exact is None else exact
        if there and work.over(place):
            trace = execute.read_trace(place)
        else:
            with screen.progress(one.label, ready.config["iterations"]) as advance:
                trace = ready.start(place, resume=there, on_record=lambda k, _, advance=advance: advance(k))
        rows.append((one.label, trace, None if optimum is None else optimum.value))
        remarks += [(one.label, *said) for said in screen.remarks(ready, trace)]
    return rows, exact, remarks


def ask(text: str, problem: load.Target, problem_options: dict, settings: Settings) -> execute.RunAsk:
    """One solver of the comparison, from `NAME` or `NAME:field=value,...`."""
    from bilevel_rl.launch import execute, load
    from bilevel_rl.loop import noise
    from bilevel_rl.loop.meter import samples_per_iteration

    name, _, given = text.rpartition(":") if "=" in text else (text, "", "")  # NAME may be FILE.py:NAME
    target = load.find_solver(name, problem)
    solver_options = options.set_dotted(target.make, given)
    extra = [f"--solver.{p.partition('=')[0]} {p.partition('=')[2]}" for p in given.split(",") if p]
    made, it = target.build(solver_options), problem.build(problem_options)
    exact = noise.size(made.draws(it)) == 0 or samples_per_iteration(it, made) == 0
    length = ["--iterations", str(settings.iterations)] if exact else ["--samples", str(settings.samples)]
    words = [
        "bilevel-rl",
        "run",
        problem.name,
        name,
        *length,
        "--runs",
        str(settings.runs),
        "--seed",
        str(settings.seed),
    ]
    return execute.RunAsk(
        problem, target, problem_options, solver_options, runs=settings.runs, seed=settings.seed, label=text,
        iterations=settings.iterations if exact else None, samples=None if exact else settings.samples,
        command=shlex.join([*words, *" ".join(extra).split()]),
    )  # fmt: skip
