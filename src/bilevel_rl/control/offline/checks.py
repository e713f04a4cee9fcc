"""What is wrong with a data set is said before anything learns from it."""

from __future__ import annotations

import numpy as np

from bilevel_rl.control.environment import OPEN, Environment
from bilevel_rl.control.offline.data import OfflineData
from bilevel_rl.errors import InvalidProblem, message

SLACK = 1e-4  # ours: by which a number may leave its bounds, of their size: files keep 32 bits
SHARE = 0.01  # ours: rows outside the bounds of observations from which on it is another environment's data


def check_data(data: OfflineData, environment: Environment) -> None:
    """Raise `InvalidProblem` unless a data set can be learnt from in an environment.

    Looked at: how many rows, finite numbers, names and shapes, bounds of actions and observations, ends of episodes, and
    that each observation is where the step before it led.

    Example:
        >>> from bilevel_rl.control.environments import Pendulum
        >>> from bilevel_rl.control.offline.data import StoredEpisode
        >>> far = OfflineData.of("pendulum", [StoredEpisode(np.zeros((3, 3)), np.full((2, 1), 9.0), np.zeros(2), False)])
        >>> check_data(far, Pendulum())
        Traceback (most recent call last):
        ...
        bilevel_rl.errors.InvalidProblem: data of pendulum: got an action of 9 in row 0, coordinate 0; it must be in ...
    """
    where = f"data of {data.environment}"
    _check_size(where, data)
    _check_kind(where, data, environment)
    _check_finite(where, data)
    _check_actions(where, data, environment)
    _check_observations(where, data, environment)
    _check_ends(where, data)


def check_compiled(environment: Environment) -> None:
    """Raise `InvalidProblem` for an environment that steps outside compiled code, in which nothing here can play."""
    if environment.outside:
        raise _refuse(f"environment {environment.name}", "steps outside compiled code", "policies are played inside",
                      "Write it in JAX, or play the learnt networks yourself")  # fmt: skip


def _refuse(where: str, got: str, allowed: str, fix: str) -> InvalidProblem:
    return InvalidProblem(message(where, got, allowed, fix))


def _check_size(where: str, data: OfflineData) -> None:
    if len(data) < 2:
        what = "no transitions" if len(data) == 0 else "one transition"
        raise _refuse(where, what, "there must be at least two", "Collect whole episodes")
    odd = {name for name in ("obs", "action", "next_obs", "info", "terminated", "over", "source")
           if len(getattr(data, name)) != len(data)}  # fmt: skip
    if odd:
        raise _refuse(where, f"{len(data)} rewards beside other numbers of {', '.join(sorted(odd))}",
                      "a row has all of them", "Cut them to the same length")  # fmt: skip


def _check_kind(where: str, data: OfflineData, environment: Environment) -> None:
    if data.environment != environment.name:
        raise _refuse(where, f"the environment {environment.name!r}", f"these transitions are of {data.environment!r}",
                      "Name the environment that they were collected in")  # fmt: skip
    o = environment.observation.size
    if data.obs.shape[1:] != (o,) or data.next_obs.shape[1:] != (o,):
        raise _refuse(where, f"observations {list(data.obs.shape[1:])}", f"{environment.name} has [{o}]",
                      "Name the environment that they were collected in")  # fmt: skip
    numbered = hasattr(environment.action, "n")
    wanted = () if numbered else (environment.action.size,)
    if data.action.shape[1:] != wanted or np.issubdtype(data.action.dtype, np.integer) != numbered:
        kind = f"numbers below {environment.action.n}" if numbered else f"vectors [{environment.action.size}]"
        raise _refuse(where, f"actions {data.action.dtype}{list(data.action.shape[1:])}",
                      f"those of {environment.name} are {kind}",
                      "Name the environment that they were collected in")  # fmt: skip


def _check_finite(where: str, data: OfflineData) -> None:
    for name in ("obs", "action", "reward", "next_obs", "info"):
        values = getattr(data, name)
        bad = np.flatnonzero(~np.isfinite(values.reshape(len(data), -1)).all(1))
        if len(bad):
            raise _refuse(where, f"{len(bad)} rows of {name} that are not finite, row {bad[0]} the first",
                          "all numbers must be finite", "Leave out the episodes that they are in")  # fmt: skip


def _check_actions(where: str, data: OfflineData, environment: Environment) -> None:
    space = environment.action
    if hasattr(space, "n"):
        low, high = np.zeros(1), np.array([space.n - 1.0])
    else:
        low, high = np.asarray(space.low), np.asarray(space.high)
    values = data.action.reshape(len(data), -1).astype(float)
    slack = SLACK * np.where(np.maximum(abs(low), abs(high)) < OPEN, high - low, 0.0)
    bad = np.argwhere((values < low - slack) | (values > high + slack))
    if len(bad):
        row, i = bad[0]
        raise _refuse(where, f"an action of {values[row, i]:g} in row {row}, coordinate {i}",
                      f"it must be in [{low[i]:g}, {high[i]:g}] ({len(bad)} are not)",
                      "Scale actions to the environment's box, or name their own environment")  # fmt: skip


def _check_observations(where: str, data: OfflineData, environment: Environment) -> None:
    low, high = np.asarray(environment.observation.low), np.asarray(environment.observation.high)
    reach = np.maximum(abs(low), abs(high))
    slack = np.where(reach < OPEN, 0.01 * reach, 0.0)
    outside = (data.obs < low - slack) | (data.obs > high + slack)
    share = outside.any(1).mean()
    if share > SHARE:
        row, i = np.argwhere(outside)[0]
        raise _refuse(where, f"{100 * share:.0f} % of observations outside their bounds, {data.obs[row, i]:g} in row {row}, "
                      f"coordinate {i}, the first", f"those of {environment.name} are in [{low[i]:g}, {high[i]:g}]",
                      "This looks like another environment's data, or like scaled observations")  # fmt: skip


def _check_ends(where: str, data: OfflineData) -> None:
    early = np.flatnonzero(data.terminated & ~data.over)
    if len(early):
        raise _refuse(where, f"a task that ends in row {early[0]} and an episode that goes on", "an end is the last row",
                      "Split episodes where they end")  # fmt: skip
    if not data.over[-1]:
        raise _refuse(where, "a last episode without an end", "its last row is `over`: terminated or cut",
                      "Mark the row as cut")  # fmt: skip
    inside = np.flatnonzero(~data.over[:-1])
    broken = inside[(data.next_obs[inside] != data.obs[inside + 1]).any(1)]
    if len(broken):
        raise _refuse(where, f"row {broken[0] + 1}, whose observation is not where row {broken[0]} of the same episode led",
                      "an episode is one piece", "It was cut in the middle, or its rows were shuffled: mark the cut in "
                      "`over`, or restore the order")  # fmt: skip
