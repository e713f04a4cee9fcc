r"""The hyper-gradient as a covariance under the policy, from a critic with 1 + d heads.

$$\nabla_x E_d[u] = \tfrac{1}{\tau}\, E_{s\sim d}\, \mathrm{Cov}_{a\sim\pi}\big(Q_U(s,a),\ \partial_x Q_L(s,a)\big)$$

because $\pi \propto e^{Q_L/\tau}$ answers to x by $\partial_x \log\pi = (\partial_x Q_L - E_\pi \partial_x Q_L)/\tau$.

As a control variate serves that what the follower wants is known without a critic: $Q_L = \tau \log \pi$ up to a constant of
the state. With $D = Q_U - \beta Q_L$ learnt in place of $Q_U$,

$$\nabla_x E_d[u] = \tfrac{1}{\tau}\, E_{s}\, \mathrm{Cov}_{a}\big(D + \beta\,\tau \log \pi,\ \partial_x Q_L\big)$$

for every $\beta$. Where leader and follower nearly agree, as a good x makes them do, $Q_U$ has its peak where the policy
stands and the covariance is what is left of two errors, the critic's and the follower's; D is small there, and so are its
errors.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel_rl.control.estimators import heads
from bilevel_rl.control.estimators.estimator import Direction, Here, HyperGradient, rewards, slopes, utilities
from bilevel_rl.control.estimators.heads import Heads
from bilevel_rl.control.followers.follower import branch, likely, ongoing, spread
from bilevel_rl.errors import InvalidConfig, InvalidProblem, message
from bilevel_rl.loop.settings import check_fields

FOLLOWS = 0.01  # ours: share of the way that beta goes at an estimate; a hundred estimates, some lags of the critic


class Varied(NamedTuple):
    """With a control variate.

    Attributes:
        heads: the critic, of D in its first head.
        beta: how much of the follower's own value is in the leader's.
    """

    heads: Heads
    beta: Float[Array, ""]


class Covariance(HyperGradient):
    """For up to some thirty upper variables: one head a dimension.

    Args:
        rate: step size of Adam of the critic's network.
        polyak: share by which its target follows.
        width: units of each of two hidden layers.
        actions: drawn in each state where actions are vectors.
        variate: whether the follower's own optimality serves as a control variate; beta is fitted on the way. For equal
            discounts, and followers that say how likely an action is.

    References:
        The covariance under a Boltzmann policy: arXiv 2603.14867 (BC-HG). Both of its factors from one critic with several
        heads, taught by replayed transitions, and the control variate are ours.
    """

    rate: float = 3e-3
    polyak: float = 0.05
    width: int = eqx.field(static=True, default=64)
    actions: int = eqx.field(static=True, default=16)
    variate: bool = eqx.field(static=True, default=False)

    name: ClassVar[str] = "covariance"
    references: ClassVar[tuple[str, ...]] = ("bchg2026",)
    pulls: ClassVar[bool] = True
    varies: ClassVar[bool] = True  # whether it has a control variate

    @property
    def likelihoods(self):
        return self.scores or self.variate

    def check(self, problem):
        where = f"estimator {self.name}"
        check_fields(
            where,
            ("rate", self.rate, self.rate > 0, "it must be above 0"),
            ("polyak", self.polyak, 0 < self.polyak <= 1, "it must be in (0, 1]"),
            ("actions", self.actions, self.actions >= 2, "a covariance needs at least 2"),
        )
        if self.variate and not self.varies:
            raise InvalidConfig(
                message(f"{where}.variate", "true", "this kind has none", "Leave it false, or take covariance")
            )
        lower, upper = float(problem.discount_lower()), float(problem.discount_upper())
        if self.variate and abs(lower - upper) > 1e-9:
            raise InvalidProblem(
                message(f"{problem.name}.discount_upper", f"{upper:g}, where the follower's is {lower:g}",
                        "the control variate takes the follower's value from the leader's: both must discount alike",
                        "Leave estimator.variate false")
            )  # fmt: skip

    def init(self, here: Here, F, chains, key) -> Heads | Varied:
        found = heads.begin(here.environment, 1 + here.x.shape[0], self.width, key)
        return Varied(found, jnp.zeros((), jnp.float32)) if self.variate else found

    def learn(self, here: Here, H: Any, F, rows, keys) -> Any:
        paid, gammas = utilities(here, rows), jnp.concatenate([here.upper[None], jnp.full(here.x.shape, here.lower)])
        critic = H.heads if self.variate else H
        if self.variate:  # Q_L counts the entropy of later actions
            _, weights, logp = likely(here.follower, here.environment, F, rows.t.next_obs, 1, keys[0])
            later = here.lower * ongoing(rows) * here.tau * jnp.sum(weights * logp, 1)
            paid = paid - H.beta * (rewards(here, rows) - later)
        paid = jnp.concatenate([paid[:, None], slopes(here, rows)], 1)
        critic = heads.learn(here, critic, F, rows, paid, gammas, self.rate, self.polyak, keys[1])
        return Varied(critic, H.beta) if self.variate else critic

    def estimate(self, here: Here, H: Any, F, recent, key):
        env, critic = here.environment, H.heads if self.variate else H
        if self.variate:
            actions, weights, logp = likely(here.follower, env, F, recent.t.obs, self.actions, key)
        else:
            actions, weights = branch(here.follower, env, F, recent.t.obs, self.actions, key)
        q = heads.of_pairs(env, critic.online.params, recent.t.obs, actions)
        q = q - jnp.einsum("bm,bmh->bh", weights, q)[:, None]
        # heads are means: Q_U = q_u / (1 - gamma_u), d_x Q_L = q_g / (1 - gamma_l)
        answer = q[..., 1:] / (here.tau * (1 - here.lower))
        A_u = q[..., 0] / (1 - here.upper)
        if self.variate:
            own = here.tau * (logp - jnp.sum(weights * logp, 1, keepdims=True))  # the follower's own advantage
            left = jnp.sum(weights * A_u * own) / jnp.maximum(jnp.sum(weights * own**2), 1e-12)
            A_u = A_u + H.beta * own
            H = Varied(critic, H.beta + FOLLOWS * jnp.clip(left, -1.0, 1.0))
        g = jnp.einsum("bm,bm,bmd->d", weights, A_u, answer) / weights.shape[0]
        factor = spread(env, self.actions)
        return H, Direction(factor * g, jnp.sqrt(factor * weights)[..., None] * answer)
