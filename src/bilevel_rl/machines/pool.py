"""Jobs to workers: so many at a time, a dead one tried once more, one that another process does waited for."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

from bilevel_rl import records
from bilevel_rl.machines import job as work
from bilevel_rl.machines.job import BUSY, Job, Outcome, Worker, told

ATTEMPTS = 2
PAUSE = 1.0  # seconds between looks at a job that another process does
MOST = 256  # threads that wait for jobs; more jobs than these queue here instead of on the cluster
LOOK = 5.0  # seconds after which it is asked again how many jobs may run

Watch = Callable[[str, Job, str], None]  # event ("running", "done", "died", "failed"), job, what it said


def fill(jobs: Sequence[Job], worker: Worker, most: int | Callable[[], int], watch: Watch = lambda *_: None) -> None:
    """Do every job that is not finished.

    A process that dies is reported and its job tried once more; a job that dies twice gets `failed.json`, which the next
    call ignores. Jobs that another process is doing come last.

    Args:
        jobs: what is to be done.
        worker: does one, in a thread of its own.
        most: how many at a time; asked again while jobs run, where it may change.
        watch: is told of every event.

    Raises:
        ClusterLost: and whatever else a worker raises; jobs at work are told to end, and nothing is booked against them.
    """
    waiting = [one for one in jobs if not one.done]
    allowed = most if callable(most) else lambda: most
    with ThreadPoolExecutor(MOST) as threads:
        running: dict[Future[Outcome], tuple[Job, int]] = {}

        def start(one: Job, attempt: int) -> None:
            tell = lambda event, said: watch(event, one, said)  # noqa: E731
            running[threads.submit(worker, one, tell)] = (one, attempt)

        try:
            busy: set[Any] = set()
            while waiting or running:
                while waiting and len(running) < min(MOST, max(1, allowed())):
                    if waiting[0].folder in busy:  # looked at before
                        time.sleep(PAUSE)
                    one = waiting.pop(0)
                    if not one.done:
                        start(one, 1)
                ready, _ = wait(running, timeout=LOOK if waiting else None, return_when=FIRST_COMPLETED)
                for future in ready:
                    one, attempt = running.pop(future)
                    outcome = future.result()
                    if one.done or outcome.code == 0:
                        (one.folder / "failed.json").unlink(missing_ok=True)
                        watch("done", one, "")
                    elif outcome.code == BUSY:
                        busy.add(one.folder)
                        waiting.append(one)
                    elif attempt < ATTEMPTS:
                        watch("died", one, told(outcome))
                        start(one, attempt + 1)
                    else:
                        facts = {"status": "failed", "attempts": attempt, "reason": told(outcome)}
                        records.write_json(one.folder / "failed.json", facts)
                        watch("failed", one, told(outcome))
        except BaseException:
            waiting.clear()
            work.stop()
            threads.shutdown(wait=False, cancel_futures=True)
            raise
