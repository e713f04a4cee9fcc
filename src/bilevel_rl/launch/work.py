"""`python -m bilevel_rl.launch.work FOLDER`: the process that does the run of a folder, or goes on with it."""

from __future__ import annotations

import sys
from pathlib import Path

from bilevel_rl import records
from bilevel_rl.launch import execute
from bilevel_rl.loop import checkpoint
from bilevel_rl.machines.job import FOLDER, Job, carried_out


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


if __name__ == "__main__":
    sys.exit(carried_out(sys.argv[1:], fill))
