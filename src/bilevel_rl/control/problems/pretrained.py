"""Policies of Pendulum that were trained once, from what a hand-written expert did, to be composed and guided."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel_rl.control import nets
from bilevel_rl.control.environments import pendulum
from bilevel_rl.control.policies import Diffusion, Flow, flow, guidance
from bilevel_rl.control.policies.flow import Velocity
from bilevel_rl.control.problems import experts
from bilevel_rl.loop import precision

WIDTH, STEPS, BATCH, RATE = 32, 1500, 128, 3e-3  # ours
STRONGEST = 8.0  # strengths of guidance are learnt up to here
SPACE = pendulum.Pendulum().action


class Guided(eqx.Module):
    """What conditional control was trained to do.

    Attributes:
        chain: the denoising chain of the logged policy.
        control: pushes, which see the strength beside the observation.
        classifier: logit of y of (observation, action in [-1, 1]).
    """

    chain: guidance.Denoising
    control: Velocity
    classifier: nets.MLP


class Strong(eqx.Module):
    """Pushes of one strength.

    Attributes:
        control: a network that sees strengths.
        strength: gamma.
    """

    control: Velocity
    strength: Array

    def __call__(self, z: Float[Array, " m"], t: Float[Array, ""], obs: Float[Array, " o"]) -> Float[Array, " m"]:
        return self.control(z, t, jnp.append(obs, (self.strength / STRONGEST).astype(obs.dtype)))


def fitted(loss: Callable, first: Any, key: Array, steps: int = STEPS) -> Any:
    """Parameters after some steps of Adam whose size falls to 0.

    Args:
        loss: (parameters, key) -> scalar.
    """

    def step(net, drawn):
        key, rate = drawn
        return net.descend(jax.grad(loss)(net.params, key), rate), None

    rates = jnp.linspace(RATE, 0.0, steps, dtype=jnp.float32)
    run = eqx.filter_jit(lambda net, keys: jax.lax.scan(step, net, (keys, rates))[0])
    return run(nets.Trained.begin(first), jax.random.split(key, steps)).params


def somewhere(key: Array, count: int) -> Float[Array, "n 3"]:
    """Observations of states anywhere, scaled as networks see them."""
    state = jax.random.uniform(key, (count, 2), jnp.float32, -1, 1) * jnp.array([jnp.pi, pendulum.SPEED], jnp.float32)
    return jax.vmap(pendulum.observed)(state) / scale()


def scale() -> Float[Array, " 3"]:
    """Bounds of observations."""
    return jnp.array([1.0, 1.0, pendulum.SPEED], jnp.float32)


def expert(obs: Float[Array, "n 3"], key: Array) -> Float[Array, "n 1"]:
    """What energy control does, with a tenth of noise, in [-1, 1]."""
    action = jax.vmap(experts.swing_up)(obs * scale()).astype(jnp.float32) / pendulum.TORQUE
    return jnp.clip(action + 0.1 * jax.random.normal(key, action.shape, jnp.float32), -1, 1)


def near_the_top(obs: Float[Array, "n 3"]) -> Array:
    """Where energy control holds instead of pumping."""
    return (obs[:, 0] > 0.85) & (jnp.abs(obs[:, 2]) < 3.0 / pendulum.SPEED)


@functools.cache
@precision.double
def halves() -> tuple[Velocity, Velocity]:
    """Two flows: one has seen how to swing up, and anything near the top; the other how to hold, and anything elsewhere."""

    def known(obs, where, key):
        k_expert, k_any = jax.random.split(key)
        anything = jax.random.uniform(k_any, (obs.shape[0], 1), jnp.float32, -1, 1)
        return jnp.where(where[:, None], expert(obs, k_expert), anything)

    def loss(both, key):
        k_obs, k_actions, k_swing, k_hold = jax.random.split(key, 4)
        obs = somewhere(k_obs, BATCH)
        top = near_the_top(obs)
        swing, hold = (known(obs, where, k_actions) for where in (~top, top))
        return flow.matching_loss(both[0], swing, obs, k_swing) + flow.matching_loss(both[1], hold, obs, k_hold)

    law = Flow(SPACE)
    first = tuple(law.network(3, WIDTH, jax.random.key(i)) for i in (0, 1))
    return fitted(loss, first, jax.random.key(2))


@functools.cache
@precision.double
def guided(share: float = 0.3, labels: int = 2000) -> Guided:
    """A policy of a log in which a share of actions is the expert's; a classifier of those; and pushes of any strength.

    Args:
        share: of the expert in the log; the rest is uniform.
        labels: actions of which is known whose they were.
    """
    law = Diffusion(SPACE, steps=10)

    def logged(key, count):
        k_obs, k_expert, k_any, k_who = jax.random.split(key, 4)
        obs = somewhere(k_obs, count)
        anything = jax.random.uniform(k_any, (count, 1), jnp.float32, -1, 1)
        who = jax.random.bernoulli(k_who, share, (count,))
        return obs, jnp.where(who[:, None], expert(obs, k_expert), anything), who.astype(jnp.float32)

    def denoising(net, key):
        k_data, k_loss = jax.random.split(key)
        obs, action, _ = logged(k_data, BATCH)
        return law.loss(net, obs, pendulum.TORQUE * action, k_loss)

    noise = fitted(denoising, law.network(3, WIDTH, jax.random.key(3)), jax.random.key(4))
    known = logged(jax.random.key(5), labels)

    def wrong(net, key):
        obs, action, y = (v[jax.random.randint(key, (BATCH,), 0, labels)] for v in known)
        logit = net(jnp.concatenate([obs, action], 1))[:, 0]
        return jnp.mean(jax.nn.softplus(logit) - y * logit)

    classifier = fitted(wrong, nets.MLP.make((4, WIDTH, WIDTH, 1), jax.random.key(6)), jax.random.key(7))
    chain = guidance.Denoising(noise, law.steps)

    def short(control, key):
        k_obs, k_strength, k_start, k_way = jax.random.split(key, 4)
        obs = somewhere(k_obs, BATCH)
        strengths = jax.random.uniform(k_strength, (BATCH,), jnp.float32, 0, STRONGEST)
        starts = jax.random.normal(k_start, (BATCH, 1), jnp.float32)
        log_p = lambda end, o: log_likelihood(classifier, o, end)  # noqa: E731
        one = lambda g, s, o, k: guidance.shortfall(chain, Strong(control, g), log_p, g, s, o, k)  # noqa: E731
        return jnp.mean(jax.vmap(one)(strengths, starts, obs, jax.random.split(k_way, BATCH)))

    control = fitted(short, law.network(4, WIDTH, jax.random.key(8), last=0.01), jax.random.key(9))
    return Guided(chain, control, classifier)


def log_likelihood(classifier: nets.MLP, obs: Float[Array, " o"], action: Float[Array, " m"]) -> Float[Array, ""]:
    """log p(y = 1 | s, a); obs scaled, the action in [-1, 1]."""
    return -jax.nn.softplus(-classifier(jnp.concatenate([obs, action]))[0])
