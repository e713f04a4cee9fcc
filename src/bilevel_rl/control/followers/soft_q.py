r"""Soft Q-learning in split form: $Q(s,a) = V(s) + \tau \log \pi(a|s)$, V and $\log\pi$ in networks of their own.

At the soft optimum the identity holds, so nothing is lost; and the policy, which is all the leader sees, is not a difference
of two large numbers any more: with one network for Q, its error in the common level V is divided by tau.
"""

from __future__ import annotations

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from bilevel_rl.control import nets
from bilevel_rl.control.environment import Environment
from bilevel_rl.control.followers.follower import Follower, ongoing, scaled


class Split(eqx.Module):
    """What it has learnt.

    Attributes:
        online: networks of log pi and V, with Adam's memory.
        target: a slow copy of V.
    """

    online: nets.Trained
    target: nets.MLP


class SoftQ(Follower):
    r"""Minimises $\big(V(s) + \tau \log\pi(a|s) - r - \gamma \bar V(s')\big)^2$ over transitions of any policy.

    Args:
        rate: step size of Adam.
        polyak: share by which the target follows after an update.
        width: units of each of two hidden layers.
        optimism: what V says everywhere at first. With the most that there is to get, what was tried and gave less falls
            behind what was not tried yet.

    References:
        Path consistency over one step: Nachum et al. 2017. Its use as a parametrisation of Q is ours; with one network for
        Q the hyper-gradient at fixed x had a cosine of .3 with the exact one where this form has 1.
    """

    rate: float = 3e-3
    polyak: float = 0.05
    width: int = eqx.field(static=True, default=64)
    optimism: float = eqx.field(static=True, default=0.0)

    name: ClassVar[str] = "soft_q"
    discrete: ClassVar[bool | None] = True
    references: ClassVar[tuple[str, ...]] = ("nachum2017bridging",)

    def init(self, environment: Environment, key: Array) -> Split:
        o, n = environment.observation.size, environment.action.n
        k_pi, k_v = jax.random.split(key)
        V = nets.MLP.make((o, self.width, self.width, 1), k_v, last=0.1 if self.optimism else 1.0)
        V = eqx.tree_at(lambda net: net.biases[-1], V, V.biases[-1] + jnp.float32(self.optimism))
        params = {"log_pi": nets.MLP.make((o, self.width, self.width, n), k_pi, last=0.01), "V": V}
        return Split(nets.Trained.begin(params), params["V"])

    def out(self, environment: Environment, F: Split, obs):
        return F.online.params["log_pi"](scaled(environment, obs))

    def update(self, environment: Environment, F: Split, rows, r, gamma, tau, key) -> Split:
        obs, after = scaled(environment, rows.t.obs), scaled(environment, rows.t.next_obs)
        y = r + gamma * ongoing(rows) * F.target(after)[:, 0]

        def loss(params: Any):
            log_pi = jax.nn.log_softmax(params["log_pi"](obs))
            taken = jnp.take_along_axis(log_pi, rows.t.action[:, None], 1)[:, 0]
            return 0.5 * jnp.mean((params["V"](obs)[:, 0] + tau * taken - y) ** 2)

        online = F.online.descend(jax.grad(loss)(F.online.params), self.rate)
        return Split(online, nets.follow(F.target, online.params["V"], self.polyak))
