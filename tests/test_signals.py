"""A signal ends work at a whole state: saved, with a true status, the right hint and the code that schedulers expect."""

from __future__ import annotations

import importlib.util
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from bilevel_rl import cli, records, signals
from bilevel_rl.finite.problems import GoalPlacement
from bilevel_rl.finite.solvers import ExactDescent
from bilevel_rl.loop import solve
from bilevel_rl.loop.searching import search

spec = importlib.util.spec_from_file_location("echo_toy", Path(__file__).parent / "loop/echo_toy.py")
toy = importlib.util.module_from_spec(spec)
sys.modules["echo_toy"] = toy
spec.loader.exec_module(toy)

ASKED = [getattr(signal, name) for name in signals.NAMES]


@pytest.fixture(autouse=True)
def handlers_stay():
    """Every test begins with the usual handlers, also below nohup or in the background, and leaves none of its own."""
    usual = [signal.default_int_handler, signal.SIG_DFL, signal.SIG_DFL]
    before = [signal.signal(number, handler) for number, handler in zip(ASKED, usual, strict=True)]
    yield
    left = [signal.signal(number, handler) for number, handler in zip(ASKED, before, strict=True)]
    assert left == usual


@pytest.mark.parametrize("number", ASKED)
def test_the_first_signal_waits_and_the_second_does_not(number):
    with signals.raised(), pytest.raises(signals.Stopped) as caught, signals.Deferred() as asked:  # noqa: PT012
        signal.raise_signal(number)
        assert asked.asked == number
        asked.since -= signals.ECHO  # a launcher's echo is no second signal
        signal.raise_signal(number)
    assert caught.value.code == 128 + number


@pytest.mark.parametrize("number", [number for number in ASKED if number != signal.SIGINT])
def test_the_same_signal_by_way_of_a_launcher_is_one(number):
    with signals.raised(), pytest.raises(signals.Stopped, match="at a whole state"), signals.Deferred() as asked:  # noqa: PT012
        signal.raise_signal(number)
        signal.raise_signal(number)
        with pytest.raises(signals.Stopped) as caught:
            asked.check()
        caught.value.args = (f"{caught.value} at a whole state",)
        raise caught.value


def test_a_signal_that_nobody_checked_is_not_lost():
    with signals.raised(), pytest.raises(signals.Stopped, match="SIGHUP"), signals.Deferred():
        signal.raise_signal(signal.SIGHUP)


def test_nohup_stays(monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.raised(), signals.Deferred() as asked:
            signal.raise_signal(signal.SIGHUP)
            assert not asked.asked
    finally:
        signal.signal(signal.SIGHUP, before)


def test_other_threads_set_no_handler():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def work():
        with signals.Deferred():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


def test_the_outermost_hint_speaks():
    with pytest.raises(KeyboardInterrupt) as caught, signals.hinted("outer"), signals.hinted("inner"):
        raise KeyboardInterrupt
    assert signals.farewell(caught.value) == ("stopped by SIGINT; what is done is kept, go on with: outer", 130)


@pytest.mark.parametrize("number", ASKED)
def test_a_run_stops_at_a_record_and_goes_on_to_the_same_bits(number, tmp_path):
    problem, solver, length = toy.Echo(), toy.Lead(), {"iterations": 6, "record_every": 2}
    whole = solve(problem, solver, **length)

    def strike(k, _):
        if k == 4:
            signal.raise_signal(number)

    with signals.raised(), pytest.raises(signals.Stopped) as caught:
        solve(problem, solver, **length, folder=tmp_path / "run", on_record=strike)
    assert caught.value.hint == f"bilevel-rl resume {tmp_path / 'run'}"
    status = records.read_json(tmp_path / "run/status.json")
    assert status == {"state": "stopped", "message": f"stopped by {signal.Signals(number).name}"}
    assert records.Run.read(tmp_path / "run").trace["samples"].shape == (1, 3)  # whole: the start and two records
    resumed = solve(problem, solver, **length, folder=tmp_path / "run", resume=True)
    np.testing.assert_array_equal(resumed.x, whole.x)
    assert records.read_json(tmp_path / "run/status.json")["state"] == "finished"


def test_a_signal_in_the_last_record_finds_a_finished_run(tmp_path):
    with signals.raised(), pytest.raises(signals.Stopped):
        solve(GoalPlacement(rows=3, columns=3), ExactDescent(), iterations=2, folder=tmp_path / "run",
              on_record=lambda k, _: k == 2 and signal.raise_signal(signal.SIGTERM))  # fmt: skip
    assert records.read_json(tmp_path / "run/status.json")["state"] == "finished"
    assert (tmp_path / "run/scene.npz").exists()


def test_a_search_stops_between_two_chunks(tmp_path):
    problem, solver, ask = toy.Echo(), toy.Lead(), {"starts": 4, "samples": 960, "eta": 2}
    whole = search(problem, solver, **ask)

    def strike(done, total):
        if done:
            signal.raise_signal(signal.SIGTERM)

    with signals.raised(), pytest.raises(signals.Stopped) as caught:
        search(problem, solver, **ask, folder=tmp_path / "search", on_progress=strike)
    assert caught.value.hint == f"bilevel-rl resume {tmp_path / 'search'}"
    assert records.read_json(tmp_path / "search/status.json")["state"] == "stopped"
    found = search(problem, solver, **ask, folder=tmp_path / "search", resume=True)
    assert found.value == whole.value
    np.testing.assert_array_equal(found.xs, whole.xs)


def test_a_verb_ends_with_the_code_of_its_signal(capsys):
    def work():
        with signals.hinted("bilevel-rl resume runs/a"):
            signal.raise_signal(signal.SIGTERM)

    assert cli.answered(work) == 143
    assert capsys.readouterr().err == "stopped by SIGTERM; what is done is kept, go on with: bilevel-rl resume runs/a\n"


SAVING = """
import signal, sys
from pathlib import Path
from bilevel_rl import signals
with signals.Deferred() as asked:
    print("ready", flush=True)
    while True:
        if asked.asked:
            Path(sys.argv[1]).write_text("whole")
            asked.check()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_program_without_handlers_saves_and_dies_of_the_signal(number, tmp_path):
    process = subprocess.Popen([sys.executable, "-c", SAVING, str(tmp_path / "state")], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == -number
    assert (tmp_path / "state").read_text() == "whole"
