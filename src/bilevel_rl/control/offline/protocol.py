r"""How learners from data are compared: the same data, sizes and updates, several seeds, the last networks.

$$\text{score} = 100\, \frac{J(\pi) - J(\text{random})}{J(\text{expert}) - J(\text{random})}$$

Nothing is chosen on the evaluation: what is scored is what the last update left. Scores along the way are for curves alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bilevel_rl.control import nets
from bilevel_rl.control.environment import Environment
from bilevel_rl.control.offline.bank import Bank, reward_unit
from bilevel_rl.control.offline.checks import check_compiled, check_data
from bilevel_rl.control.offline.data import OfflineData
from bilevel_rl.control.offline.learner import OfflineLearner, learn
from bilevel_rl.errors import InvalidConfig, InvalidProblem, NonFiniteState, message
from bilevel_rl.loop import precision
from bilevel_rl.loop.settings import check_fields
from bilevel_rl.statistics import Interval, bootstrap

STEPS = 200  # ours: of an episode that is scored, where the environment has no time limit


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is the same for every learner.

    Args:
        updates: of the networks.
        batch: rows of an update.
        gamma: discount.
        seeds: independent runs, side by side.
        seed: from which their randomness follows.
        episodes: in which each is scored.
        records: points of the curve, the last of which counts.
    """

    updates: int = 10_000
    batch: int = 128
    gamma: float = 0.99
    seeds: int = 5
    seed: int = 0
    episodes: int = 16
    records: int = 5

    def check(self) -> None:
        """Raise `InvalidConfig` for numbers that are not allowed."""
        for name in ("updates", "batch", "seeds", "episodes", "records"):
            check_fields("offline.Setting", (name, getattr(self, name), getattr(self, name) >= 1, "it must be at least 1"))
        check_fields("offline.Setting", ("gamma", self.gamma, 0 <= self.gamma < 1, "it must be in [0, 1)"))


@dataclasses.dataclass(frozen=True)
class Result:
    """What a learner made of a data set.

    Attributes:
        name: of the learner.
        returns: [records, seeds] mean undiscounted return over the episodes that were played.
        at: [records] updates before each record.
        low, high: returns of random actions and of the expert.
        learnt: what the last update left, stacked along an axis of seeds.
    """

    name: str
    returns: np.ndarray
    at: np.ndarray
    low: float
    high: float
    learnt: Any

    @property
    def scores(self) -> np.ndarray:
        """[records, seeds] normalised: 0 random, 100 expert."""
        return normalised(self.returns, self.low, self.high)

    @property
    def last(self) -> Interval:
        """Interquartile mean of the last scores over seeds, with its bootstrap interval."""
        return bootstrap(self.scores[-1])


def normalised(returns: Any, low: float, high: float) -> np.ndarray:
    """Returns between random (0) and expert (100).

    Raises:
        InvalidProblem: nobody has measured both, or the expert is not the better one.

    Example:
        >>> normalised([-150.0], -200.0, -100.0).tolist()
        [50.0]
    """
    if not high > low:
        raise InvalidProblem(
            message("offline.normalised", f"returns {low:g} of random actions and {high:g} of the expert",
                    "the expert's is the larger one", "Set `low` and `high` of the data set")
        )  # fmt: skip
    return 100 * (np.asarray(returns, float) - low) / (high - low)


@precision.double
def run(
    learner: OfflineLearner, data: OfflineData, environment: Environment, setting: Setting = Setting(), *,
    unit: float | None = None,
) -> Result:  # fmt: skip
    """Train a learner on a data set and play its policy.

    Args:
        unit: by which rewards are divided while it learns; the standard deviation of a step's reward when None.

    Raises:
        InvalidProblem: data that do not fit the environment, before anything is trained.
        InvalidConfig: settings that are not allowed.
        NonFiniteState: networks that have become infinite or NaN.
    """
    check_compiled(environment)
    check_data(data, environment)
    learner.check(environment)
    setting.check()
    if setting.updates % setting.records:
        raise InvalidConfig(
            message("offline.Setting.records", setting.records, f"it must divide the {setting.updates} updates", "Change it")
        )
    bank = Bank.of(data, reward_unit(data) if unit is None else unit)
    F, returns = _trained(nets.narrow(learner), nets.narrow(environment), bank, setting)
    if not all(np.isfinite(v).all() for v in map(np.asarray, jax.tree.leaves(F)) if v.dtype.kind == "f"):
        raise NonFiniteState(
            message(f"learner {learner.name}", f"networks that are not finite after {setting.updates} updates",
                    "they must stay finite", "Lower its rate, or look at the rewards of the data set")
        )  # fmt: skip
    each = setting.updates // setting.records
    at = each * np.arange(1, setting.records + 1)
    return Result(learner.name, np.asarray(returns, float), at, data.low, data.high, F)


def _trained(learner: Any, environment: Any, bank: Bank, setting: Setting) -> tuple[Any, Array]:
    each = setting.updates // setting.records
    gamma = jnp.asarray(setting.gamma, jnp.float32)

    def seed(key: Array) -> tuple[Any, Array]:
        k_init, k_learn, k_play = jax.random.split(key, 3)
        F = learner.init(environment, bank.facts, k_init)

        def record(F: Any, i: Array) -> tuple[Any, Array]:
            F = learn(learner, environment, bank, F, each, setting.batch, gamma, k_learn, begin=i * each)
            return F, jnp.mean(play(learner, environment, F, setting.episodes, jax.random.fold_in(k_play, i)))

        return jax.lax.scan(record, F, jnp.arange(setting.records))

    F, returns = eqx.filter_jit(jax.vmap(seed))(jax.random.split(jax.random.key(setting.seed), setting.seeds))
    return F, returns.T


def play(
    learner: OfflineLearner, environment: Environment, F: Any, episodes: int, key: Array, steps: int = 0
) -> Float[Array, " E"]:
    """Undiscounted returns [E] of what a learner does; traceable.

    Args:
        steps: of an episode; the environment's time limit when 0, or `STEPS` where there is none.
    """
    steps = steps or environment.horizon or STEPS

    def one(key: Array) -> Array:
        k_reset, k_steps = jax.random.split(key)
        state, obs = environment.reset(k_reset)

        def step(carry, key):
            state, obs, memory, alive = carry
            k_act, k_step = jax.random.split(key)
            action, memory = learner.act(environment, F, memory, obs, k_act)
            went = environment.step(state, action, k_step)
            memory = learner.noted(environment, F, memory, obs, action, went.reward)
            return (went.state, went.obs, memory, alive & ~(went.terminated | went.truncated)), alive * went.reward

        first = state, obs, learner.recall(environment, F), jnp.ones((), bool)
        return jnp.sum(jax.lax.scan(step, first, jax.random.split(k_steps, steps))[1])

    return jax.vmap(one)(jax.random.split(key, episodes))


def compare(
    learners: Sequence[OfflineLearner], data: OfflineData, environment: Environment, setting: Setting = Setting()
) -> list[Result]:
    """Every learner on the same data under the same setting, the best last score first."""
    for learner in learners:  # all of them are refused or none is trained
        learner.check(environment)
    found = [run(learner, data, environment, setting) for learner in learners]
    return sorted(found, key=lambda result: -result.last.value)


@precision.double
def random_return(environment: Environment, episodes: int = 64, seed: int = 0) -> float:
    """Mean undiscounted return of uniform actions."""
    from bilevel_rl.control.environment import random_action

    env = nets.narrow(environment)

    class Anything(OfflineLearner):
        def init(self, environment, facts, key):
            return ()

        def update(self, environment, F, batch, gamma, k, key):
            return F

        def act(self, environment, F, memory, obs, key):
            return random_action(environment.action, key), memory

    played = eqx.filter_jit(partial(play, Anything(), env, (), episodes))
    return float(np.mean(played(jax.random.key(seed))))
