"""`python -m bilevel_rl.bench.work FOLDER`: the process that fills one cell."""

from __future__ import annotations

import sys

from bilevel_rl.bench import cell
from bilevel_rl.machines.job import BUSY, carried_out

__all__ = ["BUSY", "main"]


def main(argv: list[str]) -> int:
    """Fill the cell of the folder; 0 finished, `BUSY` where another process is at it, 128 + signal when stopped."""
    return carried_out(argv, cell.fill)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
