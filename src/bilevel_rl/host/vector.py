"""Several copies of a Gymnasium environment, stepped together; ends are told apart, whatever resets the copies."""

from __future__ import annotations

import functools
import multiprocessing
import sys
import warnings
from collections.abc import Callable, Mapping
from importlib.machinery import PathFinder
from typing import Any, NamedTuple

import cloudpickle  # Gymnasium's own way of sending factories to processes
import gymnasium
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.async_vector_env import AsyncState

from bilevel_rl.errors import InvalidConfig, InvalidProblem, did_you_mean, message
from bilevel_rl.host import made, spaces
from bilevel_rl.host.faults import (
    EnvironmentCrashed,
    EnvironmentFault,
    NotFiniteFromEnvironment,
    SpacesChanged,
)
from bilevel_rl.host.guarded import Guarded

RESUMED = (
    "environments of Gymnasium can't be put back into a state: after a resume they begin new episodes, from new seeds"
)


class HostStep(NamedTuple):
    """One transition of every copy.

    Attributes:
        observation: [N, o] where the action was taken.
        action: [N, m] or [N] as it was carried out.
        reward: [N] the environment's own.
        observation_next: [N, o] where it led: of an episode's last step the last observation, not the next episode's first.
        terminated: [N] the task ended there: nothing comes after.
        truncated: [N] only the clock ran out: values go on, so bootstrap from `observation_next`.
        info: [N, p] the numbers of `info` that were asked for.
        valid: [N] false where the copy was being reset and no transition took place.
    """

    observation: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    observation_next: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    info: np.ndarray
    valid: np.ndarray


class GymnasiumHost:
    """A batch of environments, by id, from a factory, or a vector environment of one's own.

    Copies that the host makes are reset in the step in which they end (`AutoresetMode.SAME_STEP`). A vector environment of
    one's own may have any mode; its `metadata["autoreset_mode"]` says which.

    Args:
        environment: an id that Gymnasium knows, a function that makes an environment, or a `VectorEnv`.
        count: how many copies.
        seed: of all of them; each copy gets a seed of its own.
        processes: a process for each copy: worth it where a step costs a millisecond or more.
        info: names of the numbers of `info` that are kept.
        horizon: steps after which an episode is truncated; by default the environment's own limit.
        timeout: seconds after which a process that does not answer counts as crashed.
        options: for `gymnasium.make`.

    Raises:
        InvalidConfig: an id that Gymnasium does not know; a count below 1.
        UnsupportedSpace: anything but Box and Discrete.

    Example:
        >>> host = GymnasiumHost("Pendulum-v1", count=2, seed=0)
        >>> step = host.step(np.zeros((2, 1)))
        >>> step.observation_next.shape, step.reward.shape, bool(step.truncated.any())
        ((2, 3), (2,), False)
        >>> host.close()

    References:
        Autoreset modes: https://farama.org/Vector-Autoreset-Mode
    """

    def __init__(self, environment: str | Callable[[], gymnasium.Env] | VectorEnv, count: int = 1, *, seed: int = 0,
                 processes: bool = False, info: tuple[str, ...] = (), horizon: int | None = None,
                 timeout: float = 60.0, options: Mapping[str, Any] | None = None):  # fmt: skip
        if count < 1:
            raise InvalidConfig(message("GymnasiumHost.count", count, "at least 1", "Ask for one copy or more"))
        self.where, self.info_names, self.timeout = _named(environment), tuple(info), timeout
        self._env = _made(environment, count, processes, horizon, dict(options or {}), self.where)
        self.count = int(self._env.num_envs)
        self.observation_space = self._env.single_observation_space
        self.action_space = self._env.single_action_space
        spaces.supported(self.observation_space, self.action_space, self.where)
        self.autoreset = AutoresetMode(self._env.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP))
        self.seed, self.steps, self.resets = seed, 0, 0
        self.observation = self.reset()

    # -- what an engine asks for ----------------------------------------------------------------------------------------

    @property
    def observation_size(self) -> int:
        """o; of a Discrete space, how many observations it offers."""
        return spaces.size(self.observation_space)

    @property
    def action_size(self) -> int:
        """m of a Box; how many actions a Discrete space offers."""
        return spaces.size(self.action_space)

    def reset(self) -> np.ndarray:
        """All copies at the start of an episode, with the next seeds of this host: observations [N, o]."""
        seeds = np.random.SeedSequence([self.seed, self.resets]).generate_state(self.count)
        found, _ = self._asked("reset", seed=[int(s) for s in seeds])
        observation = spaces.flat(self.observation_space, found, self.where)
        self.observation, self.resets = observation, self.resets + 1
        self._over = np.zeros(self.count, bool)
        return observation

    def step(self, actions: Any) -> HostStep:
        """One step of every copy, from `observation`, which moves on.

        Args:
            actions: [N, m], clipped to the bounds of the space; or [N] numbers from 0 on.

        Raises:
            EnvironmentFault: one of its kinds; `observation` is then still that of the last good step.
            ValueError: actions of another shape.
        """
        chosen = spaces.as_actions(self.action_space, actions, f"{self.where}.step")
        if len(chosen) != self.count:
            raise ValueError(message(f"{self.where}.step", f"{len(chosen)} actions", f"{self.count}", "Pass one each"))
        found, reward, terminated, truncated, info = self._asked("step", chosen)
        if np.shape(found)[1:] != self.observation_space.shape:
            raise SpacesChanged(
                message(self.where, f"observations of shape {np.shape(found)[1:]}",
                        f"it began with {self.observation_space.shape}", "Keep the spaces for the whole run")
            )  # fmt: skip
        reward = np.asarray(reward, np.float64)
        spaces.finite(reward, self.where, "a reward of")
        current = spaces.flat(self.observation_space, found, self.where)
        ended = np.asarray(terminated, bool) | np.asarray(truncated, bool)
        following, numbers = self._ends(current, ended, info)
        current = self._begun(current, ended)
        done = HostStep(self.observation, np.asarray(actions), reward, following, np.asarray(terminated, bool),
                        np.asarray(truncated, bool) & ~np.asarray(terminated, bool), numbers, ~self._over)  # fmt: skip
        self._over = ended if self.autoreset == AutoresetMode.NEXT_STEP else np.zeros(self.count, bool)
        self.observation, self.steps = current, self.steps + 1
        return done

    def picture(self) -> np.ndarray | None:
        """What the first copy shows now, [h, w, 3] of bytes; None where it was not made to be drawn, or can't be here."""
        if isinstance(self._env, AsyncVectorEnv) or self._env.render_mode != "rgb_array":
            return None
        try:
            shown = self._env.render()
        except Exception:  # whatever a display, a driver or a missing package says: pictures are no part of the result
            return None
        first = np.asarray(shown[0]) if shown else np.zeros(0)
        return first.astype(np.uint8) if first.ndim == 3 and first.shape[2] == 3 else None

    def close(self) -> None:
        """End the copies and their processes."""
        self._env.close()

    # -- resuming -------------------------------------------------------------------------------------------------------

    def position(self) -> dict[str, int]:
        """How far this host has come, for a checkpoint."""
        return {"seed": self.seed, "resets": self.resets, "steps": self.steps}

    def resumed(self, position: Mapping[str, int]) -> str:
        """Go on after a checkpoint with new episodes; says in words what could not be restored."""
        self.seed, self.resets, self.steps = position["seed"], position["resets"], position["steps"]
        self.reset()
        return RESUMED

    # -- the modes of resetting -----------------------------------------------------------------------------------------

    def _ends(self, current: np.ndarray, ended: np.ndarray, info: Mapping) -> tuple[np.ndarray, np.ndarray]:
        """Where each transition led [N, o], and its numbers of `info` [N, p]."""
        following, replaced = current, self.autoreset == AutoresetMode.SAME_STEP and ended.any()
        if replaced:
            last = np.stack([np.asarray(info["final_obs"][i]) for i in np.flatnonzero(ended)])
            following = current.copy()
            following[ended] = spaces.flat(self.observation_space, last, f"{self.where}, last observation")
        numbers = np.zeros((self.count, len(self.info_names)))
        for j, name in enumerate(self.info_names):
            numbers[:, j] = self._numbers(name, info, ended if replaced else np.zeros(self.count, bool))
        spaces.finite(numbers, self.where, f"info {list(self.info_names)} of")
        return following, numbers

    def _numbers(self, name: str, info: Mapping, replaced: np.ndarray) -> np.ndarray:
        """One number of `info` [N]; of copies that were reset in this step, that of their last transition."""
        last = info.get("final_info", {})
        wanted = ~self._over
        there = np.where(replaced, last.get(f"_{name}", False), info.get(f"_{name}", name in info))
        if (wanted & ~there.astype(bool)).any():
            known = sorted(key for key in {*info, *last} if not key.startswith(("_", "final")))
            raise InvalidProblem(
                message(f"{self.where}.info", f"no {name!r}", did_you_mean(name, known), "Name what every step returns")
            )
        values = np.where(replaced, last.get(name, 0.0), info.get(name, 0.0))
        if values.dtype == object or values.shape != (self.count,):
            raise NotFiniteFromEnvironment(
                message(f"{self.where}.info[{name!r}]", repr(values), "one number a step", "Name another, or return one")
            )
        return np.where(wanted, values, 0.0)

    def _begun(self, current: np.ndarray, ended: np.ndarray) -> np.ndarray:
        """Where the next actions are taken: a vector environment without autoreset is reset where it ended."""
        if self.autoreset != AutoresetMode.DISABLED or not ended.any():
            return current
        found, _ = self._asked("reset", options={"reset_mask": ended})
        return spaces.flat(self.observation_space, found, self.where)

    def _asked(self, verb: str, *args: Any, **options: Any) -> Any:
        """Call the copies; whatever goes wrong in them has a name."""
        try:
            if not isinstance(self._env, AsyncVectorEnv):
                return getattr(self._env, verb)(*args, **options)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Gymnasium announces an error of a copy as a warning besides
                getattr(self._env, f"{verb}_async")(*args, **options)
                return getattr(self._env, f"{verb}_wait")(timeout=self.timeout)
        except EnvironmentFault:
            raise
        except (EOFError, OSError, multiprocessing.TimeoutError) as error:
            self._end_processes()
            raise EnvironmentCrashed(
                message(f"{self.where}.{verb}", f"{type(error).__name__} from the process of a copy",
                        f"a process must answer within {self.timeout:g} s",
                        "Look for what ended it (memory, a crash in native code); the last good step is kept")
            ) from error  # fmt: skip
        except Exception as error:
            raise EnvironmentCrashed(
                message(f"{self.where}.{verb}", f"{type(error).__name__}: {error}", "an environment must not raise",
                        "Mend it; the last good step is kept")
            ) from error  # fmt: skip

    def _end_processes(self) -> None:
        assert isinstance(self._env, AsyncVectorEnv)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._env._state = AsyncState.DEFAULT  # else it would wait for the answer of what is dead
            self._env.close(terminate=True)


def _named(environment: Any) -> str:
    if isinstance(environment, str):
        return environment
    return getattr(environment, "__name__", type(environment).__name__)


def _made(environment: Any, count: int, processes: bool, horizon: int | None, options: dict, where: str) -> VectorEnv:
    if isinstance(environment, VectorEnv):
        return environment
    if isinstance(environment, gymnasium.Env):
        raise InvalidConfig(
            message("GymnasiumHost.environment", f"an environment of class {type(environment).__name__}",
                    "several copies are made, so it takes an id or a function that makes one",
                    "Pass lambda: YourEnvironment()")
        )  # fmt: skip
    make = functools.partial(_one, environment, horizon, options, where)
    if not processes:
        return SyncVectorEnv([make] * count, autoreset_mode=AutoresetMode.SAME_STEP)
    if not isinstance(environment, str):
        _carried_along(environment)
    try:  # a fork of a process in which JAX or Torch has threads may hang
        return AsyncVectorEnv([make] * count, autoreset_mode=AutoresetMode.SAME_STEP, context="forkserver")
    except (EOFError, OSError) as error:
        raise EnvironmentCrashed(
            message(where, f"{type(error).__name__} from the process of a copy as it began",
                    "a process must be able to make the environment", "Try it with processes=False, which says more")
        ) from error  # fmt: skip


def _carried_along(environment: Any) -> None:
    """A function of a file that other processes can't import is sent to them with its code."""
    name = str(getattr(environment, "__module__", type(environment).__module__))
    if name != "__main__" and PathFinder.find_spec(name.partition(".")[0], sys.path) is None:
        cloudpickle.register_pickle_by_value(sys.modules[name])


def _one(environment: Any, horizon: int | None, options: dict, where: str) -> gymnasium.Env:
    """One guarded copy."""
    if isinstance(environment, str):
        env = made.by_id(environment, options, "GymnasiumHost.environment")
    else:
        env = environment(**options)
    if horizon is not None:
        env = gymnasium.wrappers.TimeLimit(env, horizon)
    return Guarded(env, where)
