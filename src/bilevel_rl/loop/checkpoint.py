"""What a checkpoint holds: the state of a batch of runs as arrays, and the fingerprint of what it belongs to."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bilevel_rl import __version__, records
from bilevel_rl.errors import RunNotFound, message
from bilevel_rl.loop.solver import Solver, State

FILE = "checkpoint.npz"
SECONDS = 5.0  # ours: at most this much work is lost to a kill


def fingerprint(*parts: Any) -> str:
    """Of everything on which the numbers depend: structures and every array in them."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(str(jax.tree.structure(part)).encode())
        for leaf in jax.tree.leaves(part):
            digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


def packed(solver: Solver, states: State) -> dict[str, np.ndarray]:
    """What the solver wants saved of its states, by place: `state/0`, `state/1`, ..."""
    return {f"state/{i}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(solver.checkpointed(states)))}


def unpacked(solver: Solver, states: State, arrays: dict[str, np.ndarray]) -> State:
    """The states of which `packed` saved these arrays; `states` are the first ones of the same runs."""
    leaves, structure = jax.tree.flatten(solver.checkpointed(states))
    saved = jax.tree.unflatten(structure, [jnp.asarray(arrays[f"state/{i}"]) for i in range(len(leaves))])
    return solver.restored(states, saved)


def read(path: Path, expected: str, word: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays and notes of a checkpoint.

    Args:
        expected: the fingerprint that it must have.
        word: `run` or `search`.

    Raises:
        RunNotFound: missing, half-written, or of something else.
    """
    arrays = records.read_arrays(path)
    try:
        meta = json.loads(str(arrays.pop("meta")))
        mark = meta["fingerprint"]
    except (KeyError, ValueError, TypeError) as error:  # another file under its name
        raise RunNotFound(
            message(str(path), f"arrays without the notes of a checkpoint ({type(error).__name__})",
                    f"a {word} goes on from a checkpoint of its own", f"Start the {word} again in another folder")
        ) from error  # fmt: skip
    if mark != expected:
        wrote = records.written_by(path.parent)
        if wrote not in ("", __version__):
            raise RunNotFound(
                message(str(path), f"a checkpoint that bilevel-rl {wrote} wrote; this is {__version__}",
                        f"a {word} goes on under the version that keeps its state in the same form",
                        f"Go on with bilevel-rl {wrote}, or start a new {word} in another folder; `report` reads this one")
            )  # fmt: skip
        budget = "schedule" if word == "run" else "budget"
        raise RunNotFound(
            message(str(path), f"a checkpoint of another problem, solver, seed or {budget}",
                    f"a {word} goes on only with the configuration it was started with",
                    f"Start a new {word} in another folder")
        )  # fmt: skip
    return arrays, meta
