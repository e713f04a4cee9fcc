"""Folders that are on no disk: s3://..., gs://..., any address that fsspec knows. A verb works beside them and they follow.

The work is done in a folder of this machine. What the address holds is fetched before, every file that is written follows
within a second, in the order of writing, and the last ones before the verb ends. So the address holds at every moment what a
kill would have left on a disk, and the next call goes on from there.

Two promises of disks have to be kept in other ways:

    replaced whole   an object store puts an object whole or not at all; elsewhere a file is written beside and moved
    one writer       `.lock` names who writes, and when it was last there; it is made only where there is none, where the
                     store can do that, and is read back where it can't; one that nobody has renewed is taken over
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bilevel_rl.errors import BilevelError, InvalidConfig, StorageFailed, message, require
from bilevel_rl.machines import files

EXTRA = "remote"
LOOK = 1.0  # seconds between looks at what was written
RENEW = 20.0  # seconds between signs of life
STALE = 120.0  # seconds without one after which a lock is taken over: six that were missed
SETTLE = 1.0  # seconds after which a lock that could not be made alone is read back
LOCK = ".lock"
WHOLE = {"memory", "s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oci", "oss", "r2", "hf"}  # puts objects whole
FOLDERS = ("resume", "report")  # verbs whose first word is a folder


def is_address(word: str) -> bool:
    """Whether a word is an address of a folder on no disk.

    Example:
        >>> is_address("s3://bucket/run"), is_address("runs/a"), is_address("http://host/v1")
        (True, False, False)
    """
    scheme, found, _ = word.partition("://")
    return bool(found) and scheme.isalnum() and scheme not in ("http", "https", "ray")


@contextlib.contextmanager
def carried(argv: Sequence[str]) -> Iterator[list[str]]:
    """A verb's words with folders of this machine in place of addresses; the addresses follow while it runs.

    Addresses are looked for after `--out`, in `out=`, and as the folders that `resume` and `report` are given.

    Raises:
        MissingDependency: an address without the extra `remote`.
        InvalidConfig: an address that fsspec does not know.
        StorageFailed: another process writes there, or it can't be written.
    """
    words = list(argv)
    reads = "report" in words[:1]
    with contextlib.ExitStack() as stack:
        places: dict[str, str] = {}
        for i, word in enumerate(words):
            before = words[i - 1] if i else ""
            name, equals, value = word.partition("=")
            given = value if equals and name in ("--out", "out", "--keeping.out", "keeping.out") else word
            named = given is value or before in ("--out", "--run") or any(verb in words[:i] for verb in FOLDERS)
            if named and is_address(given):
                local = str(stack.enter_context(folder(given, writes=not reads or before == "--out")))
                places[local] = given
                words[i] = f"{name}={local}" if given is value else local
        try:
            yield words
        except (KeyboardInterrupt, BilevelError) as error:  # they speak of the address
            hint = _said(getattr(error, "hint", ""), places)
            if hint:
                error.hint = hint  # type: ignore[union-attr]
            if isinstance(error, BilevelError):
                error.args = tuple(_said(str(word), places) for word in error.args)
            raise
    for address in {} if reads else dict.fromkeys(places.values()):
        print(f"kept at {address}")


def _said(text: str, places: dict[str, str]) -> str:
    for local, address in places.items():
        text = text.replace(local, address)
    return text


@contextlib.contextmanager
def folder(address: str, writes: bool = True) -> Iterator[Path]:
    """A folder of this machine that an address follows.

    Args:
        address: of any file system of fsspec.
        writes: whether anything is written there; else it is only fetched.
    """
    fs, root = _found(address)
    with tempfile.TemporaryDirectory(prefix="bilevel-rl-folder-", ignore_cleanup_errors=True) as name:
        local = Path(name) / (Path(root).name or "folder")
        local.mkdir()
        if not writes:
            fetch(fs, root, local)
            yield local
            return
        with Lock(fs, root, address) as lock:
            fetch(fs, root, local)
            watched = files.Watched(local)
            watched.look()
            follower = _Follower(fs, root, watched, lock)
            follower.start()
            try:
                yield local
            finally:
                follower.end()


def _found(address: str) -> tuple[Any, str]:
    fsspec: Any = require("fsspec", EXTRA)
    try:
        fs, root = fsspec.core.url_to_fs(address)
    except ImportError as error:  # a store of which the own package is missing
        raise InvalidConfig(
            message(address, str(error), "its file system has a package of its own", "Install what the message names")
        ) from error
    except ValueError as error:
        raise InvalidConfig(message(address, str(error), "an address that fsspec knows", "Correct the address")) from error
    return fs, root.rstrip("/")


def fetch(fs: Any, root: str, local: Path) -> None:
    """Copy every file of an address into a folder, locks aside."""
    if not fs.exists(root):
        return
    for path in sorted(fs.find(root)):
        name = path[len(root) :].lstrip("/") if path.startswith(root) else path.rpartition("/")[2]
        if not any(part.startswith(".") for part in name.split("/")):
            files.Changes({name: fs.cat_file(path)}).apply(local)


def put(fs: Any, path: str, data: bytes) -> None:
    """Replace a file of an address: a reader finds the old bytes or the new ones.

    Raises:
        StorageFailed: it can't be written.
    """
    parent = path.rpartition("/")[0]
    try:
        fs.makedirs(parent, exist_ok=True)
        if WHOLE & {fs.protocol} if isinstance(fs.protocol, str) else WHOLE & set(fs.protocol):
            fs.pipe_file(path, data)
            return
        beside = f"{parent}/.{path.rpartition('/')[2]}.{uuid.uuid4().hex[:8]}.tmp"
        fs.pipe_file(beside, data)
        fs.mv(beside, path)
    except Exception as error:  # each store has errors of its own
        raise StorageFailed(
            message(path, f"{type(error).__name__} ({error})", "the address must be writable",
                    "Check access and space; what is on this machine is lost when the command ends")
        ) from error  # fmt: skip


def follow(fs: Any, root: str, changes: files.Changes) -> None:
    """Make the changes of a folder at an address, in their order."""
    for name, data in changes.written.items():
        put(fs, f"{root}/{name}", data)
    for name in changes.gone:
        with contextlib.suppress(FileNotFoundError):
            fs.rm_file(f"{root}/{name}")


class _Follower(threading.Thread):
    """Sends what is written, and a sign of life, until it is ended; a failure is raised at the end."""

    def __init__(self, fs: Any, root: str, watched: files.Watched, lock: Lock):
        super().__init__(daemon=True)
        self.fs, self.root, self.watched, self.lock = fs, root, watched, lock
        self.over = threading.Event()
        self.failure: Exception | None = None

    def run(self) -> None:
        while not self.over.wait(LOOK):
            self._once()

    def _once(self) -> None:
        try:
            self.lock.renew()
            before = dict(self.watched.seen)
            try:
                follow(self.fs, self.root, self.watched.look())
                self.failure = None
            except Exception:
                self.watched.seen = before  # all of it again, next time
                raise
        except Exception as error:
            self.failure = error

    def end(self) -> None:
        """Send the rest.

        Raises:
            StorageFailed: it could not be sent.
        """
        self.over.set()
        self.join()
        self._once()
        if self.failure is not None:
            raise self.failure


class Lock:
    """One writer of an address, as a file there that says who and when.

    Args:
        fs, root: the address's file system and folder.
        address: for errors.
    """

    def __init__(self, fs: Any, root: str, address: str):
        self.fs, self.path, self.address = fs, f"{root}/{LOCK}", address
        self.me = f"{socket.gethostname()}, process {os.getpid()}, {uuid.uuid4().hex[:8]}"
        self.renewed = 0.0

    def __enter__(self) -> Lock:
        held = self._read()
        if held is not None and time.time() - held.get("time", 0) < STALE:
            raise self._busy(held)
        if held is not None:
            self._remove()
        self.fs.makedirs(self.path.rpartition("/")[0], exist_ok=True)
        try:
            self.fs.pipe_file(self.path, self._mine(), mode="create")
        except FileExistsError:
            raise self._busy(self._read() or {}) from None
        except (TypeError, ValueError, NotImplementedError):  # a store that can't: the last to write it has it
            self.fs.pipe_file(self.path, self._mine())
            time.sleep(SETTLE)
        found = self._read()
        if found is None or found.get("owner") != self.me:
            raise self._busy(found or {})
        self.renewed = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        found = self._read()
        if found is not None and found.get("owner") == self.me:
            self._remove()

    def renew(self) -> None:
        """A sign of life, when it is time.

        Raises:
            StorageFailed: another process has taken over.
        """
        if time.monotonic() - self.renewed < RENEW:
            return
        found = self._read()
        if found is not None and found.get("owner") != self.me:
            raise self._busy(found)
        self.fs.pipe_file(self.path, self._mine())
        self.renewed = time.monotonic()

    def _mine(self) -> bytes:
        return json.dumps({"owner": self.me, "time": time.time()}).encode()

    def _read(self) -> dict[str, Any] | None:
        with contextlib.suppress(Exception):
            self.fs.invalidate_cache()
        try:
            found = json.loads(self.fs.cat_file(self.path))
        except FileNotFoundError:
            return None
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    def _remove(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.fs.rm_file(self.path)

    def _busy(self, held: dict[str, Any]) -> StorageFailed:
        return StorageFailed(
            message(self.address, f"a folder that another process is writing ({held.get('owner', 'it does not say which')})",
                    "one process writes a run folder",
                    f"Wait for it to end; a lock that nobody renews is taken over after {STALE:.0f} s")
        )  # fmt: skip
