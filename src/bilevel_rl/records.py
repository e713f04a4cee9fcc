"""A run folder: configuration, metrics, provenance, checkpoint; written whole or not at all, read back anywhere.

    run.json        what was asked: kind, name, problem, configuration, seed, command, provenance
    status.json     how far it got: running, finished, stopped or failed, and why
    metrics.npz     what was measured: arrays [runs, records] by metric key (finite problems)
    metrics.jsonl   the same, one line a step (language models)
    checkpoint.npz  the state to go on from (finite problems); language models keep a checkpoint folder

A run folder is enough to reproduce its run. Every file is replaced atomically: a reader, or the next start after a
kill, finds the old bytes or the new ones, never a mixture. What changes later is found: arrays carry the checksums of
their archive, `run.json` and every line of `metrics.jsonl` one of their own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import errno
import glob
import io
import json
import os
import platform
import shlex
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import numpy.lib.format

from bilevel_rl import json_lines, moved, signals, versions
from bilevel_rl.errors import RunNotFound, StorageFailed, message

FORMAT = 1
HEADER: dict[str, type] = {"kind": str, "name": str, "problem": str, "config": dict, "provenance": dict}
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
STATES = ("running", "finished", "stopped", "failed")


# -- files, replaced whole -------------------------------------------------------------------------------------


def write_bytes(path: Path, data: bytes) -> None:
    """Replace a file atomically and durably. What a killed process left beside it is removed.

    Raises:
        StorageFailed: the disk is full or the folder can't be written; the old file is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
            if left != temporary and not alive(left.name.split(".")[-2]):
                left.unlink(missing_ok=True)
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise StorageFailed(
            message(
                str(path),
                f"{type(error).__name__} ({error.strerror or error})",
                "the folder must be writable, with free space",
                "Free space or choose another --out"
                + ("; the last good state is still there, continue with `bilevel-rl resume`" if path.exists() else ""),
            )
        ) from error


def alive(process: str) -> bool:
    """Whether a process of this machine still runs; what is no process number counts as running.

    Example:
        >>> alive(str(os.getpid())), alive("a word")
        (True, True)
    """
    if not process.isdigit() or int(process) == 0:
        return True
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, keys in the order given; NaN is refused."""
    write_bytes(path, (json.dumps(value, indent=2, allow_nan=False, default=json_lines.jsonable) + "\n").encode())


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write an uncompressed `.npz` atomically (plain numeric arrays, so that nothing ever needs unpickling)."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **{key: np.asarray(value) for key, value in arrays.items()})  # type: ignore[arg-type]
    write_bytes(path, buffer.getvalue())


def plain(value: Any) -> Any:
    """A value as JSON gives it back."""
    return json.loads(json.dumps(value, default=json_lines.jsonable))


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        RunNotFound: missing or half-written.
    """
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise json_lines.unreadable(path, error) from error


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read an `.npz`; every checksum of the archive is compared, and pickled content is refused.

    Raises:
        RunNotFound: missing, half-written or damaged.
    """
    try:
        with zipfile.ZipFile(path) as file:
            names = file.namelist()
            if len(set(names)) != len(names) or not all(name.endswith(".npy") for name in names):
                raise ValueError("not an archive of arrays")
            return {name.removesuffix(".npy"): _array(file.read(name)) for name in names}
    except Exception as error:  # a damaged archive raises what its damaged part leads to
        raise json_lines.unreadable(path, error) from error


def _array(data: bytes) -> np.ndarray:
    stream = io.BytesIO(data)
    array = numpy.lib.format.read_array(stream, allow_pickle=False)
    if stream.read(1):
        raise ValueError("bytes after an array")
    return array


# -- a run --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Run:
    """A trace with its configuration and provenance.

    Attributes:
        kind: `"finite"` or `"llm"`.
        name: label of the method, e.g. `"coupled_penalty"`.
        problem: label of the problem, e.g. `"goal_placement"`.
        config: everything needed to start the run again, as plain JSON values.
        trace: metric key -> array [runs, records]; `samples` is always among them.
        status: `{"state": "running" | "finished" | "stopped" | "failed", "message": str}`.
        provenance: versions, hardware, command, time.
        seed: the one integer from which all randomness follows.
        x_names: of the upper variables; empty when they have none.
        altered: whether `run.json` is not what was written.
    """

    kind: str
    name: str
    problem: str
    config: dict[str, Any]
    trace: dict[str, np.ndarray]
    status: dict[str, Any]
    provenance: dict[str, Any]
    seed: int = 0
    x_names: tuple[str, ...] = ()
    altered: bool = False

    @property
    def runs(self) -> int:
        """Number of independent runs (seeds) in the trace."""
        return int(self.trace["samples"].shape[0])

    def header(self) -> dict[str, Any]:
        """What `run.json` holds."""
        return {
            "format": FORMAT, "kind": self.kind, "name": self.name, "problem": self.problem, "seed": self.seed,
            "config": self.config, "provenance": self.provenance, "x_names": list(self.x_names),
        }  # fmt: skip

    def write(self, folder: str | Path) -> Path:
        """Write the run folder; metrics first and `run.json` last, so a folder with `run.json` is complete."""
        folder = make_folder(folder)
        write_arrays(folder / "metrics.npz", self.trace)
        write_json(folder / "status.json", self.status)
        write_header(folder, self.header())
        return folder

    @classmethod
    def read(cls, folder: str | Path) -> Run:
        """Read a run folder, finished or not.

        Raises:
            RunNotFound: the folder is missing, half-written, or of another format version.
        """
        folder = Path(folder)
        header = read_header(folder)
        steps = folder / "metrics.jsonl"
        trace = json_lines.read_lines(steps) if steps.exists() else read_arrays(folder / "metrics.npz")
        _check_trace(folder, trace)
        status = read_status(folder)
        if steps.exists():
            _check_whole(steps, trace, status)
        return cls(
            kind=header["kind"], name=header["name"], problem=header["problem"], config=header["config"],
            trace=trace, status=status, provenance=header["provenance"], seed=header.get("seed", 0),
            x_names=tuple(map(str, header.get("x_names") or ())), altered=altered(header),
        )  # fmt: skip


def read_header(folder: str | Path) -> dict[str, Any]:
    """What `run.json` holds, checked.

    Raises:
        RunNotFound: missing, half-written, or of another format version.
    """
    folder = Path(folder)
    header = read_json(folder / "run.json")
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        got = header.get("format") if isinstance(header, dict) else type(header).__name__
        raise RunNotFound(
            message(
                str(folder / "run.json"), f"run format {got!r}", f"this version reads format {FORMAT}",
                "Read it with the version that wrote it (provenance names it), or run it again",
            )
        )  # fmt: skip
    missing = HEADER.keys() - header.keys()
    if missing:
        raise json_lines.unreadable(folder / "run.json", ValueError(f"keys missing: {sorted(missing)}"))
    for key, kind in (HEADER | {"seed": int, "references": list, "x_names": list}).items():
        if not isinstance(header.get(key, kind()), kind):
            words = f"{key} is {type(header[key]).__name__}, not {kind.__name__}"
            raise json_lines.unreadable(folder / "run.json", ValueError(words))
    return header


def write_header(folder: Path, header: Mapping[str, Any]) -> None:
    """Write `run.json` with a checksum, so that a later change is found."""
    plain = json.loads(json.dumps(header, allow_nan=False, default=json_lines.jsonable))
    write_json(folder / "run.json", plain | {"checksum": json_lines.checksum(plain)})


def altered(header: Mapping[str, Any]) -> bool:
    """Whether a header is not what was written; headers without a checksum are taken as they are."""
    plain = {key: value for key, value in header.items() if key != "checksum"}
    strange = header.keys() - {*HEADER, "format", "seed", "references", "x_names", "checksum"}
    return bool(strange) or ("checksum" in header and header["checksum"] != json_lines.checksum(plain))


def read_status(folder: str | Path) -> dict[str, Any]:
    """What `status.json` holds; a run that no process holds any more is not running.

    Raises:
        RunNotFound: missing or damaged.
    """
    folder = Path(folder)
    status = read_json(folder / "status.json")
    good = isinstance(status, dict) and status.get("state") in STATES and isinstance(status.get("message"), str)
    if not good or status.keys() - {"state", "message", "iteration"}:
        words = f"it must hold a state ({', '.join(STATES)}) and a message"
        raise json_lines.unreadable(folder / "status.json", ValueError(words))
    if status["state"] == "running" and (folder / ".lock").exists() and not _held(folder):
        status |= {"state": "stopped", "message": status.get("message") or "its process has ended without a word"}
    return status


def _held(folder: Path) -> bool:
    try:
        with locked(folder):
            return False
    except StorageFailed:
        return True


def _check_trace(folder: Path, trace: Mapping[str, np.ndarray]) -> None:
    """Raise `RunNotFound` where arrays do not belong together: [runs, records, ...], or [runs] for the status."""
    if not trace:
        return
    shapes = {key: value.shape for key, value in trace.items()}
    first = shapes.get("samples", ())
    for key, shape in shapes.items():
        wanted = first[:1] if key == "status" else first[:2]
        if len(first) != 2 or shape[: len(wanted)] != wanted or trace[key].dtype.kind not in "fiub":
            words = f"{key} has the shape {shape} beside samples of {first}, or holds no numbers"
            raise json_lines.unreadable(folder / "metrics.npz", ValueError(words))


def _check_whole(path: Path, trace: Mapping[str, np.ndarray], status: Mapping[str, Any]) -> None:
    """Raise `RunNotFound` where lines are missing: iterations follow each other, a finished run's up to its last."""
    steps = np.zeros(0) if not trace else trace["iteration"][0] if "iteration" in trace else None
    if steps is None:
        return
    gaps = np.flatnonzero(np.diff(steps) != 1)
    if gaps.size:
        raise json_lines.unreadable(path, ValueError(f"iteration {steps[gaps[0]]:g} is followed by {steps[gaps[0] + 1]:g}"))
    last = float(steps[-1]) if steps.size else 0.0
    if status["state"] == "finished" and status.get("iteration", last) != last:
        raise json_lines.unreadable(path, ValueError(f"iteration {last:g} is the last, of {status['iteration']}"))


def make_folder(folder: str | Path) -> Path:
    """Create a folder (and its parents), or say why it can't be.

    Raises:
        StorageFailed: read-only or full.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageFailed(
            message(str(folder), f"{type(error).__name__} ({error.strerror})", "the run folder must be writable",
                    "Choose another --out")
        ) from error  # fmt: skip
    return folder


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder for this process; a second process gets an error instead of a mixture.

    Raises:
        StorageFailed: another process writes this run.
    """
    lock = filelock.FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise StorageFailed(
            message(str(folder), "a folder that another process is writing", "one process writes a run folder",
                    "Wait for it to end, or choose another --out")
        ) from error  # fmt: skip
    except (OSError, NotImplementedError) as error:
        if isinstance(error, NotImplementedError) or error.errno in NO_LOCKS:
            raise StorageFailed(
                message(str(folder), "a file system without locks", "a lock keeps two processes from one run folder",
                        f"Choose another --out, or give it as file://{folder.resolve()}, which brings a lock of its own")
            ) from error  # fmt: skip
        raise StorageFailed(
            message(str(folder), f"{type(error).__name__} ({error.strerror})", "the run folder must be writable",
                    "Choose another --out")
        ) from error  # fmt: skip
    try:
        yield
    finally:
        lock.release()


class Held:
    """A folder that this process writes until it is left; how it was left goes into `status.json`.

    While it is held, a signal waits for the next whole state: see `signals.Deferred`.

    Attributes:
        folder: None: nothing is written.
        began: whether there is anything for `status.json` to speak of.
        signal: what waits, and `check` to end by it.
        verb: what goes on from here, for the hint of an interruption.
    """

    verb = "bilevel-rl resume"

    def __init__(self, folder: str | Path | None):
        self.folder = None if folder is None else Path(folder)
        self.began = False
        self.signal = signals.Deferred()
        self._lock: contextlib.AbstractContextManager[None] | None = None

    def hold(self) -> None:
        """Make the folder and lock it.

        Raises:
            StorageFailed: another process writes it, or it can't be written.
        """
        assert self.folder is not None
        make_folder(self.folder)
        lock = locked(self.folder)
        lock.__enter__()
        self._lock = lock
        self.signal.__enter__()

    def __exit__(self, kind, error, traceback) -> None:
        if self._lock is None or self.folder is None:
            return
        try:
            if error is not None and self.began:
                state = "stopped" if isinstance(error, KeyboardInterrupt) else "failed"
                write_json(self.folder / "status.json", {"state": state, "message": str(error)})
            if isinstance(error, KeyboardInterrupt) and self.began:
                error.hint = f"{self.verb} {shlex.quote(str(self.folder))}"  # type: ignore[attr-defined]
        except StorageFailed:
            pass  # the disk is what failed: the error that is on its way says so
        finally:
            self._lock.__exit__(None, None, None)
            self.signal.__exit__(kind, error, traceback)


def find_runs(folder: str | Path) -> list[Path]:
    """Run folders at or below `folder`, sorted.

    Raises:
        RunNotFound: there is none.
    """
    try:
        Path(folder).stat()
        found = sorted(path.parent for path in Path(folder).rglob("run.json"))
    except (OSError, ValueError) as error:  # no such folder, a name that is too long or has a NUL in it
        raise RunNotFound(
            message(str(folder)[:100], f"{type(error).__name__} ({getattr(error, 'strerror', None) or error})",
                    "no run folder is there", "Check the path, or make one with `bilevel-rl run PROBLEM --out FOLDER`")
        ) from error  # fmt: skip
    # what a run has measured stays when its header is lost: reading it says so
    measured = {path.parent for name in ("metrics.npz", "metrics.jsonl") for path in Path(folder).rglob(name)}
    found += sorted(measured - set(found))
    if not found:
        raise RunNotFound(
            message(str(folder), "no run folder at or below it", "a run folder holds run.json",
                    "Make one with `bilevel-rl run PROBLEM --out FOLDER`")
        )  # fmt: skip
    return found


def provenance(command: str | None = None) -> dict[str, Any]:
    """Versions, hardware, command and time of this process."""
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command if command is not None else " ".join(["bilevel-rl", *sys.argv[1:]]),
        "python": platform.python_version(),
        "versions": versions.here(),
        "hardware": hardware(),
    }


def goes_on(folder: Path, name: str, packages: Sequence[str]) -> None:
    """Take note that this process goes on with what another one began: under the same versions, or so that it can be read.

    Args:
        folder, name: of the header, `run.json` or another.
        packages: those on which the numbers depend.

    Raises:
        InvalidConfig: it was begun under other versions, and nobody has accepted that.
    """
    header = read_json(folder / name)
    made = header.get("provenance") if isinstance(header, dict) else None
    if not isinstance(made, dict):
        return
    before = [made, *(one for one in made.get("continued", []) if isinstance(one, dict))][-1].get("versions")
    if isinstance(before, dict) and versions.check(before, packages, str(folder)):
        now = {"time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), "versions": versions.here()}
        header["provenance"] = made | {"continued": [*made.get("continued", []), now]}
        checked = header.pop("checksum", None) is not None
        write_header(folder, header) if checked else write_json(folder / name, header)


def written_by(folder: Path) -> str:
    """The version of this library that started the run in `folder`; empty where its `run.json` does not say.

    Example:
        >>> import pathlib
        >>> written_by(pathlib.Path("no/such/run"))
        ''
    """
    try:
        version = read_json(folder / "run.json")["provenance"]["versions"]["bilevel-rl"]
    except (RunNotFound, KeyError, TypeError):
        return ""
    return version if isinstance(version, str) else ""


def hardware() -> dict[str, Any]:
    """Processor name, cores and memory of this machine, as a results file names them."""
    name, memory = platform.processor() or platform.machine(), None
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                break
        kilobytes = Path("/proc/meminfo").read_text().split("MemTotal:")[1].split()[0]
        memory = round(int(kilobytes) / 2**20, 1)
    return {"cpu": name, "cores": os.cpu_count(), "memory_gib": memory, "system": platform.system()}


__getattr__ = moved.elsewhere(
    "bilevel_rl.records", "bilevel_rl.json_lines", "append_line", "seal_of", "open_line", "whole_lines", "read_lines"
)
