r"""A linear system with bounded actions, a follower paid for where it goes; the answer is known exactly."""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bilevel_rl.control import quadratic
from bilevel_rl.control.environment import Environment
from bilevel_rl.control.environments import Bounded
from bilevel_rl.control.problem import ControlProblem

NODES, WEIGHTS = np.polynomial.legendre.leggauss(200)  # of means over an action in [-1, 1]


class BoundedShaping(ControlProblem):
    r"""$r_x = x \cdot s' - \tfrac12 |a|^2$; the leader wants $-|s' - g|^2$ and pays $c(x) = .01\,|x|^2$.

    The value is $v \cdot s$ + constant with $v = A^\top(x + \gamma v)$, and each action has the density
    $\propto \exp((\kappa_i a - a^2/2)/\tau)$ on [-1, 1] with $\kappa = B^\top (x + \gamma v)$, whatever the state. A
    squashed Gaussian is not of that form; it comes near.

    Args:
        x0: [2] what a unit of each coordinate pays.
        gamma: of both.
        goal: g.

    Example:
        >>> float(BoundedShaping().truth(jnp.zeros(2), 0.1)) > float(BoundedShaping().truth(jnp.ones(2) / 4, 0.1))
        True
    """

    x0: Float[Array, " d"] = (0.0, 0.0)
    environment: Environment = Bounded()
    gamma: float = 0.9
    goal: tuple[float, float] = (0.6, 0.3)

    name: ClassVar[str] = "bounded_shaping"
    x_names: ClassVar[tuple[str, ...]] = ("s0", "s1")

    def discount_lower(self):
        return self.gamma

    def features(self, t):
        return jnp.append(t.next_obs, t.reward)

    def reward(self, x, features):
        return x @ features[:-1] + features[-1]

    def utility(self, x, t):
        return -jnp.sum((t.next_obs - jnp.asarray(self.goal, t.next_obs.dtype)) ** 2)

    def cost(self, x):
        return 0.01 * jnp.sum(x**2)

    def box(self):
        return jnp.full(2, -3.0), jnp.full(2, 3.0)

    def answer(self, x, tau) -> quadratic.GaussianLaw:
        """Mean and variance of the actions under the soft optimum, which is no Gaussian; states see no more of it."""
        A, B = (jnp.asarray(M) for M in self.environment.matrices())
        n = A.shape[0]
        v = jnp.linalg.solve(jnp.eye(n) - self.gamma * A.T, A.T @ x)
        kappa = B.T @ (x + self.gamma * v)
        a = jnp.asarray(NODES)
        p = jax.nn.softmax((kappa[:, None] * a - a**2 / 2) / tau + jnp.log(jnp.asarray(WEIGHTS)), axis=1)
        mean = p @ a
        K = jnp.zeros((n, n + 1)).at[:, n].set(mean)
        return quadratic.GaussianLaw(K, jnp.diag(p @ a**2 - mean**2), jnp.zeros((n + 1, n + 1)))

    def truth(self, x, tau):
        A, B = self.environment.matrices()
        n, noise, goal = len(A), self.environment.noise**2, jnp.asarray(self.goal)
        system = quadratic.System.of(A, B, noise * np.eye(n), np.zeros(n), 0.25 * np.eye(n))
        G = jnp.zeros((n + 1, n + 1)).at[:n, :n].set(-jnp.eye(n)).at[:n, n].set(goal).at[n, :n].set(goal)
        U = system.F.T @ G.at[n, n].set(-goal @ goal - n * noise) @ system.F  # of the next state, its noise included
        return self.cost(x) - quadratic.expected(system, self.answer(x, tau), U, self.gamma)

    def temperature(self):
        return 0.1
