r"""Soft actor-critic: $y = r + \gamma (\min_i \bar Q_i(s', a') - \tau \log\pi(a'|s'))$, one critic or two."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Self

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel_rl.control import nets
from bilevel_rl.control.environment import Environment
from bilevel_rl.control.followers.follower import Follower, ongoing, scaled
from bilevel_rl.control.policies import Cut, Policy
from bilevel_rl.control.replay import Rows
from bilevel_rl.loop.settings import check_fields

# ours: coordinates of an action, and a discount, up to which one critic did. At .98 two of ten followers did not learn a
# linear system with one coordinate, x at rest; with two critics all ten did (docs/log.md)
FEW, LONG = 2, 0.95


class Learnt(eqx.Module):
    """What it has learnt.

    Attributes:
        actor: the policy's network.
        critics: one network, or two stacked along the first axis.
        target: slow copies of the critics.
        log_tau: logarithm of the temperature, with Adam's memory; None where tau is the solver's.
        more: what a kind of it keeps besides; None for SAC itself.
    """

    actor: nets.Trained
    critics: nets.Trained
    target: nets.MLP
    log_tau: nets.Trained | None
    more: Any = None


class SAC(Follower):
    """Off-policy, for actions that are vectors; squashed or cut where the action box is bounded, else Gaussian.

    Args:
        rate: step size of Adam, for actor and critics.
        polyak: share by which targets follow after an update.
        width: units of each of two hidden layers.
        critics: 1, or 2 whose smaller value counts; 0 for 2 where actions have more than two coordinates or the follower
            discounts by .95 or more, else 1. Elsewhere runs with one critic differed in whether they learnt at all.
        unit: value that an output of 1 of a critic's network stands for; 0 for the horizon, 1 / (1 - gamma), where the
            follower discounts by .95 or more, else 1. In units of the horizon a network says what a step is worth in the
            mean, and steps of Adam, which know no scale, come to values of any horizon equally soon.
        tuned: whether the temperature is tuned, towards `entropy`; else it is the solver's tau. The leader's estimators
            divide by the temperature in use.
        entropy: what a tuned temperature aims at, in nats a coordinate of the action.
        squashed: whether actions in a bounded box are a Gaussian's through tanh; else they are a Gaussian's in units of the
            box, cut at its ends. The leader's covariance takes what tanh does to a Gaussian's shape for a slope, so that x
            is a little off where actions lie near an end; a cut Gaussian away from the ends has no such part.

    References:
        Haarnoja et al. 2018, arXiv 1812.05905.
    """

    rate: float = 1e-3
    polyak: float = 0.05
    entropy: float = -1.0
    width: int = eqx.field(static=True, default=64)
    critics: int = eqx.field(static=True, default=0)
    unit: float = eqx.field(static=True, default=0.0)
    tuned: bool = eqx.field(static=True, default=False)
    squashed: bool = eqx.field(static=True, default=True)

    name: ClassVar[str] = "sac"
    discrete: ClassVar[bool | None] = False
    references: ClassVar[tuple[str, ...]] = ("haarnoja2018sac",)

    def check(self, environment: Environment) -> None:
        super().check(environment)
        known = self.critics in (0, 1, 2)
        check_fields(
            f"follower {self.name}",
            ("critics", self.critics, known, "it must be 1 or 2, or 0 for the usual one"),
            ("unit", self.unit, self.unit >= 0, "it must be above 0, or 0 for the usual one"),
        )

    def init(self, environment: Environment, key: Array) -> Learnt:
        k_pi, k_q = jax.random.split(key)
        Q = jax.vmap(lambda k: self.critic(environment, k))(jax.random.split(k_q, self.count(environment)))
        log_tau = nets.Trained.begin(jnp.zeros((), jnp.float32)) if self.tuned else None
        return Learnt(nets.Trained.begin(self.actor(environment, k_pi)), nets.Trained.begin(Q), Q, log_tau)

    def count(self, environment: Environment) -> int:
        """How many critics there are."""
        return self.critics or (1 if environment.action.size <= FEW else 2)

    def prepared(self, problem: Any) -> Self:
        """With two critics in units of the horizon where the follower plans far ahead, unless others were asked for."""
        gamma = float(problem.discount_lower())
        if gamma < LONG:
            return self
        return dataclasses.replace(self, critics=self.critics or 2, unit=self.unit or 1 / (1 - gamma))

    def law(self, environment: Environment) -> Policy:
        bounded = environment.action.bounded
        return Cut(environment.action) if bounded and not self.squashed else super().law(environment)

    # -- its pieces, which kinds of it exchange -------------------------------------------------------------------------

    def actor(self, environment: Environment, key: Array) -> Any:
        """The policy's network, new."""
        o, w = environment.observation.size, self.width
        return nets.MLP.make((o, w, w, self.law(environment).outputs), key, last=0.1)

    def critic(self, environment: Environment, key: Array) -> nets.MLP:
        """One critic, new; its first values are of the size of 1 whatever its unit."""
        o, m, w = environment.observation.size, environment.action.size, self.width
        return nets.MLP.make((o + m, w, w, 1), key, last=1 / (self.unit or 1.0))

    def outputs(self, environment: Environment, actor: Any, obs: Float[Array, "*B o"]) -> Float[Array, "*B q"]:
        """What a policy's network says of observations."""
        return actor(scaled(environment, obs))

    def seen(self, environment: Environment, rows: Rows) -> tuple[Float[Array, "B o"], Float[Array, "B o"]]:
        """What critics see before and after a transition."""
        return scaled(environment, rows.t.obs), scaled(environment, rows.t.next_obs)

    def values(self, Q: Any, obs: Float[Array, "B o"], action: Float[Array, "B m"]) -> Float[Array, "c B"]:
        """What each critic says of encoded actions."""
        found = jax.vmap(lambda q: q(jnp.concatenate([obs, action], 1))[:, 0])(Q)
        return found * jnp.float32(self.unit or 1.0)

    def worth(self, values: Float[Array, "c B"]) -> Float[Array, " B"]:
        """What counts of several critics' values: the smallest."""
        return jnp.min(values, 0)

    def target(self, environment: Environment, F: Learnt, rows: Rows, r: Any, gamma: Any, tau: Any, key: Array) -> Any:
        r"""$y = r + \gamma (\min_i \bar Q_i(s', a') - \tau \log \pi(a'|s'))$, [B]."""
        law, (_, after) = self.law(environment), self.seen(environment, rows)
        out = self.outputs(environment, F.actor.params, rows.t.next_obs)
        action, logp = jax.vmap(law.sample)(out, jax.random.split(key, r.shape[0]))
        V = self.worth(self.values(F.target, after, law.encoded(action))) - tau * logp
        return r + gamma * ongoing(rows) * V

    def critic_loss(self, environment: Environment, Q: Any, rows: Rows, y: Any, key: Array) -> Float[Array, ""]:
        """Squared distance of every critic from the target."""
        taken = self.law(environment).encoded(rows.t.action)
        return 0.5 * jnp.sum(jnp.mean((self.values(Q, self.seen(environment, rows)[0], taken) - y) ** 2, 1))

    def actor_loss(
        self, environment: Environment, F: Learnt, actor: Any, Q: Any, rows: Rows, tau: Any, key: Array
    ) -> tuple[Float[Array, ""], tuple[Float[Array, " B"], Any]]:
        r"""$E[\tau \log\pi - \min Q]$; and log pi of the actions drawn, and `more` from now on."""
        law, (obs, _) = self.law(environment), self.seen(environment, rows)
        out = self.outputs(environment, actor, rows.t.obs)
        action, logp = jax.vmap(law.sample)(out, jax.random.split(key, obs.shape[0]))
        return jnp.mean(tau * logp - self.worth(self.values(Q, obs, law.encoded(action)))), (logp, F.more)

    # -- what every follower offers -----------------------------------------------------------------------------------

    def out(self, environment: Environment, F: Learnt, obs):
        return self.outputs(environment, F.actor.params, obs)

    def temperature(self, F: Learnt, tau: Any) -> Any:
        """The one in use."""
        return tau if F.log_tau is None else jnp.exp(F.log_tau.params)

    def update(self, environment: Environment, F: Learnt, rows, r, gamma, tau, key) -> Learnt:
        tau = self.temperature(F, tau)
        k_next, k_now = jax.random.split(key)
        y = self.target(environment, F, rows, r, gamma, tau, k_next)
        slope = jax.grad(lambda Q: self.critic_loss(environment, Q, rows, y, k_next))(F.critics.params)
        critics = F.critics.descend(slope, self.rate)

        def loss(actor: Any):
            return self.actor_loss(environment, F, actor, critics.params, rows, tau, k_now)

        slope, (logp, more) = jax.grad(loss, has_aux=True)(F.actor.params)
        actor, log_tau = F.actor.descend(slope, self.rate), F.log_tau
        if log_tau is not None:
            # J(tau) = E[-log tau (log pi + H)]: tau rises while the entropy is below its aim
            aim = jnp.asarray(self.entropy, jnp.float32) * environment.action.size
            log_tau = log_tau.descend(-jnp.mean(logp + aim), self.rate)
        return Learnt(actor, critics, nets.follow(F.target, critics.params, self.polyak), log_tau, more)
