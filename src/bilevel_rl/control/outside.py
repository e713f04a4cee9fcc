"""Environments of Gymnasium as followers' worlds: they step outside compiled code, everything else is the same loop.

What they are (`Hosted`), and how runs move on in them (`Outside`): an iteration steps the copies of every run once and makes
one compiled call, which learns from the step and chooses the next actions. `loop.solve`, and with it every verb, takes such
problems as they are.
"""

from __future__ import annotations

import dataclasses
import inspect
import warnings
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from bilevel_rl.control import drawing, walk
from bilevel_rl.control.environment import Box, Discrete, Environment, Step
from bilevel_rl.control.problem import ControlProblem, Transition
from bilevel_rl.errors import BilevelError, InvalidProblem, message
from bilevel_rl.host import GymnasiumHost, HostStep
from bilevel_rl.loop import stepping

FAITHFUL = "Take covariance, trajectory, backward, nested, hpgd, bc_hg or partial_sgd; agents.descend differentiates nothing"


@dataclasses.dataclass(frozen=True)
class Factory:
    """A function that makes an environment, by a name that is the same in every process."""

    make: Callable[[], gymnasium.Env]

    def __call__(self, **options: Any) -> gymnasium.Env:
        return self.make(**options)

    @property
    def __name__(self) -> str:
        return getattr(self.make, "__name__", type(self.make).__name__)

    def __repr__(self) -> str:  # part of a checkpoint's fingerprint: no address
        return f"Factory({getattr(self.make, '__qualname__', self.__name__)})"


class Hosted(Environment):
    """The spaces of a Gymnasium environment, for a problem that is about it.

    Make it with `Hosted.of`. Its `reset` and `step` can't be compiled; `loop.solve` and the verbs step copies beside the
    program.

    Args:
        observed: the space of observations, flat.
        acted: the space of actions.
        infos: names of the numbers of `info` that the problem uses.
        make: id or function from which copies are made.
    """

    observed: Box = eqx.field(static=True)
    acted: Box | Discrete = eqx.field(static=True)
    infos: tuple[str, ...] = eqx.field(static=True, default=())
    make: Any = eqx.field(static=True, default="")

    name: ClassVar[str] = "hosted"
    outside: ClassVar[bool] = True

    @classmethod
    def of(cls, environment: str | Callable[[], gymnasium.Env], info: tuple[str, ...] = ()) -> Hosted:
        """From an id, or a function that makes an environment.

        Raises:
            UnsupportedSpace: spaces that are neither Box nor Discrete.

        Example:
            >>> Hosted.of("Pendulum-v1").observation.size
            3
        """
        host = GymnasiumHost(environment)
        observed, acted = host.observation_space, host.action_space
        host.close()
        discrete = isinstance(acted, gymnasium.spaces.Discrete)
        make = environment if isinstance(environment, str) else Factory(environment)
        return cls(_box(observed), Discrete(int(acted.n)) if discrete else _box(acted), tuple(info), make)

    @property
    def info_names(self):
        return self.infos

    @property
    def observation(self):
        return self.observed

    @property
    def action(self):
        return self.acted

    def reset(self, key):
        obs = _refused(jax.ShapeDtypeStruct((self.observed.size,), jnp.float32))
        return obs, obs

    def step(self, state, action, key):
        f32, flag = jnp.float32, jax.ShapeDtypeStruct((), jnp.bool_)
        reward, info = jax.ShapeDtypeStruct((), f32), jax.ShapeDtypeStruct((len(self.infos),), f32)
        return Step(state, *(_refused(v) for v in (jax.ShapeDtypeStruct(state.shape, f32), reward, flag, flag, info)))

    def host(self, count: int, seed: int = 0, **options: Any) -> GymnasiumHost:
        """Copies of it (`host.GymnasiumHost`)."""
        return GymnasiumHost(self.make, count, seed=seed, info=self.infos, **options)

    def shown(self, seed: int) -> GymnasiumHost:
        """One copy that can be drawn, where the environment has pictures (`render_mode="rgb_array"`)."""
        if isinstance(self.make, str):
            made = gymnasium.make(self.make)
            drawn = "rgb_array" in made.metadata.get("render_modes", ())
            made.close()
        else:
            drawn = "render_mode" in inspect.signature(self.make.make).parameters
        return self.host(1, seed, options={"render_mode": "rgb_array"} if drawn else {})

    def stepper(self):
        return Outside

    def accept(self, solver, where):
        fix, allowed = FAITHFUL, "environments of Gymnasium step outside compiled code"
        estimator = getattr(solver, "estimator", None)
        if estimator is None:
            raise InvalidProblem(message(where, "a solver whose inner loops are compiled", allowed, fix))
        if estimator.other_chains:
            raise InvalidProblem(message(where, "an estimator that walks chains of its own", "one follower walks here", fix))

    def tried(self, steps, seed):
        host, generator = self.host(1, seed), np.random.default_rng(seed)
        try:
            seen = [_transition(host.step(self._guess(generator)))[0] for _ in range(steps)]
        finally:
            host.close()
        t = jax.tree.map(lambda *v: jnp.asarray(np.concatenate(v)), *seen)
        never = jnp.zeros(steps, bool)
        return t.obs, t.action, Step(t.next_obs, t.next_obs, t.reward, t.terminated, never, t.info)

    def _guess(self, generator: np.random.Generator) -> np.ndarray:
        """One random action, [1] or [1, m]."""
        if isinstance(self.acted, Discrete):
            return generator.integers(0, self.acted.n, 1)
        return generator.uniform(self.acted.low, self.acted.high)[None]


def _box(space: gymnasium.Space) -> Box:
    if isinstance(space, gymnasium.spaces.Discrete):
        return Box((0.0,) * int(space.n), (1.0,) * int(space.n))
    assert isinstance(space, gymnasium.spaces.Box)
    return Box(tuple(space.low.reshape(-1).tolist()), tuple(space.high.reshape(-1).tolist()))


def _refused(shape: jax.ShapeDtypeStruct) -> Any:
    """A value of this shape that nothing can compute: enough for whoever only asks for shapes."""

    def refuse() -> Any:
        raise InvalidProblem(
            message("Hosted", "a step in compiled code", "environments of Gymnasium step outside",
                    "Run it with loop.solve, control.hosted.train or a verb of bilevel-rl")
        )  # fmt: skip

    return jax.pure_callback(refuse, shape)


class Outside(stepping.Stepper):
    """Runs whose chains are copies of a Gymnasium environment: one host a run, one compiled call an iteration for all.

    Args:
        problem, solver: the solver's numbers carry a leading axis of runs.
        keys: [B] of the runs.
        hosts: one for each run; made from the problem's environment when None.
    """

    def __init__(self, problem: ControlProblem, solver: Any, keys: Array, hosts: list[GymnasiumHost] | None = None):
        super().__init__(problem, solver, keys)
        self.own, self.chosen, self.newest = hosts is None, None, None
        if hosts is None:
            assert isinstance(problem.environment, Hosted)
            seeds = np.asarray(jax.random.key_data(keys)).reshape(len(keys), -1)[:, -1]
            hosts = [problem.environment.host(solver.chains, int(seed)) for seed in seeds]
        self.hosts = hosts

    def first(self, x):
        return _first((self.problem, self.solver), x, self._now(), self.keys)

    def resumed(self, k):
        for host in self.hosts:
            host.resets += k  # other seeds than those that were used before
            said = host.resumed(host.position())
        warnings.warn(said, stacklevel=3)

    def advance(self, states, k0, length):
        with_all = self.problem, self.solver, self.keys
        if self.chosen is None:
            states, self.chosen = _greeted(with_all, states, self._now())
        for k in range(k0, k0 + length):
            # a run that broke goes on until its interval ends: its actions may be anything
            actions = np.nan_to_num(np.asarray(self.chosen))
            went = [_transition(host.step(own)) for host, own in zip(self.hosts, actions, strict=True)]
            seen = jax.tree.map(lambda *v: np.stack(v), *went)
            # k as an array: a number would compile anew for every one
            states, self.chosen = _advanced(with_all, states, seen, self._now(), jnp.asarray(k))
        self.newest = states
        return states, jax.vmap(stepping.is_finite)(states)

    def cause(self, states, k0, length, i):
        """Copies can't be put back and stepped again: what is broken at the end of the interval."""
        where = f"run {i}, iterations {k0} to {k0 + length}"
        found = stepping.broken(jax.tree.map(lambda v: v[i], self.newest), where)
        return found or stepping.Broken(where, f"{where}: not finite", False)

    def drawn(self, states):
        """An episode of run 0's follower by its best actions, in a copy of its own: what it observes, and pictures."""
        environment = self.problem.environment
        if not isinstance(environment, Hosted):
            return {}
        solver, state = jax.tree.map(lambda v: v[0], (self.solver, states))
        try:
            host = environment.shown(self.hosts[0].seed)
            try:
                return drawing.episode(host, lambda obs: np.asarray(_greedy((self.problem, solver), state, obs)))
            finally:
                host.close()
        except BilevelError as error:
            warnings.warn(f"the rollout is not drawn: {error}", stacklevel=2)
            return {}

    def close(self):
        for host in self.hosts if self.own else ():
            host.close()

    def _now(self) -> np.ndarray:
        """[B, N, o] where the copies are."""
        return np.stack([host.observation for host in self.hosts])


def _transition(step: HostStep) -> tuple[Transition, np.ndarray]:
    """What followers learn from, batched [N], and where an episode is over [N]."""
    kind = np.int32 if step.action.ndim == 1 else np.float32
    t = Transition(step.observation, step.action.astype(kind), step.observation_next, step.reward.astype(np.float32),
                   step.info.astype(np.float32), step.terminated)  # fmt: skip
    return t, step.terminated | step.truncated


@eqx.filter_jit
def _first(parts: Any, x: Array, obs: Array, keys: Array) -> Any:
    problem, solver = parts

    def one(solver: Any, x: Array, obs: Array, key: Array) -> Any:
        chains = walk.Chains(obs, obs, jnp.zeros(obs.shape[0], jnp.int32))
        return solver.init(problem, x, jax.random.fold_in(key, stepping.FIRST), chains)

    return jax.vmap(one)(solver, x, obs, keys)


@eqx.filter_jit
def _greeted(parts: Any, states: Any, obs: Array) -> tuple[Any, Array]:
    """The states with chains at the copies' first observations, and what to do there."""
    problem, solver, keys = parts

    def one(solver: Any, state: Any, obs: Array, key: Array) -> tuple[Any, Array]:
        state = eqx.tree_at(lambda s: s.chains, state, walk.Chains(obs, obs, jnp.zeros(obs.shape[0], jnp.int32)))
        return state, _chosen(problem, solver, state, jax.random.fold_in(key, 2**31))

    return jax.vmap(one)(solver, states, obs, keys)


def _chosen(problem: Any, solver: Any, state: Any, key: Array) -> Array:
    here, keys = solver.here(problem, state.x, state.follower), jax.random.split(key, solver.chains)
    return jax.vmap(lambda obs, k: here.follower.act(here.environment, state.follower, obs, k))(state.chains.obs, keys)


@eqx.filter_jit
def _greedy(parts: Any, state: Any, obs: Array) -> Array:
    problem, solver = parts
    here = solver.here(problem, state.x, state.follower)
    return here.follower.mode(here.environment, state.follower, obs)


@eqx.filter_jit(donate="all-except-first")
def _advanced(parts: Any, states: Any, seen: Any, now: Array, k: Any):
    """Learn from a step that the copies took, move x, and choose the next actions; for every run."""
    problem, solver, keys = parts

    def one(solver: Any, state: Any, seen: Any, now: Array, key: Array) -> tuple[Any, Array]:
        (t, over), age = seen, state.chains.age
        ks = jax.random.split(jax.random.fold_in(key, k), 5)
        chains = walk.Chains(now, now, jnp.where(over, 0, age + 1))
        here = solver.here(problem, state.x, state.follower)
        state = solver.advance(problem, state, here, chains, walk.Seen(t, age == 0, over), k, ks[:4])
        return state, _chosen(problem, solver, state, ks[4])

    if keys.shape[0] == 1:  # one run alone: the same operations without a batch axis
        alone = jax.tree.map(lambda v: v[0], (solver, states, seen, now, keys))
        return jax.tree.map(lambda v: v[None], one(*alone))
    return jax.vmap(one)(solver, states, seen, now, keys)
