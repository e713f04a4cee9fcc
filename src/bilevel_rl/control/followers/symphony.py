r"""Symphony's options of SAC: a loss that is quadratic near 0 and linear far away, three critics and one of their variance,
an actor that follows its advantage over the last batch, a replay that fades, and a price of standing still.

$$\mathrm{ReHE}(e) = m\tanh m,\ m = \overline{|e|}; \qquad \mathrm{ReHaE}(e) = |\bar e|\tanh\bar e$$
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bilevel_rl.control.environment import Environment
from bilevel_rl.control.followers.follower import ongoing, scaled
from bilevel_rl.control.followers.sac import SAC, Learnt
from bilevel_rl.loop.settings import check_fields

FADE = 7.0  # the authors'
KAPPA = 3e-3  # the authors': by which variances are damped
KNOTS = 4096  # ours: of the table by which ages are drawn


def rehe(error: Float[Array, " B"]) -> Float[Array, ""]:
    """Even: near 0 the squared mean error, far away the mean error.

    Example:
        >>> bool(rehe(jnp.array([2.0, -4.0])) == rehe(jnp.array([-2.0, 4.0])))
        True
    """
    mean = jnp.mean(jnp.abs(error))
    return mean * jnp.tanh(mean)


def rehae(error: Float[Array, " B"]) -> Float[Array, ""]:
    """The same of the mean with its sign."""
    mean = jnp.mean(error)
    return jnp.abs(mean) * jnp.tanh(mean)


def resine(v: Array) -> Array:
    """Leaky rectified sine."""
    return jax.nn.leaky_relu(jnp.sin(v), 0.1)


def fading(rows: int) -> Float[np.ndarray, " N"]:
    r"""Weights of N rows in a replay, oldest first: $p_i \propto \tanh(7 (i/N)^2)$, i from 0 on; they sum to one."""
    found = np.tanh(FADE * (np.arange(rows) / rows) ** 2)
    return found / found.sum()


class Last(NamedTuple):
    """Means over the last batch of what the actor wants: its soft value, and the variance's."""

    value: Float[Array, ""]
    variance: Float[Array, ""]


class Symphony(SAC):
    """SAC with five options, each of which can be switched off; without all of them, `critics=1`, it is SAC.

    Args:
        rate: step size of Adam, for actor and critics.
        polyak: share by which targets follow after an update.
        entropy: what a tuned temperature aims at, in nats a coordinate of the action.
        stall: price of standing still: `stall * log10(1 / clip(mean |s' - s|, .1, 10))` is taken off the reward.
        width: units of each of two hidden layers.
        critics: 1 to 3, whose smallest value counts.
        unit: 1, of its values.
        tuned: whether the temperature is tuned.
        calibrated: ReHE as the critics' loss, else squares.
        advantage: the actor follows ReHaE of its soft value over that of the last batch, and of the variance's; else values.
        variance: whether one more network learns the damped variance of returns, which the actor then also raises.
        sine: ReSine in place of rectified units.
        fades: whether old rows are drawn less often.

    References:
        Ishuov, Kambarov, *Symphony* (repository timurgepard/Simphony, version 2). There actors are deterministic and noise
        is added; here the value has SAC's entropy, so that the follower has a law (ours). "Swaddling" has no formula in that
        version and is not here. Ages are drawn by their law in place of the table that freezes when it is full.
    """

    stall: float = 0.03
    critics: int = eqx.field(static=True, default=3)
    unit: float = eqx.field(static=True, default=1.0)
    calibrated: bool = eqx.field(static=True, default=True)
    advantage: bool = eqx.field(static=True, default=True)
    variance: bool = eqx.field(static=True, default=True)
    sine: bool = eqx.field(static=True, default=True)
    fades: bool = eqx.field(static=True, default=True)

    name: ClassVar[str] = "symphony"
    references: ClassVar[tuple[str, ...]] = ("ishuov2024symphony", "haarnoja2018sac")

    def check(self, environment: Environment) -> None:
        check_fields(
            "follower symphony",
            ("rate", self.rate, self.rate > 0, "it must be above 0"),
            ("polyak", self.polyak, 0 < self.polyak <= 1, "it must be in (0, 1]"),
            ("width", self.width, self.width >= 1, "it must be at least 1"),
            ("critics", self.critics, self.critics in (1, 2, 3), "it must be 1, 2 or 3"),
            ("unit", self.unit, self.unit == 1, "it is 1"),
            ("environment", environment.name, not hasattr(environment.action, "n"), "this follower takes vectors"),
        )

    # -- networks ------------------------------------------------------------------------------------------------------

    def init(self, environment: Environment, key: Array) -> Learnt:
        F = SAC.init(dataclasses.replace(self, critics=self.critics + self.variance), environment, key)
        zero = jnp.zeros((), jnp.float32)
        return eqx.tree_at(lambda f: f.more, F, Last(zero, zero), is_leaf=lambda v: v is None) if self.advantage else F

    @property
    def _act(self):
        return resine if self.sine else jax.nn.relu

    def outputs(self, environment, actor, obs):
        return actor(scaled(environment, obs), self._act)

    def values(self, Q, obs, action):
        """[c B]; of the variance last, where there is one."""
        return jax.vmap(lambda q: q(jnp.concatenate([obs, action], 1), self._act)[:, 0])(Q)

    def worth(self, values):
        return jnp.min(values[: self.critics], 0)

    # -- learning ------------------------------------------------------------------------------------------------------

    def target(self, environment, F, rows, r, gamma, tau, key):
        """Of the value [B], and of the variance [B]."""
        law, (before, after) = self.law(environment), self.seen(environment, rows)
        out = self.outputs(environment, F.actor.params, rows.t.next_obs)
        action, logp = jax.vmap(law.sample)(out, jax.random.split(key, r.shape[0]))
        found, on = self.values(F.target, after, law.encoded(action)), gamma * ongoing(rows)
        r = r - self.stall * jnp.log10(1 / jnp.clip(jnp.mean(jnp.abs(after - before), 1), 0.1, 10.0))
        y = r + on * (self.worth(found) - tau * logp)
        return jnp.stack([y, KAPPA * (KAPPA * jnp.var(r) + on * found[-1])]) if self.variance else y[None]

    def critic_loss(self, environment, Q, rows, y, key):
        taken = self.law(environment).encoded(rows.t.action)
        found = self.values(Q, self.seen(environment, rows)[0], taken)
        errors = found - jnp.concatenate([jnp.broadcast_to(y[0], (self.critics, y.shape[1])), y[1:]])
        return jnp.sum(jax.vmap(rehe)(errors)) if self.calibrated else 0.5 * jnp.sum(jnp.mean(errors**2, 1))

    def actor_loss(self, environment, F, actor, Q, rows, tau, key):
        law, (obs, _) = self.law(environment), self.seen(environment, rows)
        out = self.outputs(environment, actor, rows.t.obs)
        action, logp = jax.vmap(law.sample)(out, jax.random.split(key, obs.shape[0]))
        found = self.values(Q, obs, law.encoded(action))
        soft = self.worth(found) - tau * logp
        spread = found[-1] if self.variance else jnp.zeros_like(soft)
        if not self.advantage:
            return -jnp.mean(soft + spread), (logp, F.more)
        last = Last(*(jax.lax.stop_gradient(jnp.mean(v)) for v in (soft, spread)))
        return -rehae(soft - F.more.value) - rehae(spread - F.more.variance), (logp, last)

    def ages(self, held, written, batch, key):
        """Where the law of `fading`, taken between its points, has a uniform number's share below it."""
        if not self.fades:
            return None
        grid = np.linspace(0.0, 1.0, KNOTS + 1)
        density = np.tanh(FADE * grid**2)
        below = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
        share = jax.random.uniform(key, (batch,), jnp.float32)
        place = jnp.interp(share, jnp.asarray(below / below[-1], jnp.float32), jnp.asarray(grid, jnp.float32))
        return ((1 - place) * held).astype(jnp.int32)


def quiet(follower: Symphony, **rest: Any) -> Symphony:
    """The follower with every option off: SAC with its number of critics."""
    off = ("calibrated", "advantage", "variance", "sine", "fades")
    named = {name: getattr(follower, name) for name in ("rate", "polyak", "entropy", "width", "critics", "tuned")}
    return Symphony(**(named | {"stall": 0.0} | dict.fromkeys(off, False) | rest))
