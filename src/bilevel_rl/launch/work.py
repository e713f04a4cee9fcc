"""`python -m bilevel_rl.launch.work FOLDER`: the process that does the run of a folder, or goes on with it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from bilevel_rl import records, signals
from bilevel_rl.errors import StorageFailed
from bilevel_rl.launch import execute
from bilevel_rl.loop import checkpoint
from bilevel_rl.machines.job import BUSY, FOLDER, Job


def job(folder: Path, name: str) -> Job:
    """The run of a folder as a piece of work."""
    return Job(folder, ("bilevel_rl.launch.work", FOLDER), over, name)


def over(folder: Path) -> bool:
    """Whether a run needs no more work: it is finished, or every one of its seeds has become non-finite."""
    if not (folder / "status.json").exists():
        return False
    state = records.read_status(folder).get("state")
    if state != "failed":
        return state == "finished"
    run = records.Run.read(folder)
    return "status" in run.trace and bool((run.trace["status"] != 0).all())


def fill(folder: Path) -> None:
    """Do the run, from its checkpoint where it has one."""
    if over(folder):
        return
    ready, _ = execute.again(folder)
    if not (folder / checkpoint.FILE).exists():  # laid out elsewhere, begun here
        header = {key: value for key, value in records.read_header(folder).items() if key != "checksum"}
        provenance = records.provenance(header["provenance"].get("command", ""))
        records.write_header(folder, header | {"provenance": provenance})
    ready.start(folder, resume=True)


def main(argv: list[str], fill: Callable[[Path], None] = fill) -> int:
    """Do the work of a folder; 0 finished, `BUSY` where another process is at it, 128 + signal when stopped."""
    try:
        with signals.raised():
            fill(Path(argv[0]))
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
