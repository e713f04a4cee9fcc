"""The grid in motion: what the browser draws for one run of a method, as plain numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from bilevel_rl.report.collect import MethodRuns

NUMBERS = 250_000  # ours: a scene holds at most about this many, so that a page stays a few megabytes
NEEDED = ("rows", "columns", "cells", "arrows", "policy", "visitation", "reward")


def scene(method: MethodRuns) -> dict[str, Any] | None:
    """Frames of the first run, or None where the run folder holds no scene.

    Returns:
        rows, columns, cells [S, 2], arrows [A, 2], and by frame: policy [F, S, A], visitation [F, S] and reward [F, S]
        (each frame's largest is 1), marker [F, 2] or null, samples, objective.
    """
    arrays = method.scene
    if not all(key in arrays for key in NEEDED):
        return None
    trace = method.runs[0].trace
    frames = min(len(arrays["policy"]), trace["samples"].shape[1])
    each = arrays["policy"][0].size + 2 * arrays["visitation"][0].size
    keep = np.unique(np.linspace(0, frames - 1, max(2, min(frames, NUMBERS // each))).round().astype(int))
    marker = arrays.get("marker")
    placed = None if marker is None or not np.isfinite(marker).all() else _digits(marker[keep])
    objective = trace.get("objective")
    return {
        "rows": int(arrays["rows"]), "columns": int(arrays["columns"]),
        "cells": arrays["cells"].tolist(), "arrows": arrays["arrows"].tolist(),
        "policy": _digits(arrays["policy"][keep]), "visitation": _digits(_relative(arrays["visitation"][keep])),
        "reward": _digits(_relative(arrays["reward"][keep])),
        "marker": placed,
        "samples": [float(v) for v in trace["samples"][0, keep]],
        "iteration": [float(v) for v in trace["iteration"][0, keep]],
        "objective": None if objective is None else [float(f"{v:.5g}") for v in objective[0, keep]],
    }  # fmt: skip


def _relative(values: np.ndarray) -> np.ndarray:
    low = np.minimum(values.min(axis=1, keepdims=True), 0)
    return (values - low) / np.maximum((values - low).max(axis=1, keepdims=True), 1e-12)


def _digits(values: np.ndarray) -> list:
    return np.round(values.astype(float), 3).tolist()
