r"""Two firms that sell things which replace each other; one learns, the other answers its last price."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp

from bilevel_rl.control.environment import Box, Environment, Step

# ours: beyond both firms' prices. Under the best subsidy they lie near .36, where a squashed Gaussian is skewed; [-1, 2]
# would cure that, and makes x noisier than it was biased (docs/log.md)
PRICE = (0.0, 2.0)


class Market(Environment):
    r"""The learning firm sets its price p; its rival's price z moves a part of the way to its own best answer.

    $$q = 1 - p + e z, \quad q_z = 1 - z + e p, \qquad
    z' = z + \rho\,\big(\tfrac12(1 + c + e p) - z\big) + \sigma \xi$$

    Demands are linear, both firms produce at c a unit, $e < 1$ says how well one thing replaces the other. The reward is the
    profit $(p - c)\,q$. `info` says what both sold and the rival's price: (q, q_z, z) before the step. Observed is z, which
    is the state. Prices are in units of the demand at price 0, which is 1 for both. Starts: z uniform in [.5, 1].

    Args:
        replace: e.
        unit_cost: c.
        answer: $\rho$, the part of the way.
        noise: $\sigma$.

    References:
        Differentiated Bertrand competition: Singh, Vives 1984, The RAND Journal of Economics 15(4).
    """

    replace: float = eqx.field(static=True, default=0.5)
    unit_cost: float = eqx.field(static=True, default=0.2)
    answer: float = eqx.field(static=True, default=0.5)
    noise: float = eqx.field(static=True, default=0.02)

    name: ClassVar[str] = "market"
    info_names: ClassVar[tuple[str, ...]] = ("sold", "rival_sold", "rival_price")

    @property
    def observation(self):
        return Box((-1.0,), (3.0,))

    @property
    def action(self):
        return Box((PRICE[0],), (PRICE[1],))

    def reset(self, key):
        z = jax.random.uniform(key, (1,), jnp.float32, 0.5, 1.0)
        return z, z

    def step(self, state, action, key):
        p, z = jnp.clip(action[0], *PRICE), state[0]
        sold, rival = 1 - p + self.replace * z, 1 - z + self.replace * p
        best = (1 + self.unit_cost + self.replace * p) / 2
        z_next = z + self.answer * (best - z) + self.noise * jax.random.normal(key, (), jnp.float32)
        state, never = jnp.clip(z_next, -1.0, 3.0)[None], jnp.zeros((), bool)
        return Step(state, state, (p - self.unit_cost) * sold, never, never, jnp.stack([sold, rival, z]))

    def frame(self, state):
        """The rival's price as a point, [1, 2]."""
        return {"points": jnp.stack([state[0], jnp.zeros_like(state[0])])[None]}
