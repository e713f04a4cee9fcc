"""The files of a folder as bytes: what has changed since the last look, in the order in which it was written.

A folder is written file by file, each replaced whole, what completes it last. Copied in that order, a copy is at every
moment what a kill would have left of the original; so a copy goes on where the original would have.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from pathlib import Path

from bilevel_rl import records

TRIES = 20  # looks at a folder that is being written, before it is left for the next time
PAUSE = 0.02  # seconds between them


@dataclasses.dataclass(frozen=True)
class Changes:
    """What a folder has that it had not before.

    Attributes:
        written: name below the folder -> bytes, in the order of writing.
        gone: names of files that are no more.
    """

    written: dict[str, bytes] = dataclasses.field(default_factory=dict)
    gone: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.written or self.gone)

    def apply(self, folder: Path) -> None:
        """Make them in another folder, each file whole.

        Raises:
            StorageFailed: it can't be written.

        Example:
            >>> import tempfile
            >>> with tempfile.TemporaryDirectory() as name:
            ...     Changes({"run/a.json": b"1"}).apply(Path(name))
            ...     sorted(path.name for path in Path(name).rglob("*"))
            ['a.json', 'run']
        """
        for name, data in self.written.items():
            path = folder / name
            records.make_folder(path.parent)
            records.write_bytes(path, data)
        for name in self.gone:
            with contextlib.suppress(OSError):
                (folder / name).unlink()


class Watched:
    """Looks at a folder again and again, and says what has changed. Locks and half-written files do not count.

    Args:
        folder: the folder.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as name:
        ...     watched = Watched(Path(name))
        ...     _ = (Path(name) / "a").write_text("1")
        ...     list(watched.look().written), bool(watched.look())
        (['a'], False)
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.seen: dict[str, tuple[int, ...]] = {}

    def look(self) -> Changes:
        """What has changed; nothing where the folder would not keep still, which the next look makes up for."""
        for _ in range(TRIES):
            now = self._marks()
            try:
                written = {
                    name: (self.folder / name).read_bytes() for name in sorted(now, key=lambda name: now[name])
                    if self.seen.get(name) != now[name]
                }  # fmt: skip
            except OSError:  # replaced or removed under our hands
                written = None
            if written is not None and self._marks() == now:
                gone = tuple(name for name in self.seen if name not in now)
                self.seen = now
                return Changes(written, gone)
            time.sleep(PAUSE)
        return Changes()

    def _marks(self) -> dict[str, tuple[int, ...]]:
        """Name -> when it was written, how long it is, and which file of the disk it is."""
        found: dict[str, tuple[int, ...]] = {}
        for path in self.folder.rglob("*"):
            if path.name.startswith("."):
                continue
            with contextlib.suppress(OSError):
                facts = path.stat()
                if path.is_file():
                    found[path.relative_to(self.folder).as_posix()] = (facts.st_mtime_ns, facts.st_size, facts.st_ino)
        return found


def all_of(folder: Path) -> Changes:
    """Every file of a folder."""
    return Watched(folder).look()
