"""Places for the states of a network that has none: columns by how many steps a state is from the start."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def places(edges: np.ndarray, start: ArrayLike) -> np.ndarray:
    """[S, 2] across and upwards in [0, 1]; a column's states are ordered by where their roads come from.

    Args:
        edges: [S, S] whether anything goes from one state to the other.
        start: [S] distribution of the first state.

    Example:
        >>> line = np.eye(3, k=1, dtype=bool)
        >>> places(line, [1, 0, 0]).tolist()
        [[0.0, 0.5], [0.5, 0.5], [1.0, 0.5]]
    """
    S = len(edges)
    depth = np.full(S, -1)
    now = np.flatnonzero(np.asarray(start, float) > 0)
    if len(now) > max(1, S // 2) or len(now) == 0:  # it starts anywhere: a circle says no less
        angle = 2 * np.pi * np.arange(S) / S
        return unit(np.stack([-np.cos(angle), np.sin(angle)], axis=1))
    level = 0
    while len(now):
        depth[now] = level
        now = np.flatnonzero(edges[now].any(axis=0) & (depth < 0))
        level += 1
    depth[depth < 0] = level
    depth = _later(edges, depth)
    height = np.zeros(S)
    for column in range(int(depth.max()) + 1):
        members = np.flatnonzero(depth == column)
        before = [height[np.flatnonzero(edges[:, s] & (depth < column))] for s in members]
        order = np.argsort([float(np.mean(h)) if len(h) else 0.5 for h in before], kind="stable")
        for rank, i in enumerate(order):
            height[members[i]] = 1 - (rank + 0.5) / len(members)
    return np.stack([depth / max(1, int(depth.max())), height], axis=1)


def _later(edges: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """A state that is entered from its own column alone stands one column later, as the end of a short cut does."""
    moved = depth.copy()
    for s in np.argsort(depth, kind="stable"):
        beside = edges[:, s] & (moved == moved[s])
        if beside.any() and edges[s].any() and not edges[s, beside].any():
            moved[s] += 0.5
    return np.unique(moved, return_inverse=True)[1]


def unit(values: ArrayLike) -> np.ndarray:
    """Places moved and scaled into the unit square; a side of no length is put into the middle.

    Example:
        >>> unit([[0, 5], [10, 5]]).tolist()
        [[0.0, 0.5], [1.0, 0.5]]
    """
    places = np.asarray(values, float)
    low, span = places.min(axis=0), np.ptp(places, axis=0)
    return np.where(span > 1e-12, (places - low) / np.maximum(span, 1e-12), 0.5)
