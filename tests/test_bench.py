"""The table's machinery: cells are refused, tuned, run once, resumed after a kill, tried again after a death; its words."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bilevel_rl import records, signals
from bilevel_rl.bench import cell, collect, methods, scaling, suite, tasks, work
from bilevel_rl.commands import bench as commands_bench
from bilevel_rl.errors import InvalidConfig
from bilevel_rl.launch import options
from bilevel_rl.machines import job as machines_job
from bilevel_rl.machines import pool
from bilevel_rl.report import suite as words

ROOT = Path(__file__).parents[1]
# a solver of no mathematics: it walks down its own number, leaves a mark at every start, and does what MODE says
PLUGIN = """
import os, signal, time
from pathlib import Path
import equinox as eqx
import jax.numpy as jnp
from bilevel_rl.finite import Solver, State, BilevelProblem, FiniteMDP
from bilevel_rl.finite.objectives.visitation_utility import VisitationUtility

HERE = Path(__file__).parent


class Tiny(BilevelProblem):
    name = "tiny"

    def __init__(self):
        self.mdp = FiniteMDP.from_dense([[[0.9, 0.1], [0.1, 0.9]], [[0.9, 0.1], [0.1, 0.9]]], discount=0.5)
        self.objective = VisitationUtility(jnp.array([0.0, 1.0]), weight=0.1)
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
        return State(x=state.x - self.step_size * 0.01, samples=state.samples + 4)


class Dies(Walk):
    name = "dies"

    def check(self, problem):
        with open(HERE / "starts", "a") as file:
            file.write("start ")
        if not (HERE / "alive").exists():
            (HERE / "alive").write_text("the next one lives")
            os.kill(os.getpid(), signal.SIGKILL)


class DiesTwice(Walk):
    name = "dies_twice"

    def check(self, problem):
        raise SystemExit("out of luck")


class Slow(Walk):
    name = "slow"

    def check(self, problem):
        with open(HERE / "slow_starts", "a") as file:
            file.write(f"{os.getpid()} ")
        time.sleep(0.5)


class Picky(Walk):
    name = "picky"
    @property
    def requires(self):
        return ("sampled objective",)
"""


@pytest.fixture
def plugin(tmp_path):
    """A user's own problem and solvers."""
    file = tmp_path / "plugin.py"
    # where the test looks, wherever the file travels
    file.write_text(PLUGIN.replace("Path(__file__).parent", f"Path({str(tmp_path)!r})"))
    return file


def argv(plugin, *solvers, out="table", more=()):
    names = [f"{plugin}:{name}" for name in solvers]
    return ["--problems", f"{plugin}:Tiny", "--solvers", *names, "--runs", "2", "--samples", "400",
            "--best", str(plugin.parent / "best.json"), "--out", str(plugin.parent / out), *more]  # fmt: skip


def run(plugin, *solvers, **how) -> dict:
    assert suite.main(argv(plugin, *solvers, **how)) in (0, 1)
    return json.loads((plugin.parent / how.get("out", "table") / "suite.json").read_text())


@pytest.mark.slow
def test_a_dead_worker_is_reported_and_tried_once_more(plugin, capsys):
    facts = run(plugin, "Dies", "Picky")
    said = capsys.readouterr().out
    done, refused = facts["cells"]["Tiny | Dies"], facts["cells"]["Tiny | Picky"]
    assert re.search(r"died +Tiny \| Dies", said)
    assert "killed by signal 9" in said
    assert refused["status"] == "not applicable"
    assert "without sampled gradients" in refused["reason"]
    # 4 samples an iteration; whichever setting was chosen, it is the one with the least score
    assert (done["status"], done["samples"], done["iterations"], len(done["final"])) == ("done", 400, 100, 2)
    scores = done["tuning"]["scores"]
    assert done["tuning"]["chosen"]["travel"] == methods.TRAVELS[scores.index(min(scores))]


def asked(plugin, *solvers, out="table", more=()) -> list[Path]:
    """Folders of cells that are asked for and not filled."""
    s = options.parse("bench suite", suite.Settings, argv(plugin, *solvers, more=more))
    return suite.prepare(plugin.parent / out, suite.asks(s), s.resume)


def test_pool_tries_twice_waits_for_others_and_runs_nothing_again(plugin, monkeypatch):
    monkeypatch.setattr(pool, "PAUSE", 0.01)
    folders = asked(plugin, "Walk", "Slow", "Dies")
    walk, slow, dies = sorted(folders, key=lambda f: ("Walk" not in f.name, "Slow" not in f.name))
    calls, events = [], []

    def worker(job, tell):
        folder = job.folder
        calls.append(folder)
        if folder == dies:
            return pool.Outcome(-9, "first line\nlast line")
        if folder == slow and calls.count(slow) < 4:
            return pool.Outcome(work.BUSY, "another process")
        records.write_json(folder / "cell.json", {"status": "done"})
        return pool.Outcome(0, "")

    jobs = [cell.job(folder) for folder in folders]
    pool.fill(jobs, worker, 2, lambda event, job, said: events.append((event, job.folder, said)))
    assert [calls.count(f) for f in (walk, slow, dies)] == [1, 4, 2]
    assert ("died", dies, "killed by signal 9: last line") in events
    assert ("failed", dies, "killed by signal 9: last line") in events
    assert records.read_json(dies / "failed.json")["attempts"] == 2
    pool.fill(jobs, worker, lambda: 2)
    assert [calls.count(f) for f in (walk, slow, dies)] == [1, 4, 4], "only the failed cell is tried again"


@pytest.mark.slow
def test_after_a_sigkill_of_the_suite_its_worker_ends_and_the_next_suite_fills_the_cell(plugin):
    command = [sys.executable, str(ROOT / "benchmarks/suite.py"), *argv(plugin, "Slow")]
    starts = plugin.parent / "slow_starts"
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    deadline = time.time() + 60
    while not starts.exists() and time.time() < deadline:
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)  # its worker sees that, and ends
    first.wait()
    second = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (plugin.parent / "table/cells/Tiny--Slow/cell.json").exists(), second.stdout
    # check() is called by the cell and its solves: all of them in the one process of either suite
    workers = dict.fromkeys(starts.read_text().split())
    assert 1 <= len(workers) <= 2
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)


def test_a_pool_that_is_told_to_end_ends_its_workers(monkeypatch, tmp_path):
    """What `here` started is terminated before the error goes on."""
    (tmp_path / "sleeps.py").write_text("import sys, time; open(sys.argv[1] + '/began', 'w').close(); time.sleep(300)")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    outcomes = []

    def worker(job, tell):
        outcomes.append(machines_job.here(job, tell))
        return outcomes[-1]

    def interrupted(running, **options):
        while not (tmp_path / "began").exists():
            time.sleep(0.01)
        raise KeyboardInterrupt

    monkeypatch.setattr(pool, "wait", interrupted)
    sleeps = machines_job.Job(tmp_path, ("sleeps", machines_job.FOLDER), lambda folder: False)
    with pytest.raises(KeyboardInterrupt):
        pool.fill([sleeps], worker, 1)
    while not outcomes:
        time.sleep(0.01)
    assert outcomes[0].code == -signal.SIGTERM
    assert not (tmp_path / "failed.json").exists()


def test_an_unknown_task_of_the_script_is_a_sentence():
    argv = [sys.executable, ROOT / "benchmarks/suite.py", "--problems", "nosuch"]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: bilevel-rl bench suite --problems: got 'nosuch'")
    assert "Traceback" not in done.stderr


def test_a_benchmark_is_run_by_the_process_of_its_verb(tmp_path):
    script = tmp_path / "looks.py"
    script.write_text(
        "import os, signal, sys\nfrom pathlib import Path\n"
        "Path(__file__).with_name('pid').write_text(f'{os.getpid()} {sys.argv[1:]}')\n"
        "if 'stop' in sys.argv: os.kill(os.getpid(), signal.SIGTERM)\n"
        "sys.exit(3 if 'three' in sys.argv else None)\n"
    )
    argv, path = sys.argv, list(sys.path)
    assert commands_bench.call(script, ["a", "three"]) == 3
    assert (tmp_path / "pid").read_text() == f"{os.getpid()} ['a', 'three']"
    with signals.raised(), pytest.raises(signals.Stopped):
        commands_bench.call(script, ["stop"])
    assert commands_bench.call(script, []) == 0
    assert (sys.argv, sys.path) == (argv, path)


def test_finished_cells_stay_and_other_settings_are_refused(plugin):
    (folder,) = asked(plugin, "Walk")
    cell.fill(folder)
    before = (folder / "cell.json").read_bytes()
    cell.fill(folder)
    assert (folder / "cell.json").read_bytes() == before
    with pytest.raises(InvalidConfig, match="a cell of an earlier table"):
        asked(plugin, "Walk", more=("--seed", "3"))
    # a table read back gives its settings to the next: no tuning, the same runs
    facts = run(plugin, "Walk")
    (again,) = asked(plugin, "Walk", out="tuned", more=("--tuned", str(plugin.parent / "table/suite.json")))
    cell.fill(again)
    assert not (again / "tuning.json").exists()
    final = records.read_arrays(again / "run/metrics.npz")["objective"][:, -1]
    assert final == pytest.approx(facts["cells"]["Tiny | Walk"]["final"], rel=1e-5)


def test_a_killed_worker_goes_on_from_its_tuning_and_its_checkpoint(plugin):
    (folder,) = asked(plugin, "Walk")
    cell.fill(folder)
    whole = records.read_arrays(folder / "run/metrics.npz")["x"]
    tuned = (folder / "tuning.json").read_bytes()
    (folder / "cell.json").unlink()  # as if it was killed just before the end
    records.write_json(folder / "run/status.json", {"state": "running", "message": ""})
    (folder / "tuning.json").write_bytes(tuned)
    before = (folder / "tuning.json").stat().st_mtime_ns
    assert work.main([str(folder)]) == 0
    assert (folder / "tuning.json").stat().st_mtime_ns == before
    assert (records.read_arrays(folder / "run/metrics.npz")["x"] == whole).all()
    with records.locked(folder):
        (folder / "cell.json").unlink()
        assert subprocess.run([sys.executable, "-m", "bilevel_rl.bench.work", str(folder)], check=False,
                              capture_output=True).returncode == work.BUSY  # fmt: skip


def test_every_method_has_as_many_settings_as_a_tuning_program_holds():
    """None more than eight, the actor-critics all eight; what learns a model has fewer."""
    learns = [m for m in methods.ALL if m.solver == "certainty_equivalence"]
    assert [len(m.grid()) for m in learns] == [4, 2]
    rest = [m for m in methods.ALL if m not in learns]
    for method in rest:
        assert len(method.grid()) in (4, 8), method.label
    assert {len(m.grid()) for m in rest if not m.label.startswith("exact") and m.second} == {8}
    labels = [m.label for m in methods.ALL]
    assert len(set(labels)) == len(labels)


def test_every_solver_of_the_library_is_in_the_table():
    from bilevel_rl.finite import solvers

    assert {m.solver for m in methods.ALL} == {kind.name for kind in solvers.ALL}


def test_travel_is_the_distance_of_a_run_at_the_tasks_gradient():
    task = tasks.named(("goal_placement",), False)[0]
    method = methods.named(("coupled_penalty",), False)[0]
    problem = task.make()
    solver = method.settle(method.make(task, problem), {"travel": 4.0}, task, 500)
    total = sum(float(solver.scales.zeta(k)) for k in range(500))
    assert total * task.gradient == pytest.approx(4.0 * task.length)


def test_unknown_names_are_refused():
    with pytest.raises(InvalidConfig, match="Did you mean 'four_rooms'"):
        tasks.named(("four_room",), False)
    with pytest.raises(InvalidConfig, match="Did you mean 'hpgd'"):
        methods.named(("hpdg",), False)


# -- words ------------------------------------------------------------------------------------------------------------


def table(**finals) -> dict:
    """A made-up table of one task whose best known value is 0 and whose runs start at 10."""
    cells = {}
    for label, values in finals.items():
        cells[f"toy | {label}"] = {
            "status": "done", "task": "toy", "method": label, "solver": label, "starts": 0, "kind": "samples",
            "runs": len(values), "samples": 100, "iterations": 10, "final": values, "first": 10.0, "within": 0,
            "reached": [None] * len(values), "curve": {"at": [0, 100], "objective": [10.0, 1.0]}, "stopped": 0,
            "iteration_seconds": 1e-3, "sample_seconds": 2e-6, "peak_memory_mib": 300,
        }  # fmt: skip
    best = {"value": 0.0, "source": "made up"}
    about = {"problem": "toy", "options": {}, "says": "made up", "samples": 100, "best": best, "better": {}}
    return {"settings": {"runs": 4}, "provenance": {"command": "none", "hardware": {"cpu": "c"}}, "tasks": {"toy": about},
            "cells": cells}  # fmt: skip


def test_verdicts_follow_the_intervals():
    low, high, wide = [1.0, 1.1, 1.2, 1.3], [5.0, 5.1, 5.2, 5.3], [0.5, 1.0, 2.0, 9.0]
    assert words.verdicts(table(coupled_penalty=low, hpgd=high))[0][4] == "first"
    assert words.verdicts(table(coupled_penalty=high, hpgd=low))[0][4] == "behind"
    assert words.verdicts(table(coupled_penalty=low, hpgd=wide))[0][4] == "level"
    assert words.verdicts(table(coupled_penalty=low, hpgd=high, f2sa=wide))[0][4] == "level"


def test_rivals_with_our_baseline_are_judged_apart():
    low, high, lowest = [1.0, 1.1, 1.2, 1.3], [5.0, 5.1, 5.2, 5.3], [0.1, 0.1, 0.1, 0.1]
    facts = table(**{"coupled_penalty": low, "hpgd": high, "hpgd, our baseline": lowest})
    line = words.verdicts(facts)[0]
    assert (line[3][:6], line[4]) == ("hpgd 5", "first")
    assert line[5] == "hpgd, our baseline 0.1: behind"


def test_many_starts_are_those_that_share_a_model_where_there_are_any():
    facts = table(**{"coupled_penalty": [3.0] * 4, "certainty_equivalence, 12 starts": [1.0] * 4, "hpgd": [5.0] * 4})
    for one in facts["cells"].values():
        one["solver"] = one["method"].partition(",")[0]
    facts["cells"]["searched"] = facts["cells"]["toy | hpgd"] | {"method": "hpgd, 8 starts", "starts": 8, "final": [2.0] * 4}
    line = words.verdicts(facts)[0]
    assert line[2:5] == ["3", "hpgd 5", "first"]  # the learnt model is no rival
    assert line[6].startswith("certainty_equivalence, 12 starts 1")
    assert (line[7], line[8]) == ("hpgd, 8 starts 2", "first")


def test_overall_numbers_by_hand():
    facts = table(coupled_penalty=[0.0, 0.4, 2.0, 10.0], hpgd=[1.0, 1.0, 1.0, 1.0])
    ours, theirs = words.overall(facts)
    assert ours[0] == "coupled_penalty"
    assert ours[2].startswith("0.12 ")  # the middle half of 0, .04, .2, 1
    assert ours[3:6] == ["50%", "75%", "75%"]
    assert theirs[2] == "0.1"
    assert theirs[-2] == "50%"  # two of ours end below 1, two above
    assert theirs[-1] == ours[2]  # the same single task
    assert "| hpgd | 1 | 0.1 |" in words.markdown(facts)
    assert "`hpgd` 1" in words.choice(facts)
    stopped = table(coupled_penalty=[0.0, 0.0, 0.0, None], hpgd=[1.0, None, None, None])
    assert words.overall(stopped)[1][3] == "0%"
    assert words.rows(stopped, "toy", "samples")[1][1][3] == "stopped"


def test_page_holds_the_table(tmp_path):
    page = words.build(
        table(coupled_penalty=[1.0, 1.1, 1.2, 1.3], hpgd=[5.0, 5.1, 5.2, 5.3]), tmp_path / "page.html"
    )
    text = page.read_text()
    assert "Performance profile" in text
    assert "1.15" in text


def test_best_known_values_change_only_when_asked(tmp_path):
    file = tmp_path / "best.json"
    collect.write(file, {"toy": {"value": 1.0, "source": "published"}})
    facts = table(hpgd=[0.5])
    facts["tasks"]["toy"]["better"] = {"toy | hpgd": 0.5}
    suite.keep_best(file, facts)
    kept = tasks.best_known(file)["toy"]
    assert kept["value"] == 0.5
    assert "toy | hpgd" in kept["source"]
    facts["tasks"]["toy"]["better"] = {"toy | f2sa": 0.7}
    suite.keep_best(file, facts)
    assert tasks.best_known(file)["toy"] == kept


def test_several_starts_have_the_setting_of_one(tmp_path):
    """That of the cell beside theirs, of the same method; nothing of a cell that asks for something else."""
    (ask,) = suite.asks(options.parse("bench suite", suite.Settings, ["--problems", "goal_placement", "--solvers", "hpgd"]))
    plain, several = suite.prepare(tmp_path, [ask, dataclasses.replace(ask, starts=8)])
    assert cell._single(several, cell.CellAsk.read(several)) is None  # not tuned yet
    records.write_json(plain / "tuning.json", {"chosen": {"travel": 4.0}, "runs": 3})
    found = cell._single(several, cell.CellAsk.read(several))
    assert found == {"chosen": {"travel": 4.0}, "runs": 3, "from": "goal placement | hpgd"}
    assert cell._single(several, dataclasses.replace(ask, starts=8, seed=5)) is None
    assert cell._single(plain, ask) is None


@pytest.mark.slow
def test_a_cell_of_the_table_in_small(tmp_path):
    """The recommended solver on the first task, a thousandth of the work: tuned, run, searched, collected, put in words."""
    argv = [
        "--quick",
        "--problems",
        "goal_placement",
        "--solvers",
        "coupled_penalty",
        "--samples",
        "3200",
        "--runs",
        "2",
    ]
    s = options.parse("bench suite", suite.Settings, argv)
    (ask,) = suite.asks(s)
    folders = suite.prepare(tmp_path, [ask, dataclasses.replace(ask, starts=2)])
    for folder in folders:
        cell.fill(folder)
    facts = collect.collect(
        folders, tasks.best_known(ROOT / suite.BEST), {"runs": 2}, records.provenance("small")
    )
    plain, search = facts["cells"].values()
    assert plain["samples"] == 3200
    assert search["tuning"] == plain["tuning"] | {"from": "goal placement | coupled_penalty"}
    assert 0 < search["samples"] <= 3200
    assert len(plain["tuning"]["scores"]) == 8
    # a cell has a process of its own; this one has run other tests, whose peak may stand already
    assert plain["peak_memory_mib"] >= plain["idle_memory_mib"] > 0
    assert plain["sample_seconds"] > 0
    assert facts["tasks"]["goal placement"]["best"]["value"] < min(plain["final"])
    assert "coupled_penalty, 2 starts" in words.markdown(facts)


def test_a_point_of_the_scaling_names_its_cost(tmp_path):
    point = scaling.measure("coupled_penalty", states=20, dimensions=2, runs=2)
    assert point["samples_an_iteration"] == 32
    assert 0 < point["us_a_sample"] < 1e5
    points = [point | {"states": n, "dimensions": 4, "runs": 8, "us_a_sample": 0.1 * n, "peak_mib": 300, "idle_mib": 200}
              for n in (100, 1000, 10_000)]  # fmt: skip
    scaling.write(tmp_path / "scaling.json", points)
    slopes = records.read_json(tmp_path / "scaling.json")["slopes"]
    assert slopes == {"coupled_penalty, states": {"us_a_sample": 1.0, "own_mib": 0.0}}


def test_pages_follow_the_committed_table():
    """`docs/how-to-choose.md` holds what `benchmarks/results/suite.json` says."""
    if not (ROOT / suite.RESULTS).exists():
        pytest.skip("no benchmarks/results/suite.json: bilevel-rl bench suite --keep makes it")
    facts = words.read(ROOT / suite.RESULTS)
    assert words.choice(facts) in (ROOT / "docs/how-to-choose.md").read_text(), (
        "run: python docs/hooks/results.py"
    )
