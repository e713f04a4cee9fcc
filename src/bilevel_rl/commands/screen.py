"""What the verbs share on the screen: words before options, progress bars, tables of results."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from bilevel_rl import records, statistics
from bilevel_rl.launch import execute
from bilevel_rl.loop import Problem, Solver, Trace

SUCCESS = 0.05  # paper's wording of our benchmark: within 5 % of the optimum


def console() -> Console:
    """Standard output; tables keep their width when it is not a terminal."""
    plain = Console()
    return plain if plain.is_terminal else Console(width=140)


def split_words(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The leading words, and everything from the first option on.

    Example:
        >>> split_words(["goal", "exact", "--runs", "3"])
        (['goal', 'exact'], ['--runs', '3'])
    """
    first = next((i for i, word in enumerate(argv) if word.startswith("-")), len(argv))
    return list(argv[:first]), list(argv[first:])


def new_folder(parent: Path, name: str) -> Path:
    """`parent/name`, or the first of `name-2`, `name-3` ... that does not exist."""
    folder, n = parent / name, 1
    while folder.exists():
        n += 1
        folder = parent / f"{name}-{n}"
    return folder


@contextlib.contextmanager
def progress(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar; on a pipe it prints its last state only. Yields a function of the work done."""
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=32),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console(), transient=False) as bar:
        task = bar.add_task(label, total=total)
        yield lambda done: bar.update(task, completed=done)


def show_run(
    ready: execute.Ready, ask: execute.Ask, folder: Path, resume: bool = False, tensorboard: bool = False
) -> int:
    """Run with a progress bar, print the result and the folder; return 1 when every seed failed."""
    if not resume:
        execute.keep_sources(ask, ready.config, folder)
    write = execute.tensorboard_writer(folder) if tensorboard else None
    with progress(ready.config["label"], ready.config["iterations"]) as advance:

        def on_record(iteration: int, newest: dict[str, np.ndarray]) -> None:
            advance(iteration)
            if write is not None:
                write(iteration, newest)

        trace = ready.start(folder, resume=resume, on_record=on_record)
    best = None if ready.optimum is None else ready.optimum.value
    console().print(
        results_table(
            f"{ready.config['problem']}, {ready.config['runs']} runs", [(ready.config["label"], trace, best)]
        )
    )
    for text in trace.messages:
        console().print(f"[yellow]stopped:[/] {text}", highlight=False)
    for text in broken_order(ready.problem, ready.solver):
        console().print(f"[yellow]order of the sequences:[/] {text}", highlight=False)
    if trace.seconds:
        steps = ready.config["iterations"] * ready.config["runs"]
        console().print(
            f"{trace.seconds:.2f} s of stepping, {1e6 * trace.seconds / steps:.2f} us a run-iteration"
        )
    console().print(
        f"run folder: {folder}   report: bilevel-rl report {folder}", highlight=False, soft_wrap=True
    )
    return int(bool((trace.status != 0).all()))


def broken_order(problem: Problem, solver: Solver) -> list[str]:
    """Sentences on the paper's conditions on the five sequences that a solver's settings break on a problem."""
    scales = getattr(solver, "scales", None)
    return [] if scales is None else scales.broken_constraints(problem.discount_factor())


def show_rows(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a plain table."""
    table = Table(*heads, title=title, title_justify="left")
    for row in rows:
        table.add_row(*(escape(str(cell)) for cell in row))
    console().print(table)


def results_table(title: str, rows: Sequence[tuple[str, Trace, float | None]]) -> Table:
    """One row a method: samples, objective and gap (interquartile mean with bootstrap interval), success, first hit."""
    caption = (
        "objective, gap: interquartile mean [95 % bootstrap interval] over runs, graded by exact oracles\n"
        "within 5 %: runs that end within 5 % of the best known value [exact 95 % interval]\n"
        "samples to 5 %: median over runs of the first record from which a run stays within 5 %"
    )
    table = Table(title=title, title_justify="left", caption=escape(caption), caption_justify="left")
    for column in ("method", "samples", "objective", "gap", "within 5 %", "samples to 5 %", "stopped"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for label, trace, best in rows:
        table.add_row(
            escape(label), *map(escape, row(trace.metrics, best)), str(int((trace.status != 0).sum()))
        )
    return table


def row(metrics: dict[str, np.ndarray], best: float | None) -> list[str]:
    """The numbers of one method as words."""
    samples = f"{metrics['samples'][:, -1].mean():,.0f}"
    if "objective" not in metrics:
        return [samples, "-", "-", "-", "-"]
    objective = str(statistics.bootstrap(metrics["objective"][:, -1]))
    if best is None or "gap" not in metrics:
        return [samples, objective, "-", "-", "-"]
    gap = metrics["gap"]
    hits = execute.within(gap, best, SUCCESS)
    rate = statistics.success_rate(hits[:, -1])
    median = float(np.median(statistics.samples_to_target(metrics["samples"], hits)))
    return [
        samples,
        objective,
        str(statistics.bootstrap(gap[:, -1])),
        f"{int(hits[:, -1].sum())} of {len(gap)} [{rate.low:.2f}, {rate.high:.2f}]",
        f"{median:,.0f}" if np.isfinite(median) else "-",
    ]


def read_status(folder: Path) -> dict:
    """The status of a run folder, or an empty mapping."""
    try:
        return records.read_json(folder / "status.json")
    except records.RunNotFound:
        return {}
