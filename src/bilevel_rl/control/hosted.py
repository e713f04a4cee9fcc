"""Environments of Gymnasium as followers' worlds: they step outside compiled code, everything else is the same loop.

An iteration steps N copies once and makes one compiled call, which learns from the step and chooses the next actions.
"""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import equinox as eqx
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium.vector import AutoresetMode
from jaxtyping import Array

from bilevel_rl.control import walk
from bilevel_rl.control.environment import Box, Discrete, Environment, Step
from bilevel_rl.control.problem import ControlProblem, Transition
from bilevel_rl.control.solvers.single_loop import LoopState, SingleLoop
from bilevel_rl.errors import InvalidConfig, InvalidProblem, message
from bilevel_rl.host import GymnasiumHost, HostStep
from bilevel_rl.loop import checkpoint, precision, stepping
from bilevel_rl.loop.driver import checked, interval
from bilevel_rl.loop.grading import measure
from bilevel_rl.loop.run_folder import RunFolder
from bilevel_rl.loop.trace import Trace


class Hosted(Environment):
    """The spaces of a Gymnasium environment, for a problem that is about it.

    Make it with `Hosted.of`. Its `reset` and `step` can't be compiled: train with `hosted.train`.

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
        return cls(_box(observed), Discrete(int(acted.n)) if discrete else _box(acted), tuple(info), environment)

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
                    "Train with bilevel_rl.control.hosted.train")
        )  # fmt: skip

    return jax.pure_callback(refuse, shape)


@precision.double
def train(
    problem: ControlProblem, solver: SingleLoop, host: GymnasiumHost | None = None, *, iterations: int, seed: int = 0,
    x0: Any = None, record_every: int | None = None, tau: float | None = None, folder: str | Path | None = None,
    resume: bool = False, config: dict[str, Any] | None = None,
    on_record: Callable[[int, dict[str, np.ndarray]], None] | None = None,
) -> Trace:  # fmt: skip
    """One run of a single loop in environments of Gymnasium; records and checkpoints as those of `loop.solve`.

    States of the hyper-gradient are those of whole episodes: copies are not cut at random (`SingleLoop.cut`).

    Args:
        problem: its `environment` is `Hosted`, or has the host's spaces.
        solver: `covariance`, `trajectory`, `backward` or `partial_sgd`: one follower, one walk.
        host: as many copies as the solver has chains; made from the problem's environment when None.
        iterations: steps of every copy; rounded down to whole record intervals.
        seed: of networks and copies.
        x0: [d]; the problem's when None.
        record_every: iterations between records; a hundredth of the run by default.
        tau: temperature of grades; the problem's when None.
        folder: a run folder to write records and checkpoints to.
        resume: go on from the folder's checkpoint. Networks, replay and x are the same to the last bit; environments begin
            new episodes, which a warning says.
        config: what the folder's `run.json` says.
        on_record: called after every record with the iteration and the newest metrics [1].

    Raises:
        InvalidConfig: an estimator that walks chains of its own; a host with another number of copies or other spaces.
        EnvironmentFault: as its kinds say; the folder keeps the last record.

    Example:
        >>> from bilevel_rl.control.problems import PendulumShaping
        >>> from bilevel_rl.control.solvers import Covariance
        >>> problem = PendulumShaping(environment=Hosted.of("Pendulum-v1"))
        >>> trace = train(problem, Covariance(chains=2, batch=8, recent=8), iterations=4)
        >>> trace.x.shape
        (1, 5, 4)
    """
    problem.check(thorough=False)
    solver = dataclasses.replace(solver.on(problem), cut=False)
    solver.check(problem)
    own = host is None
    host = _made(problem, solver, seed) if host is None else host
    try:
        _fits(problem, solver, host)
        count = iterations // (every := interval(iterations, record_every))
        tau = problem.temperature() if tau is None else float(tau)
        world = jax.tree.map(jnp.asarray, problem)
        x, stacked = checked(problem, x0, 1), stepping.stack([solver], 1)
        key = stepping.run_keys(seed, 1)[0]
        states = _batch(_first(world, solver, x[0], jnp.asarray(host.observation), key))
        mark = checkpoint.fingerprint(world, stacked, x, seed, every, tau)
        with RunFolder(folder, resume, mark, config, solver, world, seed, every) as store:
            (done, log, states), began = store.load(states), time.perf_counter()
            if done:
                host.resets += done
                warnings.warn(host.resumed(host.position()), stacklevel=2)
            else:
                log.add(measure(world, stacked, states, 0, tau=tau, evaluate=True), states, 0)
            state = jax.tree.map(lambda v: v[0], states)
            state, actions = _greeted(world, solver, state, jnp.asarray(host.observation), key)
            for record in range(done, count):
                for k in range(record * every, (record + 1) * every):
                    step = host.step(np.asarray(actions))
                    seen, now = _transition(step), host.observation
                    at = jnp.asarray(k)  # an array: a number would compile anew for every k
                    state, actions = _advanced(world, solver, state, seen, now, at, jax.random.fold_in(key, k))
                k, states = (record + 1) * every, _batch(state)
                if not all(bool(jnp.all(jnp.isfinite(v))) for v in jax.tree.leaves((state.x, state.follower))):
                    log.stop(0, f"iteration {k}: x or the follower is not finite; the last good record is kept")
                    break
                log.add(measure(world, stacked, states, k, tau=tau, evaluate=True), states, k)
                if on_record is not None:
                    on_record(k, log.newest())
                store.save(record + 1, log, states, last=record + 1 == count)
            store.finish(log)
    finally:
        if own:
            host.close()
    return dataclasses.replace(log.trace(states, time.perf_counter() - began), x_names=tuple(problem.x_names))


def _made(problem: ControlProblem, solver: SingleLoop, seed: int) -> GymnasiumHost:
    if not isinstance(problem.environment, Hosted):
        raise InvalidConfig(
            message("hosted.train", f"the environment {problem.environment.name!r}, which can be compiled",
                    "a host of Gymnasium's environments", "Pass host=..., or solve it with bilevel_rl.loop.solve")
        )  # fmt: skip
    return problem.environment.host(solver.chains, seed)


def _fits(problem: ControlProblem, solver: SingleLoop, host: GymnasiumHost) -> None:
    e, discrete = problem.environment, isinstance(problem.environment.action, Discrete)
    acts = e.action.n if isinstance(e.action, Discrete) else e.action.size
    wrong = [
        (solver.estimator.other_chains, f"the estimator {solver.estimator.name!r}, which walks chains of its own",
         "one follower walks here", "Take covariance, trajectory, backward or partial_sgd"),
        (host.count != solver.chains, f"{host.count} copies", f"the solver has {solver.chains} chains", "Make them equal"),
        ((host.observation_size, host.action_size) != (e.observation.size, acts)
         or discrete != isinstance(host.action_space, gymnasium.spaces.Discrete),
         f"{host.observation_space} and {host.action_space}", f"the problem's are {e.observation} and {e.action}",
         "Use Hosted.of the same environment"),
        (host.autoreset == AutoresetMode.NEXT_STEP, "a vector environment that resets in the next step",
         "every step must be a transition", "Make it with autoreset_mode=AutoresetMode.SAME_STEP"),
    ]  # fmt: skip
    for found, got, allowed, fix in wrong:
        if found:
            raise InvalidConfig(message("hosted.train", got, allowed, fix))


def _transition(step: HostStep) -> tuple[Transition, np.ndarray]:
    """What followers learn from, batched [N], and where an episode is over [N]."""
    kind = np.int32 if step.action.ndim == 1 else np.float32
    t = Transition(step.observation, step.action.astype(kind), step.observation_next, step.reward.astype(np.float32),
                   step.info.astype(np.float32), step.terminated)  # fmt: skip
    return t, step.terminated | step.truncated


def _batch(state: LoopState) -> LoopState:
    return jax.tree.map(lambda v: v[None], state)


@eqx.filter_jit
def _first(problem: Any, solver: SingleLoop, x: Array, obs: Array, key: Array) -> LoopState:
    return solver.init(problem, x, key, walk.Chains(obs, obs, jnp.zeros(obs.shape[0], jnp.int32)))


@eqx.filter_jit
def _greeted(problem: Any, solver: SingleLoop, state: LoopState, obs: Array, key: Array) -> tuple[LoopState, Array]:
    """The state with chains at the copies' first observations, and what to do there."""
    state = eqx.tree_at(lambda s: s.chains, state, walk.Chains(obs, obs, jnp.zeros(obs.shape[0], jnp.int32)))
    return state, _chosen(problem, solver, state, jax.random.fold_in(key, 2**31))


def _chosen(problem: Any, solver: SingleLoop, state: LoopState, key: Array) -> Array:
    here, keys = solver.here(problem, state.x, state.follower), jax.random.split(key, solver.chains)
    return jax.vmap(lambda obs, k: here.follower.act(here.environment, state.follower, obs, k))(state.chains.obs, keys)


@eqx.filter_jit(donate="all-except-first")
def _advanced(problem: Any, solver: SingleLoop, state: LoopState, seen: Any, now: Array, k: Any, key: Array):
    """Learn from a step that the copies took, move x, and choose the next actions."""
    (t, over), age = seen, state.chains.age
    keys = jax.random.split(key, 5)
    chains = walk.Chains(now, now, jnp.where(over, 0, age + 1))
    here = solver.here(problem, state.x, state.follower)
    state = solver.advance(problem, state, here, chains, walk.Seen(t, age == 0, over), k, keys[:4])
    return state, _chosen(problem, solver, state, keys[4])
