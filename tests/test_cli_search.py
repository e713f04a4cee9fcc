"""Searches that are killed, stopped or can't write: the same bits, or one clear sentence; as for runs."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from bilevel_rl import records
from bilevel_rl.cli import main

ECHO = Path(__file__).parent / "loop/echo_toy.py"  # compiles in no time
SHORT = ["search", f"{ECHO}:problem", f"{ECHO}:solver", "--starts", "4", "--eta", "2", "--samples", "960", "--seed", "11"]
# by samples, with followers that settle, and long enough to be struck at a random moment
ARGV = ["search", "goal_placement", "penalty_actor_critic", "--problem.rows", "3", "--problem.columns", "3",
        "--solver.chains", "2", "--starts", "4", "--eta", "2", "--samples", "800000", "--seed", "11",
        "--settling", "0.3"]  # fmt: skip
# a checkpoint after every chunk, and (with a number) a disk that takes files of at most so many bytes
START = """
import resource, sys
from bilevel_rl.loop import checkpoint
checkpoint.SECONDS = 0.0
limit = int(sys.argv[1])
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
from bilevel_rl.cli import main
sys.exit(main(sys.argv[2:]))
"""


def begin(argv, limit: int = 0) -> subprocess.Popen:
    """The command line in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", START, str(limit), *map(str, argv)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The uninterrupted search."""
    folder = tmp_path_factory.mktemp("whole") / "search"
    assert main([*SHORT, "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """The uninterrupted search of those that are struck."""
    folder = tmp_path_factory.mktemp("long") / "search"
    assert main([*ARGV, "--out", str(folder)]) == 0
    return folder


def same_bits(one, two) -> None:
    for name in ("starts", "best"):
        a, b = (records.read_arrays(folder / name / "metrics.npz") for folder in (one, two))
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key], err_msg=f"{name}: {key}")
    first, second = (records.read_arrays(folder / "checkpoint.npz") for folder in (one, two))
    for key in first:
        if key != "meta":
            np.testing.assert_array_equal(first[key], second[key], err_msg=key)
    assert records.read_json(two / "status.json")["state"] == "finished"


def struck(folder, with_signal, wait: float) -> subprocess.CompletedProcess:
    """A search that gets a signal once it has begun, some seconds later."""
    argv = ["resume", folder] if (folder / "search.json").exists() else [*ARGV, "--out", folder]
    path = folder / "checkpoint.npz"
    before = path.stat().st_mtime_ns if path.exists() else None
    process, until = begin(argv), time.monotonic() + 200
    while process.poll() is None and time.monotonic() < until:
        if (folder / "search.json").exists() and path.stat().st_mtime_ns != before:
            break
        time.sleep(0.005)
    time.sleep(wait)
    process.send_signal(with_signal)
    out, err = process.communicate(timeout=200)
    return subprocess.CompletedProcess(argv, process.returncode, out, err)


@pytest.mark.slow
def test_killed_at_random_moments_resumes_to_the_same_bits(long, tmp_path):
    folder, chance = tmp_path / "search", random.Random()
    seed = chance.randrange(10**6)
    print(f"seed of the moments: {seed}")
    chance.seed(seed)
    for _ in range(2):
        struck(folder, signal.SIGKILL, chance.uniform(0, 1.0))
        records.read_json(folder / "search.json")  # never torn
        records.read_arrays(folder / "checkpoint.npz")
    assert main(["resume", str(folder)]) == 0
    same_bits(long, folder)


@pytest.mark.slow
def test_terminated_it_says_how_to_go_on(long, tmp_path):
    folder = tmp_path / "search"
    done = struck(folder, signal.SIGTERM, 0.1)
    assert done.returncode == 143, done.stderr
    assert done.stderr.strip().splitlines()[-1] == (
        f"stopped by SIGTERM; what is done is kept, go on with: bilevel-rl resume {folder}"
    )
    assert records.read_json(folder / "status.json")["state"] == "stopped"
    assert not (folder / "best").exists()
    assert main(["resume", str(folder)]) == 0
    same_bits(long, folder)


@pytest.mark.slow
def test_a_full_disk_is_found_before_work_starts(tmp_path):
    """Files may grow to a fifth of the first checkpoint."""
    folder = tmp_path / "search"
    process = begin([*ARGV, "--out", folder], limit=1000)
    _, err = process.communicate(timeout=200)
    assert process.returncode == 2
    assert "the folder must be writable, with free space" in err.splitlines()[-1]
    assert not (folder / "search.json").exists()  # so that the same folder can be taken again


def copied(whole, folder, names=("search.json", "checkpoint.npz", "problem.py", "solver.py")):
    folder.mkdir()
    for name in names:
        (folder / name).write_bytes((whole / name).read_bytes())
    records.write_json(folder / "status.json", {"state": "running", "message": ""})
    return folder


def test_killed_before_its_run_folders_were_written_it_goes_on_once_nobody_writes_there(whole, tmp_path, capsys):
    folder = copied(whole, tmp_path / "search")
    with records.locked(folder):
        assert main(["resume", str(folder)]) == 2
    assert "a folder that another process is writing" in capsys.readouterr().err
    assert main(["resume", str(folder)]) == 0
    same_bits(whole, folder)


def test_finished_or_taken_folders_are_left_alone(whole, tmp_path, capsys):
    before = {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()}
    assert main(["resume", str(whole)]) == 0
    assert "finished already" in capsys.readouterr().out
    assert main([*SHORT, "--out", str(whole)]) == 2
    assert f"continue with `bilevel-rl resume {whole}`" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()} == before


def edited(folder, change) -> None:
    header = records.read_json(folder / "search.json")
    change(header)
    records.write_json(folder / "search.json", header)


BROKEN = {
    "torn": (lambda f: (f / "search.json").write_text('{"format": 1, "ki'), "an unreadable file"),
    "version": (lambda f: edited(f, lambda h: h.update(format=99)), "not the header of a search of this version"),
    "python": (lambda f: edited(f, lambda h: h.update(config={})), "only searches started with `bilevel-rl`"),
    "setting": (lambda f: edited(f, lambda h: h["config"]["search"].pop("by")), "the settings ["),
    "seed": (lambda f: edited(f, lambda h: h["config"]["search"].update(seed=12)), "a checkpoint of another problem"),
    "checkpoint": (lambda f: (f / "checkpoint.npz").write_bytes(b"PK\x03\x04 torn"), "an unreadable file"),
    "gone": (lambda f: (f / "checkpoint.npz").unlink(), "no file"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_search_folder_that_is_not_what_it_should_be(case, whole, tmp_path, capsys):
    folder = copied(whole, tmp_path / "search")
    change, words = BROKEN[case]
    change(folder)
    assert main(["resume", str(folder)]) == 2
    assert words in capsys.readouterr().err
    assert not (folder / "best").exists()


def test_search_folder_that_cannot_be_made(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main([*ARGV, "--out", str(tmp_path / "file" / "search")]) == 2
    assert "the run folder must be writable" in capsys.readouterr().err


@pytest.mark.slow
def test_a_problem_of_one_s_own_goes_on_from_its_copy(tmp_path):
    source = tmp_path / "mine.py"
    source.write_text("from bilevel_rl.finite.problems import GoalPlacement\nproblem = GoalPlacement(rows=2, columns=2)\n")
    folder = tmp_path / "search"
    argv = ["search", f"{source}:problem", "exact_descent", "--starts", "2", "--iterations", "8", "--out", str(folder)]
    assert main(argv) == 0
    source.unlink()
    again = copied(folder, tmp_path / "again", ("search.json", "checkpoint.npz", "problem.py"))
    assert main(["resume", str(again)]) == 0
    same_bits(folder, again)
