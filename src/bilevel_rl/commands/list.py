"""`bilevel-rl list`: what there is."""

from __future__ import annotations

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from bilevel_rl import experiments
from bilevel_rl.commands import screen
from bilevel_rl.errors import InvalidConfig, did_you_mean, message
from bilevel_rl.launch import index

GROUPS = ("problems", "solvers", "experiments")


def main(argv: Sequence[str]) -> int:
    """Print every problem, solver and experiment with the first sentence of its documentation."""
    if set(argv) & {"-h", "--help"}:
        print("usage: bilevel-rl list [problems | solvers | experiments]")
        return 0
    for word in set(argv) - set(GROUPS):
        raise InvalidConfig(message("bilevel-rl list", repr(word), did_you_mean(word, GROUPS), "Name one of these"))
    for group in argv or GROUPS:
        table = Table("name", "what it is", title=group, title_justify="left")
        for name, text in rows(group):
            table.add_row(name, escape(text))
        screen.console().print(table)
    return 0


def rows(group: str) -> list[tuple[str, str]]:
    """(name, sentence) of each member of a group."""
    if group == "experiments":
        return [(name, text) for name, (_, text) in experiments.ALL.items()]
    return list(index.entries(group).items())
