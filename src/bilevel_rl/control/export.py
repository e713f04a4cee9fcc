"""Followers to files and back, as safetensors: arrays by the names of their places, nothing that runs when it is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bilevel_rl.errors import RunNotFound, message, require


def save(path: str | Path, learnt: Any, about: dict[str, Any] | None = None) -> None:
    """Write what a follower has learnt.

    Args:
        path: of the file, `*.safetensors`.
        learnt: its tree of arrays, one run.
        about: anything JSON holds: x, the problem's name, settings.

    Raises:
        MissingDependency: the extra `control` is not installed.
    """
    tensors = {name: np.array(leaf, order="C") for name, leaf in _named(learnt)}
    text = {"about": json.dumps(about or {}), "format": "bilevel-rl follower 1"}
    require("safetensors.numpy", "control").save_file(tensors, str(path), metadata=text)


def load(path: str | Path, like: Any) -> Any:
    """Read what a follower has learnt.

    Args:
        like: a tree of the same shapes: what the follower's `init` returns.

    Raises:
        RunNotFound: no such file, or one of another follower; the message names the first array that differs.
    """
    found = _tensors(path)
    for name, leaf in _named(like):
        if name not in found or found[name].shape != leaf.shape or found[name].dtype != leaf.dtype:
            there = f"{found[name].dtype}{list(found[name].shape)}" if name in found else "nothing"
            raise RunNotFound(
                message(f"{path}: {name}", there, f"this follower has {leaf.dtype}{list(leaf.shape)} there",
                        "Make the follower with the settings that were saved")
            )  # fmt: skip
    leaves = [jax.numpy.asarray(found[name]) for name, _ in _named(like)]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def about(path: str | Path) -> dict[str, Any]:
    """What was said of it when it was saved."""
    with require("safetensors", "control").safe_open(str(path), "np") as file:
        return json.loads(file.metadata()["about"])


def _tensors(path: str | Path) -> dict[str, np.ndarray]:
    if not Path(path).is_file():
        raise RunNotFound(message(str(path), "no file", "a follower that was saved", "Check the path"))
    return require("safetensors.numpy", "control").load_file(str(path))


def _named(tree: Any) -> list[tuple[str, np.ndarray]]:
    """Leaves by the path to them, e.g. `actor.params.weights.0`."""
    paths = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [(jax.tree_util.keystr(path, simple=True, separator="."), np.asarray(leaf)) for path, leaf in paths]
