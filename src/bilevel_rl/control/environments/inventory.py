r"""A shop that orders before it knows the demand: the newsvendor, over and over."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp

from bilevel_rl.control.environment import Box, Environment, Step

REACH = 6.0  # ours: stock is cut there; an order is at most 2 demands, so no policy worth having comes near


class Inventory(Environment):
    r"""Stock s, an order $q \in [0, 2]$, a demand $D \sim U(0, 1)$ that waits where it is not met: $s' = s + q - D$.

    $$r = -\big(c\,q + h \max(s', 0) + b \max(-s', 0)\big)$$

    Stock is measured in largest demands. Without a time limit the best policy orders up to a level y, where

    $$F(y) = y = \frac{b - (1-\gamma)\,c}{h + b}.$$

    `info` says what is left over, what is owed, what was ordered. Observed is the stock, cut at $\pm 6$. Starts: U(0, .5).

    Args:
        cost: c, of a unit.
        holding: h, of a unit that is left over.
        backlog: b, of a unit that is owed.

    References:
        Order-up-to levels: Arrow, Harris, Marschak 1951; with linear costs and discounting Zipkin 2000, section 9.4.

    Example:
        >>> round(Inventory().level(0.9), 3)
        0.487
    """

    cost: float = eqx.field(static=True, default=0.1)
    holding: float = eqx.field(static=True, default=0.375)
    backlog: float = eqx.field(static=True, default=0.375)

    name: ClassVar[str] = "inventory"
    info_names: ClassVar[tuple[str, ...]] = ("left", "owed", "ordered")

    def level(self, discount, backlog=None):
        """The level up to which it pays to order, where a unit owed costs `backlog` (by default the environment's)."""
        b = self.backlog if backlog is None else backlog
        return (b - (1 - discount) * self.cost) / (self.holding + b)

    @property
    def observation(self):
        return Box((-REACH,), (REACH,))

    @property
    def action(self):
        return Box((0.0,), (2.0,))

    def reset(self, key):
        stock = jax.random.uniform(key, (1,), jnp.float32, 0.0, 0.5)
        return stock, stock

    def step(self, state, action, key):
        q = jnp.clip(action, 0.0, 2.0)
        stock = jnp.clip(state + q - jax.random.uniform(key, (1,), jnp.float32), -REACH, REACH)
        left, owed = jnp.maximum(stock, 0.0), jnp.maximum(-stock, 0.0)
        reward = -(self.cost * q + self.holding * left + self.backlog * owed)[0]
        never = jnp.zeros((), bool)
        return Step(stock, stock, reward, never, never, jnp.concatenate([left, owed, q]))

    def frame(self, state):
        """The stock as a bar from 0, [2, 2]."""
        return {"segments": jnp.stack([jnp.zeros(2), jnp.stack([jnp.zeros_like(state[0]), state[0]])])}
