"""Jobs on SLURM, by submitit: all of them one array, each a task that may be preempted and put back into the queue.

The folders lie on a file system that every node sees. A task does its job in a process of its own. Told that its time is up
(submitit's signal) or preempted (SIGTERM), it lets that process save, asks to be queued again, and goes on from the
checkpoint when it is back; the driver only waits, and may be ended and started again while the array goes on.
"""

from __future__ import annotations

import math
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bilevel_rl import records, versions
from bilevel_rl.errors import InvalidConfig, message, require
from bilevel_rl.machines.job import Job, Needs, Outcome, Process, told
from bilevel_rl.machines.pool import ATTEMPTS, Watch

EXTRA = "slurm"
YES = ("yes", "default")
LOOK = 1.0  # seconds between looks at a process
ASK = 15.0  # seconds between questions to SLURM about the array
FILE = "slurm.json"  # in the folder of logs: which arrays were submitted for which jobs
OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE")
STOPPED = (129, 130, 143, -signal.SIGUSR2)  # exit codes of a process that was told to end, before it could listen too


def options(text: str) -> dict[str, Any]:
    """sbatch's options as a dictionary.

    Raises:
        InvalidConfig: words that are none.

    Example:
        >>> options("time=60,partition=long"), options("yes")
        ({'time': 60, 'partition': 'long'}, {})
    """
    found: dict[str, Any] = {}
    for word in [] if text in YES else text.split(","):
        name, equals, value = word.partition("=")
        if not equals or not name.strip() or not value.strip():
            raise InvalidConfig(
                message("--slurm", repr(word), "NAME=VALUE of sbatch, joined by commas, or 'yes' is expected",
                        "Write for instance --slurm time=60,partition=long")
            )  # fmt: skip
        value = value.strip()
        found[name.strip().replace("-", "_")] = int(value) if value.isdigit() else value
    return found


class SlurmTask:
    """A job as SLURM calls it.

    Args:
        job: the job.
        theirs: versions of the driver.
        names: which of them matter.
    """

    def __init__(self, job: Job, theirs: dict[str, str], names: tuple[str, ...]):
        self.words, self.folder, self.theirs, self.names = job.words, str(job.folder), theirs, names
        self.process: Process | None = None

    def __call__(self) -> tuple[int, str]:
        """Do the job; returns its exit code and last words."""
        try:
            versions.check(self.theirs, self.names, "this node, beside the driver")
        except InvalidConfig as error:
            return error.code, str(error)
        self.process = Process(self.words, Path(self.folder))
        while not self.process.ended(LOOK):
            pass
        outcome = self.process.outcome()
        if outcome.code in STOPPED:  # preempted: SLURM's signal reaches every process
            _requeue()
        return outcome.code, outcome.said

    def checkpoint(self) -> Any:
        """What submitit calls when the time is up: let the process save, and come back."""
        if self.process is not None:
            self.process.terminate()
            self.process.outcome()
            self.process = None
        return require("submitit", EXTRA).helpers.DelayedSubmission(self)


def _requeue() -> None:
    """Ask to be queued again, and wait for the end."""
    environment = require("submitit", EXTRA).JobEnvironment()
    subprocess.run(["scontrol", "requeue", environment.job_id], check=True)
    time.sleep(600)  # SLURM ends this task


def fill(
    jobs: Sequence[Job], text: str, needs: Needs, watch: Watch, logs: Path, say: Callable[[str], Any],
    names: tuple[str, ...] = versions.OF_JAX,
) -> None:  # fmt: skip
    """Do every job that is not finished; jobs that die are submitted once more, as `pool.fill` does.

    Args:
        jobs: what is to be done.
        text: sbatch's options.
        needs: of each job.
        watch: is told of every event.
        logs: folder for submitit's files, on a file system that every node sees.
        say: prints a line.
        names: packages whose versions must be the driver's.

    Raises:
        MissingDependency: without the extra `slurm`.
        InvalidConfig: no SLURM on this machine, or options that sbatch does not have.
    """
    executor = _executor(text, needs, logs)
    for attempt in range(1, ATTEMPTS + 1):
        left = [one for one in jobs if not one.done]
        if not left:
            return
        tasks = _submitted(left, executor, logs, names, say)
        try:
            odd = _wait(left, tasks, watch)
        except KeyboardInterrupt:
            say(f"the array goes on; the same command waits for it again, `scancel {_array(tasks)}` ends it")
            raise
        (logs / FILE).unlink(missing_ok=True)
        for one, outcome in odd:
            if outcome.code == InvalidConfig.code:
                raise InvalidConfig(outcome.said)
            watch("died" if attempt < ATTEMPTS else "failed", one, told(outcome))
            if attempt == ATTEMPTS:
                facts = {"status": "failed", "attempts": attempt, "reason": told(outcome)}
                records.write_json(one.folder / "failed.json", facts)


def _executor(text: str, needs: Needs, logs: Path) -> Any:
    submitit: Any = require("submitit", EXTRA)
    given = {"time": 24 * 60, "cpus_per_task": math.ceil(needs.cpus)} | options(text)
    if needs.gpus:
        given.setdefault("gpus_per_node", math.ceil(needs.gpus))
    if needs.memory:
        given.setdefault("mem", f"{math.ceil(needs.memory)}GB")
    try:
        executor = submitit.SlurmExecutor(folder=records.make_folder(logs), max_num_timeout=10**6)
    except RuntimeError as error:
        raise InvalidConfig(
            message("--slurm", "no `srun` on this machine", "jobs are submitted from a machine of the cluster",
                    "Log in to one of its login nodes")
        ) from error  # fmt: skip
    try:
        executor.update_parameters(job_name="bilevel-rl", stderr_to_stdout=True, **given)
    except (ValueError, TypeError) as error:
        first = str(error).splitlines()[0]
        raise InvalidConfig(message("--slurm", first, "submitit's names of sbatch's options", "Correct the name")) from error
    return executor


def _submitted(jobs: Sequence[Job], executor: Any, logs: Path, names: tuple[str, ...], say: Callable) -> dict[str, Any]:
    """Folder -> submitit's job: of the array that an earlier call has left, or of a new one."""
    submitit: Any = require("submitit", EXTRA)
    known = records.read_json(logs / FILE) if (logs / FILE).exists() else {}
    if known and all(str(one.folder) in known for one in jobs):
        tasks = {str(one.folder): submitit.SlurmJob(folder=logs, job_id=known[str(one.folder)]) for one in jobs}
        say(f"waiting for the array {_array(tasks)} of an earlier call")
        return tasks
    ours = versions.here()
    with executor.batch():  # one array
        made = [executor.submit(SlurmTask(one, ours, names)) for one in jobs]
    tasks = {str(one.folder): task for one, task in zip(jobs, made, strict=True)}
    records.write_json(logs / FILE, {folder: task.job_id for folder, task in tasks.items()})
    say(f"submitted as the array {_array(tasks)}; logs: {logs}")
    return tasks


def _array(tasks: dict[str, Any]) -> str:
    return str(next(iter(tasks.values())).job_id).partition("_")[0]


def _wait(jobs: Sequence[Job], tasks: dict[str, Any], watch: Watch) -> list[tuple[Job, Outcome]]:
    """Until every job has ended; returns those that did not finish."""
    left, running, odd = list(jobs), set(), []
    while left:
        for one in list(left):
            task = tasks[str(one.folder)]
            ended = task.paths.result_pickle.exists()
            state = "" if ended or one.done else str(task.watcher.get_state(task.job_id, mode="force")).split()[0]
            if one.done:
                (one.folder / "failed.json").unlink(missing_ok=True)
                watch("done", one, "")
            elif ended:
                odd.append((one, Outcome(*task.result())))
            elif state in OVER:
                log = task.paths.stdout
                said = log.read_text(errors="replace") if log.exists() else ""
                odd.append((one, Outcome(1, f"{said}\n{state}")))
            else:
                if state == "RUNNING" and one.name not in running:
                    running.add(one.name)
                    watch("running", one, f"as {task.job_id}")
                continue
            left.remove(one)
        if left:
            time.sleep(ASK)
    return odd
