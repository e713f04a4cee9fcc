"""`python -m bilevel_rl.bench.work FOLDER`: the process that fills one cell."""

from __future__ import annotations

import sys
from pathlib import Path

from bilevel_rl import signals
from bilevel_rl.bench import cell
from bilevel_rl.errors import StorageFailed

BUSY = 75  # exit code: another process fills this cell (EX_TEMPFAIL)


def main(argv: list[str]) -> int:
    """Fill the cell of the folder; 0 finished, `BUSY` where another process is at it, 128 + signal when stopped."""
    try:
        with signals.raised():
            cell.fill(Path(argv[0]))
    except KeyboardInterrupt as error:
        said, code = signals.farewell(error)
        print(said, file=sys.stderr)
        return code
    except StorageFailed as error:
        print(error, file=sys.stderr)
        return BUSY if "another process" in str(error) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
