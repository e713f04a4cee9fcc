"""`bilevel-rl experiments NAME`: an experiment of the paper, whole."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from bilevel_rl import experiments
from bilevel_rl.errors import InvalidConfig, did_you_mean, message


def main(argv: Sequence[str]) -> int:
    """Run one experiment with its options; without a name, list them."""
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: bilevel-rl experiments NAME [its options; --help lists them]\n")
        for name, (_, text) in experiments.ALL.items():
            print(f"  {name:<14} {text}")
        return 0
    name, *rest = argv
    if name not in experiments.ALL:
        raise InvalidConfig(
            message(
                "bilevel-rl experiments", repr(name), did_you_mean(name, experiments.ALL), "Name one of these"
            )
        )
    return int(importlib.import_module(experiments.ALL[name][0]).main(rest) or 0)
