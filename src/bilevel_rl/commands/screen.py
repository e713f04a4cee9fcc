"""What the verbs share on the screen: progress bars, tables of results."""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich import box
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

from bilevel_rl import records, shown, statistics
from bilevel_rl.errors import typed

if TYPE_CHECKING:
    from bilevel_rl.launch import execute
    from bilevel_rl.loop import Problem, Solver, Trace

WIDTH = 80  # of a table that no terminal shows
COORDINATES = 12  # ours: upper variables shown on the screen; the report shows all
STARTS = 8  # ours: as many are advised where runs rest at a local optimum
STILL = 0.01  # ours: a run rests that moves by less over its last quarter, as a share of what there is to gain
WORSE = 0.01  # ours: a run that ends so much above where it began is spoken of, as a share of 1 + |objective|
EXACT = ": interquartile mean over runs, below it the 95 % bootstrap interval, graded by exact oracles"
OWN = "outcome: what the leader got from its follower's own steps late in the run, less the cost of x; nothing is exact here"
WITHIN = "within 5 %: runs that end within 5 % of the best known value, and the exact 95 % interval of their share"
FIRST = "to 5 %: samples, median over runs, from which a run stays within 5 %"
SUCCESS = 0.05  # paper's wording of our benchmark: within 5 % of the optimum


def console() -> Console:
    """Standard output; tables keep their width when it is not a terminal."""
    plain = Console()
    return plain if plain.is_terminal else Console(width=WIDTH)


def say(text: str) -> None:
    """Print a sentence as it is, however long."""
    console().print(text, highlight=False, soft_wrap=True)


def new_folder(parent: Path, name: str) -> Path:
    """`parent/name`, or the first of `name-2`, `name-3` ... that does not exist."""
    folder, n = parent / name, 1
    while folder.exists():
        n += 1
        folder = parent / f"{name}-{n}"
    return folder


@contextlib.contextmanager
def progress(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar; on a pipe it prints its last state only. Yields a function of the work done.

    Until it is called first the bar says that the program is being compiled.
    """
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console(), transient=False) as bar:
        task = bar.add_task(f"{label}, compiling", total=total)
        yield lambda done: bar.update(task, completed=done, description=label)


def show_run(
    ready: execute.Ready, ask: execute.RunAsk, folder: Path, resume: bool = False, loggers: Sequence[str] = ()
) -> int:
    """Run with a progress bar, print the result, x and the folder; return 1 when every seed failed."""
    from bilevel_rl.launch import execute
    from bilevel_rl.launch import loggers as log

    if not resume:
        execute.keep_sources(ask, ready.config, folder)
    writers = log.writers(loggers, folder, ready.config)
    with progress(ready.config["label"], ready.config["iterations"]) as advance:

        def on_record(iteration: int, newest: dict[str, np.ndarray]) -> None:
            advance(iteration)
            for write in writers:
                write(iteration, newest)

        trace = ready.start(folder, resume=resume, on_record=on_record)
    best = None if ready.optimum is None else ready.optimum.value
    console().print(
        results_table(
            f"{ready.config['problem']}, {ready.config['runs']} runs", [(ready.config["label"], trace, best)]
        )
    )
    show_x([(ready.config["label"], trace)], execute.exact_answer(ready))
    for heading, text in remarks(ready, trace):
        say(f"[yellow]{heading}:[/] {escape(text)}")
    if trace.seconds:
        steps = ready.config["iterations"] * ready.config["runs"]
        say(f"{trace.seconds:.2f} s of compiling and stepping, {1e6 * trace.seconds / steps:.2f} us a run-iteration")
    say(escape(f"run folder: {folder}   report: {typed('report', folder)}"))
    return int(bool((trace.status != 0).all()))


def loggers(given: Any) -> tuple[str, ...]:
    """Names of the loggers that `--loggers` and `--tensorboard` ask for."""
    return (*given.loggers, *(["tensorboard"] if given.tensorboard else []))


def remarks(ready: execute.Ready, trace: Trace) -> list[tuple[str, str]]:
    """What a run says of itself beside its numbers: (heading, sentence)."""
    from bilevel_rl.launch.options import kept
    from bilevel_rl.loop.settings import temperature_note

    names = ready.config["problem"], ready.config["solver"]
    options = kept(shlex.split(ready.config.get("command") or ""), but=("solver.starts",))
    best = None if ready.optimum is None else ready.optimum.value
    said = [
        *(("stopped", text) for text in trace.messages),
        ("temperatures", temperature_note(ready.solver, ready.config["tau"])),
        ("worse than x0", worse_note(trace)),
        ("x has not moved", held_note(trace, *names, *options)),
        ("rests elsewhere", basin_note(trace, best, *names, *options, starts=hasattr(ready.solver, "starts"))),
        *(("order of the sequences", text) for text in broken_order(ready.problem, ready.solver)),
    ]
    return [(heading, text) for heading, text in said if text is not None]


def worse_note(trace: Trace) -> str | None:
    """A sentence where runs end above the objective that they began at; None where none does.

    Example:
        >>> from bilevel_rl.finite.problems import GoalPlacement
        >>> from bilevel_rl.finite.solvers import ExactDescent
        >>> from bilevel_rl.loop import solve
        >>> worse_note(solve(GoalPlacement(rows=3, columns=3), ExactDescent(), iterations=10)) is None
        True
    """
    values = trace.metrics.get("objective")
    if values is None:
        return None
    first, last = values[:, 0], values[:, -1]
    worse = int((last > first + WORSE * (1 + np.abs(first))).sum())
    if not worse:
        return None
    return (
        f"{worse} of {len(first)} runs end at a higher objective than x0 has: x moved before its followers had caught up, "
        "or too far. Lower the step size of x, or hold x longer (--solver.hold)"
    )


def held_note(trace: Trace, *words: str) -> str | None:
    """A sentence where x of every run ends where it began; None where one has moved.

    Args:
        words: problem, solver and their options, for a command.

    Example:
        >>> from types import SimpleNamespace
        >>> seen = SimpleNamespace(metrics={"samples": np.full((1, 2), 900)}, x=np.zeros((1, 2, 3)))
        >>> held_note(seen, "mine.py", "coupled_penalty").rpartition(": ")[2]
        'bilevel-rl run mine.py coupled_penalty --samples 9000'
    """
    if trace.x.shape[1] < 2 or np.any(trace.x[:, -1] != trace.x[:, 0]):
        return None
    spent = int(trace.metrics["samples"][0, -1])
    longer = f": {typed('run', *words, '--samples', 10 * spent)}" if spent else ""
    return (
        "every run ends at the x that it began with, which a solver holds until its followers have caught up, or which "
        f"no step could improve. Take more samples{longer}"
    )


def basin_note(trace: Trace, best: float | None, *words: str, starts: bool) -> str | None:
    """A sentence where most runs have come to rest away from the best known value; None where they have not.

    Args:
        best: the best known value.
        words: problem, solver and their options, for a command.
        starts: whether the solver can begin at several points by itself.

    Example:
        >>> from types import SimpleNamespace
        >>> record = {"objective": np.array([[-0.1, -0.2, -0.2, -0.2]]), "samples": np.full((1, 4), 900)}
        >>> seen = SimpleNamespace(metrics=record, x=np.array([[[0.1], [0.05], [0.01], [0.01]]]))
        >>> basin_note(seen, -1.0, "mine.py", "coupled_penalty", starts=True).rpartition(": ")[2]
        'bilevel-rl run mine.py coupled_penalty --solver.starts 8 --samples 900'
    """
    values = trace.metrics.get("objective")
    if best is None or values is None or values.shape[1] < 4:
        return None
    last, before = values[:, -1], values[:, 3 * (values.shape[1] - 1) // 4]
    scale = np.maximum(abs(best), np.abs(values[:, 0] - best))
    left = np.any(trace.x[:, -1] != trace.x[:, 0], axis=-1)  # x is not held at x0 any more
    rests = int((left & (last - best > SUCCESS * scale) & (np.abs(last - before) < STILL * scale)).sum())
    if 2 * rests < len(last):
        return None
    spent = int(trace.metrics["samples"][0, -1])
    budget = ("--samples", spent) if spent else ("--iterations", STARTS * int(trace.metrics["iteration"][0, -1]))
    verb = ("run", *words, "--solver.starts") if starts and spent else ("search", *words, "--starts")
    begin = typed(*verb, STARTS, *budget)
    return (
        f"{rests} of {len(last)} runs rest more than 5 % from the best known value: a local optimum, it seems. Begin at "
        f"several points at once: {begin}"
    )


def show_x(rows: Sequence[tuple[str, Trace]], exact: execute.Exact | None = None) -> None:
    """Print the answer: each upper variable at the end, over runs, beside the exact one where it is known.

    Args:
        rows: (method, its trace).
        exact: what to print beside them.
    """
    table = Table(title="x at the end", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for label, _ in rows:
        table.add_column(escape(label), justify="right", overflow="fold")
    if len(rows) == 1:
        table.add_column("best run", justify="right")
    if exact is not None:
        table.add_column(escape(exact.label), justify="right")
    first = rows[0][1]
    d = first.x.shape[-1]
    ends = [shown.final_x(trace.x) for _, trace in rows]
    for i, name in enumerate(shown.names(first.x_names, d)[:COORDINATES]):
        cells = [str(each[i]) for each in ends]
        cells += [f"{first.best_x[i]:.4g}"] if len(rows) == 1 else []
        table.add_row(escape(name), *cells, *([] if exact is None else [f"{exact.x[i]:.4g}"]))
    if d > COORDINATES:
        table.add_row(f"... {d - COORDINATES} more", *[""] * (len(table.columns) - 1))
    words = "interquartile mean over runs [95 % bootstrap interval]" if max(len(t.x) for _, t in rows) > 1 else ""
    if exact is not None:
        words = "\n".join(filter(None, (words, f"{exact.label}: objective {exact.value:.5g}, {exact.how}")))
    table.caption, table.caption_justify = escape(words), "left"
    console().print(table)


def broken_order(problem: Problem, solver: Solver) -> list[str]:
    """Sentences on the paper's conditions on the five sequences that a solver's settings break on a problem."""
    scales = getattr(solver, "scales", None) if getattr(solver, "ordered", True) else None
    return [] if scales is None else scales.broken_constraints(problem.discount_factor())


def show_rows(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a plain table."""
    table = Table(*heads, title=escape(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        table.add_row(*(escape(str(cell)) for cell in row))
    console().print(table)


LEAST = ("stopped", "runs", "samples", "seeds", "entropy, nats", "labels", "samples to 5 %")  # the first to give way
NAMES = 18  # ours: characters a method's name has at least before it goes on in a second line


def results_table(title: str, rows: Sequence[tuple[str, Trace, float | None]]) -> Table:
    """One row a method: samples, objective and gap (interquartile mean over its interval), success, first hit."""
    exact = any("objective" in trace.metrics for _, trace, _ in rows)
    gaps = any("gap" in trace.metrics and best is not None for _, trace, best in rows)
    graded = ("objective, gap" if gaps else "objective") + EXACT
    note = "\n".join([graded if exact else OWN, *([WITHIN, FIRST] if gaps else [])])
    stopped = [int((trace.status != 0).sum()) for _, trace, _ in rows]
    known = 6 if gaps else 3  # columns that say anything
    heads = ["method", "samples", "objective" if exact else "outcome", "gap", "within 5 %", "to 5 %"][:known]
    heads += ["stopped"] if any(stopped) else []
    cells = [
        [label, *row(trace.metrics, best)[: known - 1], *([str(lost)] if any(stopped) else [])]
        for (label, trace, best), lost in zip(rows, stopped, strict=True)
    ]
    return methods_table(title, heads, cells, note, least=())


def methods_table(
    title: str, heads: Sequence[str], rows: Sequence[Sequence[str]], note: str, least: Sequence[str] = LEAST
) -> Table:
    """One row a method, an interval below its number, and only the columns that the terminal has room for.

    Args:
        least: columns that give way where there is no room, the first one first.
    """
    cells = [[broken(label), *(cell.replace(" [", "\n[", 1) for cell in rest)] for label, *rest in rows]
    width = console().width
    left_out, kept, cells = fitted(list(heads), cells, width, least)
    widest = sorted(range(1, len(kept)), key=lambda i: -max(len(line) for row in cells for line in row[i].split("\n")))
    for i in widest:  # intervals in two lines, the longest first
        if room(kept, cells) > width:
            cells = [[*row[:i], row[i].replace(", ", ",\n"), *row[i + 1 :]] for row in cells]
    note += f" In the report also: {', '.join(left_out)}." if left_out else ""
    table = Table(
        title=title, title_justify="left", caption=escape(note), caption_justify="left", box=box.SIMPLE_HEAD, pad_edge=False,
    )  # fmt: skip
    for i, head in enumerate(kept):
        table.add_column(head, justify="right" if i else "left", no_wrap=True)
    for one in cells:
        table.add_row(*map(escape, one))
    return table


def broken(label: str) -> str:
    """A long name in lines that end where one of its words does.

    Example:
        >>> broken("penalty_actor_critic").split("\\n")
        ['penalty_actor_', 'critic']
    """
    lines = [""]
    for word in re.split(r"(?<=[_ ,])(?=\w)", label):
        if lines[-1] and len(lines[-1]) + len(word.rstrip()) > NAMES:
            lines.append("")
        lines[-1] += word
    return "\n".join(lines)


def room(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
    """Characters that a table takes: its columns' longest lines, and three between two of them.

    Example:
        >>> room(["method", "gap"], [["a", "0.1\\n[0, 1]"]])
        17
    """
    columns = zip(heads, *rows, strict=True)
    return sum(max(len(line) for cell in column for line in cell.split("\n")) + 3 for column in columns) - 1


def fitted(
    heads: list[str], rows: list[list[str]], width: int, least: Sequence[str] = LEAST
) -> tuple[list[str], list[str], list[list[str]]]:
    """What a terminal of this width has room for: the columns left out, heads and rows.

    Example:
        >>> fitted(["method", "runs", "gap"], [["a", "10", "0.1"]], 16)
        (['runs'], ['method', 'gap'], [['a', '0.1']])
    """
    kept = list(range(len(heads)))
    for head in least:
        if head in heads and room([heads[i] for i in kept], [[row[i] for i in kept] for row in rows]) > width:
            kept.remove(heads.index(head))
    out = [head for i, head in enumerate(heads) if i not in kept]
    return out, [heads[i] for i in kept], [[row[i] for i in kept] for row in rows]


def row(metrics: dict[str, np.ndarray], best: float | None) -> list[str]:
    """The numbers of one method as words."""
    samples = f"{metrics['samples'][:, -1].mean():,.0f}"
    if "objective" not in metrics and "outcome" in metrics:  # nothing exact: what the leader got along the run
        return [samples, str(statistics.bootstrap(metrics["outcome"][:, -1])), "-", "-", "-"]
    if "objective" not in metrics:
        return [samples, "-", "-", "-", "-"]
    objective = str(statistics.bootstrap(metrics["objective"][:, -1]))
    if best is None or "gap" not in metrics:
        return [samples, objective, "-", "-", "-"]
    gap = metrics["gap"]
    hits = gap <= SUCCESS * abs(best)
    rate = statistics.success_rate(hits[:, -1])
    median = float(np.median(statistics.samples_to_target(metrics["samples"], hits)))
    return [
        samples,
        objective,
        str(statistics.bootstrap(gap[:, -1])),
        f"{int(hits[:, -1].sum())} of {len(gap)} [{rate.low:.2f}, {rate.high:.2f}]",
        f"{median:,.0f}" if np.isfinite(median) else "-",
    ]


def read_status(folder: Path) -> dict[str, Any]:
    """The status of a run folder, or an empty mapping."""
    try:
        return records.read_status(folder)
    except records.RunNotFound:
        return {}
