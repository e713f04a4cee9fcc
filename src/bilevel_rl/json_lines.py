"""Lines of JSON, one a step, that carry checksums: what is changed, moved or lost later is found.

A line's checksum is of its values and of the checksum before it, so lines form a chain. A line that a kill has torn is the
last one, and is dropped; files without checksums are read as they are.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bilevel_rl.errors import RunNotFound, StorageFailed, message

SEAL_BYTES = 64  # more than the end of a line that holds its checksum


def append_line(path: Path, values: Mapping[str, Any], sealed: bool = False) -> None:
    """Append one JSON line and push it to the disk.

    Args:
        path: of the file.
        values: of the line.
        sealed: whether the line carries a checksum, of its own and of that before it, so that a line that is changed,
            moved or lost is found (`whole_lines`).

    Raises:
        StorageFailed: disk full or read-only.
    """
    try:
        with open(path, "ab+") as file:
            if sealed:
                file.seek(-min(SEAL_BYTES, file.tell()), os.SEEK_END)
                values = dict(values) | {"checksum": checksum(values, seal_of(file.read().decode(errors="replace")))}
            file.write((json.dumps(values, default=jsonable) + "\n").encode())
            file.flush()
    except OSError as error:
        raise StorageFailed(
            message(str(path), f"{type(error).__name__} ({error.strerror})", "metrics must be writable",
                    "Free space, then continue from the last checkpoint")
        ) from error  # fmt: skip


def seal_of(text: str) -> str:
    """The checksum at the end of a line, "" where it has none.

    Example:
        >>> seal_of('{"samples": 3, "checksum": "0123abcd"}')
        '0123abcd'
    """
    found = re.search(r'"checksum": "([0-9a-f]{8})"\}\s*$', text)
    return found[1] if found else ""


def open_line(text: str, before: str = "") -> dict[str, Any]:
    """What a line of JSON says, without its checksum. Files without checksums are taken as they are.

    Args:
        text: of the line.
        before: the checksum of the line before it.

    Raises:
        ValueError: no mapping, or not what was written after that line.

    Example:
        >>> open_line('{"samples": 3}')
        {'samples': 3}
    """
    try:
        row = json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    if not isinstance(row, dict):
        raise ValueError("no mapping")
    seal = row.pop("checksum", None if not before else "lost")
    if seal is not None and seal != checksum(row, before):
        raise ValueError("a checksum that does not fit")
    return row


def whole_lines(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Every line of a file, as it stands and what it says; a torn last line (a kill) is dropped.

    Raises:
        RunNotFound: another line is damaged, or does not follow the one before it.
    """
    found: list[tuple[str, dict[str, Any]]] = []
    try:
        texts = path.read_bytes().decode().split("\n")
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error
    before = ""
    for i, text in enumerate(texts[:-1]):  # what follows the last end of a line was never finished
        try:
            found.append((text, open_line(text, before)))
        except ValueError as error:
            raise unreadable(path, ValueError(f"line {i + 1}: {error}")) from error
        before = seal_of(text)
    return found


def read_lines(path: Path) -> dict[str, np.ndarray]:
    """Read a `metrics.jsonl` as arrays [1, records]; a torn last line (a kill) is dropped.

    Raises:
        RunNotFound: another line is damaged.
    """
    rows = [row for _, row in whole_lines(path)]
    keys = sorted({key for row in rows for key, value in row.items() if isinstance(value, (int, float))})
    return {key: np.array([[row.get(key, np.nan) for row in rows]], dtype=float) for key in keys}


def checksum(value: Any, before: str = "") -> str:
    """Of a value as JSON, after the checksum of what stands before it.

    Example:
        >>> checksum({"samples": 3}) == checksum({"samples": 3}, "0123abcd")
        False
    """
    return f"{zlib.crc32((before + json.dumps(value, default=jsonable)).encode()):08x}"


def jsonable(value: Any) -> Any:
    """What JSON does not know as what it knows: data classes, paths, arrays (`json.dumps(..., default=jsonable)`).

    Raises:
        TypeError: none of them.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} can't be written as JSON")


def unreadable(path: Path, error: Exception) -> RunNotFound:
    """The error of a file of a run folder that can't be read."""
    said = str(error) or type(error).__name__
    return RunNotFound(
        message(
            str(path),
            "no file" if isinstance(error, FileNotFoundError) else f"an unreadable file ({said})",
            "a run folder holds run.json, status.json and its metrics",
            "Check the path, or start the run again with `bilevel-rl run`",
        )
    )
