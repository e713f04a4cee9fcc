"""Folders on no disk: what is written follows whole and in order, one process writes, a run goes on from its address."""

from __future__ import annotations

import json
import time
from pathlib import Path

import fsspec
import pytest

from bilevel_rl import records
from bilevel_rl.cli import main
from bilevel_rl.errors import InvalidConfig, StorageFailed
from bilevel_rl.machines import files, store

ECHO = Path(__file__).parent / "loop/echo_toy.py"  # compiles in no time
SMALL = [f"{ECHO}:problem", f"{ECHO}:solver", "--no-optimum", "--runs", "1"]


@pytest.fixture(params=["memory", "file"])
def address(request, tmp_path, monkeypatch):
    """A folder of a store, and of a disk by its address."""
    monkeypatch.setattr(store, "LOOK", 0.02)
    if request.param == "file":
        yield f"file://{tmp_path}/away/run"
    else:
        yield "memory://away/run"
        fsspec.filesystem("memory").store.clear()


def there(address: str) -> dict[str, bytes]:
    fs, root = fsspec.core.url_to_fs(address)
    return {path.rpartition("/")[2]: fs.cat_file(path) for path in fs.find(root)} if fs.exists(root) else {}


def test_what_is_written_follows_and_comes_back(address):
    with store.folder(address) as local:
        records.write_json(local / "a.json", 1)
        deadline = time.monotonic() + 20
        while "a.json" not in there(address):  # while the work goes on
            assert time.monotonic() < deadline
            time.sleep(0.01)
        records.write_json(local / "a.json", 2)
        records.write_json(local / "b.json", 3)
    assert there(address) == {"a.json": b"2\n", "b.json": b"3\n"}, "the last ones at the end, and no lock stays"
    with store.folder(address) as local:
        assert json.loads((local / "a.json").read_text()) == 2
        (local / "b.json").unlink()
    assert there(address).keys() == {"a.json"}
    with store.folder(address, writes=False) as local:
        assert [path.name for path in local.iterdir()] == ["a.json"]


def test_one_process_writes_an_address(address, monkeypatch):
    with store.folder(address), pytest.raises(StorageFailed, match="another process is writing"):  # noqa: SIM117
        with store.folder(address):
            pass
    fs, root = fsspec.core.url_to_fs(address)
    left = {"owner": "one that was killed", "time": time.time() - 2 * store.STALE}
    fs.pipe_file(f"{root}/.lock", json.dumps(left).encode())
    with store.folder(address) as local:  # nobody has renewed it
        records.write_json(local / "c.json", 1)
    assert "c.json" in there(address)


def test_a_store_that_cannot_make_a_lock_alone_reads_it_back(address, monkeypatch):
    fs, root = fsspec.core.url_to_fs(address)
    monkeypatch.setattr(store, "SETTLE", 0.0)
    plain = type(fs).pipe_file

    def old(self, path, value, **options):
        if options:
            raise TypeError("unexpected keyword argument 'mode'")
        return plain(self, path, value)

    monkeypatch.setattr(type(fs), "pipe_file", old)
    with store.Lock(fs, root, address) as lock:
        assert lock._read()["owner"] == lock.me
        fs.pipe_file(f"{root}/.lock", json.dumps({"owner": "another", "time": time.time()}).encode())
        lock.renewed -= 2 * store.RENEW
        with pytest.raises(StorageFailed, match=r"another process is writing \(another\)"):
            lock.renew()


def test_where_objects_are_not_put_whole_they_are_moved(tmp_path, monkeypatch):
    fs, root = fsspec.core.url_to_fs(f"file://{tmp_path}")
    moved = []
    move = type(fs).mv
    monkeypatch.setattr(type(fs), "mv", lambda self, a, b, **o: (moved.append((a, b)), move(self, a, b, **o)))
    store.put(fs, f"{root}/run/x", b"1")
    store.put(fs, f"{root}/run/x", b"2")
    assert [to for _, to in moved] == [f"{root}/run/x"] * 2
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["x"]
    memory, place = fsspec.core.url_to_fs("memory://m")
    store.put(memory, f"{place}/x", b"1")
    assert len(moved) == 2


def test_what_could_not_be_sent_is_sent_the_next_time(address, monkeypatch):
    put, failed = store.put, []

    def once(fs, path, data):
        if not failed:
            failed.append(path)
            raise StorageFailed("the line is down")
        put(fs, path, data)

    monkeypatch.setattr(store, "put", once)
    with store.folder(address) as local:
        records.write_json(local / "a.json", 1)
        while not failed:
            time.sleep(0.01)
    assert there(address)["a.json"] == b"1\n"
    monkeypatch.setattr(store, "put", lambda *_: (_ for _ in ()).throw(StorageFailed("down for good")))
    with pytest.raises(StorageFailed, match="for good"), store.folder(address) as local:
        records.write_json(local / "a.json", 2)


def test_a_run_goes_on_from_its_address(address, tmp_path, capsys):
    assert main(["run", *SMALL, "--iterations", "8", "--records", "4", "--out", address]) == 0
    assert {"run.json", "metrics.npz", "status.json"} <= there(address).keys()
    assert main(["resume", address, "--iterations", "12"]) == 0
    assert main(["run", *SMALL, "--iterations", "12", "--records", "6", "--out", str(tmp_path / "whole")]) == 0
    with store.folder(address, writes=False) as local:
        ours, whole = (records.read_arrays(folder / "metrics.npz") for folder in (local, tmp_path / "whole"))
        assert all((ours[key] == whole[key]).all() for key in whole)
    capsys.readouterr()
    assert main(["run", *SMALL, "--iterations", "12", "--records", "6", "--out", address, "--resume", "auto"]) == 0
    assert "finished already" in capsys.readouterr().out


def test_addresses_that_are_none_are_refused(capsys):
    with pytest.raises(InvalidConfig, match="an address that fsspec knows"), store.folder("nosuch://x"):
        pass
    assert not store.is_address("ray://head:1")
    with store.carried(["llm", "train", "c.yaml", "generator=vllm:http://host:1", "judge=queue:x"]) as words:
        assert words[3] == "generator=vllm:http://host:1"


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    def none(self, **_):
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr(records.filelock.FileLock, "acquire", none)
    with pytest.raises(StorageFailed, match=r"a file system without locks.*file://"), records.locked(tmp_path):
        pass


def test_changes_are_made_in_their_order(address):
    fs, root = fsspec.core.url_to_fs(address)
    store.follow(fs, root, files.Changes({"b": b"1", "a": b"2"}))
    store.follow(fs, root, files.Changes({}, ("b", "never there")))
    assert there(address) == {"a": b"2"}
