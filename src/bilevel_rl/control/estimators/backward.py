r"""The hyper-gradient with what came before learnt as a function of the state: nothing to learn for each dimension of x.

$$\nabla_x E_d[u] = E_d\big[(C(s) + \tfrac1\tau A_U(s,a))\, \partial_x r(s,a)\big], \qquad
C(s') = E\big[\tfrac{\gamma_L}{\gamma_U} (C(s) + \tfrac1\tau A_U(s,a)) \,\big|\, s'\big]$$

C is the mean of the trajectory's $c_{t-1}$ given where the chain has come: a value learnt backwards, 0 at first states.
"""

from __future__ import annotations

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp

from bilevel_rl.control import nets
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
from bilevel_rl.control.followers.follower import scaled
from bilevel_rl.loop.settings import check_fields


class Past(eqx.Module):
    """What is carried along.

    Attributes:
        critic: of the leader's utility, one head.
        online: C's network, in units of 1 / tau, with Adam's memory.
        target: a slow copy.
    """

    critic: Heads
    online: nets.Trained
    target: nets.MLP


class Backward(HyperGradient):
    """For many upper variables, with less noise than `trajectory`.

    Args:
        rate: step size of Adam of both networks.
        polyak: share by which targets follow.
        width: units of each of two hidden layers.
        actions: drawn in each state for the advantage's mean, where actions are vectors.

    References:
        Ours. C is taught by the follower's own newest steps alone: it is a mean over where its chains come from.
    """

    rate: float = 3e-3
    polyak: float = 0.05
    width: int = eqx.field(static=True, default=64)
    actions: int = eqx.field(static=True, default=16)

    name: ClassVar[str] = "backward"

    def check(self, problem):
        check_fields(
            "estimator backward",
            ("rate", self.rate, self.rate > 0, "it must be above 0"),
            ("polyak", self.polyak, 0 < self.polyak <= 1, "it must be in (0, 1]"),
            ("actions", self.actions, self.actions >= 1, "it must be at least 1"),
        )

    def init(self, here: Here, F, chains, key) -> Past:
        k_critic, k_past = jax.random.split(key)
        o, w = here.environment.observation.size, self.width
        net = nets.MLP.make((o, w, w, 1), k_past, last=0.1)
        return Past(heads.begin(here.environment, 1, w, k_critic), nets.Trained.begin(net), net)

    def _advantage(self, here: Here, H: Past, F, rows, key):
        return heads.advantage(here, H.critic.online.params, F, rows, self.actions, key)[:, 0] / (1 - here.upper)

    def walk(self, here: Here, H: Past, F, rows, keys):
        env, ratio = here.environment, forgetting(here)
        A_u = self._advantage(here, H, F, rows, keys[1])
        obs, after = scaled(env, rows.t.obs), scaled(env, rows.t.next_obs)
        y = ratio * (H.target(obs)[:, 0] + A_u)
        goes_on, first = (1.0 - rows.over.astype(jnp.float32)), rows.first.astype(jnp.float32)

        def loss(net):
            return 0.5 * jnp.mean(goes_on * (net(after)[:, 0] - y) ** 2 + first * net(obs)[:, 0] ** 2)

        online = H.online.descend(jax.grad(loss)(H.online.params), self.rate)
        return Past(H.critic, online, nets.follow(H.target, online.params, self.polyak)), None

    def learn(self, here: Here, H: Past, F, rows, keys) -> Past:
        paid = utilities(here, rows)[:, None]
        critic = heads.learn(here, H.critic, F, rows, paid, here.upper[None], self.rate, self.polyak, keys[1])
        return Past(critic, H.online, H.target)

    def estimate(self, here: Here, H: Past, F, recent, key):
        C = H.online.params(scaled(here.environment, recent.t.obs))[:, 0]
        c = (C + self._advantage(here, H, F, recent, key)) / here.tau
        return H, Direction(jnp.mean(c[:, None] * slopes(here, recent), 0), None)
