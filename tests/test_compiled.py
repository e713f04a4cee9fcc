"""JAX's cache of compiled programs: entries are whole, broken ones go without a word, tests have one of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bilevel_rl import compiled

WORK = """
import warnings
warnings.simplefilter("error")
import bilevel_rl.finite, jax, jax.numpy as jnp
print(float(jax.jit(lambda x: jnp.linalg.solve(x, x).sum())(jnp.eye(5) * 2)))
"""


def run(folder: Path) -> str:
    """A process of its own that compiles a program and keeps it in the folder, warnings being errors."""
    done = subprocess.run([sys.executable, "-c", WORK], capture_output=True, text=True, env=os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(folder), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"})  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_broken_entries_are_dropped_without_a_word(tmp_path):
    """Truncated as a kill leaves them, empty, and with a byte changed: compiled again, and whole afterwards."""
    assert run(tmp_path) == "5.0\n"
    entries = {path: path.read_bytes() for path in tmp_path.glob("*-cache")}
    damages = (lambda data: data[: len(data) // 2], lambda data: b"", lambda data: data[:-1] + bytes([data[-1] ^ 1]))
    assert len(entries) >= len(damages)
    broken = {path: damages[i % len(damages)](data) for i, (path, data) in enumerate(entries.items())}
    for path, data in broken.items():
        path.write_bytes(data)
    assert run(tmp_path) == "5.0\n"
    assert not any(path.read_bytes() == data for path, data in broken.items())
    assert not list(tmp_path.glob("*.tmp"))


class Cache:
    """Stands for JAX's."""

    def __init__(self, path):
        self.path = path

    def put(self, key, value):
        (self.path / f"{key}-cache").write_bytes(value)

    def get(self, key):
        return (self.path / f"{key}-cache").read_bytes()


def test_a_write_that_dies_leaves_no_entry(tmp_path, monkeypatch):
    whole = compiled.Whole(Cache(tmp_path), unpack=lambda value: value)
    whole.put("a", b"old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        whole.put("a", b"new")
    assert whole.get("a") == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a-cache"]


def test_a_full_disk_costs_time_only(tmp_path, monkeypatch):
    whole = compiled.Whole(Cache(tmp_path), unpack=lambda value: value)
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    whole.put("a", b"new")
    assert whole.get("a") is None
    assert not list(tmp_path.iterdir())


def test_where_it_lies(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(compiled.DIRECTORY, "mine")
    compiled.keep()
    assert os.environ[compiled.DIRECTORY] == "mine"  # what the user set stays
    monkeypatch.delenv(compiled.DIRECTORY)
    compiled.keep()
    assert Path(os.environ[compiled.DIRECTORY]).parent == tmp_path / "bilevel-rl"


def test_the_tests_cache_is_not_the_users():
    assert "bilevel-rl-tests-" in os.environ[compiled.DIRECTORY]
    assert os.environ[compiled.DIRECTORY] == os.environ["BILEVEL_RL_TESTS_CACHE"]
