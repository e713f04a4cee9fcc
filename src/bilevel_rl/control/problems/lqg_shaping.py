r"""A linear system whose follower is paid by quadratic terms that the leader weighs; the answer is known exactly."""

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bilevel_rl.control import quadratic
from bilevel_rl.control.environment import Environment
from bilevel_rl.control.environments import LQG
from bilevel_rl.control.problem import ControlProblem

OWN = 0.5  # ours: the follower's own aversion to states away from 0


class LQGShaping(ControlProblem):
    r"""$r_x = -\tfrac12|s|^2 - .1|a|^2 + y^\top M(x)\,y$ with $y = (s, 1, a)$; the leader wants $-|s - g|^2 - .1|a|^2$.

    x holds one weight for each product $y_i y_j$: of the state and 1 alone (`terms="state"`), or of all but the constant.
    The box keeps the follower's problem finite: outside, more is always better. $c(x) = .01\,|x|^2$.

    Args:
        x0: weights; None for zeros.
        size: n of the state.
        actions: m.
        terms: `"state"` or `"all"`: 5 and 9 weights at n = 2, m = 1.
        gamma: of the follower.
        gamma_upper: of the leader; None for the follower's.
        goal: every coordinate of g.

    References:
        `control.quadratic` has the closed form.
    """

    environment: Environment
    x0: Float[Array, " d"]
    gamma: float
    gamma_upper: float | None
    goal: float
    terms: str = eqx.field(static=True)

    name: ClassVar[str] = "lqg_shaping"

    def __init__(self, x0: tuple[float, ...] | None = None, size: int = 2, actions: int = 1, terms: str = "state",
                 gamma: float = 0.9, gamma_upper: float | None = None, goal: float = 0.5):  # fmt: skip
        self.environment, self.terms = LQG(size, actions), terms
        self.gamma, self.gamma_upper, self.goal = gamma, gamma_upper, goal
        self.x0 = jnp.zeros(len(self.pairs)) if x0 is None else jnp.asarray(x0, float)

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """i <= j of each weight, among the numbers of y."""
        n, m = self.environment.size, self.environment.actions
        last = n + 1 if self.terms == "state" else n + 1 + m
        return [(i, j) for i in range(last) for j in range(i, last) if (i, j) != (n, n)]

    @property
    def x_names(self):
        n, m = self.environment.size, self.environment.actions
        words = [f"s{i}" for i in range(n)] + ["1"] + [f"a{i}" for i in range(m)]
        return tuple(f"{words[i]} {words[j]}" for i, j in self.pairs)

    def discount_lower(self):
        return self.gamma

    def discount_upper(self):
        return self.gamma if self.gamma_upper is None else self.gamma_upper

    def _base(self) -> np.ndarray:
        """The follower's own reward as a matrix of y."""
        n, m = self.environment.size, self.environment.actions
        return np.diag([-OWN] * n + [0.0] + [-0.1] * m)

    def matrix(self, x):
        """Of what the follower is paid, in y."""
        i, j = np.array(self.pairs).T
        return jnp.asarray(self._base()).at[i, j].add(x / 2).at[j, i].add(x / 2)

    def features(self, t):
        y = jnp.concatenate([t.obs, jnp.ones(1, t.obs.dtype), t.action])
        i, j = np.array(self.pairs).T
        own = jnp.diag(jnp.asarray(self._base(), t.obs.dtype)) @ y**2
        return jnp.concatenate([own[None], y[i] * y[j]])

    def reward(self, x, features):
        return features[0] + x @ features[1:]

    def utility(self, x, t):
        return -jnp.sum((t.obs - self.goal) ** 2) - 0.1 * jnp.sum(t.action**2)

    def cost(self, x):
        return 0.01 * jnp.sum(x**2)

    def box(self):
        n, m = self.environment.size, self.environment.actions
        limit = {"ss": 0.3, "s1": 2.0, "sa": 0.05, "1a": 0.5, "aa": 0.05}
        kind = lambda i: "s" if i < n else "1" if i == n else "a"  # noqa: E731
        high = np.array([
            limit[kind(i) + kind(j)] if i == j or n in (i, j) else limit[kind(i) + kind(j)] / max(1, n + m - 2)
            for i, j in self.pairs
        ])  # fmt: skip
        return -jnp.asarray(high), jnp.asarray(high)

    def system(self) -> quadratic.System:
        """Dynamics and starts, in 64 bits."""
        A, B = self.environment.matrices()
        n = self.environment.size
        return quadratic.System.of(A, B, self.environment.noise**2 * np.eye(n), np.ones(n), 0.25 * np.eye(n))

    def answer(self, x, tau) -> quadratic.GaussianLaw:
        """The follower's soft optimum."""
        return quadratic.soft_optimal(self.system(), self.matrix(x), self.discount_lower(), tau)

    def truth(self, x, tau):
        n, m = self.environment.size, self.environment.actions
        U = jnp.diag(jnp.array([-1.0] * n + [-n * self.goal**2] + [-0.1] * m))
        U = U.at[:n, n].set(self.goal).at[n, :n].set(self.goal)
        return self.cost(x) - quadratic.expected(self.system(), self.answer(x, tau), U, self.discount_upper())

    def temperature(self):
        return 0.1
