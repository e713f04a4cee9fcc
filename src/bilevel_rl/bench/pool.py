"""Cells to processes: each in its own, a dead one tried once more, one that another suite fills waited for."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple

from bilevel_rl import records
from bilevel_rl.bench import work

ATTEMPTS = 2
PAUSE = 1.0  # seconds between looks at a cell that another process fills


class Outcome(NamedTuple):
    """How a process ended: its exit code and the end of what it said."""

    code: int
    said: str


Worker = Callable[[Path], Outcome]
Watch = Callable[[str, Path, str], None]  # event ("done", "died", "failed"), cell folder, what it said


def local(folder: Path) -> Outcome:
    """Fill a cell in a process of this machine; it is told to end when the suite ends."""
    process = subprocess.Popen(
        [sys.executable, "-m", "bilevel_rl.bench.work", str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    _running.add(process)
    try:
        out, err = process.communicate()
    finally:
        _running.discard(process)
    return Outcome(process.returncode, (err or out)[-2000:])


_running: set[subprocess.Popen[str]] = set()


def stop() -> None:
    """Tell the processes of `local` to end, each with its state saved."""
    for process in list(_running):
        with contextlib.suppress(OSError):
            process.terminate()


def fill(folders: Sequence[Path], worker: Worker, jobs: int, watch: Watch = lambda *_: None) -> None:
    """Fill every cell that is not finished; `jobs` at a time.

    A process that dies is reported and its cell tried once more; a cell that dies twice gets `failed.json`, which the next
    call ignores. Cells that another suite is filling come last.
    """
    waiting = [folder for folder in folders if not finished(folder)]
    with ThreadPoolExecutor(jobs) as threads:
        running: dict[Future[Outcome], tuple[Path, int]] = {}

        def start(folder: Path, attempt: int) -> None:
            running[threads.submit(worker, folder)] = (folder, attempt)

        try:
            busy: set[Path] = set()
            while waiting or running:
                while waiting and len(running) < jobs:
                    if waiting[0] in busy:  # looked at before
                        time.sleep(PAUSE)
                    folder = waiting.pop(0)
                    if not finished(folder):
                        start(folder, 1)
                ready, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in ready:
                    folder, attempt = running.pop(future)
                    outcome = future.result()
                    if finished(folder):
                        (folder / "failed.json").unlink(missing_ok=True)
                        watch("done", folder, "")
                    elif outcome.code == work.BUSY:
                        busy.add(folder)
                        waiting.append(folder)
                    elif attempt < ATTEMPTS:
                        watch("died", folder, told(outcome))
                        start(folder, attempt + 1)
                    else:
                        facts: dict[str, Any] = {
                            "status": "failed",
                            "attempts": attempt,
                            "reason": told(outcome),
                        }
                        records.write_json(folder / "failed.json", facts)
                        watch("failed", folder, told(outcome))
        except BaseException:
            waiting.clear()
            stop()
            threads.shutdown(wait=False, cancel_futures=True)
            raise


def finished(folder: Path) -> bool:
    """Whether a cell has its result."""
    return (folder / "cell.json").exists()


def told(outcome: Outcome) -> str:
    """One line on a process that died."""
    last = outcome.said.strip().splitlines()[-1:] or ["it said nothing"]
    how = f"killed by signal {-outcome.code}" if outcome.code < 0 else f"exit code {outcome.code}"
    return f"{how}: {last[0]}"
