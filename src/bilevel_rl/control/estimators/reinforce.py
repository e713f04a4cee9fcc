r"""The hyper-gradient as a policy gradient in x, as HPGD takes it: returns of the leader, scores of the follower's answer.

$$\nabla_x E_d[u] = E_d\Big[(\hat Q_U(s,a) - V_U(s))\,
\tfrac1\tau \big(\partial_x Q_L(s,a) - E_\pi\, \partial_x Q_L(s,\cdot)\big)\Big]$$

$\hat Q_U$ is the sum of what followed the visit; it is known only later, so chains remember a window of their own steps.
Both factors from the same returns would add their covariance given the action: $\partial_x Q_L$ has a critic of its own.
"""

from __future__ import annotations

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel_rl.control import nets
from bilevel_rl.control.estimators import heads
from bilevel_rl.control.estimators.estimator import Direction, Here, HyperGradient, slopes, utilities
from bilevel_rl.control.estimators.heads import Heads
from bilevel_rl.control.followers.follower import scaled
from bilevel_rl.control.replay import Rows
from bilevel_rl.loop.settings import check_fields


class Window(eqx.Module):
    """What is carried along.

    Attributes:
        critic: d heads of the derivative's values.
        baseline: network of V_U in units of means, with Adam's memory.
        rows: [T, N, ...] the last steps of the chains, oldest first.
        paid: [T, N] their utilities.
        steps: that were ever taken.
        total: [d] sum of estimates since the last one was asked for.
        count: steps in it.
    """

    critic: Heads
    baseline: nets.Trained
    rows: Rows
    paid: Float[Array, "T N"]
    steps: Float[Array, ""]
    total: Float[Array, " d"]
    count: Float[Array, ""]


class Reinforce(HyperGradient):
    """Returns of the oldest step of a window, less their mean in its state, times the score of the follower's answer.

    Args:
        rate: step size of Adam of critic and baseline.
        polyak: share by which the critic's target follows.
        horizon: T, steps that are remembered; what lies beyond is cut off, a bias of order gamma^T.
        width: units of each of two hidden layers.
        actions: drawn in each state for the score's mean, where actions are vectors.

    References:
        arXiv 2406.01575 (HPGD); networks for its means over visits are ours.
    """

    rate: float = 3e-3
    polyak: float = 0.05
    horizon: int = eqx.field(static=True, default=50)
    width: int = eqx.field(static=True, default=64)
    actions: int = eqx.field(static=True, default=16)

    name: ClassVar[str] = "reinforce"
    references: ClassVar[tuple[str, ...]] = ("thoma2024hpgd",)

    def check(self, problem):
        check_fields(
            "estimator reinforce",
            ("rate", self.rate, self.rate > 0, "it must be above 0"),
            ("polyak", self.polyak, 0 < self.polyak <= 1, "it must be in (0, 1]"),
            ("horizon", self.horizon, self.horizon >= 1, "it must be at least 1"),
        )

    def init(self, here: Here, F, chains, key) -> Window:
        k_critic, k_baseline = jax.random.split(key)
        o, w, d = here.environment.observation.size, self.width, here.x.shape[0]
        critic = heads.begin(here.environment, d, w, k_critic)
        net = nets.MLP.make((o, w, w, 1), k_baseline, last=0.1)
        t = jax.eval_shape(here.problem.example, key)
        flag = jax.ShapeDtypeStruct((), bool)
        row = Rows(t, jax.eval_shape(here.problem.features, t), flag, flag)
        rows = jax.tree.map(lambda v: jnp.zeros((self.horizon, chains, *v.shape), v.dtype), row)
        none = jnp.zeros((), jnp.float32)
        paid = jnp.zeros((self.horizon, chains), jnp.float32)
        return Window(critic, nets.Trained.begin(net), rows, paid, none, jnp.zeros_like(here.x), none)

    def walk(self, here: Here, H: Window, F, rows: Rows, keys):
        newer = lambda old, new: jnp.concatenate([old[1:], new[None]])  # noqa: E731
        seen, paid = jax.tree.map(newer, H.rows, rows), newer(H.paid, utilities(here, rows))
        # chains that are cut with probability 1 - gamma discount their sums by being cut
        left = jnp.where(here.cut > 0, 1.0, here.upper)

        def back(after, step):
            y, over = step
            return y + left * jnp.where(over, 0.0, after), None

        returns, _ = jax.lax.scan(back, jnp.zeros_like(paid[0]), (paid[::-1], seen.over[::-1]))
        oldest = jax.tree.map(lambda v: v[0], seen)
        known = (H.steps + 1 >= self.horizon).astype(jnp.float32)
        obs, scale = scaled(here.environment, oldest.t.obs), 1 / (1 - here.upper)
        V = H.baseline.params
        fit = lambda net: known * 0.5 * jnp.mean((net(obs)[:, 0] - returns / scale) ** 2)  # noqa: E731
        score = heads.advantage(here, H.critic.online.params, F, oldest, self.actions, keys[1])
        score = score / (here.tau * (1 - here.lower))
        g = known * jnp.mean((returns - scale * V(obs)[:, 0])[:, None] * score, 0)
        baseline = H.baseline.descend(jax.grad(fit)(V), self.rate)
        return Window(H.critic, baseline, seen, paid, H.steps + 1, H.total + g, H.count + known), None

    def learn(self, here: Here, H: Window, F, rows, keys) -> Window:
        gammas = jnp.full(here.x.shape, here.lower)
        critic = heads.learn(here, H.critic, F, rows, slopes(here, rows), gammas, self.rate, self.polyak, keys[1])
        return eqx.tree_at(lambda H: H.critic, H, critic)

    def estimate(self, here: Here, H: Window, F, recent, key):
        again = eqx.tree_at(lambda H: (H.total, H.count), H, (jnp.zeros_like(H.total), jnp.zeros_like(H.count)))
        return again, Direction(H.total / jnp.maximum(H.count, 1), None)
