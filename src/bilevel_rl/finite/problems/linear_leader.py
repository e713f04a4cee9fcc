"""A leader that acts on a linear system beside a linear-quadratic follower, which sees what it does."""

from __future__ import annotations

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel_rl.finite.closed_form import ClosedFormProblem
from bilevel_rl.finite.model.linear_quadratic import (
    LinearQuadratic,
    Moments,
    expected_bump,
    moments,
    soft_optimal,
)


def _column(*values: float) -> Array:
    return jnp.array(values)[:, None]


class LinearLeader(ClosedFormProblem):
    r"""A leader that acts on a linear system beside the follower: x is the gain of its policy, which the follower sees.

    $$s' = \begin{pmatrix}0&1\\0&0\end{pmatrix} s + \begin{pmatrix}0\\.1\end{pmatrix} a +
    \begin{pmatrix}.1\\0\end{pmatrix} b, \qquad b \sim N(x^\top s, 10^{-6})$$

    The follower minimises $\sum_t \gamma^t (|s|^2 + a^2)$ with entropy and $\gamma = .95$; it observes (s, b). The leader,
    with its own discount .99, is paid near a point at which the follower would not stay:

    $$\Phi(x) = -E \sum_{t<100} .99^t \exp\Big(-\frac{(s_1 + .8)^2}{2 \cdot .2^2} - \frac{s_2^2}{2 \cdot .01^2}\Big)$$

    Gains (-9.683, -10.25) give -3.40, the published value (3.402; system discrete in time, paid before the step).

    Args:
        horizon: steps of the leader's sum.
        discount, leader_discount: of follower and leader.
        temperature: entropy weight of the follower.
        x0: gains to start from.
    """

    discount: float
    leader_discount: float
    graded_at: float = eqx.field(static=True)
    horizon: int = eqx.field(static=True)

    name: ClassVar[str] = "linear_leader"
    references: ClassVar[tuple[str, ...]] = ("bchg2026",)

    def __init__(
        self, horizon: int = 100, discount: float = 0.95, leader_discount: float = 0.99, temperature: float = 0.1,
        x0: tuple[float, float] = (-5.0, -5.0),
    ):  # fmt: skip
        self.mdp = self.objective = None
        self.horizon, self.graded_at = horizon, temperature
        self.discount, self.leader_discount = discount, leader_discount
        self.x0 = jnp.asarray(x0, float)

    def system(self, x: Float[Array, " d"]) -> LinearQuadratic:
        """The follower's problem in (s, b): what the leader will do next is part of the dynamics."""
        step = jnp.concatenate([jnp.array([[0.0, 1.0], [0.0, 0.0]]), _column(0.1, 0.0)], 1)  # s' of (s, b)
        push = _column(0.0, 0.1)
        first, jitter = jnp.array([1.0, 0.0]), jnp.zeros((3, 3)).at[2, 2].set(1e-6)
        return LinearQuadratic(
            A=jnp.concatenate([step, (x @ step)[None]]), B=jnp.concatenate([push, (x @ push)[None]]),
            W=jnp.diag(jnp.array([1.0, 1.0, 0.0])), R=jnp.eye(1), noise=jitter,
            mean=jnp.append(first, x @ first), covariance=jitter, discount=self.discount,
        )  # fmt: skip

    def hyper_objective(self, x, tau):
        lq = self.system(x)
        at = moments(lq, soft_optimal(lq, tau), self.horizon)
        places = Moments(at.mean[:, :2], at.covariance[:, :2, :2])
        paid = expected_bump(places, jnp.array([-0.8, 0.0]), jnp.diag(jnp.array([0.2, 0.01]) ** 2))
        return -jnp.sum(self.leader_discount ** jnp.arange(self.horizon) * paid)

    def box(self):
        return jnp.full(2, -15.0), jnp.full(2, 15.0)

    def temperature(self):
        return self.graded_at
