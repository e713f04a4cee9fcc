"""Where the work of a verb is done, as its options say; and the words on the screen while it is."""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from bilevel_rl import records, versions
from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.machines import job as work
from bilevel_rl.machines import pool
from bilevel_rl.machines.job import Job, JobFailed, Needs, Worker

arg = tyro.conf.arg


@dataclasses.dataclass(frozen=True, kw_only=True)
class Where:
    """Options of a verb that can be done elsewhere."""

    ray: Annotated[str, arg(help="HOST:PORT of a running Ray cluster, or 'auto'; 'local' starts one here (extra: ray)")] = ""
    slurm: Annotated[
        str, arg(help="on SLURM, as one array: sbatch's options, as in time=60,partition=long, or 'yes' (extra: slurm)")
    ] = ""
    cpus: Annotated[float, arg(help="processors of each job on a cluster")] = 1.0
    gpus: Annotated[float, arg(help="GPUs of each job on a cluster")] = 0.0
    memory: Annotated[float, arg(help="GiB of each job on a cluster; 0: not counted")] = 0.0
    accept_versions: Annotated[
        bool, arg(help="accept other versions of this package, JAX or Torch, and write them into the results")
    ] = False

    @property
    def elsewhere(self) -> bool:
        """Whether it is not this machine."""
        return bool(self.ray or self.slurm)


OPTIONS = frozenset(field.name for field in dataclasses.fields(Where))  # on which no result depends


def check(verb: str, where: Where) -> None:
    """Raise `InvalidConfig` where the options contradict each other; take note of what is accepted."""
    name = f"bilevel-rl {verb}"
    if where.ray and where.slurm:
        raise InvalidConfig(message(name, "--ray and --slurm", "work is done in one place", "Give one of them"))
    for option in ("cpus", "gpus", "memory"):
        value = getattr(where, option)
        if not 0 <= value < 10**6 or (option == "cpus" and not value):
            raise InvalidConfig(
                message(f"{name} --{option}", value, "it is out of range", "Give what one job needs of a machine")
            )
    versions.accept(where.accept_versions)


def worker(
    where: Where, at_once: int, names: tuple[str, ...] = versions.OF_JAX
) -> tuple[Worker, int | Callable[[], int]]:
    """Who does the jobs, and how many at a time.

    Args:
        where: the place.
        at_once: on this machine.
        names: packages whose versions must be this process's.

    Raises:
        MissingDependency, ClusterLost, InvalidConfig: the place can't be reached, before anything starts.
    """
    needs = Needs(where.cpus, where.gpus, where.memory)
    if where.ray:
        from bilevel_rl.machines import ray

        return ray.connect(where.ray, needs, names)
    return work.here, at_once


def do(
    where: Where, jobs: Sequence[Job], at_once: int = 1, say: Callable[[str], Any] = print,
    line: Callable[[Job], str] = lambda _: "", names: tuple[str, ...] = versions.OF_JAX,
) -> None:  # fmt: skip
    """Do every job that is not finished, and say what is queued, what runs where, what is done.

    Args:
        where: the place.
        jobs: in the order of their start.
        at_once: how many at a time, on this machine.
        say: prints a line.
        line: what is said of a job that is done.
        names: packages on whose versions the results depend.
    """
    left = [one for one in jobs if not one.done]
    if not left:
        say(f"{len(jobs)} jobs, none to do")
        return
    if where.slurm:
        from bilevel_rl.machines import slurm

        say(f"{len(jobs)} jobs, {len(left)} to do")
        logs = Path(os.path.commonpath([one.folder.resolve().parent for one in left])) / "slurm"
        needs = Needs(where.cpus, where.gpus, where.memory)
        slurm.fill(left, where.slurm, needs, _watch(left, say, line), logs, say, names)
        return
    found, most = worker(where, at_once, names)
    say(f"{len(jobs)} jobs, {len(left)} to do" + ("" if callable(most) else f", {most} at a time"))
    pool.fill(left, found, most, _watch(left, say, line))


def _watch(left: Sequence[Job], say: Callable[[str], Any], line: Callable[[Job], str]) -> pool.Watch:
    """Says every event, and how many jobs wait and run."""
    running: set[str] = set()
    queued = {one.name for one in left}
    lock = threading.Lock()

    def watch(event: str, one: Job, said: str) -> None:
        with lock:  # workers are threads
            queued.discard(one.name)
            running.discard(one.name)
            if event in ("running", "died"):
                running.add(one.name)
            again = "; once more" if event == "died" else ""
            words = said or (line(one) if event == "done" else "")
            say(f"{event:7s} {one.name:56s} {words}{again} ({len(queued)} queued, {len(running)} running)")

    return watch


def done(jobs: Sequence[Job], again: str) -> None:
    """Raise where one of the jobs failed.

    Args:
        jobs: all of them.
        again: the command that goes on with the folder.

    Raises:
        JobFailed: naming the first of them and what it said.
    """
    odd = [one for one in jobs if (one.folder / "failed.json").exists()]
    if odd:
        said = records.read_json(odd[0].folder / "failed.json")["reason"]
        raise JobFailed(
            message(odd[0].name, said, f"{len(odd)} of {len(jobs)} jobs died twice", f"Mend that, then go on with: {again}")
        )
