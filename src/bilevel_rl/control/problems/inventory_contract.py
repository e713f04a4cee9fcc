r"""A shop whose owner pays too little for late deliveries; the head office sets what a late unit costs it."""

from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel_rl.control.environment import Environment
from bilevel_rl.control.environments import Inventory
from bilevel_rl.control.problem import ControlProblem


class InventoryContract(ControlProblem):
    r"""$r_x = r - x\,\max(-s', 0)$; the head office bears the whole price $b_u$ of a unit that is owed, and x is a transfer.

    The shop orders up to $y(x) = (b + x - (1-\gamma) c)/(h + b + x)$, the office wants it to order up to
    $(b_u - (1-\gamma) c)/(h + b_u)$: so $x^* = b_u - b$. Graded at temperature 0, where these are exact; followers learn
    with a small one, in units of a unit's price.

    Args:
        x0: [1] what a late unit costs the shop besides, in units of price.
        backlog: $b_u$.
        gamma: of both.

    Example:
        >>> InventoryContract().best()
        1.5
    """

    x0: Float[Array, " d"] = (0.0,)
    environment: Environment = Inventory()
    backlog: float = 1.875
    gamma: float = 0.9

    name: ClassVar[str] = "inventory_contract"
    x_names: ClassVar[tuple[str, ...]] = ("late",)

    def discount_lower(self):
        return self.gamma

    def features(self, t):
        return jnp.stack([t.reward, t.info[1]])

    def reward(self, x, features):
        return features[0] - x[0] * features[1]

    def utility(self, x, t):
        return t.reward - (self.backlog - self.environment.backlog) * t.info[1]

    def box(self):
        return jnp.zeros(1), jnp.full(1, 4.0)

    def best(self) -> float:
        """The x at which both want the same."""
        return self.backlog - self.environment.backlog

    def level(self, x):
        """Up to where the shop orders."""
        return self.environment.level(self.gamma, self.environment.backlog + x[0])

    def truth(self, x, tau):
        e, y, gamma = self.environment, self.level(x), self.gamma
        # the first order fills up from U(0, .5), later ones replace what was sold; y in [.5, 1] up to rounding
        orders = e.cost * ((1 - gamma) * (y - 0.25) + gamma * 0.5)
        return orders + e.holding * y**2 / 2 + self.backlog * (1 - y) ** 2 / 2

    def temperature(self):
        return 0.0

    def follower_temperature(self):
        return 0.005
