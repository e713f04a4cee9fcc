"""Box and Discrete spaces as flat arrays: observations become vectors [o], actions come as vectors [m] or numbers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from gymnasium import Space
from gymnasium.spaces import Box, Discrete

from bilevel_rl.errors import message
from bilevel_rl.host.faults import NotFiniteFromEnvironment, ObservationOutsideSpace, UnsupportedSpace

ROUNDING = 1e-5  # ours: how far beyond a bound, relative to it, is 32-bit rounding


def supported(observation: Space, action: Space, where: str) -> None:
    """Raise `UnsupportedSpace` unless both are Box or Discrete, and the actions are bounded."""
    for word, space in (("observation_space", observation), ("action_space", action)):
        if not isinstance(space, (Box, Discrete)):
            raise UnsupportedSpace(
                message(f"{where}.{word}", type(space).__name__, "Box and Discrete spaces are supported",
                        "Wrap the environment, e.g. in gymnasium.wrappers.FlattenObservation")
            )  # fmt: skip
    if isinstance(action, Box) and not (np.isfinite(action.low).all() and np.isfinite(action.high).all()):
        raise UnsupportedSpace(
            message(f"{where}.action_space", f"bounds {action.low} and {action.high}", "actions need finite bounds",
                    "Wrap it in gymnasium.wrappers.RescaleAction, or give the Box bounds")
        )  # fmt: skip


def size(space: Space) -> int:
    """Numbers of one observation or action: of a Discrete space, how many it offers."""
    return int(space.n) if isinstance(space, Discrete) else math.prod(space.shape or ())


def flat(space: Space, values: Any, where: str) -> np.ndarray:
    """A batch of observations [N, ...] as [N, o] float32; numbers of a Discrete space one-hot.

    Raises:
        ObservationOutsideSpace: another shape than the space, or beyond its bounds.
        NotFiniteFromEnvironment: NaN or infinity; the message says in which environment.
    """
    found = np.asarray(values)
    if found.shape[1:] != space.shape or found.dtype == object:
        raise ObservationOutsideSpace(
            message(where, f"an observation of shape {found.shape[1:]}", f"its space says {space.shape}",
                    "Return what the space promises")
        )  # fmt: skip
    if isinstance(space, Discrete):
        return _one_hot(space, found, where)
    rows = found.reshape(len(found), -1).astype(np.float32)
    finite(rows, where, "an observation")
    assert isinstance(space, Box)
    low, high = space.low.reshape(-1), space.high.reshape(-1)
    outside = (rows < low - ROUNDING * (1 + np.abs(low))) | (rows > high + ROUNDING * (1 + np.abs(high)))
    if outside.any():
        i, j = (int(v) for v in np.argwhere(outside)[0])
        raise ObservationOutsideSpace(
            message(f"{where}, environment {i}, observation[{j}]", f"{rows[i, j]:.6g}",
                    f"its space ends at {low[j]:.6g} and {high[j]:.6g}", "Widen the space, or mend the observation")
        )  # fmt: skip
    return rows


def _one_hot(space: Discrete, found: np.ndarray, where: str) -> np.ndarray:
    index = found.astype(int) - int(space.start)
    if ((index < 0) | (index >= space.n)).any():
        raise ObservationOutsideSpace(
            message(where, f"observation {found.tolist()}", f"the space offers {space.n} from {space.start} on",
                    "Widen the space, or mend the observation")
        )  # fmt: skip
    return np.eye(int(space.n), dtype=np.float32)[index]


def finite(values: np.ndarray, where: str, what: str) -> None:
    """Raise `NotFiniteFromEnvironment` unless all of [N, ...] is finite."""
    if np.isfinite(values).all():
        return
    i = int(np.argwhere(~np.isfinite(values.reshape(len(values), -1)).all(1))[0, 0])
    raise NotFiniteFromEnvironment(
        message(f"{where}, environment {i}", f"{what} {values[i]}", "all numbers must be finite",
                "Mend the environment; the last good step is kept")
    )  # fmt: skip


def as_actions(space: Space, actions: Any, where: str) -> np.ndarray:
    """What a policy chose, as the space wants it: [N, m] clipped to the bounds, or [N] numbers from 0 on.

    Raises:
        ValueError: another shape, or numbers that are not finite.
    """
    given = np.asarray(actions)
    if isinstance(space, Discrete):
        if given.ndim != 1 or (given < 0).any() or (given >= space.n).any():
            raise ValueError(
                message(where, f"actions {given.tolist()}", f"one number in 0..{space.n - 1} for each environment",
                        "Pass an array [N] of whole numbers")
            )  # fmt: skip
        return given.astype(space.dtype) + space.start
    assert isinstance(space, Box)
    if given.ndim != 2 or given.shape[1] != size(space) or not np.isfinite(given).all():
        raise ValueError(
            message(where, f"actions of shape {given.shape}", f"finite numbers [N, {size(space)}]",
                    "Pass one row for each environment")
        )  # fmt: skip
    rows = given.reshape(len(given), *space.shape)
    return np.clip(rows, space.low, space.high).astype(space.dtype)
