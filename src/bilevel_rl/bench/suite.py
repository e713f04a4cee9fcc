"""`bilevel-rl bench suite`: the table, whole. Every solver on every task at equal samples; a second call goes on."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from bilevel_rl import records, signals
from bilevel_rl.bench import cell, collect, methods, tasks
from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.launch import load, options, sources
from bilevel_rl.machines import where

arg = tyro.conf.arg
BEST = Path("benchmarks/best_known.json")
RESULTS = Path("benchmarks/results/suite.json")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(where.Where):
    """The table: every solver on every task, tuned alike, graded by exact oracles at equal samples. Resumable."""

    problems: Annotated[tuple[str, ...], arg(help="tasks by name, or FILE.py:NAME; all when empty")] = ()
    solvers: Annotated[
        tuple[str, ...], arg(help="methods or solvers by name, or FILE.py:NAME; all when empty")
    ] = ()
    runs: Annotated[int, arg(help="seeds of every cell")] = 24
    seed: Annotated[int, arg(help="the one integer from which all randomness follows")] = 0
    samples: Annotated[int | None, arg(help="transitions of every run, in place of each task's own")] = None
    jobs: Annotated[int, arg(help="cells at a time on this machine")] = 1
    quick: Annotated[
        bool, arg(help="a few cells on a tenth of the samples, 6 seeds: a look, not a result")
    ] = False
    tuned: Annotated[str, arg(help="take settings from this table instead of tuning")] = ""
    starts: Annotated[int, arg(help="also search from so many starts, where the start decides")] = 0
    out: Annotated[Path, arg(help="folder of the cells; the table is written there as suite.json")] = Path(
        "runs/suite"
    )
    best: Annotated[Path, arg(help="best known values")] = BEST
    keep: Annotated[
        Path | None, arg(help="also write the table here, e.g. benchmarks/results/suite.json")
    ] = None
    keep_best: Annotated[bool, arg(help="write values better than the best known ones into that file")] = (
        False
    )
    resume: Annotated[
        Literal["auto", "never"], arg(help="a folder that holds this very table: gone on with, or refused")
    ] = "auto"


def asks(s: Settings) -> list[cell.CellAsk]:
    """The cells, those that sample first, then searches, then solvers that use the model.

    Raises:
        InvalidConfig: unknown names or numbers out of range.
    """
    _in_range(s)
    where.check("bench suite", s)
    rows, columns = tasks.named(s.problems, s.quick), methods.named(s.solvers, s.quick)
    runs, tuning_runs = (min(s.runs, 6), 1) if s.quick else (s.runs, 3)
    chosen = _chosen(s.tuned)
    found = []
    for task in rows:
        samples = s.samples or (task.samples // 10 if s.quick else task.samples)
        task = dataclasses.replace(
            task,
            samples=samples,
            iterations=20 if s.quick else task.iterations,
            records=5 if s.quick else task.records,
        )
        for method in columns:
            own = {word: digest for word, name in (("problem", task.problem), ("solver", method.solver))
                   if (digest := own_file(name, word))}  # fmt: skip
            one = cell.CellAsk(task, method, runs, s.seed, tuning_runs, sources=own)
            found.append(dataclasses.replace(one, chosen=chosen.get(one.key)))
            if s.starts and task.basins and "starts" not in method.options:
                # a search is tuned as its method is: the same settings
                found.append(dataclasses.replace(one, starts=s.starts, chosen=chosen.get(one.key)))
    return sorted(found, key=_order)


def own_file(name: str, word: str) -> str:
    """The digest of a user's own file, which must load; empty for what the library has.

    Raises:
        InvalidConfig, InvalidProblem: no such file, or it doesn't load.
    """
    if ":" not in name:
        return ""
    target = load.find_problem(name) if word == "problem" else load.find_solver(name)
    assert target.source is not None
    return sources.digest(target.source)


def _in_range(s: Settings) -> None:
    for name, value, good in (("runs", s.runs, s.runs >= 1), ("jobs", s.jobs, s.jobs >= 1),
                              ("starts", s.starts, s.starts >= 0 and s.starts != 1)):  # fmt: skip
        if not good:
            raise InvalidConfig(
                message(f"bilevel-rl bench suite --{name}", value, "it is out of range", f"Give --{name} a larger number")
            )


def _order(ask: cell.CellAsk) -> int:
    names = [m.label for m in methods.ALL]
    first = ("coupled_penalty", "exact_descent")
    model = ask.method.label in names and names.index(ask.method.label) >= names.index("exact_descent")
    return 0 if ask.method.label in first and not ask.starts else 2 + model if ask.starts else 1 + 3 * model


def _chosen(file: str) -> dict[str, dict[str, float]]:
    """Cell -> setting, from an earlier table."""
    if not file:
        return {}
    cells = records.read_json(Path(file)).get("cells", {})
    return {name: facts["tuning"]["chosen"] for name, facts in cells.items() if "tuning" in facts}


def prepare(out: Path, wanted: Sequence[cell.CellAsk], resume: str = "auto") -> list[Path]:
    """Folders of the cells, each with its `ask.json` and copies of the user's own files.

    Raises:
        InvalidConfig: a folder holds the same cell under other settings, or any cell where none may be.
    """
    folders = []
    for ask in wanted:
        folder = out / "cells" / ask.place
        if (folder / "ask.json").exists():
            if resume == "never" or not ask.same(folder):
                what = "a cell already" if resume == "never" else "a cell of an earlier table with other settings"
                raise InvalidConfig(
                    message(str(folder), what, "one folder holds one table", "Remove it or choose another --out")
                )
        else:
            records.make_folder(folder)
            for word, name in (("problem", ask.task.problem), ("solver", ask.method.solver)):
                if word in ask.sources:
                    sources.keep(Path(name.rpartition(":")[0]), folder, word)
            records.write_json(folder / "ask.json", records.plain(ask.to_json()))
        folders.append(folder)
    return folders


def run(s: Settings, say=print) -> dict[str, Any]:
    """Fill every missing cell and write the table; returns it.

    Raises:
        ClusterLost: no cluster is there, or no longer; the table has what came home, and nothing is booked.
    """
    folders = prepare(s.out, asks(s), s.resume)
    try:
        with signals.hinted(shlex.join([*_words(s), "--out", str(s.out)])):
            where.do(s, [cell.job(folder) for folder in folders], s.jobs, say, lambda job: _line(job.folder))
    finally:  # what there is, also after Ctrl-C
        facts = collect.collect(folders, tasks.best_known(s.best), _shown(s), records.provenance(_command(s)))
        for path in filter(None, (s.out / "suite.json", s.keep)):
            collect.write(path, facts)
    if s.keep_best:
        keep_best(s.best, facts)
    return facts


def _line(folder: Path) -> str:
    facts = records.read_json(folder / "cell.json")
    if facts["status"] != cell.DONE:
        return f"{facts['status']}: {facts['reason']}"
    return f"{facts['seconds']} s, {facts['peak_memory_mib']} MiB"


def keep_best(file: Path, facts: dict[str, Any]) -> None:
    """Write better values into the file of best known values, with the cell that found each."""
    known = tasks.best_known(file)
    for task, about in facts["tasks"].items():
        for key, value in about["better"].items():
            if task not in known or value < known[task]["value"]:
                known[task] = {"value": value, "source": f"found by {key}: {facts['provenance']['command']}"}
    collect.write(file, known)


def _shown(s: Settings) -> dict[str, Any]:
    hidden = {"out", "keep", "best", "jobs", "keep_best", "resume", *where.OPTIONS}
    return {key: str(v) if isinstance(v, Path) else v for key, v in dataclasses.asdict(s).items() if key not in hidden}


def _words(s: Settings) -> list[str]:
    words = ["bilevel-rl", "bench", "suite"]
    for field in dataclasses.fields(s):
        value = getattr(s, field.name)
        if value != field.default and field.name not in ("out", "best", "keep", "keep_best"):
            flag = f"--{field.name.replace('_', '-')}"
            shown = list(map(str, value)) if isinstance(value, tuple) else [str(value)]
            words += [flag] if value is True else [flag, *shown]
    return words


def _command(s: Settings) -> str:
    return " ".join(_words(s))


def main(argv: Sequence[str], finish: Callable[[dict[str, Any], Path], None] = lambda *_: None) -> int:
    """Fill the table and write it; 1 when a cell failed.

    Args:
        finish: what is to be done with the table and its folder, such as a report.
    """
    s = options.parse("bench suite", Settings, argv)
    facts = run(s, lambda text: print(text, flush=True))
    print(f"table: {s.out / 'suite.json'}")
    finish(facts, s.out)
    return int(any(c["status"] == "failed" for c in facts["cells"].values()))
