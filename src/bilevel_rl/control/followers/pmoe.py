r"""ExpertMixture of experts: the policy is a mixture, and only the expert whose action is best learns.

$$i^* = \arg\max_k \min_j Q_j(s, a_k), \qquad L = \tau\log N_{i^*}(a_{i^*}) - \min_j Q_j(s, a_{i^*}) + |w(s) - e_{i^*}|^2$$
"""

from __future__ import annotations

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp

from bilevel_rl.control.environment import Environment
from bilevel_rl.control.followers.sac import SAC
from bilevel_rl.control.policies import ExpertMixture
from bilevel_rl.loop.settings import check_fields


class PMOE(SAC):
    """SAC whose actor is K experts; with `experts=1` it is SAC.

    Args:
        rate: step size of Adam, for actor and critics.
        polyak: share by which targets follow after an update.
        entropy: what a tuned temperature aims at, in nats a coordinate of the action.
        width: units of each of two hidden layers.
        critics: 1, or 2 whose smaller value counts; 0 as SAC has it.
        unit: value that an output of 1 of a critic's network stands for; 0 as SAC has it.
        tuned: whether the temperature is tuned.
        experts: K.

    References:
        Ren, Li, Ding, Pan, Dong 2021, arXiv 2104.09122; the losses as in quantumiracle/SOTA-RL-Algorithms.
    """

    experts: int = eqx.field(static=True, default=4)

    name: ClassVar[str] = "pmoe"
    references: ClassVar[tuple[str, ...]] = ("ren2021pmoe", "haarnoja2018sac")

    def check(self, environment: Environment) -> None:
        super().check(environment)
        check_fields("follower pmoe", ("experts", self.experts, self.experts >= 1, "it must be at least 1"))

    def law(self, environment: Environment) -> ExpertMixture:
        return ExpertMixture(environment.action, self.experts)

    def actor_loss(self, environment, F, actor, Q, rows, tau, key):
        law, (obs, _) = self.law(environment), self.seen(environment, rows)
        out = self.outputs(environment, actor, rows.t.obs)
        action, logp = jax.vmap(law.draws)(out, jax.random.split(key, obs.shape[0]))  # [B, K, m], [B, K]
        worth = jax.vmap(lambda a: self.worth(self.values(Q, obs, law.encoded(a))), 1, 1)(action)  # [B, K]
        best = jax.nn.one_hot(jnp.argmax(jax.lax.stop_gradient(worth), 1), self.experts, dtype=jnp.float32)
        weights = jax.nn.softmax(out[:, : self.experts])
        logp = jnp.sum(best * logp, 1)
        loss = tau * logp - jnp.sum(best * worth, 1) + jnp.sum((weights - best) ** 2, 1)
        return jnp.mean(loss), (logp, F.more)
