"""Pictures that move: what the browser draws for one run of a method, on a grid, on a network or along an episode."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from bilevel_rl.report import layered
from bilevel_rl.report.collect import MethodRuns

NUMBERS = 240_000  # ours: the scenes of a page hold about this many numbers together, a byte each
GRID = ("rows", "columns", "cells", "arrows", "policy", "visitation")
PATHS = ("segments", "points", "bars", "goals")  # of an environment's frames, in its own unit; walls are drawn below them
NAMED = 4  # ours: upper variables that a reading names


def scene(method: MethodRuns, numbers: int = NUMBERS) -> dict[str, Any] | None:
    """Frames of the first run, or None where the run folder holds nothing to draw.

    Args:
        numbers: how many the frames may hold together.

    Returns:
        `kind` ("grid", "network" or "episode") and what `pictures.js` reads of it. Arrays of frames are bytes in base 64,
        255 standing for 1.
    """
    arrays = method.scene
    if all(key in arrays for key in GRID):
        return grid(method, numbers)
    if {"flow", "visitation", "start"} <= arrays.keys():
        return network(method, numbers)
    if any(f"path_{key}" in arrays for key in PATHS):
        return episode(method)
    return None


def grid(method: MethodRuns, numbers: int) -> dict[str, Any]:
    """Visitation and policy cell by cell; states that share a cell are drawn as one, each as often as it is met."""
    arrays = method.scene
    met = np.asarray(arrays["visitation"]) * ~np.asarray(arrays.get("ends", np.zeros(1, bool)), bool)  # over: nowhere
    policy, visitation, cells = _by_cell(np.asarray(arrays["policy"]), met, np.asarray(arrays["cells"]))
    keep = _kept(method, len(policy), policy[0].size + visitation[0].size, numbers)
    marker = arrays.get("marker")
    placed = None if marker is None or not np.isfinite(marker).all() else np.round(marker[keep].astype(float), 3).tolist()
    walls = np.asarray(arrays.get("walls", np.zeros((0, 4)))).reshape(-1, 4)
    return _about(method, keep) | {
        "kind": "grid", "rows": int(arrays["rows"]), "columns": int(arrays["columns"]),
        "cells": cells.tolist(), "arrows": arrays["arrows"].tolist(),
        "letters": [str(row) for row in np.atleast_1d(arrays.get("letters", np.zeros(0, str)))],
        "walls": walls.astype(int).tolist(),
        "policy": packed(policy[keep]), "visitation": packed(_relative(visitation[keep])), "marker": placed,
        "names": [f"({row}, {column})" for row, column in cells.astype(int)],
    }  # fmt: skip


def _by_cell(policy: np.ndarray, visitation: np.ndarray, cells: np.ndarray) -> tuple[np.ndarray, ...]:
    """Policies [F, C, A] and visitation [F, C] of the cells that differ."""
    places, index = np.unique(cells, axis=0, return_inverse=True)
    if len(places) == len(cells):
        return policy, visitation, cells
    index = index.ravel()
    met = np.zeros((len(policy), len(places)))
    taken = np.zeros((len(policy), len(places), policy.shape[2]))
    for s, c in enumerate(index):
        met[:, c] += visitation[:, s]
        taken[:, c] += visitation[:, s, None] * policy[:, s]
    return taken / np.maximum(met, 1e-12)[:, :, None], met, places


def network(method: MethodRuns, numbers: int) -> dict[str, Any]:
    """What flows from state to state, and where the states lie."""
    arrays = method.scene
    flow = np.asarray(arrays["flow"], float)
    S = flow.shape[1]
    used = (flow.max(axis=0) > 1e-6) & ~np.eye(S, dtype=bool)
    edges = np.argwhere(used)
    keep = _kept(method, len(flow), len(edges) + S, numbers)
    series = flow[:, used][keep]
    visitation = np.asarray(arrays["visitation"], float)[keep]
    places = arrays.get("places")
    return _about(method, keep) | {
        "kind": "network", "names": state_names(arrays, S), "edges": edges.tolist(),
        "places": np.round(layered.places(used, arrays["start"]) if places is None else layered.unit(places), 4).tolist(),
        "flow": packed(series / max(float(series.max(initial=0)), 1e-12)),
        "share": [[float(f"{v:.3g}") for v in series[-1]]],
        "visitation": packed(_relative(visitation)),
    }  # fmt: skip


def episode(method: MethodRuns) -> dict[str, Any]:
    """The path of the follower at the last record, frame by frame."""
    paths = {key: np.asarray(method.scene[f"path_{key}"][-1], float) for key in PATHS if f"path_{key}" in method.scene}
    walls = method.scene.get("path_walls")
    swap = walls is not None  # a place in a maze is row and column
    drawn = {key: np.round(v[:, :, ::-1] if swap else v, 3) for key, v in paths.items()}
    found = np.concatenate([v.reshape(-1, 2) for v in drawn.values()])
    low, high = found.min(axis=0), found.max(axis=0)
    if walls is not None:
        low, high = np.full(2, -0.5), np.array(walls[-1][0].shape[::-1]) - 0.5
    return {
        "kind": "episode", "frames": len(next(iter(drawn.values()))), "paths": {k: v.tolist() for k, v in drawn.items()},
        "walls": None if walls is None else np.asarray(walls[-1][0]).astype(int).tolist(),
        "low": low.round(3).tolist(), "high": high.round(3).tolist(), "flip": not swap,
    }  # fmt: skip


def _about(method: MethodRuns, keep: np.ndarray) -> dict[str, Any]:
    """What is read beside every frame: samples, iteration, objective, x."""
    trace = method.runs[0].trace
    objective, x = trace.get("objective"), trace.get("x")
    named = method.names() if x is not None and x.shape[-1] <= NAMED else []
    return {
        "frames": len(keep), "samples": [float(v) for v in trace["samples"][0, keep]],
        "iteration": [float(v) for v in trace["iteration"][0, keep]],
        "objective": None if objective is None else [float(f"{v:.5g}") for v in objective[0, keep]],
        "x_names": named, "x": [[float(f"{v:.4g}") for v in row] for row in x[0, keep]] if named and x is not None else [],
    }  # fmt: skip


def _kept(method: MethodRuns, frames: int, each: int, numbers: int) -> np.ndarray:
    """Which frames are drawn."""
    frames = min(frames, method.runs[0].trace["samples"].shape[1])
    return np.unique(np.linspace(0, frames - 1, max(2, min(frames, numbers // max(1, each)))).round().astype(int))


def state_names(arrays: dict[str, np.ndarray], S: int) -> list[str]:
    """The states' names; a cell of a grid by row and column, else numbers."""
    given = arrays.get("state_names")
    if given is not None and len(given) == S:
        return [str(name) for name in given]
    if "cells" in arrays and len(arrays["cells"]) == S:
        return [f"({row}, {column})" for row, column in np.asarray(arrays["cells"]).astype(int)]
    return [str(s) for s in range(S)]


def _relative(values: np.ndarray) -> np.ndarray:
    """Each frame's largest is 1."""
    low = np.minimum(values.min(axis=1, keepdims=True), 0)
    return (values - low) / np.maximum((values - low).max(axis=1, keepdims=True), 1e-12)


def packed(values: np.ndarray) -> str:
    """Numbers from 0 to 1 as bytes in base 64.

    Example:
        >>> packed(np.array([0.0, 1.0]))
        'AP8='
    """
    return base64.b64encode(np.round(np.clip(values, 0, 1) * 255).astype(np.uint8).tobytes()).decode()
