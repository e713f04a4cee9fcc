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
        for title, found in tables(group).items():
            table = Table("name", "what it is", title=title, title_justify="left")
            for name, text in found:
                table.add_row(name, escape(text))
            screen.console().print(table)
    return 0


def tables(group: str) -> dict[str, list[tuple[str, str]]]:
    """Title -> (name, sentence) of each member of a group; problems and solvers by what follows."""
    if group == "experiments":
        return {group: [(name, text) for name, (_, text) in experiments.ALL.items()]}
    return {
        f"{group}: tables": list(index.entries(group).items()),
        f"{group}: neural followers": list(index.entries(group, "control").items()),
    }
