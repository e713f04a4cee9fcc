"""Doors between this engine and Gymnasium's world: x as a reward, and own environments as Gymnasium's."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import equinox as eqx
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs

from bilevel_rl.control.environment import Box, Discrete, Environment
from bilevel_rl.control.problem import ControlProblem, Transition
from bilevel_rl.errors import InvalidProblem, did_you_mean, message


class RewardWrapper(gymnasium.Wrapper, RecordConstructorArgs):
    """An environment that pays what x pays: any agent that learns in Gymnasium's environments answers x in it.

    `info` keeps what the environment paid by itself (`own_reward`) and what the transition is worth to the leader
    (`leader_utility`). The wrapper passes `gymnasium.utils.env_checker.check_env` where the environment does.

    Args:
        env: a Gymnasium environment with the problem's observations and actions.
        problem: says what is paid.
        x: [d]; the problem's x0 when None.

    Raises:
        InvalidProblem: an environment of other spaces than the problem's, or whose `info` lacks a number.

    Example:
        >>> from bilevel_rl.control.problems import PendulumShaping
        >>> env = RewardWrapper(gymnasium.make("Pendulum-v1"), PendulumShaping(), x=[4.0, 0.0, 0.0, 0.0])
        >>> _ = env.reset(seed=0)
        >>> sorted(env.step(np.zeros(1, np.float32))[4])
        ['leader_utility', 'own_reward']
    """

    def __init__(self, env: gymnasium.Env, problem: ControlProblem, x: Any = None):
        RecordConstructorArgs.__init__(self, problem=problem, x=x)  # so that Gymnasium can make it again
        gymnasium.Wrapper.__init__(self, env)
        check_same_spaces(problem.environment, env)
        self.problem = problem
        self._names = problem.environment.info_names
        self._arrays, self._rest = eqx.partition(problem, eqx.is_array)
        self.x = np.asarray(problem.x0 if x is None else x, float)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        """As Gymnasium's."""
        observation, info = self.env.reset(seed=seed, options=options)
        self._before = flat(self.problem.environment, observation)
        return observation, info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        """As Gymnasium's, paid by x."""
        observation, own, terminated, truncated, info = self.env.step(action)
        after = flat(self.problem.environment, observation)
        discrete = isinstance(self.problem.environment.action, Discrete)
        kind = np.int32 if discrete else np.float32
        t = Transition(self._before, np.asarray(action, kind).reshape(() if discrete else -1), after, np.float32(own),
                       numbers(self._names, info), np.bool_(terminated))  # fmt: skip
        reward, utility = _paid(self._arrays, self._rest, self.x, t)
        self._before = after
        info = {**info, "own_reward": float(own), "leader_utility": float(utility)}
        return observation, float(reward), bool(terminated), bool(truncated), info


@partial(jax.jit, static_argnums=1)  # compiled once for all wrappers of a problem
def _paid(arrays: Any, rest: Any, x: Any, t: Transition) -> tuple[Any, Any]:
    problem = eqx.combine(arrays, rest)
    return problem.reward(x, problem.features(t)), problem.utility(x, t)


def flat(environment: Environment, observation: Any) -> np.ndarray:
    """[o] float32; a number of a Discrete space one-hot."""
    size = environment.observation.size
    if np.ndim(observation) == 0:
        return np.eye(size, dtype=np.float32)[int(observation)]
    return np.asarray(observation, np.float32).reshape(-1)


def numbers(names: tuple[str, ...], info: Mapping[str, Any]) -> np.ndarray:
    """[p] of `info`, by name.

    Raises:
        InvalidProblem: one is missing.
    """
    missing = [name for name in names if name not in info]
    if missing:
        raise InvalidProblem(
            message("RewardWrapper: info", f"no {missing[0]!r}", did_you_mean(missing[0], list(info)),
                    "Let the environment's step return it")
        )  # fmt: skip
    return np.asarray([info[name] for name in names], np.float32)


def check_same_spaces(environment: Environment, env: gymnasium.Env) -> None:
    """Raise `InvalidProblem` unless a Gymnasium environment has the observations and actions of a problem's."""
    for word, own, other in (
        ("observations", environment.observation, env.observation_space), ("actions", environment.action, env.action_space),
    ):  # fmt: skip
        wanted = ("numbered", own.n) if isinstance(own, Discrete) else ("vector", own.size)
        found = _kind(other, word)
        if found != wanted:
            raise InvalidProblem(
                message("RewardWrapper", f"{word} {other} of the environment", f"the problem's are {own}",
                        "Wrap the environment that the problem is about")
            )  # fmt: skip


def _kind(space: gymnasium.Space, word: str) -> tuple[str, int]:
    if isinstance(space, spaces.Discrete):  # observed numbers become one-hot vectors
        return ("vector" if word == "observations" else "numbered", int(space.n))
    return ("vector", int(np.prod(space.shape or (0,)))) if isinstance(space, spaces.Box) else ("other", 0)


class AsGymnasium(gymnasium.Env):
    """One of the engine's environments as Gymnasium's: for agents that live there.

    Args:
        environment: in pure functions.

    Example:
        >>> from bilevel_rl.control.environments import Arm
        >>> env = AsGymnasium(Arm())
        >>> env.reset(seed=0)[0].shape, env.step(env.action_space.sample())[2:4]
        ((12,), (False, False))
    """

    metadata = {"render_modes": []}  # noqa: RUF012

    def __init__(self, environment: Environment):
        self.environment = environment
        self.observation_space = _space(environment.observation)
        self.action_space = _space(environment.action)
        self._reset, self._step = eqx.filter_jit(environment.reset), eqx.filter_jit(environment.step)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """As Gymnasium's; all that is random comes from the seed."""
        super().reset(seed=seed)
        self._state, obs = self._reset(self._key())
        self._age = 0
        return np.array(obs), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        """As Gymnasium's; `truncated` at the environment's horizon."""
        kind = jnp.int32 if isinstance(self.environment.action, Discrete) else jnp.float32
        found = self._step(self._state, jnp.asarray(action, kind), self._key())
        self._state, self._age = found.state, self._age + 1
        late = 0 < self.environment.horizon <= self._age
        info = dict(zip(self.environment.info_names, np.asarray(found.info).tolist(), strict=True))
        cut = (bool(found.truncated) or late) and not bool(found.terminated)
        return np.array(found.obs), float(found.reward), bool(found.terminated), cut, info

    def _key(self) -> Any:
        return jax.random.key(int(self.np_random.integers(2**31)))


def _space(space: Box | Discrete) -> gymnasium.Space:
    if isinstance(space, Discrete):
        return spaces.Discrete(space.n)
    return spaces.Box(np.asarray(space.low, np.float32), np.asarray(space.high, np.float32), dtype=np.float32)
