"""JAX's cache of compiled programs: where it lies, and that an entry is written whole or not at all.

JAX writes an entry in place. A process that is killed while it does leaves half an entry, and every later start reports
it with a warning that quotes zlib. Here an entry is written beside its place and moved there, and one that does not
unpack is removed and compiled again, without a word.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import platform
import warnings
from typing import Any

DIRECTORY = "JAX_COMPILATION_CACHE_DIR"


def keep() -> None:
    """Let JAX keep compiled programs between calls, which takes most of the time of a short run.

    They lie below `$XDG_CACHE_HOME/bilevel-rl` (or `~/.cache`), apart for each kind of processor; set
    `JAX_COMPILATION_CACHE_DIR` to put them elsewhere, to the empty string to keep none. To be called before JAX is
    imported.
    """
    if DIRECTORY in os.environ:
        return
    processor = platform.processor() + platform.machine()
    facts = pathlib.Path("/proc/cpuinfo")
    if facts.exists():
        processor += next((line for line in facts.read_text().splitlines() if line.startswith("flags")), "")
    try:
        home = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
    except RuntimeError:  # no home: keep none
        return
    os.environ[DIRECTORY] = str(home / "bilevel-rl" / hashlib.sha256(processor.encode()).hexdigest()[:12])
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
    # a cache that can't be read or written costs time, nothing else
    warnings.filterwarnings("ignore", message=".*persistent compilation cache.*")


def guard() -> None:
    """Make JAX write entries whole and drop broken ones; called where JAX is imported, and harmless when called twice.

    It reaches into JAX's internals, for JAX offers no place of its own to do so: a version in which they have other names
    keeps its own behaviour.
    """
    try:
        from jax._src import compilation_cache as cache

        make, unpack = cache.get_file_cache, cache.decompress_executable
    except (ImportError, AttributeError):
        return
    if getattr(make, "whole", False):
        return

    def get_file_cache(path: str) -> Any:
        found = make(path)
        return None if found is None else (Whole(found[0], unpack), found[1])

    get_file_cache.whole = True  # type: ignore[attr-defined]
    cache.get_file_cache = get_file_cache


class Whole:
    """A cache of JAX whose entries are whole.

    Args:
        cache: JAX's own, of files.
        unpack: raises where an entry is broken.
    """

    def __init__(self, cache: Any, unpack: Any):
        self.cache, self.unpack = cache, unpack
        if os.path.isdir(str(cache.path)):  # not a bucket on the net
            cache.path = WholeFile(str(cache.path))

    def get(self, key: str) -> bytes | None:
        """The entry, or None where there is none that unpacks."""
        try:
            value = self.cache.get(key)
        except OSError:
            return None
        if value is None:
            return None
        try:
            self.unpack(value)
        except Exception:  # each packer has its own errors
            with contextlib.suppress(OSError):
                (self.cache.path / f"{key}-cache").unlink()
            return None
        return value

    def put(self, key: str, value: bytes) -> None:
        """Keep an entry; where that fails, the program is compiled again next time."""
        with contextlib.suppress(OSError):
            self.cache.put(key, value)

    def clear(self) -> None:
        """Nothing: JAX's own cache of files keeps its files."""


class WholeFile(type(pathlib.Path())):  # type: ignore[misc]
    """A path whose bytes are replaced at once. The last process to write an entry wins; both are the same program."""

    def write_bytes(self, data: Any) -> int:
        """Write beside and move: a reader finds the old bytes or the new ones."""
        temporary = self.with_name(f".{self.name}.{os.getpid()}.tmp")
        try:
            with open(temporary, "wb") as file:
                count = file.write(data)
            os.replace(temporary, self)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        return count
