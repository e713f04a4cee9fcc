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
    $(b_u - (1-\gamma) c)/(h + b_u)$: at temperature 0 $x^* = b_u - b$. At $\tau$, in units of a unit's price, that level
    stays and orders scatter around it with variance $\tau/(h + b + x)$, which costs the office
    $\tfrac{h + b_u}{2}$ of that. A dearer late unit makes the shop more careful, so that the best x lies higher,

    $$\frac{1}{h + b + x^*} = \frac{1}{h + b_u} - \frac{\tau}{2\,(h + (1-\gamma)\,c)^2},$$

    exact but for orders within $\sigma$ of 0, which can't be smaller. Graded at temperature 0, the newsvendor's; followers
    learn with a small one.

    Args:
        x0: [1] what a late unit costs the shop besides, in units of price.
        backlog: $b_u$.
        gamma: of both.

    Example:
        >>> InventoryContract().best(), round(InventoryContract().best(0.005), 3)
        (1.5, 1.589)
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

    def best(self, tau: float = 0.0) -> float:
        """The best x; at temperature 0 the one at which both want the same."""
        e = self.environment
        careful = tau / 2 / (e.holding + (1 - self.gamma) * e.cost) ** 2
        return 1 / (1 / (e.holding + self.backlog) - careful) - e.holding - e.backlog

    def level(self, x):
        """Up to where the shop orders."""
        return self.environment.level(self.gamma, self.environment.backlog + x[0])

    def truth(self, x, tau):
        e, y, gamma = self.environment, self.level(x), self.gamma
        # the first order fills up from U(0, .5), later ones replace what was sold; y in [.5, 1] up to rounding
        orders = e.cost * ((1 - gamma) * (y - 0.25) + gamma * 0.5)
        scatter = (e.holding + self.backlog) / 2 * tau / (e.holding + e.backlog + x[0])
        return orders + e.holding * y**2 / 2 + self.backlog * (1 - y) ** 2 / 2 + scatter

    def temperature(self):
        return 0.0

    def follower_temperature(self):
        return 0.005
