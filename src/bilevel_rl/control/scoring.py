r"""What a policy of one's own is worth to both levels: any function from observations to actions, whoever trained it.

The leader gets $(1-\gamma)\sum_t \gamma^t u(s_t, a_t, s_{t+1})$ of an episode, less the cost of x; the follower gets the
plain sum of what x pays.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import gymnasium
import jax.numpy as jnp
import numpy as np

from bilevel_rl.control.problem import ControlProblem
from bilevel_rl.control.wrappers import AsGymnasium, RewardWrapper
from bilevel_rl.errors import InvalidConfig, NonFiniteState, message

Policy = Callable[[np.ndarray], Any]


def policy_from_sb3(model: Any, deterministic: bool = True) -> Policy:
    """A model of Stable-Baselines3, trained or loaded, as a function from an observation to an action.

    Args:
        model: anything with its `predict`; `SAC.load("mine.zip")`, say.
        deterministic: its best actions; else it draws them.

    Raises:
        InvalidConfig: it has no `predict`.

    Example:
        >>> from types import SimpleNamespace
        >>> still = SimpleNamespace(predict=lambda obs, deterministic: (np.zeros(1), None))
        >>> policy_from_sb3(still)(np.ones(3)).tolist()
        [0.0]
    """
    predict = getattr(model, "predict", None)
    if not callable(predict):
        raise InvalidConfig(
            message("policy_from_sb3.model", type(model).__name__, "a model has a method predict",
                    "Give a model of Stable-Baselines3, or hand any function of an observation to scoring.score")
        )  # fmt: skip
    return lambda obs: predict(obs, deterministic=deterministic)[0]


@dataclasses.dataclass(frozen=True)
class Score:
    """What a policy is worth, episode by episode.

    Attributes:
        leader: [episodes] discounted and normalised utility, the cost of x taken off.
        follower: [episodes] sum of what x paid.
        own: [episodes] sum of what the environment pays by itself.
        steps: of all episodes together.
    """

    leader: np.ndarray
    follower: np.ndarray
    own: np.ndarray
    steps: int

    def __str__(self) -> str:
        return ", ".join(
            f"{name} {np.mean(v):.4g} ± {np.std(v, ddof=1) / len(v) ** 0.5 if len(v) > 1 else float('nan'):.2g}"
            for name, v in (("leader", self.leader), ("follower", self.follower), ("own", self.own))
        ) + f" (means of {len(self.leader)} episodes, standard errors)"  # fmt: skip


def score(
    problem: ControlProblem, policy: Policy, x: Any = None, environment: Callable[[], gymnasium.Env] | None = None, *,
    episodes: int = 20, seed: int = 0,
) -> Score:  # fmt: skip
    """Let a policy act where x pays, and count for both levels. Nothing learns.

    Args:
        problem: says what x pays and what the leader wants.
        policy: from an observation to an action, as the environment takes it.
        x: [d]; the problem's x0 when None.
        environment: makes a Gymnasium environment; the problem's own when None.
        episodes: each until it ends, or until what comes later counts e^-5 for the leader.
        seed: of the first episode; the next ones count on.

    Raises:
        InvalidConfig: no episode is asked for.
        NonFiniteState: a number that is none.

    Example:
        >>> from bilevel_rl.control.problems import PendulumShaping
        >>> idle = score(PendulumShaping(), lambda obs: np.zeros(1, np.float32), episodes=2)
        >>> idle.leader.shape, idle.steps
        ((2,), 400)
    """
    if episodes < 1:
        raise InvalidConfig(message("scoring.score.episodes", episodes, "it must be at least 1", "Ask for one or more"))
    point = np.asarray(problem.x0 if x is None else x, float)
    env = RewardWrapper(AsGymnasium(problem.environment) if environment is None else environment(), problem, point)
    gamma = float(problem.discount_upper())
    limit = int(np.ceil(5 / (1 - gamma)))
    got, steps = [], 0
    for episode in range(episodes):
        obs, _ = env.reset(seed=seed + episode)
        sums = np.zeros(3)
        for t in range(limit):
            obs, reward, terminated, truncated, info = env.step(policy(obs))
            sums += (1 - gamma) * gamma**t * info["leader_utility"], reward, info["own_reward"]
            steps += 1
            if terminated or truncated:
                break
        got.append(sums)
    env.close()
    leader, follower, own = np.array(got).T
    leader = leader - float(problem.cost(jnp.asarray(point)))
    if not np.isfinite([leader, follower, own]).all():
        raise NonFiniteState(
            message("scoring.score", f"values of {leader.tolist()} at x = {point.tolist()}", "they must be finite",
                    "Look at reward, utility and cost")
        )  # fmt: skip
    return Score(leader, follower, own, steps)
