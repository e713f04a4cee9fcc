"""The table: every solver on every task, tuned alike, graded by exact oracles at equal samples.

    bilevel-rl bench suite [--quick] [--problems ...] [--solvers ...] [--starts N] [--ray ADDRESS]

`--help` lists the options; `bilevel_rl.bench` is what it does.
"""

import sys
from pathlib import Path

from bilevel_rl.bench.suite import main
from bilevel_rl.cli import answered
from bilevel_rl.errors import MissingDependency
from bilevel_rl.report import suite


def finish(facts: dict, out: Path) -> None:
    """Verdicts on the screen, the whole table as a page."""
    print(suite.table(suite.VERDICTS, suite.verdicts(facts)))
    try:
        print(f"report: {suite.build(facts, out / 'report.html')}")
    except MissingDependency as error:
        print(f"no report: {error}")


if __name__ == "__main__":
    sys.exit(answered(lambda: main(sys.argv[1:], finish)))
