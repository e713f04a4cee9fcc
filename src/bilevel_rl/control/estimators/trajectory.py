r"""The hyper-gradient along the chains themselves: each reward's derivative, weighed by the advantages that led to it.

$$\nabla_x E_d[u] = E\big[c_t\, \partial_x r(s_t, a_t)\big], \qquad
c_t = \tfrac{\gamma_L}{\gamma_U}\, c_{t-1}\, [\text{same episode}] + \tfrac{1}{\tau}\, A_U(s_t, a_t)$$

The sums are those of the covariance, in another order: $\sum_j \gamma^j A_U(j)\, \partial_x Q_L(j)$ with every later
$\partial_x r$ credited to the advantages before it. One head whatever the dimension of x; more noise.
"""

from __future__ import annotations

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel_rl.control.estimators import heads
from bilevel_rl.control.estimators.estimator import (
    Direction,
    Here,
    HyperGradient,
    forgetting,
    slopes,
    utilities,
)
from bilevel_rl.control.estimators.heads import Heads
from bilevel_rl.loop.settings import check_fields


class Traces(eqx.Module):
    """What is carried along.

    Attributes:
        critic: of the leader's utility, one head.
        trace: [N] c of each chain.
        total: [d] sum of c times the derivative, since the last estimate.
        count: steps in it.
    """

    critic: Heads
    trace: Float[Array, " N"]
    total: Float[Array, " d"]
    count: Float[Array, ""]


class Trajectory(HyperGradient):
    """For many upper variables, where noise can be averaged.

    Args:
        rate: step size of Adam of the critic's network.
        polyak: share by which its target follows.
        bound: on the size of a trace; longer ones are cut, which biases towards less noise.
        width: units of each of two hidden layers.
        actions: drawn in each state for the advantage's mean, where actions are vectors.

    References:
        The sums are those of HPGD, arXiv 2406.01575, with a critic's advantage in place of returns.
    """

    rate: float = 3e-3
    polyak: float = 0.05
    bound: float = 1e4
    width: int = eqx.field(static=True, default=64)
    actions: int = eqx.field(static=True, default=16)

    name: ClassVar[str] = "trajectory"
    references: ClassVar[tuple[str, ...]] = ("thoma2024hpgd",)

    def check(self, problem):
        check_fields(
            "estimator trajectory",
            ("rate", self.rate, self.rate > 0, "it must be above 0"),
            ("polyak", self.polyak, 0 < self.polyak <= 1, "it must be in (0, 1]"),
            ("bound", self.bound, self.bound > 0, "it must be above 0"),
            ("actions", self.actions, self.actions >= 1, "it must be at least 1"),
        )

    def init(self, here: Here, F, chains, key) -> Traces:
        critic = heads.begin(here.environment, 1, self.width, key)
        return Traces(critic, jnp.zeros(chains, jnp.float32), jnp.zeros_like(here.x), jnp.zeros((), jnp.float32))

    def walk(self, here: Here, H: Traces, F, rows, keys):
        A_u = heads.advantage(here, H.critic.online.params, F, rows, self.actions, keys[1])[:, 0] / (1 - here.upper)
        before = jnp.where(rows.first, 0.0, forgetting(here) * H.trace)
        bound = jnp.asarray(self.bound, jnp.float32)
        trace = jnp.clip(before + A_u / here.tau, -bound, bound)
        total = H.total + jnp.mean(trace[:, None] * slopes(here, rows), 0)
        return Traces(H.critic, trace, total, H.count + 1), None

    def learn(self, here: Here, H: Traces, F, rows, keys) -> Traces:
        paid = utilities(here, rows)[:, None]
        critic = heads.learn(here, H.critic, F, rows, paid, here.upper[None], self.rate, self.polyak, keys[1])
        return Traces(critic, H.trace, H.total, H.count)

    def estimate(self, here: Here, H: Traces, F, recent, key):
        again = Traces(H.critic, H.trace, jnp.zeros_like(H.total), jnp.zeros_like(H.count))
        return again, Direction(H.total / jnp.maximum(H.count, 1), None)
