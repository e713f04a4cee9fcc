"""What an environment is to this engine: pure functions, one state and one key, so that training runs inside one scan."""

# no `from __future__ import annotations`: Equinox reads `AbstractVar` only where annotations are evaluated
import abc
import dataclasses
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from bilevel_rl.errors import InvalidProblem, message

OPEN = 1e30  # ours: bounds beyond this are none


@dataclasses.dataclass(frozen=True)
class Box:
    """Vectors between two bounds; the bounds of observations may be infinite.

    Attributes:
        low, high: of each coordinate, in its own unit.

    Example:
        >>> Box((-1.0, -1.0), (1.0, 1.0)).size
        2
    """

    low: tuple[float, ...]
    high: tuple[float, ...]

    def __post_init__(self):
        low, high = (tuple(float(v) for v in np.atleast_1d(bound)) for bound in (self.low, self.high))
        if len(low) != len(high) or not low or any(not a < b for a, b in zip(low, high, strict=False)):
            raise InvalidProblem(
                message("Box", f"low {list(low)}, high {list(high)}", "both have as many numbers, and low < high everywhere",
                        "Give each coordinate its two bounds")
            )  # fmt: skip
        object.__setattr__(self, "low", low)
        object.__setattr__(self, "high", high)

    @classmethod
    def everywhere(cls, size: int) -> "Box":
        """All vectors of a size."""
        return cls((-np.inf,) * size, (np.inf,) * size)

    @property
    def size(self) -> int:
        """Coordinates of a vector."""
        return len(self.low)

    @property
    def bounded(self) -> bool:
        """Whether all bounds are finite."""
        return bool(np.isfinite(self.low).all() and np.isfinite(self.high).all())


@dataclasses.dataclass(frozen=True)
class Discrete:
    """The numbers 0, 1, ..., n - 1.

    Attributes:
        n: how many.
    """

    n: int

    def __post_init__(self):
        if self.n < 2:
            raise InvalidProblem(message("Discrete.n", self.n, "a choice needs at least two actions", "Give n >= 2"))


class Step(eqx.Module):
    """What a step of an environment gives.

    Attributes:
        state: the next state; the last one of its episode where that is over, never that of a reset.
        obs: [o] float32, the observation of `state`.
        reward: scalar float32, the environment's own.
        terminated: whether the episode's end is part of the task: nothing comes after it.
        truncated: whether it is cut for a reason of the environment's own; what would have come is bootstrapped. The
            time limit `horizon` is counted by the engine.
        info: [p] float32, what else a leader may pay for; [0] where there is nothing.
    """

    state: Any
    obs: Float[Array, " o"]
    reward: Float[Array, ""]
    terminated: Bool[Array, ""]
    truncated: Bool[Array, ""]
    info: Float[Array, " p"]


class Environment(eqx.Module):
    """A Markov decision process in pure functions; it knows neither leader nor follower.

    `reset` and `step` take one state and one key; the engine batches them with `vmap`. They keep shapes and dtypes:
    whatever is observed or paid is float32, whatever JAX's default is (`check_environment` looks). A discrete action is
    an int32 scalar, a continuous one a float32 vector [m] inside the action box; `step` clips it where that matters.

    Attributes:
        observation: the space of observations, a `Box`.
        action: the space of actions, a `Box` or `Discrete`. Followers with squashed actions need finite bounds, Gaussian
            ones do not.
        horizon: steps after which an episode is cut, 0 for never.
    """

    name: ClassVar[str] = "environment"
    references: ClassVar[tuple[str, ...]] = ()
    outside: ClassVar[bool] = False  # whether its steps can't be compiled (`control.hosted`)
    info_names: ClassVar[tuple[str, ...]] = ()  # of the p numbers of `Step.info`

    @property
    @abc.abstractmethod
    def observation(self) -> Box:
        """The space of observations."""

    @property
    @abc.abstractmethod
    def action(self) -> Box | Discrete:
        """The space of actions."""

    @property
    def horizon(self) -> int:
        """Steps after which an episode is cut, 0 for never."""
        return 0

    @abc.abstractmethod
    def reset(self, key: Array) -> tuple[Any, Float[Array, " o"]]:
        """A first state, and its observation [o]."""

    @abc.abstractmethod
    def step(self, state: Any, action: Array, key: Array) -> Step:
        """What follows an action in a state."""

    # -- worlds that step outside compiled code say how (`control.hosted`) ---------------------------------------------

    def stepper(self) -> Any:
        """What moves runs on in a world that steps outside (`loop.stepping.Stepper`); None where steps are compiled."""
        return None

    def accept(self, solver: Any, where: str) -> None:
        """Raise `InvalidProblem` for a solver that can't walk here."""

    def tried(self, steps: int, seed: int) -> tuple[Array, Array, Step]:
        """Observations, actions and results [T, ...] of random steps, taken where the environment lives.

        Raises:
            InvalidProblem: of one that is compiled, whose `step` may simply be called.
        """
        raise InvalidProblem(
            message(f"environment {self.name}.tried", "a compiled environment", "those that step outside are tried so",
                    "Call check_environment")
        )  # fmt: skip

    def frame(self, state: Any) -> dict[str, Array]:
        """Arrays that draw one state, by name; empty where nothing is drawn."""
        return {}


def check_environment(environment: Environment, steps: int = 50, seed: int = 0) -> None:
    """Raise unless an environment keeps its contract, tried with random actions.

    Raises:
        InvalidProblem: the first thing that fails, by name: a space that is not supported, shapes or dtypes that are
            others than promised or change, values that are not finite, observations outside their space.
    """
    where = f"environment {environment.name}"
    check_spaces(environment)
    if environment.outside:
        environment.tried(steps, seed)  # what watches it there raises
        return
    reset = jax.eval_shape(environment.reset, jax.random.key(0))
    _check_vector(where, "reset's observation", reset[1], environment.observation.size)
    step = jax.eval_shape(environment.step, reset[0], _an_action(environment), jax.random.key(0))
    _check_step(where, environment, reset[0], step)
    seen, finite = _walked(environment, steps, seed)
    if not finite:
        raise _refuse(where, "a value that is not finite", f"all must be, for {steps} random actions", "Look at `step`")
    low, high = (np.asarray(bound, np.float32) for bound in (environment.observation.low, environment.observation.high))
    slack = 1e-4 * np.maximum(1, np.abs(seen))
    outside = np.argwhere((seen < low - slack) | (seen > high + slack))
    if outside.size:
        t, i = outside[0]
        raise _refuse(where, f"observation[{i}] = {seen[t, i]:g} at step {t}", f"its space is [{low[i]:g}, {high[i]:g}]",
                      "Widen `observation`, or clip")  # fmt: skip


def check_spaces(environment: Environment) -> None:
    """Raise `InvalidProblem` unless both spaces are supported."""
    where = f"environment {environment.name}"
    if not isinstance(environment.observation, Box):
        raise _refuse(where, f"observations in {type(environment.observation).__name__}", "a Box is supported",
                      "Flatten observations to one vector")  # fmt: skip
    if not isinstance(environment.action, (Box, Discrete)):
        raise _refuse(where, f"actions in {type(environment.action).__name__}", "Box and Discrete are supported",
                      "Flatten actions to one vector, or number them")  # fmt: skip
    if not (isinstance(environment.horizon, int) and environment.horizon >= 0):
        raise _refuse(where, f"horizon {environment.horizon}", "it is a whole number of steps, 0 for never", "Change it")


def _refuse(where: str, got: str, allowed: str, fix: str) -> InvalidProblem:
    return InvalidProblem(message(where, got, allowed, fix))


def _an_action(environment: Environment) -> jax.ShapeDtypeStruct:
    space = environment.action
    if isinstance(space, Discrete):
        return jax.ShapeDtypeStruct((), jnp.int32)
    return jax.ShapeDtypeStruct((space.size,), jnp.float32)


def _check_vector(where: str, what: str, found: Any, size: int | None) -> None:
    if found.dtype != jnp.float32 or found.ndim != 1 or (size is not None and found.shape != (size,)):
        wanted = "float32[p]" if size is None else f"float32[{size}]"
        raise _refuse(where, f"{what} {found.dtype}{list(found.shape)}", f"it must be {wanted}", "Cast or reshape it")


def _check_step(where: str, environment: Environment, state: Any, step: Any) -> None:
    if not isinstance(step, Step):
        raise _refuse(where, f"a step that returns {type(step).__name__}", "it must be a control.Step", "Return Step(...)")
    _check_vector(where, "a step's observation", step.obs, environment.observation.size)
    _check_vector(where, "a step's info", step.info, len(environment.info_names) or None)
    for name, dtype in (("reward", jnp.float32), ("terminated", jnp.bool_), ("truncated", jnp.bool_)):
        value = getattr(step, name)
        if value.shape or value.dtype != dtype:
            raise _refuse(where, f"{name} {value.dtype}{list(value.shape)}", f"it must be a scalar of {jnp.dtype(dtype)}",
                          "Cast it")  # fmt: skip
    old, new = jax.tree.structure(state), jax.tree.structure(step.state)
    kept = old == new and all(
        a.shape == b.shape and a.dtype == b.dtype
        for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(step.state), strict=True)
    )
    if not kept:
        raise _refuse(where, "a state that changes its shape or dtype in a step", "a step must keep both", "Cast it")


@eqx.filter_jit
def _random_walk(environment: Environment, steps: int, key: Array):
    def one(state, key):
        k_act, k_step, k_reset = jax.random.split(key, 3)
        step = environment.step(state, random_action(environment.action, k_act), k_step)
        over = step.terminated | step.truncated
        state = jax.tree.map(lambda a, b: jnp.where(over, a, b), environment.reset(k_reset)[0], step.state)
        return state, (step.obs, jnp.isfinite(step.reward) & jnp.all(jnp.isfinite(step.info)))

    first, keys = key, jax.random.split(key, steps)
    return jax.lax.scan(one, environment.reset(first)[0], keys)[1]


def _walked(environment: Environment, steps: int, seed: int) -> tuple[np.ndarray, bool]:
    seen, good = _random_walk(environment, steps, jax.random.key(seed))
    return np.asarray(seen), bool(np.isfinite(seen).all() and np.asarray(good).all())


def random_action(space: Box | Discrete, key: Array) -> Array:
    """A uniform one: an int32 scalar, or float32 [m]; in [-1, 1] where a side is open."""
    if isinstance(space, Discrete):
        return jax.random.randint(key, (), 0, space.n, jnp.int32)
    bounds = np.clip(space.low, -OPEN, OPEN), np.clip(space.high, -OPEN, OPEN)
    low, high = (jnp.asarray(np.where(np.abs(b) == OPEN, np.sign(b), b), jnp.float32) for b in bounds)
    return jax.random.uniform(key, (space.size,), jnp.float32, low, high)
