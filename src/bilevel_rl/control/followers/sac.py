r"""Soft actor-critic: $y = r + \gamma (\min_i \bar Q_i(s', a') - \tau \log\pi(a'|s'))$, one critic or two."""

from __future__ import annotations

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel_rl.control import nets
from bilevel_rl.control.environment import Environment
from bilevel_rl.control.followers.follower import Follower, ongoing, scaled
from bilevel_rl.loop.settings import check_fields


class Learnt(eqx.Module):
    """What it has learnt.

    Attributes:
        actor: the policy's network.
        critics: one network, or two stacked along the first axis.
        target: slow copies of the critics.
        log_tau: logarithm of the temperature, with Adam's memory; None where tau is the solver's.
    """

    actor: nets.Trained
    critics: nets.Trained
    target: nets.MLP
    log_tau: nets.Trained | None


class SAC(Follower):
    """Off-policy, for actions that are vectors; squashed where the action box is bounded, else Gaussian.

    Args:
        rate: step size of Adam, for actor and critics.
        polyak: share by which targets follow after an update.
        width: units of each of two hidden layers.
        critics: 1, or 2 whose smaller value counts.
        tuned: whether the temperature is tuned, towards `entropy`; else it is the solver's tau. The leader's estimators
            divide by the temperature in use.
        entropy: what a tuned temperature aims at, in nats a coordinate of the action.

    References:
        Haarnoja et al. 2018, arXiv 1812.05905.
    """

    rate: float = 1e-3
    polyak: float = 0.05
    entropy: float = -1.0
    width: int = eqx.field(static=True, default=64)
    critics: int = eqx.field(static=True, default=1)
    tuned: bool = eqx.field(static=True, default=False)

    name: ClassVar[str] = "sac"
    discrete: ClassVar[bool | None] = False
    references: ClassVar[tuple[str, ...]] = ("haarnoja2018sac",)

    def check(self, environment: Environment) -> None:
        super().check(environment)
        check_fields("follower sac", ("critics", self.critics, self.critics in (1, 2), "it must be 1 or 2"))

    def init(self, environment: Environment, key: Array) -> Learnt:
        o, m, w = environment.observation.size, environment.action.size, self.width
        k_pi, k_q = jax.random.split(key)
        actor = nets.MLP.make((o, w, w, self.law(environment).outputs), k_pi, last=0.1)
        Q = jax.vmap(lambda k: nets.MLP.make((o + m, w, w, 1), k))(jax.random.split(k_q, self.critics))
        log_tau = nets.Trained.begin(jnp.zeros((), jnp.float32)) if self.tuned else None
        return Learnt(nets.Trained.begin(actor), nets.Trained.begin(Q), Q, log_tau)

    def out(self, environment: Environment, F: Learnt, obs):
        return F.actor.params(scaled(environment, obs))

    def temperature(self, F: Learnt, tau: Any) -> Any:
        """The one in use."""
        return tau if F.log_tau is None else jnp.exp(F.log_tau.params)

    def update(self, environment: Environment, F: Learnt, rows, r, gamma, tau, key) -> Learnt:
        law, tau = self.law(environment), self.temperature(F, tau)
        obs, after = scaled(environment, rows.t.obs), scaled(environment, rows.t.next_obs)
        k_next, k_now = jax.random.split(key)
        keys = lambda k: jax.random.split(k, r.shape[0])  # noqa: E731

        def values(Q: Any, obs: Float[Array, "B o"], action: Float[Array, "B m"]) -> Float[Array, "c B"]:
            return jax.vmap(lambda q: q(jnp.concatenate([obs, action], 1))[:, 0])(Q)

        # y = r + gamma (min_i Q_i(s', a') - tau log pi(a'|s'))
        a_next, logp = jax.vmap(law.sample)(F.actor.params(after), keys(k_next))
        V_next = jnp.min(values(F.target, after, law.encoded(a_next)), 0) - tau * logp
        y = r + gamma * ongoing(rows) * V_next
        taken = law.encoded(rows.t.action)
        slope = jax.grad(lambda Q: 0.5 * jnp.sum(jnp.mean((values(Q, obs, taken) - y) ** 2, 1)))(F.critics.params)
        critics = F.critics.descend(slope, self.rate)

        # the actor: E[tau log pi - min Q]
        def loss(actor: Any):
            action, logp = jax.vmap(law.sample)(actor(obs), keys(k_now))
            return jnp.mean(tau * logp - jnp.min(values(critics.params, obs, law.encoded(action)), 0)), logp

        slope, logp = jax.grad(loss, has_aux=True)(F.actor.params)
        actor, log_tau = F.actor.descend(slope, self.rate), F.log_tau
        if log_tau is not None:
            # J(tau) = E[-log tau (log pi + H)]: tau rises while the entropy is below its aim
            aim = jnp.asarray(self.entropy, jnp.float32) * environment.action.size
            log_tau = log_tau.descend(-jnp.mean(logp + aim), self.rate)
        return Learnt(actor, critics, nets.follow(F.target, critics.params, self.polyak), log_tau)
