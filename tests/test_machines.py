"""Work elsewhere: files travel in order, children end with their parents, versions are compared, a lost cluster books
nothing.

The tests of Ray start real clusters of one machine (`ray start`), the commands under test are processes of their own.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bilevel_rl import records, versions
from bilevel_rl.bench import cell, suite
from bilevel_rl.errors import InvalidConfig, InvalidProblem
from bilevel_rl.launch import options, sources
from bilevel_rl.machines import files, where
from bilevel_rl.machines import ray as machines_ray
from bilevel_rl.machines.job import FOLDER, ClusterLost, Job, Needs, Outcome, Process

ROOT = Path(__file__).parents[1]
PLUGIN = """
import equinox as eqx, jax.numpy as jnp, os, time
from pathlib import Path
from bilevel_rl.finite import Solver, State, BilevelProblem, FiniteMDP
from bilevel_rl.finite.objectives.visitation_utility import VisitationUtility
import numbers_of_mine


class Tiny(BilevelProblem):
    name = "tiny"

    def __init__(self):
        self.mdp = FiniteMDP.from_dense([[[0.9, 0.1], [0.1, 0.9]], [[0.9, 0.1], [0.1, 0.9]]], discount=0.5)
        self.objective = VisitationUtility(jnp.array([0.0, 1.0]), weight=numbers_of_mine.WEIGHT)
        self.x0 = jnp.array([0.5])

    def reward(self, x):
        return jnp.zeros((2, 2)).at[1, :].set(x[0])


class Walk(Solver):
    step_size: float = 0.1
    tau: float = 0.05
    name = "walk"

    def draws(self, problem):
        return 0

    def init(self, problem, x0, key):
        return State(x=x0, samples=jnp.zeros((), int))

    def step(self, problem, state, k, noise):
        return eqx.tree_at(lambda s: (s.x, s.samples), state, (state.x - self.step_size * state.x, state.samples + 4))


class Slow(Walk):
    name = "slow"

    def check(self, problem):
        # once its cell is tuned, it waits while a file is there
        tuned = Path(__file__).with_name("tuning.json").exists()
        while tuned and os.environ.get("WAITS") and os.path.exists(os.environ["WAITS"]):
            time.sleep(0.1)


class Later(Slow):
    name = "later"
"""


@pytest.fixture
def plugin(tmp_path):
    """A user's own problem and solvers, with a module beside them that they import."""
    place = tmp_path / "mine"
    place.mkdir()
    (place / "plugin.py").write_text(PLUGIN)
    (place / "numbers_of_mine.py").write_text("WEIGHT = 0.1\n")
    return place / "plugin.py"


def argv(plugin, *solvers, out, more=()):
    names = [f"{plugin}:{name}" for name in solvers]
    return ["--problems", f"{plugin}:Tiny", "--solvers", *names, "--runs", "2", "--samples", "400",
            "--best", str(out) + ".best.json", "--out", str(out), *more]  # fmt: skip


def asked(plugin, *solvers, out, more=()) -> list[Path]:
    s = options.parse("bench suite", suite.Settings, argv(plugin, *solvers, out=out, more=more))
    return suite.prepare(out, suite.asks(s), s.resume)


# -- files ------------------------------------------------------------------------------------------------------------


def test_files_travel_in_the_order_in_which_they_were_written(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    (here / "run").mkdir(parents=True)
    watched = files.Watched(here)
    for name in ("run/b", "run/a"):
        records.write_bytes(here / name, name.encode())
        time.sleep(0.01)
    (here / ".lock").touch()
    changes = watched.look()
    assert list(changes.written) == ["run/b", "run/a"]
    changes.apply(there)
    assert not watched.look()
    records.write_bytes(here / "run/b", b"new")  # the same size of name, another file
    (here / "run/a").unlink()
    changes = watched.look()
    assert (list(changes.written), changes.gone) == (["run/b"], ("run/a",))
    changes.apply(there)
    assert {p.name: p.read_bytes() for p in (there / "run").iterdir()} == {"b": b"new"}


def test_a_folder_that_does_not_keep_still_is_left_for_the_next_look(tmp_path, monkeypatch):
    (tmp_path / "a").write_text("1")
    watched = files.Watched(tmp_path)
    marks = watched._marks
    monkeypatch.setattr(files, "PAUSE", 0.0)
    monkeypatch.setattr(watched, "_marks", lambda: {"a": (time.perf_counter_ns(), 0, 0)})
    assert not watched.look()
    monkeypatch.setattr(watched, "_marks", marks)
    assert watched.look().written == {"a": b"1"}


def test_a_users_files_are_kept_with_those_that_they_import(plugin, tmp_path):
    (plugin.parent / "unused.py").write_text("")
    assert sources.keep(plugin, tmp_path / "kept", "problem") == "problem.py"
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == ["numbers_of_mine.py", "problem.py"]
    before = sources.digest(plugin)
    (plugin.parent / "numbers_of_mine.py").write_text("WEIGHT = 0.2\n")
    assert sources.digest(plugin) != before
    with pytest.raises(InvalidConfig, match="a module named 'numbers_of_mine', beside another of that name"):
        sources.keep(plugin, tmp_path / "kept", "solver")


# -- cells ------------------------------------------------------------------------------------------------------------


def test_a_cell_has_its_own_copy_of_a_users_file(plugin, tmp_path):
    (folder,) = asked(plugin, "Walk", out=tmp_path / "table")
    kept = (folder / "problem.py").read_text()
    for path in plugin.parent.glob("*.py"):
        path.rename(path.with_suffix(".gone"))
    moved = tmp_path / "elsewhere"
    folder.rename(moved)
    cell.fill(moved)
    assert records.read_json(moved / "cell.json")["status"] == "done"
    assert kept == PLUGIN


def test_a_file_that_is_missing_is_an_error_and_never_a_result(plugin, tmp_path):
    with pytest.raises(InvalidProblem, match="no file"):
        asked(plugin.with_name("other.py"), "Walk", out=tmp_path / "none")
    (folder,) = asked(plugin, "Walk", out=tmp_path / "table")
    (folder / "problem.py").unlink()
    with pytest.raises(InvalidProblem, match="no file"):
        cell.fill(folder)
    assert not (folder / "cell.json").exists()


def test_another_file_is_another_table(plugin, tmp_path):
    asked(plugin, "Walk", out=tmp_path / "table")
    assert asked(plugin, "Walk", out=tmp_path / "table")
    with pytest.raises(InvalidConfig, match="a cell already"):
        asked(plugin, "Walk", out=tmp_path / "table", more=("--resume", "never"))
    (plugin.parent / "numbers_of_mine.py").write_text("WEIGHT = 0.2\n")
    with pytest.raises(InvalidConfig, match="a cell of an earlier table with other settings"):
        asked(plugin, "Walk", out=tmp_path / "table")


# -- versions ---------------------------------------------------------------------------------------------------------


def test_other_versions_are_refused_by_both_names_or_accepted(monkeypatch):
    monkeypatch.delenv(versions.ACCEPT, raising=False)
    theirs = versions.here() | {"jax": "0.1.0", "numpy": "0.0"}
    with pytest.raises(InvalidConfig, match=rf"node n: got jax 0\.1\.0 there, {re.escape(versions.here()['jax'])} here"):
        versions.check(theirs, versions.OF_JAX, "node n")
    monkeypatch.setenv(versions.ACCEPT, "1")
    assert list(versions.check(theirs, versions.OF_JAX, "node n")) == ["jax"]
    monkeypatch.delenv(versions.ACCEPT)
    assert versions.check(theirs | {"jax": versions.here()["jax"]}, versions.OF_JAX, "node n") == {}


# -- processes --------------------------------------------------------------------------------------------------------


def until(true, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


PARENT = """
import sys, time
from pathlib import Path
from bilevel_rl.machines.job import FOLDER, Process
folder = Path(sys.argv[1])
Process(("told", FOLDER), folder, {"BILEVEL_RL_SCRATCH": str(folder / "scratch"), "PYTHONPATH": sys.argv[2]})
time.sleep(300)
"""


TOLD = """
import sys, time
from pathlib import Path
from bilevel_rl import signals

folder = Path(sys.argv[1])
try:
    with signals.raised():
        (folder / "began").touch()
        time.sleep(300)
except signals.Stopped as stopped:
    (folder / "saved").write_text(str(stopped))
"""


def test_a_child_ends_saved_when_its_parent_is_killed(tmp_path):
    (tmp_path / "scratch").mkdir()
    (tmp_path / "told.py").write_text(TOLD)
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path), path])
    until((tmp_path / "began").exists)
    parent.kill()
    parent.wait()
    until(lambda: (saved := tmp_path / "saved").exists() and saved.read_text())  # made first, written to then
    assert (tmp_path / "saved").read_text() == "stopped by SIGTERM"
    until(lambda: not (tmp_path / "scratch").exists())


def test_a_process_says_its_last_words(tmp_path):
    process = Process(("json.tool", "no-such-file"), tmp_path)
    assert process.ended(60)
    code, said = process.outcome()
    assert (code, "no-such-file" in said) == (2, True)


SHOWS = """
import json, os, sys
from pathlib import Path
Path(sys.argv[1], "shown").write_text(json.dumps([os.environ.get("JAX_COMPILATION_CACHE_DIR"), os.environ["TASK"]]))
"""


def test_the_jobs_of_a_node_share_one_cache_of_compiled_programs(tmp_path, monkeypatch):
    """Each lies in a folder of its own; the cache does not."""
    from bilevel_rl import compiled

    monkeypatch.delenv(compiled.DIRECTORY, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "node"))
    (tmp_path / "shows.py").write_text(SHOWS)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, sys.path)]))
    shown = []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        assert Process(("shows", FOLDER), folder, {"TASK": name}).outcome().code == 0
        shown.append(json.loads((folder / "shown").read_text()))
    assert [task for _, task in shown] == ["one", "two"]
    assert shown[0][0] == shown[1][0]
    assert Path(shown[0][0]).parents[1] == tmp_path / "node"


# -- resources --------------------------------------------------------------------------------------------------------


def test_a_job_is_given_what_it_needs_and_no_more_run_than_fit():
    node = {"CPU": 8.0, "GPU": 2.0, "memory": 16 * 2.0**30}
    assert machines_ray._fit(node, Needs(cpus=3)) == 2
    assert machines_ray._fit(node, Needs(cpus=1, gpus=0.5)) == 4
    assert machines_ray._fit(node, Needs(cpus=1, memory=6)) == 2
    assert machines_ray._fit(node, Needs(cpus=1, gpus=4)) == 0
    given = {}

    class Stand:
        @staticmethod
        def remote(**options):
            given.update(options)
            return lambda function: function

    machines_ray.Cluster(Stand, "place", Needs(cpus=2, gpus=1, memory=3), versions.OF_JAX)
    assert (given["num_cpus"], given["num_gpus"], given["memory"]) == (2, 1, 3 * 2**30)


# -- addresses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["nonsense", "ray://head:10001", "head:", "head:0", "head:99999", ":6379"])
def test_an_address_that_is_none_is_refused_before_anything_is_tried(address):
    with pytest.raises(InvalidConfig, match="HOST:PORT, 'auto' or 'local' is expected"):
        machines_ray._checked(address)


def test_no_cluster_at_an_address_is_said_at_once():
    began = time.monotonic()
    with pytest.raises(ClusterLost, match=r"no cluster at '127\.0\.0\.1:1': nothing listens there") as error:
        machines_ray._answers("127.0.0.1:1")
    assert time.monotonic() - began < 10
    assert error.value.code == 75


@pytest.mark.slow
def test_what_listens_and_is_no_cluster_is_said_within_ten_seconds():
    pytest.importorskip("ray")
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        began = time.monotonic()
        with pytest.raises(ClusterLost, match="what listens there is no cluster"):
            machines_ray._answers(f"127.0.0.1:{server.getsockname()[1]}")
        assert time.monotonic() - began < 12


def test_ray_that_is_missing_names_its_extra(monkeypatch, capsys, tmp_path):
    from bilevel_rl.errors import MissingDependency

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependency, match=r"pip install '\.\[ray\]'"):
        machines_ray.connect("127.0.0.1:1")


def test_places_that_contradict_each_other_are_refused():
    with pytest.raises(InvalidConfig, match="work is done in one place"):
        where.check("compare", where.Where(ray="auto", slurm="yes"))
    with pytest.raises(InvalidConfig, match="--cpus: got 0"):
        where.check("compare", where.Where(cpus=0))


def test_a_worker_that_loses_its_cluster_books_nothing(tmp_path):
    from bilevel_rl.machines import pool

    def worker(job, tell):
        raise ClusterLost("gone")

    jobs = [Job(tmp_path / name, ("x", FOLDER), lambda folder: False, name) for name in "ab"]
    for one in jobs:
        one.folder.mkdir()
    with pytest.raises(ClusterLost):
        pool.fill(jobs, worker, 2)
    assert not list(tmp_path.rglob("failed.json"))


def test_what_is_queued_running_and_done_is_said(tmp_path, monkeypatch):
    def worker(job, tell):
        tell("running", "on there")
        job.folder.mkdir()
        return Outcome(0, "")

    monkeypatch.setattr(where, "worker", lambda *_: (worker, 1))
    said: list[str] = []
    jobs = [Job(tmp_path / name, ("x", FOLDER), lambda folder: folder.exists(), name) for name in "ab"]
    where.do(where.Where(), jobs, say=said.append)
    assert [" ".join(line.split()) for line in said] == [
        "2 jobs, 2 to do, 1 at a time", "running a on there (1 queued, 1 running)", "done a (1 queued, 0 running)",
        "running b on there (0 queued, 1 running)", "done b (0 queued, 0 running)",
    ]  # fmt: skip
    where.do(where.Where(), jobs, say=said.append)
    assert said[-1] == "2 jobs, none to do"


# -- Ray ----------------------------------------------------------------------------------------------------------------


class Nodes:
    """Raylets of this machine, each as `ray start` starts it; all of them are ended at the end.

    Args:
        place: for Ray's own files.
    """

    def __init__(self, place: Path):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        self.place, self.started = place, []

    def start(self, cpus: int = 1, **environment: str) -> subprocess.Popen:
        first = not self.started
        head = ["--head", f"--port={self.port}", f"--temp-dir={self.place}", "--include-dashboard=false"]
        command = [str(Path(sys.executable).with_name("ray")), "start", *(head if first else [f"--address={self.address}"]),
                   f"--num-cpus={cpus}", "--block", "--disable-usage-stats"]  # fmt: skip
        environment = {"RAY_worker_niceness": "0"} | environment  # Ray's own 15 waits for everything else
        with open(self.place / f"node{len(self.started)}.log", "wb") as log:
            node = subprocess.Popen(
                command, stdout=log, stderr=log, env=dict(os.environ) | environment, start_new_session=True
            )
        self.started.append(node)
        return node

    def ready(self) -> None:
        until(lambda: machines_ray.reached(self.address, 1.0), 90)

    def kill(self, node: subprocess.Popen) -> None:
        """A node and all of its processes, at once."""
        import psutil

        found = psutil.Process(node.pid)
        family = [*found.children(recursive=True), found]
        for one in family:
            one.kill()
        node.wait(20)
        psutil.wait_procs(family, 20)

    def stop(self) -> None:
        for node in self.started:
            if node.poll() is None:
                self.kill(node)


@pytest.fixture
def nodes():
    """A cluster to be started; Ray's sockets need a short path."""
    pytest.importorskip("ray")
    import tempfile

    with tempfile.TemporaryDirectory(prefix="br", ignore_cleanup_errors=True) as name:
        cluster = Nodes(Path(name))
        yield cluster
        cluster.stop()


def bench(plugin, *solvers, out, more=(), **environment) -> subprocess.Popen:
    """`bilevel-rl bench suite` as a process."""
    command = [sys.executable, "-m", "bilevel_rl", "bench", "suite", *argv(plugin, *solvers, out=out, more=more)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT, env=dict(os.environ) | environment
    )


def same_run(one: Path, two: Path) -> bool:
    a, b = (records.read_arrays(folder / "run/metrics.npz") for folder in (one, two))
    return all((a[key] == b[key]).all() for key in a)


@pytest.mark.slow
def test_cells_on_a_cluster_are_the_cells_of_this_machine(plugin, nodes, tmp_path):
    """Bits, the user's files, temporary folders, and a node that joins while work waits."""
    here = asked(plugin, "Slow", "Later", out=tmp_path / "here")
    for folder in here:
        cell.fill(folder)
    scratch, waits, out = tmp_path / "scratch", tmp_path / "waits", tmp_path / "there"
    scratch.mkdir()
    waits.touch()
    nodes.start(TMPDIR=str(scratch), WAITS=str(waits))  # one processor: whichever comes first keeps it
    nodes.ready()
    job = bench(plugin, "Slow", "Later", out=out, more=("--ray", nodes.address))
    until(lambda: list(out.rglob("tuning.json")), 240)
    assert not list(out.rglob("cell.json"))
    nodes.start(TMPDIR=str(scratch))
    until(lambda: list(out.rglob("cell.json")), 240)  # the node that has joined has done the other
    waits.unlink()
    said, _ = job.communicate(timeout=240)
    assert job.returncode == 0, said
    assert re.search(r"running\s+Tiny \| \w+\s+on \S+ \(process \d+\) \(0 queued, 2 running\)", said), said
    assert all(same_run(folder, out / "cells" / folder.name) for folder in here)
    assert not list(scratch.glob("bilevel-rl-*")), "temporary folders go"


@pytest.mark.slow
def test_a_lost_node_and_a_lost_cluster_cost_no_finished_work(plugin, nodes, tmp_path):
    waits, out = tmp_path / "waits", tmp_path / "there"
    waits.touch()
    nodes.start(cpus=2, WAITS=str(waits))  # a processor for each: they come in any order
    nodes.ready()
    job = bench(plugin, "Walk", "Slow", out=out, more=("--ray", nodes.address))
    until((out / "cells/Tiny--Walk/cell.json").exists, 240)
    until((out / "cells/Tiny--Slow/tuning.json").exists, 240)  # what a running cell has done comes home
    nodes.stop()
    said, _ = job.communicate(timeout=60)
    assert job.returncode == 75, said
    assert "no answer from the cluster" in said
    assert not list(out.rglob("failed.json"))
    tuned = (out / "cells/Tiny--Slow/tuning.json").stat().st_mtime_ns
    job = bench(plugin, "Walk", "Slow", out=out)  # the same command, here
    said, _ = job.communicate(timeout=120)
    assert job.returncode == 0, said
    assert (out / "cells/Tiny--Slow/tuning.json").stat().st_mtime_ns == tuned
    assert all(c["status"] == "done" for c in json.loads((out / "suite.json").read_text())["cells"].values())


@pytest.mark.slow
def test_a_driver_that_is_killed_leaves_nothing_behind_and_the_next_goes_on(plugin, nodes, tmp_path):
    import psutil

    scratch, waits, out = tmp_path / "scratch", tmp_path / "waits", tmp_path / "there"
    scratch.mkdir()
    waits.touch()
    nodes.start(TMPDIR=str(scratch), WAITS=str(waits))
    nodes.ready()
    job = bench(plugin, "Slow", out=out, more=("--ray", nodes.address))
    until((out / "cells/Tiny--Slow/tuning.json").exists, 240)
    assert not [p for p in psutil.Process(job.pid).children(recursive=True) if "bilevel_rl" in " ".join(p.cmdline())]
    job.kill()
    job.communicate()
    until(lambda: not list(scratch.glob("bilevel-rl-*")), 120)
    waits.unlink()
    job = bench(plugin, "Slow", out=out, more=("--ray", nodes.address))
    said, _ = job.communicate(timeout=240)
    assert job.returncode == 0, said


@pytest.mark.slow
def test_a_cluster_of_another_version_is_refused_or_its_numbers_say_so(plugin, nodes, tmp_path):
    other = tmp_path / "other"
    import shutil

    shutil.copytree(ROOT / "src/bilevel_rl", other / "bilevel_rl", ignore=shutil.ignore_patterns("__pycache__"))
    init = other / "bilevel_rl/__init__.py"
    init.write_text(re.sub(r'__version__ = ".*"', '__version__ = "0.0.1"', init.read_text()))
    nodes.start(PYTHONPATH=str(other))
    nodes.ready()
    out = tmp_path / "there"
    job = bench(plugin, "Walk", out=out, more=("--ray", nodes.address))
    said, _ = job.communicate(timeout=120)
    assert job.returncode == 2, said
    assert "got bilevel-rl 0.0.1 there" in said
    job = bench(plugin, "Walk", out=out, more=("--ray", nodes.address, "--accept-versions"))
    said, _ = job.communicate(timeout=120)
    assert job.returncode == 0, said
    (facts,) = json.loads((out / "suite.json").read_text())["cells"].values()
    assert facts["other_versions"]["bilevel-rl"].startswith("0.0.1 there")


@pytest.mark.slow
def test_a_suite_that_is_terminated_writes_its_table_and_leaves_no_process(plugin, tmp_path):
    import psutil

    out, waits = tmp_path / "table", tmp_path / "waits"
    waits.touch()
    job = bench(plugin, "Walk", "Slow", out=out, WAITS=str(waits))
    until((out / "cells/Tiny--Walk/cell.json").exists, 240)
    until((out / "cells/Tiny--Slow/tuning.json").exists, 240)
    family = psutil.Process(job.pid).children(recursive=True)
    job.send_signal(signal.SIGTERM)
    said, _ = job.communicate(timeout=120)
    assert job.returncode == 128 + signal.SIGTERM, said
    assert "go on with: bilevel-rl bench suite" in said
    assert json.loads((out / "suite.json").read_text())["cells"]["Tiny | Walk"]["status"] == "done"
    assert not psutil.wait_procs(family, 10)[1]


def test_options_of_a_place_change_no_result():
    assert where.OPTIONS == {f.name for f in dataclasses.fields(where.Where)}
    assert not where.OPTIONS & suite._shown(suite.Settings()).keys()
