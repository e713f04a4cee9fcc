"""Run folders: written whole or not at all, read back to the bit, never unpickled."""

from __future__ import annotations

import dataclasses
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from bilevel_rl import json_lines, records
from bilevel_rl.errors import RunNotFound, StorageFailed


def a_run() -> records.Run:
    trace = {
        "samples": np.arange(6.0).reshape(2, 3),
        "gap": np.array([[1.0, np.nan, 1e-300], [0.1, 2.0, -0.0]]),
    }
    return records.Run("finite", "solver", "problem", {"a": 1, "b": [1, 2]}, trace, {"state": "finished", "message": ""},
                       records.provenance("command"), seed=3)  # fmt: skip


def test_read_gives_back_what_was_written(tmp_path):
    one = a_run()
    two = records.Run.read(one.write(tmp_path / "run"))
    for key in one.trace:
        assert one.trace[key].tobytes() == two.trace[key].tobytes()
    for field in dataclasses.fields(records.Run):
        if field.name != "trace":
            assert getattr(one, field.name) == getattr(two, field.name)
    assert two.runs == 2


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "status.json"
    records.write_json(path, {"state": "running"})
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(StorageFailed, match="No space left on device"):
        records.write_json(path, {"state": "finished"})
    assert records.read_json(path) == {"state": "running"}
    assert list(tmp_path.iterdir()) == [path]


def test_nan_in_json_is_refused(tmp_path):
    with pytest.raises(ValueError, match="Out of range"):
        records.write_json(tmp_path / "x.json", {"gap": float("nan")})
    assert not list(tmp_path.iterdir())


def test_pickled_arrays_are_refused(tmp_path):
    np.savez(tmp_path / "metrics.npz", samples=np.array([{"a": 1}], dtype=object))
    with pytest.raises(RunNotFound, match="unreadable"):
        records.read_arrays(tmp_path / "metrics.npz")


def test_a_torn_last_line_is_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for k in range(3):
        json_lines.append_line(path, {"samples": k, "gold": 0.5 * k, "note": "text"})
    path.write_text(path.read_text() + '{"samples": 3, "go')
    trace = json_lines.read_lines(path)
    assert trace.keys() == {"samples", "gold"}
    np.testing.assert_array_equal(trace["gold"], [[0, 0.5, 1]])


def test_a_key_that_comes_late_is_nan_before(tmp_path):
    path = tmp_path / "metrics.jsonl"
    json_lines.append_line(path, {"samples": 0})
    json_lines.append_line(path, {"samples": 1, "gold": 2.0})
    np.testing.assert_array_equal(json_lines.read_lines(path)["gold"], [[np.nan, 2]])


def test_killed_while_writing_leaves_a_readable_file(tmp_path):
    """A process that rewrites an .npz for ever is killed: what is there is one of its versions, whole."""
    path = tmp_path / "metrics.npz"
    code = (
        "import sys, itertools, numpy as np\nfrom pathlib import Path\nfrom bilevel_rl import records\n"
        "for k in itertools.count():\n    records.write_arrays(Path(sys.argv[1]), {'a': np.full(200_000, k)})"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(path)])
    while not path.exists():
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    values = records.read_arrays(path)["a"]
    assert values.shape == (200_000,)
    assert len(np.unique(values)) == 1


def test_what_a_killed_process_left_is_removed_by_the_next_write(tmp_path):
    """Its half-written file goes; that of a process that lives, and other files, stay."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for process, name in ((gone.pid, "a.npz"), (os.getppid(), "a.npz"), (gone.pid, "b.npz")):
        (tmp_path / f".{name}.{process}.tmp").write_text("half")
    records.write_bytes(tmp_path / "a.npz", b"whole")
    assert {p.name for p in tmp_path.iterdir()} == {"a.npz", f".a.npz.{os.getppid()}.tmp", f".b.npz.{gone.pid}.tmp"}


def test_a_run_that_no_process_holds_is_not_running(tmp_path):
    folder = a_run().write(tmp_path / "a")
    records.write_json(folder / "status.json", {"state": "running", "message": ""})
    assert records.read_status(folder)["state"] == "running"  # never locked: nothing is known
    with records.locked(folder):
        assert records.read_status(folder)["state"] == "running"
    status = records.read_status(folder)
    assert status == {"state": "stopped", "message": "its process has ended without a word"}


@pytest.mark.parametrize(
    "content", ["[]", "null", "3", "[" * 100_000, '{"state": "done", "message": ""}', '{"state": "running"}']
)
def test_strange_status_files_are_a_clear_error(content, tmp_path):
    folder = a_run().write(tmp_path / "a")
    (folder / "status.json").write_text(content)
    with pytest.raises(RunNotFound, match=r"status\.json"):
        records.Run.read(folder)


@pytest.mark.parametrize("change", [
    {"config": []}, {"name": None}, {"seed": "x"}, {"provenance": 3}, {"kind": {}}, {"problem": 1.5}, {"references": "x"},
])  # fmt: skip
def test_strange_headers_are_a_clear_error(change, tmp_path):
    folder = a_run().write(tmp_path / "a")
    header = records.read_json(folder / "run.json") | change
    records.write_json(folder / "run.json", header)
    with pytest.raises(RunNotFound, match=r"run\.json"):
        records.Run.read(folder)


def a_measured_run(folder):
    run = a_run()
    records.make_folder(folder)
    for k in range(6):
        line = {"iteration": k + 1, "samples": 64 * k, "gold": np.float64(0.1) * k, "kl": float("nan"), "note": "ü"}
        json_lines.append_line(folder / "metrics.jsonl", line, sealed=True)
    records.write_json(folder / "status.json", {"state": "finished", "message": "", "iteration": 6})
    records.write_header(folder, run.header())
    return folder


def test_damage_to_lines_is_found(tmp_path):
    """Bits, bytes and lines of `metrics.jsonl`, lost or changed: refused, or the same numbers."""
    folder = a_measured_run(tmp_path / "run")
    path, chance = folder / "metrics.jsonl", random.Random(0)
    whole, sound = path.read_bytes(), records.Run.read(folder).trace
    assert sound["samples"].tolist() == [[0, 64, 128, 192, 256, 320]]
    harmless = 0
    for _ in range(300):
        at, data, lines = chance.randrange(len(whole)), bytearray(whole), whole.splitlines(keepends=True)
        data[at] ^= 1 << chance.randrange(8)
        lost = chance.randrange(len(lines))
        damaged = chance.choice([
            bytes(data), whole[:at], whole[:at] + whole[at + chance.randrange(1, 9) :],
            b"".join(lines[:lost] + lines[lost + 1 :]), b"".join([*lines[:lost], lines[0], *lines[lost:]]),
            whole.replace(b'"samples": 6', b'"samples": 7'), chance.randbytes(len(whole)),
        ])  # fmt: skip
        path.write_bytes(damaged)
        try:
            found = records.Run.read(folder).trace
        except RunNotFound:
            continue
        harmless += 1
        assert found.keys() == sound.keys()
        assert all(np.array_equal(found[key], sound[key], equal_nan=True) for key in sound)
    assert harmless < 10


def test_a_line_lost_in_the_middle_is_not_passed_over(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"samples": 0}\n{"sam\n{"samples": 2}\n')
    with pytest.raises(RunNotFound, match="unreadable"):
        json_lines.read_lines(path)


def test_the_lock_is_exclusive_and_released(tmp_path):
    with (
        records.locked(tmp_path),
        pytest.raises(StorageFailed, match="another process"),
        records.locked(tmp_path),
    ):
        pass
    with records.locked(tmp_path):
        pass


def test_provenance_names_versions_hardware_and_command():
    facts = records.provenance("the command")
    assert facts["command"] == "the command"
    assert {"bilevel-rl", "numpy", "jax"} <= facts["versions"].keys()
    assert facts["hardware"]["cores"] >= 1


def test_find_runs(tmp_path):
    a_run().write(tmp_path / "b/two")
    a_run().write(tmp_path / "a")
    assert records.find_runs(tmp_path) == [tmp_path / "a", tmp_path / "b/two"]
    with pytest.raises(RunNotFound, match="no run folder"):
        records.find_runs(Path(tmp_path / "none"))
    with pytest.raises(RunNotFound, match="no run folder"):
        records.find_runs(tmp_path / ("a" * 300))
