r"""A pole on a cart, to be kept from falling: Gymnasium's `CartPole-v1`."""

import math
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from bilevel_rl.control.environment import Box, Discrete, Environment, Step

GRAVITY, CART, POLE, LENGTH, FORCE, DT = 9.8, 1.0, 0.1, 0.5, 10.0, 0.02  # Gymnasium; LENGTH is half the pole's
TRACK, ANGLE = 2.4, 12 * math.pi / 180


class CartPole(Environment):
    r"""Push the cart left (0) or right (1) with 10 N; each step pays 1, and it ends where the pole or the cart leaves.

    $$\ddot\theta = \frac{g \sin\theta - f \cos\theta}{\ell(\tfrac43 - m\cos^2\theta/M)}, \quad
    \ddot p = f - \frac{m \ell\,\ddot\theta\cos\theta}{M}, \quad f = \frac{F + m\ell\,\dot\theta^2\sin\theta}{M}$$

    by explicit Euler steps of .02 s. A state is what is observed, [4]: place (m), speed, angle (rad), turn. Starts: uniform
    in $[-.05, .05]^4$. Ends: beyond 2.4 m or 12 degrees.

    Args:
        steps: of an episode.
        precise: states in 64 bits, as Gymnasium holds them.

    References:
        Barto, Sutton, Anderson 1983; Florian 2007; Gymnasium, `classic_control/cartpole.py`.
    """

    steps: int = eqx.field(static=True, default=500)
    precise: bool = eqx.field(static=True, default=False)

    name: ClassVar[str] = "cartpole"

    @property
    def observation(self):
        high = np.array([2 * TRACK, np.inf, 2 * ANGLE, np.inf])
        return Box(tuple(-high), tuple(high))

    @property
    def action(self):
        return Discrete(2)

    @property
    def horizon(self):
        return self.steps

    def reset(self, key):
        state = jax.random.uniform(key, (4,), jnp.float64 if self.precise else jnp.float32, -0.05, 0.05)
        return state, state.astype(jnp.float32)

    def step(self, state, action, key):
        place, speed, angle, turn = state
        force = jnp.where(action == 1, FORCE, -FORCE).astype(state.dtype)
        cos, sin, mass = jnp.cos(angle), jnp.sin(angle), CART + POLE
        push = (force + POLE * LENGTH * turn**2 * sin) / mass
        turning = (GRAVITY * sin - cos * push) / (LENGTH * (4 / 3 - POLE * cos**2 / mass))
        speeding = push - POLE * LENGTH * turning * cos / mass
        state = state + DT * jnp.stack([speed, speeding, turn, turning])
        fallen = (jnp.abs(state[0]) > TRACK) | (jnp.abs(state[2]) > ANGLE)
        one, never = jnp.ones((), jnp.float32), jnp.zeros((), bool)
        return Step(state, state.astype(jnp.float32), one, fallen, never, jnp.zeros(0, jnp.float32))

    def frame(self, state):
        """From the cart to the pole's tip, [2, 2]."""
        cart = jnp.stack([state[0], jnp.zeros_like(state[0])])
        return {"segments": jnp.stack([cart, cart + 2 * LENGTH * jnp.stack([jnp.sin(state[2]), jnp.cos(state[2])])])}
