r"""The hyper-gradient as a covariance under the policy, from a critic with 1 + d heads.

$$\nabla_x E_d[u] = \tfrac{1}{\tau}\, E_{s\sim d}\, \mathrm{Cov}_{a\sim\pi}\big(Q_U(s,a),\ \partial_x Q_L(s,a)\big)$$

because $\pi \propto e^{Q_L/\tau}$ answers to x by $\partial_x \log\pi = (\partial_x Q_L - E_\pi \partial_x Q_L)/\tau$.

As a control variate serves that what the follower wants is known without a critic: $Q_L = \tau \log \pi$ up to a constant of
the state. With $D = Q_U - \beta Q_L$ learnt in place of $Q_U$,

$$\nabla_x E_d[u] = \tfrac{1}{\tau}\, E_{s}\, \mathrm{Cov}_{a}\big(D + \beta\,\tau \log \pi,\ \partial_x Q_L\big)$$

for every $\beta$. Where leader and follower nearly agree, as a good x makes them do, $Q_U$ has its peak where the policy
stands and the covariance is what is left of two errors, the critic's and the follower's; D is small there, and so are its
errors.

With `memory` policy and critic are running means of their networks (`estimators.means`).
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel_rl.control import nets
from bilevel_rl.control.estimators import heads
from bilevel_rl.control.estimators.estimator import Direction, Here, HyperGradient, rewards, slopes, utilities
from bilevel_rl.control.estimators.heads import Heads
from bilevel_rl.control.estimators.means import Means
from bilevel_rl.control.followers.follower import branch, likely, ongoing, spread
from bilevel_rl.errors import InvalidConfig, InvalidProblem, message
from bilevel_rl.loop.settings import check_fields

FOLLOWS = 0.01  # ours: share of the way that beta goes at an estimate; a hundred estimates, some lags of the critic


class Carried(NamedTuple):
    """What it carries.

    Attributes:
        heads: the critic, of Q_U, or of D, in its first head.
        beta: how much of the follower's own value is in the leader's; None without a control variate.
        means: of the follower's and the critic's networks; None without memory.
    """

    heads: Heads
    beta: Float[Array, ""] | None = None
    means: Means | None = None

    def seen(self, F: Any) -> tuple[nets.MLP, Any]:
        """The critic and the follower that an estimate is made of."""
        return (self.heads.online.params, F) if self.means is None else (self.means.critic, self.means.acting(F))


class Covariance(HyperGradient):
    """For up to some thirty upper variables: one head a dimension.

    Args:
        rate: step size of Adam of the critic's network.
        polyak: share by which its target follows.
        width: units of each of two hidden layers.
        actions: drawn in each state where actions are vectors.
        variate: whether the follower's own optimality serves as a control variate; beta is fitted on the way. For equal
            discounts, and followers that say how likely an action is.
        memory: how far back the means go of which estimates are made, in units of the updates in which critics forget,
            1 / ((1 - gamma) polyak); 0 for the newest networks.

    References:
        The covariance under a Boltzmann policy: arXiv 2603.14867 (BC-HG). Both of its factors from one critic with several
        heads, taught by replayed transitions, and the control variate are ours.
    """

    rate: float = 3e-3
    polyak: float = 0.05
    width: int = eqx.field(static=True, default=64)
    actions: int = eqx.field(static=True, default=16)
    variate: bool = eqx.field(static=True, default=False)
    memory: float = eqx.field(static=True, default=0.0)

    name: ClassVar[str] = "covariance"
    references: ClassVar[tuple[str, ...]] = ("bchg2026",)
    pulls: ClassVar[bool] = True
    varies: ClassVar[bool] = True  # whether it has a control variate
    remembers: ClassVar[bool] = True  # whether means of networks serve it

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
            ("memory", self.memory, self.memory >= 0, "it must be at least 0 (0 for the newest networks)"),
        )
        if self.variate and not self.varies:
            raise InvalidConfig(
                message(f"{where}.variate", "true", "this kind has none", "Leave it false, or take covariance")
            )
        if self.memory and not self.remembers:
            raise InvalidConfig(
                message(f"{where}.memory", f"{self.memory:g}", "this kind takes the newest networks", "Leave it 0")
            )
        lower, upper = float(problem.discount_lower()), float(problem.discount_upper())
        if self.variate and abs(lower - upper) > 1e-9:
            raise InvalidProblem(
                message(f"{problem.name}.discount_upper", f"{upper:g}, where the follower's is {lower:g}",
                        "the control variate takes the follower's value from the leader's: both must discount alike",
                        "Leave estimator.variate false")
            )  # fmt: skip

    def init(self, here: Here, F, chains, key) -> Carried:
        found = heads.begin(here.environment, 1 + here.x.shape[0], self.width, key)
        beta = jnp.zeros((), jnp.float32) if self.variate else None
        return Carried(found, beta, Means.begin(F, found.online.params) if self.memory else None)

    def learn(self, here: Here, H: Carried, F, rows, keys) -> Carried:
        paid, gammas = utilities(here, rows), jnp.concatenate([here.upper[None], jnp.full(here.x.shape, here.lower)])
        _, acting = H.seen(F)
        if self.variate:  # Q_L counts the entropy of later actions
            _, weights, logp = likely(here.follower, here.environment, acting, rows.t.next_obs, 1, keys[0])
            later = here.lower * ongoing(rows) * here.tau * jnp.sum(weights * logp, 1)
            paid = paid - H.beta * (rewards(here, rows) - later)
        paid = jnp.concatenate([paid[:, None], slopes(here, rows)], 1)
        critic = heads.learn(here, H.heads, acting, rows, paid, gammas, self.rate, self.polyak, keys[1])
        means = H.means
        if means is not None:
            forgotten = (1 - jnp.maximum(here.lower, here.upper)) * self.polyak  # an update's share of what critics remember
            means = means.after(F, critic.online.params, forgotten / self.memory)
        return Carried(critic, H.beta, means)

    def estimate(self, here: Here, H: Carried, F, recent, key):
        env, (critic, acting) = here.environment, H.seen(F)
        if self.variate:
            actions, weights, logp = likely(here.follower, env, acting, recent.t.obs, self.actions, key)
        else:
            actions, weights = branch(here.follower, env, acting, recent.t.obs, self.actions, key)
        q = heads.of_pairs(env, critic, recent.t.obs, actions)
        q = q - jnp.einsum("bm,bmh->bh", weights, q)[:, None]
        # heads are means: Q_U = q_u / (1 - gamma_u), d_x Q_L = q_g / (1 - gamma_l)
        answer = q[..., 1:] / (here.tau * (1 - here.lower))
        A_u = q[..., 0] / (1 - here.upper)
        if self.variate:
            own = here.tau * (logp - jnp.sum(weights * logp, 1, keepdims=True))  # the follower's own advantage
            left = jnp.sum(weights * A_u * own) / jnp.maximum(jnp.sum(weights * own**2), 1e-12)
            A_u = A_u + H.beta * own
            H = H._replace(beta=H.beta + FOLLOWS * jnp.clip(left, -1.0, 1.0))
        g = jnp.einsum("bm,bm,bmd->d", weights, A_u, answer) / weights.shape[0]
        factor = spread(env, self.actions)
        return H, Direction(factor * g, jnp.sqrt(factor * weights)[..., None] * answer)
