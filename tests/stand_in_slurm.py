"""A stand-in for SLURM's commands: `sbatch` runs an array here, at once, each task in a session of its own.

    python stand_in_slurm.py COMMAND WORDS      sbatch, srun, sacct, scontrol, scancel

State lies in the folder that STAND_IN_SLURM names: JOB_INDEX.state, JOB_INDEX.pid, JOB_INDEX.requeue.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

HOME = Path(os.environ["STAND_IN_SLURM"])


def sbatch(script: str) -> None:
    """Start every task of the array, in the background."""
    job = 100 + len(list(HOME.glob("*.job")))
    (HOME / f"{job}.job").touch()
    found = re.search(r"--array=0-(\d+)", Path(script).read_text())
    for name in [f"{job}_{index}" for index in range(1 + int(found[1]))] if found else [str(job)]:
        (HOME / f"{name}.state").write_text("PENDING")
        apart([sys.executable, __file__, "task", name, script])
    print(f"Submitted batch job {job}")


def apart(command: list[str]) -> None:
    """Start a program that whoever called the stand-in does not wait for."""
    quiet = subprocess.DEVNULL
    subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True)


def task(name: str, script: str) -> None:
    """Run the script, again whenever it has asked for that."""
    job, of_array, index = name.partition("_")
    environment = dict(os.environ) | {
        "SLURM_JOB_ID": name, "SLURM_NTASKS": "1", "SLURM_JOB_NUM_NODES": "1", "SLURM_NODEID": "0", "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0", "SLURM_JOB_NODELIST": "here",
    }  # fmt: skip
    if of_array:
        environment |= {"SLURM_ARRAY_JOB_ID": job, "SLURM_ARRAY_TASK_ID": index}
    while True:
        process = subprocess.Popen(["bash", script], env=environment, start_new_session=True)
        (HOME / f"{name}.pid").write_text(str(process.pid))
        (HOME / f"{name}.state").write_text("RUNNING")
        code = process.wait()
        if not (HOME / f"{name}.requeue").exists():
            break
        (HOME / f"{name}.state").write_text("REQUEUED")
        (HOME / f"{name}.requeue").unlink()
    (HOME / f"{name}.state").write_text("FAILED" if code else "COMPLETED")


def srun(*words: str) -> None:
    """The command, with its output where it was asked for."""
    left, out = list(words), ""
    while left[0].startswith("--"):
        option = left.pop(0)
        if option in ("--output", "--error"):
            out = left.pop(0)
    for sign, name in (("%A", "SLURM_ARRAY_JOB_ID"), ("%a", "SLURM_ARRAY_TASK_ID"), ("%j", "SLURM_JOB_ID"), ("%t", "")):
        out = out.replace(sign, os.environ.get(name, "0"))
    with open(out, "ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    os.execvp(left[0], left)


def sacct(*_: str) -> None:
    """All tasks."""
    print("JobID|State|NodeList")
    for path in sorted(HOME.glob("*.state")):
        print(f"{path.stem}|{path.read_text()}|here")


def scontrol(verb: str, name: str) -> None:
    """requeue: the task is ended and begins again."""
    assert verb == "requeue"
    (HOME / f"{name}.requeue").touch()
    apart([sys.executable, __file__, "end", (HOME / f"{name}.pid").read_text()])


def end(process: str) -> None:
    """What SLURM does to a task that is put back and does not end by itself."""
    time.sleep(0.2)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(int(process), signal.SIGKILL)


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
