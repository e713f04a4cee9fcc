"""`bilevel-rl experiments NAME`: an experiment of the paper, whole: runs, results table, report."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from bilevel_rl import experiments
from bilevel_rl.commands import screen
from bilevel_rl.errors import InvalidConfig, MissingDependency, did_you_mean, message
from bilevel_rl.launch import options


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
        screen.console().print(screen.methods_table(section.title, heads, rows, note))
    try:
        screen.console().print(
            f"report: {build([folder], folder / 'report.html')}", highlight=False, soft_wrap=True
        )
    except MissingDependency as error:
        print(f"no report: {error}")
