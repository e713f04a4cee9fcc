"""A piece of work, and how it is done in a process of this machine."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from bilevel_rl import signals
from bilevel_rl.errors import BilevelError, StorageFailed

FOLDER = "@FOLDER@"  # in the words of a job: its folder, wherever that is
BUSY = 75  # exit code: another process does it (EX_TEMPFAIL of sysexits.h)
SAID = 2000  # characters of a process's last words that are kept


class ClusterLost(BilevelError, ConnectionError):
    """The cluster is gone, or was never there; what was done is kept, and nothing is booked against the jobs."""

    code = 75  # EX_TEMPFAIL: the same command may succeed later


class JobFailed(BilevelError, RuntimeError):
    """A job died twice; what the others did is kept."""

    code = 1


@dataclasses.dataclass(frozen=True)
class Job:
    """A folder, and the words of `python -m` that fill it. Called again, they go on with what the folder holds.

    Attributes:
        folder: everything the work needs, and where its results go.
        words: a module and its words; `FOLDER` among them stands for the folder.
        finished: whether a folder needs no more work.
        name: what it is called on the screen.
    """

    folder: Path
    words: tuple[str, ...]
    finished: Callable[[Path], bool]
    name: str = ""

    @property
    def done(self) -> bool:
        """Whether it needs no more work."""
        return self.finished(self.folder)


class Outcome(NamedTuple):
    """How a process ended: its exit code and the end of what it said."""

    code: int
    said: str


@dataclasses.dataclass(frozen=True)
class Needs:
    """What a job is given of a machine.

    Attributes:
        cpus, gpus: how many.
        memory: GiB; 0: not counted.
    """

    cpus: float = 1
    gpus: float = 0
    memory: float = 0


Tell = Callable[[str, str], None]  # event ("running"), where
Worker = Callable[[Job, Tell], Outcome]


def command(words: tuple[str, ...], folder: Path) -> list[str]:
    """The command line that does a job in a folder and ends with this process."""
    return [sys.executable, "-m", "bilevel_rl.machines.child", str(os.getpid()),
            *(word.replace(FOLDER, str(folder)) for word in words)]  # fmt: skip


class Process:
    """A job at work in a process of this machine; what it says goes to a file, so that nobody need listen.

    Args:
        words: of the job.
        folder: its folder here.
        environment: on top of this process's own.
    """

    def __init__(self, words: tuple[str, ...], folder: Path, environment: Mapping[str, str] = {}):
        self._said = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            command(words, folder), stdout=self._said, stderr=self._said, stdin=subprocess.DEVNULL,
            env=dict(os.environ) | dict(environment),
        )  # fmt: skip

    def ended(self, timeout: float) -> bool:
        """Whether it has ended, waited for so many seconds."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout)
        return self._process.poll() is not None

    def terminate(self) -> None:
        """Tell it to save and to end."""
        with contextlib.suppress(OSError):
            self._process.terminate()

    def outcome(self) -> Outcome:
        """How it ended; waits for that."""
        code = self._process.wait()
        self._said.seek(0, os.SEEK_END)
        self._said.seek(max(0, self._said.tell() - SAID))
        said = self._said.read().decode(errors="replace")
        self._said.close()
        return Outcome(code, said)


def carried_out(words: Sequence[str], fill: Callable[[Path], None]) -> int:
    """The program of a job: do the work of a folder, here and now.

    Args:
        words: the program's own; the first is the folder.
        fill: does the work, or goes on with it.

    Returns:
        The exit code: 0 finished, `BUSY` where another process is at it, 128 + signal when stopped.
    """
    try:
        with signals.raised():
            fill(Path(words[0]))
    except KeyboardInterrupt as error:
        said, code = signals.farewell(error)
        print(said, file=sys.stderr)
        return code
    except StorageFailed as error:
        print(error, file=sys.stderr)
        return BUSY if "another process" in str(error) else 1
    return 0


_running: set[Process] = set()


def here(job: Job, tell: Tell) -> Outcome:
    """Do a job in a process of this machine; it is told to end when the pool ends."""
    process = Process(job.words, job.folder)
    _running.add(process)
    tell("running", "")
    try:
        return process.outcome()
    finally:
        _running.discard(process)


def stop() -> None:
    """Tell the processes of `here` to end, each with its state saved."""
    for process in list(_running):
        process.terminate()


def told(outcome: Outcome) -> str:
    """One line on a process that died.

    Example:
        >>> told(Outcome(-9, "first" + chr(10) + "last"))
        'killed by signal 9: last'
    """
    last = outcome.said.strip().splitlines()[-1:] or ["it said nothing"]
    how = f"killed by signal {-outcome.code}" if outcome.code < 0 else f"exit code {outcome.code}"
    return f"{how}: {last[0]}"
