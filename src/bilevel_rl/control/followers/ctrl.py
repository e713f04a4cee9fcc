r"""CTRL as a follower: a broad diffusion, pushed towards actions of high value, which pays for every push.

$$\max_c\; E\Big[Q(s, a) - \tfrac\tau2 \sum_k |c_k(z_k, s)|^2\Big], \qquad z_{k+1} = \kappa_k z_k + \sigma_k (c_k + \xi_k)$$

The cost is the divergence of the pushed chain from the broad one; at the optimum it is that of the actions' laws, and these
are $\propto e^{Q/\tau}$. Learnt by the derivative of Q through the chain.
"""

from __future__ import annotations

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from bilevel_rl.control import nets
from bilevel_rl.control.environment import Environment
from bilevel_rl.control.followers.flowing import Flowing, make_critic, regressed, values
from bilevel_rl.control.followers.follower import ongoing, scaled
from bilevel_rl.control.policies import flow, guidance, latent
from bilevel_rl.control.policies.flow import Velocity


class Steered(eqx.Module):
    """What it has learnt.

    Attributes:
        control: the network of pushes.
        critic: of Q.
        target: a slow copy of it.
    """

    control: nets.Trained
    critic: nets.Trained
    target: nets.MLP


class CTRL(Flowing):
    """Off-policy, for actions that are vectors.

    Args:
        rate: step size of Adam, for pushes and critic.
        polyak: share by which the critic's target follows.
        width: units of each of two hidden layers.
        steps: of the chain.

    References:
        Adding Conditional Control to Diffusion Models with Reinforcement Learning. The objective is SEEN (abstract),
        the divergence of paths INFERRED: in the spirit of it. A critic of returns in place of a classifier's
        likelihood, and the broad chain in place of a pre-trained one, are ours.
    """

    rate: float = 1e-3
    polyak: float = 0.05
    width: int = eqx.field(static=True, default=64)
    steps: int = eqx.field(static=True, default=6)

    name: ClassVar[str] = "ctrl"
    references: ClassVar[tuple[str, ...]] = ("ctrl2024",)

    def init(self, environment: Environment, key: Array) -> Steered:
        k_c, k_q = jax.random.split(key)
        control = Velocity.make(environment.action.size, environment.observation.size, self.width, k_c, last=0.01)
        Q = make_critic(environment, self.width, k_q)
        return Steered(nets.Trained.begin(control), nets.Trained.begin(Q), Q)

    @property
    def chain(self) -> guidance.Broad:
        """What is pushed."""
        return guidance.Broad(self.steps)

    def end(self, environment: Environment, F: Steered, obs, noise, key):
        return self.chain.pushed(F.control.params, noise, obs, key).end

    def centre(self, environment: Environment, F: Steered, obs, noise, key):
        """Every step to its mean."""

        def step(z, k):
            mean, std = self.chain.kernel(z, k, obs)
            return mean + std * F.control.params(z, k.astype(z.dtype) / self.steps, obs), None

        return jax.lax.scan(step, noise, jnp.arange(self.steps))[0]

    def update(self, environment: Environment, F: Steered, rows, r, gamma, tau, key) -> Steered:
        space, B = environment.action, r.shape[0]
        obs, after = scaled(environment, rows.t.obs), scaled(environment, rows.t.next_obs)
        k_next, k_now = jax.random.split(key)

        def pushed(control: Any, obs: Array, key: Array):
            k_start, k_way = jax.random.split(key)
            start = jax.random.normal(k_start, (B, space.size), jnp.float32)
            found = jax.vmap(self.chain.pushed, (None, 0, 0, 0))(control, start, obs, jax.random.split(k_way, B))
            return latent.squashed(space, found.end), found.cost

        # y = r + gamma (Q(s', a') - tau cost')
        a_next, cost = pushed(F.control.params, after, k_next)
        y = r + gamma * ongoing(rows) * (values(F.target, after, a_next) - tau * cost)
        critic = regressed(F.critic, obs, flow.encoded(space, rows.t.action), y, self.rate)

        def loss(control: Any):
            action, cost = pushed(control, obs, k_now)
            return jnp.mean(tau * cost - values(critic.params, obs, action))

        control = F.control.descend(jax.grad(loss)(F.control.params), self.rate)
        return Steered(control, critic, nets.follow(F.target, critic.params, self.polyak))
