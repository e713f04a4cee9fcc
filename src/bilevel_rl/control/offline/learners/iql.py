r"""IQL: V is an expectile of Q over the data's actions, so that no other action is ever asked for.

$$L_V = E\,\big|\kappa - 1\{\bar Q < V\}\big| (\bar Q - V)^2, \quad L_Q = E\,(r + \gamma V(s') - Q)^2, \quad
\max_\pi E\big[e^{\beta (\bar Q - V)} \log \pi(a|s)\big]$$
"""

from __future__ import annotations

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp

from bilevel_rl.control import nets
from bilevel_rl.control.offline import parts
from bilevel_rl.control.offline.learner import Softly
from bilevel_rl.loop.settings import check_fields


class Implicit(eqx.Module):
    """What it has learnt.

    Attributes:
        actor: the policy.
        critics: two, stacked.
        slow: slow copies of both.
        V: network of V.
    """

    actor: nets.Trained
    critics: nets.Trained
    slow: Any
    V: nets.Trained


class IQL(Softly):
    """Implicit Q-learning.

    Args:
        expectile: kappa; .5 for the behaviour's own value, towards 1 for the best action in the data.
        beta: how strongly a policy prefers what has an advantage, in 1/units of reward.

    References:
        Kostrikov, Nair, Levine 2021, arXiv 2110.06169.
    """

    expectile: float = 0.8
    beta: float = 3.0

    name: ClassVar[str] = "iql"
    references: ClassVar[tuple[str, ...]] = ("kostrikov2021iql",)

    def check(self, environment):
        super().check(environment)
        check_fields(
            "learner iql", ("expectile", self.expectile, 0 < self.expectile < 1, "it must be in (0, 1)"),
            ("beta", self.beta, self.beta >= 0, "it must be at least 0"),
        )  # fmt: skip

    def init(self, environment, facts, key):
        k_pi, k_q, k_v = jax.random.split(key, 3)
        Q = parts.critics(environment, self.width, k_q)
        return Implicit(
            nets.Trained.begin(parts.Soft.make(environment, self.width, k_pi)), nets.Trained.begin(Q), Q,
            nets.Trained.begin(parts.state_net(environment, self.width, k_v)),
        )  # fmt: skip

    def update(self, environment, F, batch, gamma, k, key):
        code = parts.encoded(environment.action, batch.t.action)
        q = jnp.min(parts.values(environment, F.slow, batch.t.obs, code), 0)
        V = F.V.descend(jax.grad(lambda V: value_loss(environment, V, batch, q, self.expectile))(F.V.params), self.rate)

        A = q - parts.state_values(environment, V.params, batch.t.obs)
        slope = jax.grad(lambda pi: parts.cloning_loss(environment, pi, batch, jnp.exp(self.beta * A)))(F.actor.params)
        actor = F.actor.descend(slope, self.rate)

        y = batch.reward + gamma * parts.ongoing(batch.t.terminated) * parts.state_values(
            environment, V.params, batch.t.next_obs
        )
        slope = jax.grad(lambda Q: parts.critic_loss(environment, Q, batch, code, y))(F.critics.params)
        critics = F.critics.descend(slope, self.rate)
        return Implicit(actor, critics, nets.follow(F.slow, critics.params, self.polyak), V)


def value_loss(environment, V, batch, q, kappa):
    """Expectile error of V against the critics' q [B]."""
    return parts.weighted_mean(
        batch.weight, parts.expectile_loss(q - parts.state_values(environment, V, batch.t.obs), kappa)
    )
