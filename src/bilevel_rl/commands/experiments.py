"""`bilevel-rl experiments NAME`: an experiment of the paper, whole: runs, results table, report."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from rich import box
from rich.markup import escape
from rich.table import Table

from bilevel_rl import experiments
from bilevel_rl.commands import screen
from bilevel_rl.errors import InvalidConfig, MissingDependency, did_you_mean, message
from bilevel_rl.launch import options

LEAST = ("stopped", "runs", "samples", "seeds", "entropy, nats", "labels", "samples to 5 %")  # the first to give way
NAMES = 18  # ours: characters a method's name has at least before it goes on in a second line


def main(argv: Sequence[str]) -> int:
    """Run one experiment with its options; without a name, list them."""
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: bilevel-rl experiments NAME [its options; --help lists them]\n")
        for name, (_, text) in experiments.ALL.items():
            print(f"  {name:<14} {text}")
        return 0
    name, *rest = argv
    if name not in experiments.ALL:
        known = did_you_mean(name, experiments.ALL)
        raise InvalidConfig(message("bilevel-rl experiments", repr(name), known, "Name one of these"))
    module = importlib.import_module(experiments.ALL[name][0])
    settings = options.parse(f"experiments {name}", module.Settings, rest)
    show(module.run(settings, screen.progress))
    return 0


def show(folder) -> None:
    """Print the results table of a folder of runs, write its report, print where it is."""
    from bilevel_rl.report import build, collect, tables

    for section in collect.sections([folder]):
        heads, rows, note = tables.results(section)
        rows = [[cell.replace(" [", "\n[", 1) for cell in row] for row in rows]
        left_out, heads, rows = fitted(heads, rows, screen.console().width)
        note += f" In the report also: {', '.join(left_out)}." if left_out else ""
        table = Table(
            title=section.title, title_justify="left", caption=escape(note), caption_justify="left", box=box.SIMPLE_HEAD,
            pad_edge=False,
        )  # fmt: skip
        for i, head in enumerate(heads):
            table.add_column(head, justify="right" if i else "left", overflow="fold", min_width=0 if i else NAMES)
        for row in rows:
            table.add_row(*map(escape, row))
        screen.console().print(table)
    try:
        screen.console().print(
            f"report: {build([folder], folder / 'report.html')}", highlight=False, soft_wrap=True
        )
    except MissingDependency as error:
        print(f"no report: {error}")


def fitted(heads: list[str], rows: list[list[str]], width: int) -> tuple[list[str], list[str], list[list[str]]]:
    """What a terminal of this width has room for: the columns left out, heads and rows.

    Example:
        >>> fitted(["method", "runs", "gap"], [["a", "10", "0.1"]], 12)
        (['runs'], ['method', 'gap'], [['a', '0.1']])
    """
    kept = list(range(len(heads)))

    def room() -> int:
        columns = [[heads[i], *(row[i] for row in rows)] for i in kept]
        names = min(NAMES, max(len(cell) for cell in columns[0]))  # longer ones go on in a second line
        widest = [max(len(line) for cell in column for line in cell.split("\n")) for column in columns[1:]]
        return names + sum(widest) + 2 * len(widest)

    for head in LEAST:
        if room() > width and head in heads:
            kept.remove(heads.index(head))
    out = [head for i, head in enumerate(heads) if i not in kept]
    return out, [heads[i] for i in kept], [[row[i] for i in kept] for row in rows]
