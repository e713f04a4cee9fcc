"""What a model is made of, read and checked: finite numbers, rows that sum to one, successors in range, ends that are ends.

Everything is NumPy: a model is built once, outside of compiled programs. Each error names the entry at fault.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from numpy.typing import ArrayLike

from bilevel_rl.errors import InvalidProblem, message

TOLERANCE = 1e-8  # ours: how far a row of probabilities may be from 1, in 64 bit
ROUNDING = 8  # ours: and how many units of its type's rounding, times the root of its length
EXACT = 1e-12  # ours: rows that miss 1 by less are left as they are


def absorbing(ends: ArrayLike, successors: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """The ends as truth values, once it is sure that none can be left."""
    marked = np.asarray(ends, bool)
    S = len(successors)
    if marked.shape != (S,):
        raise InvalidProblem(
            message("FiniteMDP.ends", f"shape {marked.shape}", f"it must be [{S}]", "Give one truth value a state")
        )
    left = (probabilities > 0) & (successors != np.arange(S)[:, None, None]) & marked[:, None, None]
    if left.any():
        state = int(np.argwhere(left)[0][0])
        raise InvalidProblem(
            message(f"FiniteMDP.ends[{state}]", "a state that can be left", "an end leads to itself for ever",
                    "Let its successors be itself, or do not mark it")
        )  # fmt: skip
    return marked


def successor_rows(
    successors: np.ndarray, probabilities: ArrayLike, states: int, offered: np.ndarray | None, first: int = 0,
    where: str = "FiniteMDP.",
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Successors and probabilities of some states, checked; an action that is not offered is a loop that nobody takes.

    Args:
        successors, probabilities: [B, A, K] of the states from `first` on.
        states: S.
        offered: [B, A].
        where: for errors.
    """
    given, probabilities = probabilities, real_numbers(f"{where}probabilities", probabilities, ignore=offered)
    if successors.ndim != 3 or successors.shape != probabilities.shape or 0 in successors.shape:
        raise InvalidProblem(
            message(f"{where}successors", f"shapes {successors.shape} and {probabilities.shape}",
                    "successors and probabilities must both be [S, A, K]", "Give both the same shape")
        )  # fmt: skip
    if offered is not None:
        check_offered(offered, successors.shape[:2])
        itself = np.arange(first, first + len(successors))[:, None, None]
        successors = np.where(offered[..., None], successors, itself)
        probabilities = np.where(offered[..., None], probabilities, np.arange(successors.shape[2]) == 0)
    if not np.issubdtype(successors.dtype, np.integer) or successors.min() < 0 or successors.max() > states:
        raise InvalidProblem(
            message(f"{where}successors", f"{successors.dtype} in [{successors.min()}, {successors.max()}]",
                    f"indices must be integers in 0..{states} ({states} restarts the episode)", "Number the states from 0")
        )  # fmt: skip
    return successors, distributions(f"{where}probabilities", probabilities, given)


def check_offered(offered: np.ndarray, want: tuple[int, ...]) -> None:
    """Raise `InvalidProblem` unless each of S states offers one of A actions, [S, A] = `want`."""
    if offered.shape != want or not offered.any(1).all():
        raise InvalidProblem(
            message("FiniteMDP.allowed", f"shape {list(offered.shape)}, {offered.sum()} actions allowed",
                    f"it must be [S, A] = {list(want)} with at least one action a state", "Allow one in each state")
        )  # fmt: skip


def as_offered(allowed: ArrayLike | None) -> np.ndarray | None:
    """Which actions states offer as truth values; None where every state offers all."""
    return None if allowed is None else np.asarray(allowed, bool)


def real_numbers(where: str, values: ArrayLike, ignore: np.ndarray | None = None) -> np.ndarray:
    """The values as finite 64-bit numbers; entries of actions that are not offered may be anything, and become 0."""
    fault, fix, array = "", "Give real numbers", None
    if isinstance(values, jax.core.Tracer):
        fault, fix = "a traced value", "Build the MDP once, and move it inside with with_probabilities or with_start"
    elif isinstance(values, np.ma.MaskedArray):
        fault, fix = "a masked array", "Fill it first, with `.filled(...)`"
    else:
        try:
            raw = np.asarray(values)
            array = raw.astype(float) if not np.iscomplexobj(raw) else None
            fault = "" if array is not None else "complex numbers"
        except (TypeError, ValueError) as error:
            fault = f"{type(values).__name__} ({error})"
    if array is None:
        raise InvalidProblem(message(where, fault, "an array of real numbers is expected", fix))
    if ignore is not None and array.shape[:2] == ignore.shape:
        array = np.where(ignore.reshape(ignore.shape + (1,) * (array.ndim - 2)), array, 0.0)
    if not np.isfinite(array).all():
        index = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        raise InvalidProblem(
            message(f"{where}{list(index)}", array[index], "every entry must be a finite number",
                    "Replace NaN and infinity: an action that a state does not offer is marked in `allowed`")
        )  # fmt: skip
    return array


def real_number(where: str, value: Any) -> float:
    """The value as one finite number."""
    array = real_numbers(where, value)
    if array.size != 1:
        raise InvalidProblem(message(where, f"shape {list(array.shape)}", "it must be one number", "Give one number"))
    return float(array.reshape(()))


def distributions(
    where: str, rows: np.ndarray, given: Any = None, offered: np.ndarray | None = None
) -> np.ndarray:
    """Rows that sum to one: what is off by the rounding of the type they were given in is clipped and normalised.

    Raises:
        InvalidProblem: a negative entry, or a row that sums to something else; the message has the deviation.
    """
    kind = getattr(given, "dtype", None)
    coarse = np.finfo(kind).eps if kind is not None and np.issubdtype(kind, np.floating) else np.finfo(float).eps
    allowed = max(TOLERANCE, ROUNDING * float(coarse) * np.sqrt(rows.shape[-1]))
    if (rows < -allowed).any():
        index = [int(i) for i in np.argwhere(rows < -allowed)[0]]
        raise InvalidProblem(
            message(f"{where}{index}", rows[tuple(index)], "probabilities must be at least 0", "Remove the sign")
        )
    clipped = np.maximum(rows, 0.0)
    total = clipped.sum(axis=-1)
    off = np.abs(total - 1)
    if offered is not None and offered.shape == off.shape:
        off = np.where(offered, off, 0.0)
    if (off > allowed).any():
        index = [int(i) for i in np.argwhere(off > allowed)[0]] if off.ndim else []
        got = f"{total[tuple(index)]:.6g}"
        raise InvalidProblem(
            message(f"{where}{index or ''}",
                    f"a row that sums to {got}" + (f" {total[tuple(index)] - 1:+.3g}" if got == "1" else ""),
                    "each row must sum to 1", "Normalise the row or add the missing transition")
        )  # fmt: skip
    inexact = (off > EXACT) | (rows < 0).any(axis=-1)
    return np.where(inexact[..., None], clipped / np.where(total > 0, total, 1.0)[..., None], rows)
