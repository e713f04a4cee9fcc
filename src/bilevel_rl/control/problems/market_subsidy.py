r"""A regulator pays a firm for each unit it sells, so that two firms' prices come nearer to what is best for all."""

from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bilevel_rl.control import quadratic
from bilevel_rl.control.environment import Environment
from bilevel_rl.control.environments import Market
from bilevel_rl.control.problem import ControlProblem


class MarketSubsidy(ControlProblem):
    r"""$r_x = (p - c + x)\,q$; the regulator wants welfare, $u = U(q, q_z) - c\,(q + q_z)$, and x is a transfer.

    U is the consumers' utility that gives these demands, $U = \alpha\,(q + q_z) - \tfrac12 (q, q_z)\,N\,(q, q_z)^\top$ with
    $N = \begin{pmatrix}1 & -e\\ -e & 1\end{pmatrix}^{-1}$ and $\alpha = 1/(1-e)$. Everything is quadratic in prices, so the
    answer is exact (`control.quadratic`) wherever prices stay inside their box; and welfare is a parabola in x.

    Args:
        x0: [1] subsidy of a unit.
        gamma: of both.

    References:
        Singh, Vives 1984, The RAND Journal of Economics 15(4).
    """

    x0: Float[Array, " d"] = (0.0,)
    environment: Environment = Market()
    gamma: float = 0.9

    name: ClassVar[str] = "market_subsidy"
    x_names: ClassVar[tuple[str, ...]] = ("subsidy",)

    def discount_lower(self):
        return self.gamma

    def features(self, t):
        return jnp.stack([t.reward, t.info[0]])

    def reward(self, x, features):
        return features[0] + x[0] * features[1]

    def utility(self, x, t):
        return self._welfare(t.info[0], t.info[1])

    def _welfare(self, sold, rival):
        e, c = self.environment.replace, self.environment.unit_cost
        used = (sold**2 + rival**2 + 2 * e * sold * rival) / (1 - e**2)
        return (1 / (1 - e) - c) * (sold + rival) - used / 2

    def box(self):
        return jnp.full(1, -1.0), jnp.full(1, 2.0)

    def system(self) -> quadratic.System:
        """The rival's price; its first one is uniform in [.5, 1]."""
        e = self.environment
        drift = [e.answer * (1 + e.unit_cost) / 2]
        A, B = [[1 - e.answer]], [[e.answer * e.replace / 2]]
        return quadratic.System.of(A, B, [[e.noise**2]], [0.75], [[0.25 / 12]], drift)

    def answer(self, x, tau) -> quadratic.GaussianLaw:
        """The firm's soft optimum."""
        sold = jnp.array([self.environment.replace, 1.0, -1.0])  # of y = (z, 1, p)
        margin = jnp.array([0.0, 0.0, 1.0]).at[1].set(x[0] - self.environment.unit_cost)
        M = (jnp.outer(sold, margin) + jnp.outer(margin, sold)) / 2
        # entropies of followers are those of the action in units of half its box, a constant apart
        return quadratic.soft_optimal(self.system(), M, self.gamma, tau)

    def truth(self, x, tau):
        e = self.environment.replace
        D = jnp.array([[e, 1.0, -1.0], [-1.0, 1.0, e]])  # what both sell
        N = jnp.array([[1.0, e], [e, 1.0]]) / (1 - e**2)
        U = -D.T @ N @ D / 2
        linear = (1 / (1 - e) - self.environment.unit_cost) * jnp.sum(D, 0)
        U = U.at[1].add(linear / 2).at[:, 1].add(linear / 2)
        return -quadratic.expected(self.system(), self.answer(x, tau), U, self.gamma)

    def best(self, tau: float = 0.005) -> float:
        """The subsidy at the parabola's vertex."""
        low, middle, high = (float(self.truth(jnp.full(1, v), tau)) for v in (-1.0, 0.0, 1.0))
        return float(np.clip((low - high) / (2 * (low + high - 2 * middle)), -1.0, 2.0))

    def temperature(self):
        return 0.005
