"""What the language-model verbs show: a progress bar, tables of completions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

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

from bilevel_rl.commands.screen import WIDTH
from bilevel_rl.llm.data.wording import as_text


def console() -> Console:
    """A terminal as wide as it is, a file as wide as the tables of the other verbs."""
    plain = Console()
    return plain if plain.is_terminal else Console(width=WIDTH)


@contextmanager
def bar(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar; yields a function of the work done."""
    columns = (
        TextColumn("[bold]{task.description}"), BarColumn(bar_width=32), MofNCompleteColumn(), TimeElapsedColumn(),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console()) as progress:
        task = progress.add_task(label, total=total)
        yield lambda done: progress.update(task, completed=done)


def show_samples(rows: Sequence[dict[str, Any]], title: str) -> None:
    """A table of completions; numbers to three digits."""
    if not rows:
        return
    table = Table(title=title, title_justify="left")
    for key in rows[0]:
        table.add_column(key, overflow="fold")
    for row in rows:
        table.add_row(
            *(
                f"{v:.3g}" if isinstance(v, float) else escape(as_text(v)) if v is not None else ""
                for v in row.values()
            )
        )
    console().print(table)
