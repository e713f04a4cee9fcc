"""Runs that are killed, and folders that can't be read or written: the same bits, or one clear sentence."""

from __future__ import annotations

import json
import os
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

ECHO = Path(__file__).parent / "loop/echo_toy.py"  # compiles in no time; what is long enough to be killed is a real run
QUICK = ["run", f"{ECHO}:problem", f"{ECHO}:solver", "--no-optimum", "--iterations", "300", "--records", "300",
         "--runs", "3", "--seed", "11"]  # fmt: skip
SOURCES = ("problem.py", "solver.py")  # that its folder keeps
ARGV = ["run", "goal_placement", "penalty_actor_critic", "--problem.rows", "3", "--problem.columns", "3", "--no-optimum",
        "--solver.chains", "2", "--iterations", "3000", "--records", "60", "--runs", "3", "--seed", "11"]  # fmt: skip
# a checkpoint at every record, and (with a number) a disk that takes files of at most so many bytes
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


def begin(argv, limit: int = 0, **options) -> subprocess.Popen:
    """The command line in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", START, str(limit), *map(str, argv)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert main([*QUICK, "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """The uninterrupted run of those that are killed at a random moment."""
    folder = tmp_path_factory.mktemp("long") / "run"
    assert main([*ARGV, "--out", str(folder)]) == 0
    return folder


def same_bits(one, two) -> None:
    a, b = records.read_arrays(one / "metrics.npz"), records.read_arrays(two / "metrics.npz")
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key], err_msg=key)
    first, second = records.read_arrays(one / "checkpoint.npz"), records.read_arrays(two / "checkpoint.npz")
    for key in first:
        if key.startswith("state/"):
            np.testing.assert_array_equal(first[key], second[key], err_msg=key)
    assert records.read_json(two / "status.json")["state"] == "finished"


@pytest.mark.slow
@pytest.mark.parametrize("attempt", range(2))
def test_killed_at_a_random_moment_resumes_to_the_same_bits(attempt, long, tmp_path):
    """SIGKILL once the run has begun, at a random moment, up to twice; then resume."""
    folder = tmp_path / "run"
    chance = random.Random()
    seed = chance.randrange(10**6)
    print(f"seed of the moments: {seed}")
    chance.seed(seed)
    process = begin([*ARGV, "--out", folder])
    for _ in range(1 + attempt % 2):
        until = time.monotonic() + 200
        seen = folder / "checkpoint.npz"
        before = seen.stat().st_mtime_ns if seen.exists() else None
        # wait for this process's first checkpoint, then strike anywhere in what is left
        while process.poll() is None and time.monotonic() < until:
            if seen.exists() and seen.stat().st_mtime_ns != before:
                break
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.6))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        records.read_header(folder)  # never torn
        if seen.exists():
            records.read_arrays(seen)
        process = begin(["resume", folder])
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    same_bits(long, folder)


def test_killed_before_the_first_checkpoint_starts_over(whole, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("run.json", "status.json", *SOURCES):
        (folder / name).write_bytes((whole / name).read_bytes())
    records.write_json(folder / "status.json", {"state": "running", "message": ""})
    assert main(["resume", str(folder)]) == 0
    same_bits(whole, folder)


def test_a_full_disk_keeps_the_last_good_checkpoint(whole, tmp_path, snapshot):
    """Files may grow to half the size of the finished checkpoint: the run stops there, and goes on with more room."""
    folder = tmp_path / "run"
    limit = (whole / "checkpoint.npz").stat().st_size // 2
    process = begin([*QUICK, "--out", folder], limit)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 2
    assert err.strip().splitlines()[-1].replace(str(folder), "FOLDER") == snapshot
    records.read_arrays(folder / "checkpoint.npz")
    assert not list(folder.glob(".*.tmp"))
    assert records.read_json(folder / "status.json")["state"] == "failed"
    assert main(["resume", str(folder)]) == 0
    same_bits(whole, folder)


def test_run_folder_that_cannot_be_made(tmp_path, capsys, snapshot):
    (tmp_path / "file").write_text("")
    assert main([*QUICK, "--out", str(tmp_path / "file" / "run")]) == 2
    assert capsys.readouterr().err.strip().splitlines()[-1].replace(str(tmp_path), "FOLDER") == snapshot


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write into read-only folders")
def test_read_only_folder(tmp_path, capsys):
    tmp_path.chmod(0o500)
    try:
        assert main([*QUICK, "--out", str(tmp_path / "run")]) == 2
        assert "the run folder must be writable" in capsys.readouterr().err
    finally:
        tmp_path.chmod(0o700)


def test_two_processes_never_write_one_folder(whole, tmp_path, capsys, snapshot):
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("run.json", "status.json", "checkpoint.npz", *SOURCES):
        (folder / name).write_bytes((whole / name).read_bytes())
    records.write_json(folder / "status.json", {"state": "running", "message": ""})
    with records.locked(folder):
        assert main(["resume", str(folder)]) == 2
    assert capsys.readouterr().err.strip().splitlines()[-1].replace(str(folder), "FOLDER") == snapshot


BROKEN = {
    "missing": lambda folder: (folder / "run.json").unlink(),
    "torn": lambda folder: (folder / "run.json").write_text('{"format": 1, "ki'),
    "keys": lambda folder: (folder / "run.json").write_text('{"format": 1, "kind": "finite"}'),
    "version": lambda folder: edit(folder, lambda header: header.update(format=99)),
    "python": lambda folder: edit(folder, lambda header: header.update(config={})),
    "seed": lambda folder: edit(folder, lambda header: header["config"].update(seed=12)),
    "checkpoint": lambda folder: (folder / "checkpoint.npz").write_bytes(b"PK\x03\x04 torn"),
    "solver": lambda folder: edit(
        folder, lambda header: header["config"].update(solver="penalty_actor_crtic", solver_source=None)
    ),
    "option": lambda folder: edit(folder, lambda header: header["config"]["solver_options"].update(chanes=3)),
}


def edit(folder, change) -> None:
    header = json.loads((folder / "run.json").read_text())
    change(header)
    (folder / "run.json").write_text(json.dumps(header))


@pytest.mark.parametrize("case", BROKEN)
def test_run_folder_that_is_not_what_it_should_be(case, whole, tmp_path, capsys, snapshot):
    folder = tmp_path / "run"
    folder.mkdir()
    for path in whole.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    records.write_json(folder / "status.json", {"state": "running", "message": ""})
    BROKEN[case](folder)
    before = {
        path.name: path.read_bytes() for path in folder.iterdir() if path.name not in (".lock", "status.json")
    }
    assert main(["resume", str(folder)]) == 2
    text = capsys.readouterr().err.replace(str(folder), "FOLDER").strip().splitlines()[-1]
    after = {
        path.name: path.read_bytes() for path in folder.iterdir() if path.name not in (".lock", "status.json")
    }
    assert after == before
    assert "Known: " not in text or text.index("Known") > 0
    assert text.split("Known: ")[0] == snapshot
