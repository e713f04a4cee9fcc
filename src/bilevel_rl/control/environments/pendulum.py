r"""A pendulum to be swung up and held: Gymnasium's `Pendulum-v1`."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp

from bilevel_rl.control.environment import Box, Environment, Step

SPEED, TORQUE, DT = 8.0, 2.0, 0.05  # Gymnasium


class Pendulum(Environment):
    r"""Torque u in [-2, 2] on a rod of length and mass 1, upright at angle 0.

    $$\dot\theta' = \mathrm{clip}\big(\dot\theta + (\tfrac{3g}{2}\sin\theta + 3u)\,dt, \pm 8\big), \quad
    \theta' = \theta + \dot\theta'\,dt, \quad r = -(\theta^2 + .1\,\dot\theta^2 + .001\,u^2)$$

    with $dt = .05$ s and the angle in $[-\pi, \pi)$. Observed are $\cos\theta, \sin\theta, \dot\theta$; a state is [2]:
    angle and speed, rad and rad/s. Starts: uniform in $[-\pi, \pi] \times [-1, 1]$.

    Args:
        gravity: g, m/s^2.
        steps: of an episode.
        precise: states in 64 bits, as Gymnasium holds them.

    References:
        Gymnasium, `classic_control/pendulum.py`.
    """

    gravity: float = eqx.field(static=True, default=10.0)
    steps: int = eqx.field(static=True, default=200)
    precise: bool = eqx.field(static=True, default=False)

    name: ClassVar[str] = "pendulum"

    @property
    def observation(self):
        return Box((-1.0, -1.0, -SPEED), (1.0, 1.0, SPEED))

    @property
    def action(self):
        return Box((-TORQUE,), (TORQUE,))

    @property
    def horizon(self):
        return self.steps

    def reset(self, key):
        dtype = jnp.float64 if self.precise else jnp.float32
        state = jax.random.uniform(key, (2,), dtype, -1.0, 1.0) * jnp.asarray((jnp.pi, 1.0), dtype)
        return state, observed(state)

    def step(self, state, action, key):
        theta, speed = state
        u = jnp.clip(action[0].astype(state.dtype), -TORQUE, TORQUE)
        reward = -(theta**2 + 0.1 * speed**2 + 0.001 * u**2)
        speed = jnp.clip(speed + (1.5 * self.gravity * jnp.sin(theta) + 3.0 * u) * DT, -SPEED, SPEED)
        theta = (theta + speed * DT + jnp.pi) % (2 * jnp.pi) - jnp.pi  # Gymnasium turns it only where it pays
        state, never = jnp.stack([theta, speed]), jnp.zeros((), bool)
        return Step(state, observed(state), reward.astype(jnp.float32), never, never, jnp.zeros(0, jnp.float32))

    def frame(self, state):
        """From the pivot to the tip, [2, 2]."""
        tip = jnp.stack([jnp.sin(state[0]), jnp.cos(state[0])])
        return {"segments": jnp.stack([jnp.zeros(2), tip])}


def observed(state):
    """[3] of a state [2]."""
    theta, speed = state
    return jnp.stack([jnp.cos(theta), jnp.sin(theta), speed]).astype(jnp.float32)
