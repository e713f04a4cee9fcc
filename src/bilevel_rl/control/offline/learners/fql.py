r"""FQL: a flow clones the data, and a policy of one step learns from the flow and from the critic.

$$\min_\mu\ E\Big[-\lambda Q(s, \mu(s, z)) + \alpha\, |\mu(s, z) - a_\text{flow}(s, z)|^2\Big], \qquad z \sim N(0, I)$$

The flow is never differentiated through its steps.
"""

from __future__ import annotations

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp

from bilevel_rl.control import nets
from bilevel_rl.control.offline import parts, twin
from bilevel_rl.control.offline.learner import OfflineLearner
from bilevel_rl.control.policies import flow
from bilevel_rl.loop.settings import check_fields


class Distilled(eqx.Module):
    """What it has learnt.

    Attributes:
        velocity: of the flow that clones the data.
        actor: network of (observation, noise).
        critics: two, stacked.
        slow: slow copies of both.
    """

    velocity: nets.Trained
    actor: nets.Trained
    critics: nets.Trained
    slow: Any


class FQL(OfflineLearner):
    r"""Flow Q-learning.

    Args:
        alpha: weight of the flow against the critic; without bound, the flow in one step.
        steps: in which the flow is followed.

    References:
        Park, Li, Levine 2025, arXiv 2502.02538; the critic's value is divided by its mean size, as its option
        `normalize_q_loss` does.
    """

    alpha: float = 1.0
    steps: int = eqx.field(static=True, default=10)

    name: ClassVar[str] = "fql"
    references: ClassVar[tuple[str, ...]] = ("park2025fql",)
    discrete: ClassVar[bool | None] = False

    def check(self, environment):
        super().check(environment)
        check_fields(
            "learner fql", ("alpha", self.alpha, self.alpha >= 0, "it must be at least 0"),
            ("steps", self.steps, self.steps >= 1, "it must be at least 1"),
        )  # fmt: skip

    def init(self, environment, facts, key):
        k_v, k_pi, k_q = jax.random.split(key, 3)
        o, m, w = environment.observation.size, environment.action.size, self.width
        Q = parts.critics(environment, w, k_q)
        return Distilled(
            nets.Trained.begin(flow.Velocity.make(m, o, w, k_v)),
            nets.Trained.begin(nets.MLP.make((o + m, w, w, m), k_pi, last=0.1)), nets.Trained.begin(Q), Q,
        )  # fmt: skip

    def act(self, environment, F, memory, obs, key):
        z = jax.random.normal(key, (1, environment.action.size), jnp.float32)
        return parts.decoded(environment.action, one_step(environment, F.actor.params, obs[None], z)[0]), memory

    def update(self, environment, F, batch, gamma, k, key):
        k_match, k_next, k_now = jax.random.split(key, 3)
        obs, code = batch.t.obs, parts.encoded(environment.action, batch.t.action)
        weight = batch.weight / jnp.maximum(jnp.mean(batch.weight), 1e-8)
        matched = lambda v: flow.matching_loss(v, code, parts.scaled(environment, obs), k_match, weight)  # noqa: E731
        velocity = F.velocity.descend(jax.grad(matched)(F.velocity.params), self.rate)

        # y = r + gamma mean_i Q_i(s', mu(s', z'))
        after = batch.t.next_obs
        a_next = one_step(environment, F.actor.params, after, jax.random.normal(k_next, code.shape, jnp.float32))
        V = jnp.mean(parts.values(environment, F.slow, after, a_next), 0)
        y = batch.reward + gamma * parts.ongoing(batch.t.terminated) * V
        slope = jax.grad(lambda Q: parts.critic_loss(environment, Q, batch, code, y))(F.critics.params)
        critics = F.critics.descend(slope, self.rate)

        z = jax.random.normal(k_now, code.shape, jnp.float32)
        target = parts.flowed(environment, velocity.params, obs, z, self.steps)
        loss = lambda pi: distilled_loss(environment, pi, critics.params, batch, z, target, self.alpha)  # noqa: E731
        actor = F.actor.descend(jax.grad(loss)(F.actor.params), self.rate)
        return Distilled(velocity, actor, critics, nets.follow(F.slow, critics.params, self.polyak))


def one_step(environment, pi, obs, z):
    """The policy's action [B, m], encoded."""
    code = pi(jnp.concatenate([parts.scaled(environment, obs), z], -1))
    return jnp.clip(code, -1.0, 1.0) if environment.action.bounded else code


def distilled_loss(environment, pi, Q, batch, z, target, alpha):
    """What the policy minimises; the square is a sum over coordinates, of the action before it is clipped."""
    raw = pi(jnp.concatenate([parts.scaled(environment, batch.t.obs), z], -1))
    away = parts.weighted_mean(batch.weight, jnp.sum((raw - target) ** 2, -1))
    code = jnp.clip(raw, -1.0, 1.0) if environment.action.bounded else raw
    return twin.improvement(environment, Q, batch, code, 1.0) + alpha * away
