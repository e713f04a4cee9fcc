r"""A bet whose size is the action: what it pays on average, and how surely, is known."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp

from bilevel_rl.control.environment import Box, Environment, Step


class Stakes(Environment):
    r"""$r = a(\mu + \sigma\varepsilon) - \tfrac c2 a^2$ with a fresh normal $\varepsilon$ every step; nothing else happens.

    The one observation is 1; there is no end. Under a temperature $\tau$ the soft optimum of one who does not mind risk is
    normal, with mean $\mu/c$ and variance $\tau/c$.

    Args:
        gain: $\mu$, paid for a unit of stake on average.
        risk: $\sigma$, its standard deviation.
        drag: c, cost of large stakes.
    """

    gain: float = eqx.field(static=True, default=1.0)
    risk: float = eqx.field(static=True, default=1.0)
    drag: float = eqx.field(static=True, default=1.0)

    name: ClassVar[str] = "stakes"

    @property
    def observation(self):
        return Box((0.0,), (1.0,))

    @property
    def action(self):
        return Box.everywhere(1)

    def reset(self, key):
        return jnp.zeros((), jnp.float32), jnp.ones(1, jnp.float32)

    def step(self, state, action, key):
        a, luck, never = action[0], jax.random.normal(key, (), jnp.float32), jnp.zeros((), bool)
        reward = a * (self.gain + self.risk * luck) - 0.5 * self.drag * a**2
        return Step(state, jnp.ones(1, jnp.float32), reward, never, never, jnp.zeros(0, jnp.float32))
