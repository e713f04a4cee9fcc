"""Hand-written experts, whose paths are demonstrations and segments: nothing here learns."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from bilevel_rl.control.environment import Environment
from bilevel_rl.control.problem import Transition


def swing_up(obs: Array) -> Array:
    """Pendulum: pump energy until it is nearly upright, then hold. [3] -> [1].

    References:
        Energy control: Astrom, Furuta 2000, Automatica 36(2); gains are ours.
    """
    cos, sin, speed = obs
    energy = speed**2 / 6 + 5 * (cos - 1)  # 0 upright at rest, for g = 10 and a rod of length and mass 1
    pump = jnp.where(jnp.abs(speed) < 0.05, 2.0, -2.0 * jnp.sign(energy * speed))
    hold = -(10 * jnp.arctan2(sin, cos) + 3 * speed)
    near = (cos > 0.85) & (jnp.abs(speed) < 3.0)
    return jnp.clip(jnp.where(near, hold, pump), -2.0, 2.0)[None]


def reach(obs: Array) -> Array:
    """Arm: every joint turns so that the tip comes nearer, by the transposed Jacobian. [2n + 4] -> [n]."""
    n = (obs.shape[0] - 4) // 2
    angles = jnp.cumsum(jnp.arctan2(obs[n : 2 * n], obs[:n]))
    links = jnp.stack([jnp.cos(angles), jnp.sin(angles)], 1) / n
    after = jnp.cumsum(links[::-1], 0)[::-1]  # from each joint to the tip
    jacobian = jnp.stack([-after[:, 1], after[:, 0]], 1)
    return jnp.clip(20.0 * jacobian @ obs[-2:], -1.0, 1.0)


def paths(environment: Environment, act: Callable, count: int, steps: int, noise: float, key: Array) -> Transition:
    """Transitions [count, steps] of an expert whose actions are disturbed, from first states.

    Args:
        act: observation [o] -> action [m].
        noise: standard deviation, in half widths of the action box.
    """
    half = (jnp.asarray(environment.action.high, jnp.float32) - jnp.asarray(environment.action.low, jnp.float32)) / 2

    def step(carry, key):
        state, obs = carry
        k_noise, k_step = jax.random.split(key)
        action = act(obs).astype(jnp.float32)
        action = action + noise * half * jax.random.normal(k_noise, action.shape, jnp.float32)
        found = environment.step(state, action, k_step)
        t = Transition(obs, action, found.obs, found.reward, found.info, found.terminated)
        return (found.state, found.obs), t

    def one(key):
        k_reset, k_steps = jax.random.split(key)
        return jax.lax.scan(step, environment.reset(k_reset), jax.random.split(k_steps, steps))[1]

    return jax.jit(lambda key: jax.vmap(one)(jax.random.split(key, count)))(key)
