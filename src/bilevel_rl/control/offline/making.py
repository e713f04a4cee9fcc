"""Data sets of the library's own followers: random, medium, expert, and everything that one met while it learnt.

A usual follower learns online, and is kept at several points. The best of them is the expert; medium is the first that has
covered a third of the way from random actions to it; replay is what was met up to there.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from bilevel_rl.control import nets, replay, walk
from bilevel_rl.control.environment import Environment, random_action
from bilevel_rl.control.followers import Follower, Usual
from bilevel_rl.control.offline.checks import check_compiled
from bilevel_rl.control.offline.data import OfflineData, StoredEpisode, joined
from bilevel_rl.control.offline.protocol import STEPS
from bilevel_rl.control.problem import ControlProblem
from bilevel_rl.errors import InvalidConfig, InvalidProblem, message
from bilevel_rl.loop import precision
from bilevel_rl.loop.settings import check_fields

SOURCES = ("random", "medium", "expert", "replay")
MEDIUM = 1 / 3  # ours: of the way from random to expert, as D4RL's medium policies


@dataclasses.dataclass(frozen=True)
class Making:
    """How a data set is made.

    Args:
        transitions: that the follower learns from.
        rows: transitions of each source, at least; whole episodes.
        snapshots: points at which the follower is kept and scored.
        chains: that walk side by side.
        batch: rows of an update.
        updates: of the follower, for each step of its chains.
        gamma: discount.
        tau: temperature of the follower, in units of a typical reward.
        unit: a typical reward of a step, by which rewards are divided; measured on random actions when 0.
        noise: standard deviation of what is added to the actions of medium and expert, in half widths of the box; for
            numbered actions the share that is random.
        episodes: in which each snapshot is scored.
        seed: from which everything follows.
    """

    transitions: int = 60_000
    rows: int = 10_000
    snapshots: int = 10
    chains: int = 16
    batch: int = 128
    updates: int = 3
    gamma: float = 0.98
    tau: float = 0.05
    unit: float = 0.0
    noise: float = 0.1
    episodes: int = 32
    seed: int = 0

    def check(self) -> None:
        """Raise `InvalidConfig` for numbers that are not allowed."""
        for name in ("transitions", "rows", "snapshots", "chains", "batch", "updates", "episodes"):
            check_fields("offline.Making", (name, getattr(self, name), getattr(self, name) >= 1, "it must be at least 1"))
        check_fields(
            "offline.Making", ("gamma", self.gamma, 0 <= self.gamma < 1, "it must be in [0, 1)"),
            ("tau", self.tau, self.tau > 0, "it must be above 0"),
            ("noise", self.noise, self.noise >= 0, "it must be at least 0"),
        )  # fmt: skip
        if self.transitions < self.snapshots * self.chains:
            raise InvalidConfig(
                message("offline.Making.transitions", self.transitions, "each chain takes a step before each snapshot",
                        f"Give at least {self.snapshots * self.chains}")
            )  # fmt: skip


class OwnReward(ControlProblem):
    """An environment whose follower is paid its own reward, divided by a unit."""

    environment: Environment
    unit: float = 1.0
    x0: Any = eqx.field(default_factory=lambda: jnp.zeros(1))

    name = "own_reward"

    def features(self, t):
        return t.reward[None]

    def reward(self, x, features):
        return features[0] / self.unit


@precision.double
def make(environment: Environment, recipe: Making = Making(), follower: Follower | None = None) -> OfflineData:
    """All four sources of an environment as one data set, with the returns between which scores are normalised.

    Raises:
        InvalidConfig: a recipe that is not allowed.
        InvalidProblem: a follower that has not become better than random actions.
    """
    recipe.check()
    check_compiled(environment)
    env = nets.narrow(environment)
    follower = (follower or Usual()).on(env)
    follower.check(env)
    anything = lambda obs, key: random_action(env.action, key)  # noqa: E731
    key = jax.random.key(recipe.seed)
    first = _collect(env, anything, recipe.rows, recipe, jax.random.fold_in(key, 1))
    unit = recipe.unit or max(float(np.mean(np.abs(first.t.reward))), 1e-2)
    snapshots, met = _online(env, nets.narrow(follower), recipe, unit, jax.random.fold_in(key, 2))
    returns = np.asarray(_scored(env, follower, snapshots, recipe, jax.random.fold_in(key, 3)))
    data = [_episodes(environment.name, "random", first)]
    low, high, best = float(data[0].returns().mean()), float(returns.max()), int(returns.argmax())
    if not high > low:
        raise InvalidProblem(
            message(f"data of {environment.name}", f"a follower that earns {high:g} at best, random actions {low:g}",
                    "the expert must be better", "Let it learn from more transitions")
        )  # fmt: skip
    medium = int(np.argmax(returns >= low + MEDIUM * (high - low)))
    for name, at, fold in (("medium", medium, 4), ("expert", best, 5)):
        F = jax.tree.map(lambda v, at=at: v[at], snapshots)
        act = _disturbed(env, follower, F, recipe.noise)
        seen = _collect(env, act, recipe.rows, recipe, jax.random.fold_in(key, fold))
        data.append(_episodes(environment.name, name, seen))
    upto = (medium + 1) * met.over.shape[0] // recipe.snapshots
    data.append(_episodes(environment.name, "replay", jax.tree.map(lambda v: v[:upto], met)))
    return dataclasses.replace(joined(data), low=low, high=high)


def _disturbed(env: Any, follower: Follower, F: Any, noise: float) -> Any:
    """Best actions, disturbed."""
    space = env.action

    def act(obs: Array, key: Array) -> Array:
        k_which, k_noise = jax.random.split(key)
        action = follower.mode(env, F, obs)
        if hasattr(space, "n"):
            return jnp.where(jax.random.uniform(k_which) < noise, random_action(space, k_noise), action)
        eps = noise * jax.random.normal(k_noise, action.shape, jnp.float32)
        if not space.bounded:
            return action + eps
        low, high = jnp.asarray(space.low, jnp.float32), jnp.asarray(space.high, jnp.float32)
        return jnp.clip(action + eps * (high - low) / 2, low, high)

    return act


def _online(env: Any, follower: Any, recipe: Making, unit: float, key: Array) -> tuple[Any, walk.Seen]:
    """What a follower has learnt at each snapshot [snapshots, ...], and all that it met [steps, chains, ...]."""
    problem = nets.narrow(OwnReward(env, unit))
    layout, n = replay.Layout(problem), recipe.chains
    each = recipe.transitions // (recipe.snapshots * n)
    f32 = lambda v: jnp.asarray(v, jnp.float32)  # noqa: E731
    capacity = recipe.snapshots * each * n

    def step(carry, k):
        F, chains, ring = carry
        k_walk, k_learn = jax.random.split(jax.random.fold_in(key, k))
        act = lambda obs, key: follower.act(env, F, obs, key)  # noqa: E731
        chains, seen = walk.step(env, chains, act, k_walk, 0.0)
        ring = replay.push(ring, layout.pack(seen), k * n)

        def update(F, key):
            k_rows, k_update = jax.random.split(key)
            rows = layout.unpack(replay.sample(ring, (k + 1) * n, recipe.batch, k_rows))
            r = jax.vmap(lambda f: problem.reward(None, f))(rows.features)
            return follower.update(env, F, rows, r, f32(recipe.gamma), f32(recipe.tau), key=k_update), None

        F, _ = jax.lax.scan(update, F, jax.random.split(k_learn, recipe.updates))
        return (F, chains, ring), seen

    def stretch(carry, i):
        carry, seen = jax.lax.scan(step, carry, i * each + jnp.arange(each))
        return carry, (carry[0], seen)

    k_follower, k_chains = jax.random.split(jax.random.fold_in(key, recipe.transitions))
    first = follower.init(env, k_follower), walk.begin(env, n, k_chains), replay.empty(layout, capacity)
    kept, seen = jax.jit(lambda first: jax.lax.scan(stretch, first, jnp.arange(recipe.snapshots))[1])(first)
    return kept, jax.tree.map(lambda v: v.reshape((v.shape[0] * v.shape[1], *v.shape[2:])), seen)


def _scored(env: Any, follower: Any, snapshots: Any, recipe: Making, key: Array) -> Array:
    """Mean return of each snapshot's best actions."""
    steps = env.horizon or STEPS

    def one(F: Any) -> Array:
        def step(carry, key):
            chains, alive = carry
            chains, seen = walk.step(env, chains, lambda obs, key: follower.mode(env, F, obs), key, 0.0)
            return (chains, alive & ~seen.over), alive * seen.t.reward

        first = walk.begin(env, recipe.episodes, key), jnp.ones(recipe.episodes, bool)
        return jnp.mean(jnp.sum(jax.lax.scan(step, first, jax.random.split(key, steps))[1], 0))

    return jax.jit(lambda F: jax.lax.map(one, F))(snapshots)


def _collect(env: Any, act: Any, rows: int, recipe: Making, key: Array) -> walk.Seen:
    """Steps [T, N] of N chains side by side, at least `rows` of them."""
    steps = env.horizon or STEPS
    chains = -(-rows // steps)

    def step(at, key):
        return walk.step(env, at, act, key, 0.0)

    def whole(key):
        k_first, k_steps = jax.random.split(key)
        return jax.lax.scan(step, walk.begin(env, chains, k_first), jax.random.split(k_steps, steps))[1]

    return jax.jit(whole)(key)


def _episodes(environment: str, source: str, seen: walk.Seen) -> OfflineData:
    """Steps [T, N] of chains as episodes; what is not over when the walk is, is cut there."""
    t = jax.tree.map(lambda v: np.swapaxes(np.asarray(v), 0, 1), seen.t)
    over = np.swapaxes(np.asarray(seen.over), 0, 1).copy()
    over[:, -1] = True
    found = []
    for i in range(over.shape[0]):
        ends = np.flatnonzero(over[i]) + 1
        for a, b in zip(np.concatenate([[0], ends[:-1]]), ends, strict=True):
            obs = np.concatenate([t.obs[i, a:b], t.next_obs[i, b - 1 : b]])
            found.append(
                StoredEpisode(obs, t.action[i, a:b], t.reward[i, a:b], bool(t.terminated[i, b - 1]), 0, t.info[i, a:b])
            )
    return OfflineData.of(environment, found, sources=(source,))
