r"""The hyper-gradient as a covariance under the policy, from a critic with 1 + d heads.

$$\nabla_x E_d[u] = \tfrac{1}{\tau}\, E_{s\sim d}\, \mathrm{Cov}_{a\sim\pi}\big(Q_U(s,a),\ \partial_x Q_L(s,a)\big)$$

because $\pi \propto e^{Q_L/\tau}$ answers to x by $\partial_x \log\pi = (\partial_x Q_L - E_\pi \partial_x Q_L)/\tau$.
"""

from __future__ import annotations

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp

from bilevel_rl.control.estimators import heads
from bilevel_rl.control.estimators.estimator import Direction, Here, HyperGradient, slopes, utilities
from bilevel_rl.control.estimators.heads import Heads
from bilevel_rl.control.followers.follower import branch, spread
from bilevel_rl.loop.settings import check_fields


class Covariance(HyperGradient):
    """For up to some thirty upper variables: one head a dimension.

    Args:
        rate: step size of Adam of the critic's network.
        polyak: share by which its target follows.
        width: units of each of two hidden layers.
        actions: drawn in each state where actions are vectors.

    References:
        The covariance under a Boltzmann policy: arXiv 2603.14867 (BC-HG). Both of its factors from one critic with several
        heads, taught by replayed transitions, are ours.
    """

    rate: float = 3e-3
    polyak: float = 0.05
    width: int = eqx.field(static=True, default=64)
    actions: int = eqx.field(static=True, default=16)

    name: ClassVar[str] = "covariance"
    references: ClassVar[tuple[str, ...]] = ("bchg2026",)

    def check(self, problem):
        check_fields(
            "estimator covariance",
            ("rate", self.rate, self.rate > 0, "it must be above 0"),
            ("polyak", self.polyak, 0 < self.polyak <= 1, "it must be in (0, 1]"),
            ("actions", self.actions, self.actions >= 2, "a covariance needs at least 2"),
        )

    def init(self, here: Here, F, chains, key) -> Heads:
        return heads.begin(here.environment, 1 + here.x.shape[0], self.width, key)

    def learn(self, here: Here, H: Heads, F, rows, keys) -> Heads:
        paid = jnp.concatenate([utilities(here, rows)[:, None], slopes(here, rows)], 1)
        gammas = jnp.concatenate([here.upper[None], jnp.full(here.x.shape, here.lower)])
        return heads.learn(here, H, F, rows, paid, gammas, self.rate, self.polyak, keys[1])

    def estimate(self, here: Here, H: Heads, F, recent, key):
        env = here.environment
        actions, weights = branch(here.follower, env, F, recent.t.obs, self.actions, key)
        q = heads.of_pairs(env, H.online.params, recent.t.obs, actions)
        q = q - jnp.einsum("bm,bmh->bh", weights, q)[:, None]
        # heads are means: Q_U = q_u / (1 - gamma_u), d_x Q_L = q_g / (1 - gamma_l)
        answer = q[..., 1:] / (here.tau * (1 - here.lower))
        A_u = q[..., 0] / (1 - here.upper)
        g = jnp.einsum("bm,bm,bmd->d", weights, A_u, answer) / weights.shape[0]
        factor = spread(env, self.actions)
        return H, Direction(factor * g, jnp.sqrt(factor * weights)[..., None] * answer)
