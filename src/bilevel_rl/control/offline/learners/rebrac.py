r"""ReBRAC: TD3+BC with cloning in the actor and in the critic's target, and normalised critics.

$$y = r + \gamma \big(\min_i \bar Q_i(s', a') - \beta_2 |a' - \hat a'|^2\big), \qquad
\max_\pi \lambda Q(s, \pi(s)) - \beta_1 |\pi(s) - a|^2$$

with $\hat a'$ what the data did next.
"""

from __future__ import annotations

from typing import ClassVar

import jax.numpy as jnp

from bilevel_rl.control.offline import parts, twin
from bilevel_rl.control.offline.learners.td3_bc import TD3BC
from bilevel_rl.loop.settings import check_fields


class ReBRAC(TD3BC):
    r"""Behaviour regularisation on both sides.

    Args:
        alpha: lambda is alpha / E|Q|.
        delay: updates of the critics for one of the actor.
        actor_beta: $\beta_1$, weight of cloning in the actor.
        critic_beta: $\beta_2$, weight of cloning in the critic's target, in units of reward.

    References:
        Tarasov et al. 2023, arXiv 2305.09836; squares are sums over coordinates, as there. Its larger networks and batches
        are left to `width`.
    """

    alpha: float = 1.0
    actor_beta: float = 0.1
    critic_beta: float = 0.01

    name: ClassVar[str] = "rebrac"
    references: ClassVar[tuple[str, ...]] = ("tarasov2023rebrac", "fujimoto2021td3bc")

    def check(self, environment):
        super().check(environment)
        check_fields(
            "learner rebrac", ("actor_beta", self.actor_beta, self.actor_beta >= 0, "it must be at least 0"),
            ("critic_beta", self.critic_beta, self.critic_beta >= 0, "it must be at least 0"),
        )  # fmt: skip

    def init(self, environment, facts, key):
        return twin.begin(environment, self.width, key, kind=parts.NormedMLP)

    def update(self, environment, F, batch, gamma, k, key):
        y = regularised_target(environment, F.slow_actor, F.slow_critics, batch, gamma, self.critic_beta, key)
        loss = lambda pi, Q: regularised_loss(environment, pi, Q, batch, self.alpha, self.actor_beta)  # noqa: E731
        return twin.step(self, environment, F, batch, y, k, loss)


def regularised_target(environment, actor, Q, batch, gamma, beta, key):
    r"""$r + \gamma (\min_i \bar Q_i(s', a') - \beta |a' - \hat a'|^2)$ [B]; at $\beta = 0$ that of TD3."""
    after = batch.t.next_obs
    code = twin.smoothed(environment, actor, after, key)
    away = jnp.sum((code - parts.encoded(environment.action, batch.next_action)) ** 2, -1)
    V = jnp.min(parts.values(environment, Q, after, code), 0) - beta * away
    return batch.reward + gamma * parts.ongoing(batch.t.terminated, V.dtype) * V


def regularised_loss(environment, actor, Q, batch, alpha, beta):
    """The actor's: improvement and a sum of squares; TD3+BC's with beta at 1/m."""
    code = parts.steered(environment, actor, batch.t.obs)
    away = jnp.sum((code - parts.encoded(environment.action, batch.t.action)) ** 2, -1)
    return twin.improvement(environment, Q, batch, code, alpha) + beta * parts.weighted_mean(batch.weight, away)
