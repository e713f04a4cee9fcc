r"""Actions that flow out of noise: $\dot a = v(a, t, s)$ from $a_0 \sim N(0, I)$ at $t = 0$ to the action at $t = 1$.

The velocity is learnt by straight-path flow matching, which is a regression and has no likelihood:

$$\mathcal{L} = E\,\big|v\big((1-t)\,\varepsilon + t\,a,\; t,\; s\big) - (a - \varepsilon)\big|^2, \qquad
\varepsilon \sim N(0, I),\quad t \sim U(0, 1)$$

The functions take one state and any callable v; `vmap` batches them. They keep the dtype of what they are given.

References:
    Lipman et al. 2023, arXiv 2210.02747; Liu et al. 2023, arXiv 2209.03003. The exact density by the divergence along the
    way: Chen et al. 2018, arXiv 1806.07366, theorem 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bilevel_rl.control import nets
from bilevel_rl.control.environment import Box, Discrete
from bilevel_rl.errors import InvalidConfig, InvalidProblem, message

# one state's: (point [m], time [], observation [o]) -> velocity [m]
Field = Callable[[Float[Array, " m"], Float[Array, ""], Float[Array, " o"]], Float[Array, " m"]]
WAVES = 3  # ours: pairs of sine and cosine by which a network sees the time
RULES = ("euler", "midpoint", "rk4")


class Velocity(eqx.Module):
    """A network of point, time and observation; any leading axes, the same for all three.

    Attributes:
        net: m outputs from m + 1 + 2 WAVES + o inputs.
    """

    net: nets.MLP

    @classmethod
    def make(
        cls, size: int, observations: int, width: int, key: Array, last: float = 1.0, outputs: int | None = None
    ) -> Velocity:
        """Random weights, two hidden layers.

        Args:
            size: m, coordinates of a point.
            observations: o; 0 for a flow without a condition.
            width: units of a hidden layer.
            last: scale of the outputs.
            outputs: m when None; 1 for a critic of points on the way.
        """
        inputs = size + 1 + 2 * WAVES + observations
        return cls(nets.MLP.make((inputs, width, width, outputs or size), key, last))

    def __call__(self, a: Float[Array, "*B m"], t: Float[Array, " *B"], obs: Float[Array, "*B o"]) -> Float[Array, "*B m"]:
        return self.net(jnp.concatenate([a, clock(t, a.dtype), obs.astype(a.dtype)], -1))


def clock(t: Float[Array, " *B"], dtype) -> Float[Array, "*B w"]:
    """Times as networks see them: themselves and WAVES pairs of sine and cosine."""
    turns = math.pi * np.arange(1, WAVES + 1)
    waves = t[..., None].astype(dtype) * jnp.asarray(turns, dtype).reshape((1,) * t.ndim + (WAVES,))
    return jnp.concatenate([t[..., None].astype(dtype), jnp.sin(waves), jnp.cos(waves)], -1)


# -- learning ---------------------------------------------------------------------------------------------------------


def between(noise: Float[Array, " m"], target: Float[Array, " m"], t: Float[Array, ""]) -> Float[Array, " m"]:
    """The point of the straight path at time t: noise at 0, the target at 1."""
    return (1 - t) * noise + t * target


def matching_error(v: Field, target: Float[Array, " m"], noise: Float[Array, " m"], t: Float[Array, ""], obs) -> Array:
    """Squared length, a sum over coordinates, by which v misses the straight path's velocity at one point.

    Example:
        >>> exact = lambda a, t, obs: (jnp.ones(2) - a) / (1 - t)  # towards (1, 1) whatever the noise
        >>> float(matching_error(exact, jnp.ones(2), jnp.array([0.5, -2.0]), jnp.array(0.25), jnp.zeros(0)))
        0.0
    """
    return jnp.sum((v(between(noise, target, t), t, obs) - (target - noise)) ** 2)


def matching_loss(
    v: Field, targets: Float[Array, "B m"], obs: Float[Array, "B o"], key: Array, weights: Float[Array, " B"] | None = None
) -> Float[Array, ""]:
    """Mean matching error of a batch, each row at a noise and a time of its own.

    Args:
        targets: points that the flow is to end in, in its own units (`Flow.encoded` of actions).
        obs: their conditions.
        weights: of the rows; 1 when None. They are not normalised.
    """
    k_noise, k_time = jax.random.split(key)
    noise = jax.random.normal(k_noise, targets.shape, targets.dtype)
    t = jax.random.uniform(k_time, targets.shape[:1], targets.dtype)
    errors = jax.vmap(matching_error, (None, 0, 0, 0, 0))(v, targets, noise, t, obs)
    return jnp.mean(errors if weights is None else weights * errors)


# -- following --------------------------------------------------------------------------------------------------------


def path(
    v: Field, start: Float[Array, " m"], obs: Float[Array, " o"], steps: int, rule: str = "euler"
) -> Float[Array, "k m"]:
    """Points along the flow at times 0, 1/steps, ..., 1, the start first.

    Args:
        steps: of equal length; one to ten are enough for the nearly straight flows that matching learns.
        rule: `"euler"`, `"midpoint"` or `"rk4"`, of order 1, 2, 4 and as many evaluations a step.

    Raises:
        InvalidConfig: no steps, or a rule that there is not.
    """
    check_steps("flow.path", steps, rule)
    h = 1.0 / steps

    def step(a, i):
        after = stepped(lambda a, t: v(a, t, obs), a, i.astype(start.dtype) / steps, h, rule)
        return after, after

    _, after = jax.lax.scan(step, start, jnp.arange(steps), unroll=min(steps, 4))
    return jnp.concatenate([start[None], after])


def integrate(
    v: Field, start: Float[Array, " m"], obs: Float[Array, " o"], steps: int, rule: str = "euler"
) -> Float[Array, " m"]:
    """Where the flow ends, at time 1 (`path`)."""
    return path(v, start, obs, steps, rule)[-1]


def stepped(f: Callable, y, t: Float[Array, ""], h: float, rule: str):
    """One step of y' = f(y, t); h may be negative."""
    if rule == "euler":
        return y + h * f(y, t)
    if rule == "midpoint":
        return y + h * f(y + h / 2 * f(y, t), t + h / 2)
    k1 = f(y, t)
    k2 = f(y + h / 2 * k1, t + h / 2)
    k3 = f(y + h / 2 * k2, t + h / 2)
    k4 = f(y + h * k3, t + h)
    return y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


def divergence(v: Field, a: Float[Array, " m"], t: Float[Array, ""], obs: Float[Array, " o"]) -> Float[Array, ""]:
    """Exact trace of dv/da: m forward derivatives, so for low dimensions."""
    return jnp.trace(jax.jacfwd(lambda a: v(a, t, obs))(a))


def log_normal(a: Float[Array, " m"]) -> Float[Array, ""]:
    """Log density of N(0, I)."""
    return -0.5 * jnp.sum(a**2) - 0.5 * a.shape[0] * math.log(2 * math.pi)


def log_density(
    v: Field, end: Float[Array, " m"], obs: Float[Array, " o"], steps: int = 64, rule: str = "rk4", begin: float = 1.0
) -> Float[Array, ""]:
    r"""Exact log density of where the flow ends: $\log N(a_0) - \int_0^1 \mathrm{div}\, v\, dt$ along the way back.

    An oracle, up to the integration's own error: the flow as it is followed in few steps has another law, a little.

    Args:
        end: the point [m].
        steps: of the way back.
        rule: as in `path`.
        begin: standard deviation of the noise that the flow starts from.

    Example:
        >>> shrink = lambda a, t, obs: -jnp.log(2.0) * a  # ends at half the noise: N(0, 1/4)
        >>> float(log_density(shrink, jnp.zeros(1), jnp.zeros(0)) - log_normal(jnp.zeros(1)))  # log 2
        0.693147...
    """
    check_steps("flow.log_density", steps, rule)
    h = 1.0 / steps

    def slope(y, t):
        a = y[:-1]
        return jnp.append(v(a, t, obs), -divergence(v, a, t, obs))

    def back(y, i):
        return stepped(slope, y, 1 - i.astype(end.dtype) / steps, -h, rule), None

    y, _ = jax.lax.scan(back, jnp.append(end, jnp.zeros((), end.dtype)), jnp.arange(steps))
    start, lost = y[:-1], y[-1]  # lost: minus what the density gains from 0 to 1
    return log_normal(start / begin) - start.shape[0] * math.log(begin) - lost


def check_steps(where: str, steps: int, rule: str = "euler") -> None:
    """Raise `InvalidConfig` for a number of steps or a rule that is not allowed."""
    if steps < 1:
        raise InvalidConfig(message(f"{where}.steps", steps, "a flow is followed in at least 1 step", "Give more"))
    if rule not in RULES:
        raise InvalidConfig(message(f"{where}.rule", repr(rule), f"known are {', '.join(RULES)}", "Take one of them"))


# -- the policy -------------------------------------------------------------------------------------------------------


class Flow(eqx.Module):
    """What a flow is as a policy: units of actions, how it is followed, how it is learnt.

    Points of the flow are actions in units of the half width of their box, in [-1, 1] where the box is bounded; what ends
    outside is clipped. The velocity is not a part of it: every method takes one, a `Velocity` or a callable.

    Args:
        space: of actions, a `Box`. For chunks of several actions: `chunked(space, length)`.
        steps: in which it is followed.
        rule: of integration.

    Raises:
        InvalidProblem: numbered actions.
        InvalidConfig: no steps, or a rule that there is not.

    Example:
        >>> law = Flow(Box((0.0,), (4.0,)))
        >>> still = lambda a, t, obs: jnp.zeros_like(a)  # the noise itself is the action
        >>> law.mode(still, jnp.zeros(3)).tolist(), law.encoded(jnp.array([3.0])).tolist()
        ([2.0], [0.5])
    """

    space: Box = eqx.field(static=True)
    steps: int = eqx.field(static=True, default=10)
    rule: str = eqx.field(static=True, default="euler")

    def __check_init__(self):
        check_space("Flow.space", self.space)
        check_steps("Flow", self.steps, self.rule)

    @property
    def size(self) -> int:
        """m, coordinates of a point."""
        return self.space.size

    def network(self, observations: int, width: int, key: Array, last: float = 1.0) -> Velocity:
        """A velocity with random weights (`Velocity.make`)."""
        return Velocity.make(self.size, observations, width, key, last)

    def encoded(self, action: Float[Array, "*B m"]) -> Float[Array, "*B m"]:
        """Actions as points of the flow, and as critics see them."""
        return encoded(self.space, action)

    def decoded(self, point: Float[Array, "*B m"]) -> Float[Array, "*B m"]:
        """Points of the flow as actions, clipped to the box."""
        return decoded(self.space, point)

    def end(self, v: Field, obs: Float[Array, " o"], noise: Float[Array, " m"]) -> Float[Array, " m"]:
        """The point in which the flow ends from a given noise, not clipped; differentiable in both."""
        return integrate(v, noise, obs, self.steps, self.rule)

    def sample(self, v: Field, obs: Float[Array, " o"], key: Array) -> Float[Array, " m"]:
        """An action in one state."""
        return self.decoded(self.end(v, obs, jax.random.normal(key, (self.size,), jnp.float32)))

    def mode(self, v: Field, obs: Float[Array, " o"]) -> Float[Array, " m"]:
        """The action that the middle of the noise flows to: no mode in the strict sense, but the same in every call."""
        return self.decoded(self.end(v, obs, jnp.zeros(self.size, jnp.float32)))

    def loss(self, v: Field, obs: Float[Array, "B o"], actions: Float[Array, "B m"], key: Array, weights=None) -> Array:
        """Matching loss of actions of a data set (`matching_loss`)."""
        return matching_loss(v, self.encoded(actions), obs, key, weights)

    def log_prob(self, v: Field, obs: Float[Array, " o"], action: Float[Array, " m"], steps: int = 64) -> Array:
        """Exact log density of an action, in units of the half width; that of the exact flow, before clipping."""
        return log_density(v, self.encoded(action), obs, steps)


def chunked(space: Box, length: int) -> Box:
    """The space of `length` actions in a row, as one vector [length * m], the first action first.

    Example:
        >>> chunked(Box((-1.0, 0.0), (1.0, 2.0)), 2).low
        (-1.0, 0.0, -1.0, 0.0)
    """
    check_space("chunked.space", space)
    if length < 1:
        raise InvalidConfig(message("chunked.length", length, "a chunk has at least 1 action", "Give more"))
    return Box(space.low * length, space.high * length)


def encoded(space: Box, action: Float[Array, "*B m"]) -> Float[Array, "*B m"]:
    """Actions in units of the half width of their box, around its centre; as they are where a side is open."""
    if not space.bounded:
        return action
    centre, half = _middle(space, action)
    return (action - centre) / half


def decoded(space: Box, point: Float[Array, "*B m"]) -> Float[Array, "*B m"]:
    """The other way, clipped to the box."""
    if not space.bounded:
        return point
    centre, half = _middle(space, point)
    return centre + half * jnp.clip(point, -1, 1)


def _middle(space: Box, like: Array) -> tuple[Array, Array]:
    low, high = np.asarray(space.low), np.asarray(space.high)
    shape = (1,) * (like.ndim - 1) + (space.size,)
    return jnp.asarray((low + high) / 2, like.dtype).reshape(shape), jnp.asarray((high - low) / 2, like.dtype).reshape(shape)


def check_space(where: str, space: Box | Discrete) -> None:
    """Raise `InvalidProblem` unless actions are vectors."""
    if not isinstance(space, Box):
        raise InvalidProblem(
            message(where, type(space).__name__, "a flow moves vectors: the action space must be a Box",
                    "Take a categorical policy for numbered actions")
        )  # fmt: skip
