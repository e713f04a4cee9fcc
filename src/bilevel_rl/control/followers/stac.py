r"""Stochastic actor-critic: one critic says a normal law of what follows, and its spread makes targets pessimistic.

$$y = r + \gamma\,(\mu' - \beta \sigma' - \tau\log\pi'), \qquad
L = \log\sigma + \frac{(y - \mu)^2 + \gamma^2 \sigma'^2}{2 \sigma^2}, \qquad
\pi \leftarrow \max\ \mu - \beta\sigma - \tau\log\pi$$

L is the cross-entropy of the law that is predicted to $N(y, \gamma^2\sigma'^2)$: its minimum has
$\sigma^2 = \mathrm{Var}(y) + \gamma^2\sigma'^2$. Rewards and states that are sure give $\sigma \to 0$: no pessimism.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel_rl.control import nets
from bilevel_rl.control.environment import Environment
from bilevel_rl.control.followers.follower import ongoing, scaled
from bilevel_rl.control.followers.sac import SAC, Learnt
from bilevel_rl.loop.settings import check_fields

LEAST = 1e-3  # ours: the smallest sigma, in units of value; densities stay in 32 bits


class Normal(NamedTuple):
    """A law of values.

    Attributes:
        mean, spread: [B], in units of value.
    """

    mean: Float[Array, " B"]
    spread: Float[Array, " B"]


class STAC(SAC):
    r"""SAC with one critic that knows its spread; $\beta = 0$ and `learnt_spread=False` is SAC with one critic.

    Args:
        rate: step size of Adam, for actor and critic.
        polyak: share by which the target follows after an update.
        entropy: what a tuned temperature aims at, in nats a coordinate of the action.
        beta: pessimism, in standard deviations of the value; negative values make it bold.
        width: units of each of two hidden layers.
        critics: 1.
        unit: 1, of its values.
        tuned: whether the temperature is tuned.
        dropout: share of hidden units that are left out while it learns, in actor and critic.
        learnt_spread: whether sigma is learnt; else it is 1 and counts nowhere.

    References:
        Ozalp 2026, arXiv 2601.00737: one critic with a law of one step's targets, pessimism in proportion to its spread,
        dropout. The form of the law, of the loss and of the shift is INFERRED; that actors see the shift too is ours.
    """

    beta: float = 0.5
    critics: int = eqx.field(static=True, default=1)
    unit: float = eqx.field(static=True, default=1.0)
    dropout: float = eqx.field(static=True, default=0.0)
    learnt_spread: bool = eqx.field(static=True, default=True)

    name: ClassVar[str] = "stac"
    references: ClassVar[tuple[str, ...]] = ("ozalp2026stac", "haarnoja2018sac")

    def check(self, environment: Environment) -> None:
        super().check(environment)
        check_fields(
            "follower stac",
            ("critics", self.critics, self.critics == 1, "it has one"),
            ("unit", self.unit, self.unit == 1, "it is 1"),
            ("dropout", self.dropout, 0 <= self.dropout < 1, "it must be in [0, 1)"),
        )

    def critic(self, environment, key):
        o, m, w = environment.observation.size, environment.action.size, self.width
        return nets.MLP.make((o + m, w, w, 2 if self.learnt_spread else 1), key)

    def law_of(self, Q: Any, obs: Float[Array, "B o"], action: Float[Array, "B m"], key: Array | None = None) -> Normal:
        """What the critic says; with a key as it does while it learns."""
        net = jax.tree.map(lambda v: v[0], Q)
        found = self._dropped(net, jnp.concatenate([obs, action], 1), key)
        mean = found[:, 0]
        return Normal(mean, jax.nn.softplus(found[:, 1]) + LEAST if self.learnt_spread else jnp.ones_like(mean))

    def values(self, Q, obs, action):
        """What counts of it, [1, B]."""
        return self._worth(self.law_of(Q, obs, action))[None]

    def _worth(self, law: Normal) -> Float[Array, " B"]:
        return law.mean - self.beta * law.spread if self.learnt_spread else law.mean

    def target(self, environment, F, rows, r, gamma, tau, key):
        law, (_, after) = self.law(environment), self.seen(environment, rows)
        out = self.outputs(environment, F.actor.params, rows.t.next_obs)
        action, logp = jax.vmap(law.sample)(out, jax.random.split(key, r.shape[0]))
        said = self.law_of(F.target, after, law.encoded(action), self._another(key, 1))
        on = gamma * ongoing(rows)
        spread = on * said.spread if self.learnt_spread else jnp.zeros_like(r)
        return Normal(r + on * (self._worth(said) - tau * logp), spread)

    def critic_loss(self, environment, Q, rows, y, key):
        taken = self.law(environment).encoded(rows.t.action)
        mean, spread = self.law_of(Q, self.seen(environment, rows)[0], taken, self._another(key, 2))
        return jnp.mean(jnp.log(spread) + ((y.mean - mean) ** 2 + y.spread**2) / (2 * spread**2))

    def actor_loss(self, environment, F, actor, Q, rows, tau, key):
        law, (obs, _) = self.law(environment), self.seen(environment, rows)
        out = self._dropped(actor, scaled(environment, rows.t.obs), self._another(key, 3))
        action, logp = jax.vmap(law.sample)(out, jax.random.split(key, obs.shape[0]))
        said = self.law_of(Q, obs, law.encoded(action), self._another(key, 4))
        return jnp.mean(tau * logp - self._worth(said)), (logp, F.more)

    def _another(self, key: Array, number: int) -> Array | None:
        return jax.random.fold_in(key, number) if self.dropout else None

    def _dropped(self, net: nets.MLP, v: Float[Array, "B i"], key: Array | None) -> Float[Array, "B o"]:
        """The network's outputs; with a key, hidden units are left out at random and the others made larger."""
        if key is None:
            return net(v)
        keys = iter(jax.random.split(key, len(net.weights)))

        def act(hidden: Array) -> Array:
            kept = jax.random.bernoulli(next(keys), 1 - self.dropout, hidden.shape)
            return jnp.where(kept, jax.nn.relu(hidden) / (1 - self.dropout), 0.0)

        return net(v, act)


def minimum(mean: Float[Array, " n"], spread_next: float = 0.0) -> Normal:
    r"""The law that minimises STAC's loss over given targets: their mean, $\sigma^2 = \mathrm{Var}(y) + s'^2$.

    Args:
        mean: targets y of one state and action.
        spread_next: the spread that the target's own law has.
    """
    return Normal(jnp.mean(mean), jnp.sqrt(jnp.var(mean) + spread_next**2))


__all__ = ["STAC", "Learnt", "Normal", "minimum"]
