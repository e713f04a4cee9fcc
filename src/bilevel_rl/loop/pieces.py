"""A large ring of rows beside a checkpoint, in pieces that are written once.

A replay of a million rows does not fit into a file that is written anew every few seconds. Row i of all that were ever
written lies at place i mod C of the ring. Whole pieces of it go to files of their own as soon as they are full; what is
newer than the last whole piece, or older than the first one still in the ring, goes into the checkpoint.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bilevel_rl import records
from bilevel_rl.errors import RunNotFound, message

FOLDER = "replay"
ROWS = 4096  # ours: least rows of a piece


class Ring(NamedTuple):
    """Rows that a solver keeps.

    Attributes:
        rows: [runs, C, W], the ring of each run.
        each: rows that an iteration writes; C is a multiple of it.
    """

    rows: Float[Array, "B C W"]
    each: int


def length(ring: Ring) -> int:
    """Rows of a piece: whole iterations.

    Example:
        >>> length(Ring(jnp.zeros((1, 9000, 2)), 30))
        4110
    """
    return -(-ROWS // ring.each) * ring.each


def save(folder: Path, ring: Ring, iterations: int) -> dict[str, np.ndarray]:
    """Write the pieces that are full and not written yet; return what the checkpoint has to hold beside them."""
    size, (first, low, high, written) = length(ring), _parts(ring, iterations)
    for i in range(low, high):
        path = _path(folder, i)
        if not path.exists():
            records.make_folder(path.parent)
            records.write_arrays(path, {"rows": _taken(ring, i * size, (i + 1) * size)})
    if low >= high:
        return {"ring/old": _taken(ring, first, written), "ring/new": _taken(ring, written, written)}
    return {"ring/old": _taken(ring, first, low * size), "ring/new": _taken(ring, high * size, written)}


def forget(folder: Path, ring: Ring, iterations: int) -> None:
    """Remove the pieces that no checkpoint needs any more; called after the newest one is written."""
    low = _parts(ring, iterations)[1]
    for path in (folder / FOLDER).glob("*.npz") if (folder / FOLDER).is_dir() else ():
        if path.stem.isdigit() and int(path.stem) < low:
            path.unlink(missing_ok=True)


def load(folder: Path, ring: Ring, iterations: int, arrays: dict[str, np.ndarray]) -> Array:
    """The ring's rows after so many iterations; `ring` is that of the first states.

    Raises:
        RunNotFound: a piece is missing or damaged.
    """
    size, (first, low, high, written) = length(ring), _parts(ring, iterations)
    rows, C = np.array(ring.rows), ring.rows.shape[1]
    _put(rows, C, first, arrays["ring/old"])
    for i in range(low, high):
        piece = records.read_arrays(_path(folder, i)).get("rows")
        if piece is None or piece.shape != (rows.shape[0], size, rows.shape[2]):
            raise RunNotFound(
                message(str(_path(folder, i)), "a piece of another replay", "a run goes on with its own pieces",
                        "Start the run again in another folder")
            )  # fmt: skip
        _put(rows, C, i * size, piece)
    _put(rows, C, max(high * size, first) if low < high else written, arrays["ring/new"])
    return jnp.asarray(rows)


def _parts(ring: Ring, iterations: int) -> tuple[int, int, int, int]:
    """The first row in the ring, the first and one past the last whole piece in it, and how many rows were ever written."""
    size, written = length(ring), iterations * ring.each
    first = max(0, written - ring.rows.shape[1])
    return first, -(-first // size), written // size, written


def _path(folder: Path, i: int) -> Path:
    return folder / FOLDER / f"{i:08d}.npz"


def _taken(ring: Ring, start: int, end: int) -> np.ndarray:
    return np.asarray(ring.rows[:, np.arange(start, end) % ring.rows.shape[1]])


def _put(rows: np.ndarray, C: int, start: int, piece: np.ndarray) -> None:
    rows[:, np.arange(start, start + piece.shape[1]) % C] = piece
