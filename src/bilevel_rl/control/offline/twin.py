"""Deterministic actors with twin critics, as TD3 has them: what three learners share."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from bilevel_rl.control import nets
from bilevel_rl.control.offline import parts

NOISE, CLIP = 0.2, 0.5  # TD3: of the target's action, in half widths of the box


class Twin(eqx.Module):
    """What it has learnt.

    Attributes:
        actor: network of actions.
        critics: two, stacked.
        slow_actor, slow_critics: slow copies of both.
    """

    actor: nets.Trained
    critics: nets.Trained
    slow_actor: Any
    slow_critics: Any


def begin(environment, width: int, key, kind: type = nets.MLP) -> Twin:
    """Networks before the first update."""
    k_pi, k_q = jax.random.split(key)
    o, m = environment.observation.size, environment.action.size
    actor = nets.MLP.make((o, width, width, m), k_pi, last=0.1)
    Q = parts.critics(environment, width, k_q, kind=kind)
    return Twin(nets.Trained.begin(actor), nets.Trained.begin(Q), actor, Q)


def smoothed(environment, actor, obs, key):
    """The slow actor's action [B, m], encoded, with clipped noise."""
    code = parts.steered(environment, actor, obs)
    noise = jnp.clip(NOISE * jax.random.normal(key, code.shape, code.dtype), -CLIP, CLIP)
    return jnp.clip(code + noise, -1.0, 1.0) if environment.action.bounded else code + noise


def target(environment, actor, Q, batch, gamma, key):
    r"""$y = r + \gamma \min_i \bar Q_i(s', \bar\pi(s') + \epsilon)$ [B]."""
    after = batch.t.next_obs
    V = jnp.min(parts.values(environment, Q, after, smoothed(environment, actor, after, key)), 0)
    return batch.reward + gamma * parts.ongoing(batch.t.terminated, V.dtype) * V


def improvement(environment, Q, batch, code, alpha):
    r"""$-\lambda E[Q_1(s, a)]$ with $\lambda = \alpha / E|Q_1|$, which is not differentiated."""
    q = parts.values(environment, Q, batch.t.obs, code)[0]
    size = jax.lax.stop_gradient(parts.weighted_mean(batch.weight, jnp.abs(q)))
    return -alpha / jnp.maximum(size, 1e-8) * parts.weighted_mean(batch.weight, q)


def step(learner, environment, F: Twin, batch, y, k, loss) -> Twin:
    """One update of the critics towards y, and of the actor and all slow copies in each `learner.delay`-th update.

    Args:
        loss: (actor's network, critics) -> what the actor minimises.
    """
    code = parts.encoded(environment.action, batch.t.action)
    slope = jax.grad(lambda Q: parts.critic_loss(environment, Q, batch, code, y))(F.critics.params)
    critics = F.critics.descend(slope, learner.rate)

    def act():
        actor = F.actor.descend(jax.grad(lambda pi: loss(pi, critics.params))(F.actor.params), learner.rate)
        slow = nets.follow(F.slow_critics, critics.params, learner.polyak)
        return actor, nets.follow(F.slow_actor, actor.params, learner.polyak), slow

    waits = F.actor, F.slow_actor, F.slow_critics
    actor, slow_actor, slow_critics = jax.lax.cond(k % learner.delay == 0, act, lambda: waits)
    return Twin(actor, critics, slow_actor, slow_critics)
