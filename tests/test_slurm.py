"""SLURM by submitit, against a stand-in for its commands that runs jobs here: one array, preempted and put back."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from bilevel_rl import records
from bilevel_rl.errors import InvalidConfig, MissingDependency
from bilevel_rl.machines import slurm
from bilevel_rl.machines.job import FOLDER, Job, Needs

# counts to four, a file a step, and waits at two while a file is there; told to end, it saves where it is
WORK = """
import sys, time
from pathlib import Path
from bilevel_rl import signals

folder = Path(sys.argv[1])
at = int((folder / "at").read_text()) if (folder / "at").exists() else 0
(folder / "starts").open("a").write(f"{at} ")
try:
    with signals.raised():
        while at < 4:
            at += 1
            (folder / "at").write_text(str(at))
            while at == 2 and (folder / "waits").exists():
                time.sleep(0.02)
except signals.Stopped as stopped:
    (folder / "stopped").write_text(str(stopped))
    sys.exit(stopped.code)
(folder / "done").touch()
"""


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """The stand-in's commands on the path, and its state."""
    pytest.importorskip("submitit")
    home, commands = tmp_path / "state", tmp_path / "bin"
    home.mkdir()
    commands.mkdir()
    for name in ("sbatch", "srun", "sacct", "scontrol", "scancel"):
        path = commands / name
        program = Path(__file__).with_name("stand_in_slurm.py")
        path.write_text(f'#!/bin/sh\nexec {sys.executable} {program} {name} "$@"\n')
        path.chmod(0o755)
    (tmp_path / "counts.py").write_text(WORK)
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    monkeypatch.setenv("STAND_IN_SLURM", str(home))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, sys.path)]))
    monkeypatch.setattr(slurm, "ASK", 0.1)
    return home


def jobs(tmp_path, *names: str) -> list[Job]:
    found = []
    for name in names:
        (tmp_path / "out" / name).mkdir(parents=True)
        found.append(Job(tmp_path / "out" / name, ("counts", FOLDER), lambda folder: (folder / "done").exists(), name))
    return found


def until(true) -> None:
    deadline = time.monotonic() + 120
    while not true():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def send(home: Path, task: str, number: int) -> None:
    """A signal to every process of a task's step, as SLURM sends it; the shell around it hears nothing."""
    import psutil

    for process in psutil.Process(int((home / f"{task}.pid").read_text())).children(recursive=True):
        process.send_signal(number)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_one_array_whose_tasks_are_put_back_and_go_on(number, cluster, tmp_path):
    """SIGTERM: preempted. SIGUSR2: submitit's sign that the time is nearly up."""
    one, two = jobs(tmp_path, "one", "two")
    (two.folder / "waits").touch()
    said, events = [], []

    def watch(event, job, words):
        events.append((event, job.name))
        if (event, job.name) == ("done", "one"):
            until(lambda: (two.folder / "at").exists() and (two.folder / "at").read_text() == "2")
            send(cluster, "100_1", number)
            until((two.folder / "stopped").exists)
            (two.folder / "waits").unlink()

    slurm.fill([one, two], "time=1", Needs(), watch, tmp_path / "out" / "slurm", said.append)
    assert (two.folder / "starts").read_text() == "0 2 "
    assert (one.folder / "starts").read_text() == "0 "
    assert events[-1] == ("done", "two")
    assert "submitted as the array 100" in said[0]
    assert len(list(cluster.glob("*.job"))) == 1
    assert not (tmp_path / "out/slurm" / slurm.FILE).exists()


@pytest.mark.slow
def test_a_driver_that_comes_back_waits_for_the_same_array(cluster, tmp_path, monkeypatch):
    (one,) = jobs(tmp_path, "one")
    (one.folder / "waits").touch()
    logs, said = tmp_path / "out" / "slurm", []

    def leave(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        slurm.fill([one], "yes", Needs(), leave, logs, said.append)  # as soon as it runs
    assert "the array goes on" in said[-1]
    (one.folder / "waits").unlink()
    slurm.fill([one], "yes", Needs(), lambda *_: None, logs, said.append)
    assert "waiting for the array 100 of an earlier call" in said
    assert (one.folder / "starts").read_text() == "0 "


@pytest.mark.slow
def test_a_job_that_dies_twice_is_booked_with_its_last_words(cluster, tmp_path):
    (one,) = jobs(tmp_path, "one")
    (tmp_path / "counts.py").write_text("raise SystemExit('no luck')")
    events = []
    slurm.fill([one], "yes", Needs(), lambda event, job, words: events.append((event, words)), tmp_path / "out/slurm", print)
    assert [event for event, _ in events if event != "running"] == ["died", "failed"]
    assert records.read_json(one.folder / "failed.json")["reason"] == "exit code 1: no luck"


def test_a_task_of_the_array_is_given_what_a_job_needs(cluster, tmp_path):
    executor = slurm._executor("time=90,partition=long", Needs(cpus=1.5, gpus=1, memory=2.5), tmp_path / "logs")
    given = executor.parameters
    assert (given["cpus_per_task"], given["gpus_per_node"], given["mem"]) == (2, 1, "3GB")
    assert (given["time"], given["partition"]) == (90, "long")


def test_what_is_wrong_is_said_before_anything_is_submitted(tmp_path, monkeypatch):
    with pytest.raises(InvalidConfig, match="NAME=VALUE of sbatch"):
        slurm.options("time")
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(MissingDependency, match=r"pip install '\.\[slurm\]'"):
        slurm._executor("yes", Needs(), tmp_path)
    monkeypatch.undo()
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InvalidConfig, match="no `srun` on this machine"):
        slurm._executor("yes", Needs(), tmp_path)
