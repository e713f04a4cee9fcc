r"""On-policy actor-critic, the paper's, from its own newest transitions alone.

$$G = r - \tau \log\pi(a|s) + \gamma V(s') - V(s), \qquad V \leftarrow V + \beta\, G, \qquad
\theta \leftarrow \theta + \alpha\, \nabla_\theta \log\pi(a|s)\, G$$
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


class ActorCriticPair(eqx.Module):
    """Both networks.

    Attributes:
        actor: the policy's.
        critic: of V.
    """

    actor: nets.Trained
    critic: nets.Trained


class ActorCritic(Follower):
    """Policy gradient with a one-step advantage; steps of Adam instead of plain ones.

    Args:
        rate: step size of the critic's Adam.
        actor_rate: step size of the actor's; it has to be the smaller one.
        polyak: unused; V is its own target, as in the paper.
        width: units of each of two hidden layers.

    References:
        arXiv 2601.16399, Algorithm 1, with networks in place of tables. Actors use -tau log pi where the paper writes the
        entropy: with the latter the gradient of the present state's entropy is missing (`docs/algorithms`).
    """

    rate: float = 3e-3
    actor_rate: float = 1e-3
    polyak: float = 1.0
    width: int = eqx.field(static=True, default=64)

    name: ClassVar[str] = "actor_critic"
    on_policy: ClassVar[bool] = True
    references: ClassVar[tuple[str, ...]] = ("zeng2026hessianfree",)

    def init(self, environment: Environment, key: Array) -> ActorCriticPair:
        o, w = environment.observation.size, self.width
        k_pi, k_v = jax.random.split(key)
        actor = nets.MLP.make((o, w, w, self.law(environment).outputs), k_pi, last=0.01)
        critic = nets.MLP.make((o, w, w, 1), k_v)
        return ActorCriticPair(nets.Trained.begin(actor), nets.Trained.begin(critic))

    def out(self, environment: Environment, F: ActorCriticPair, obs):
        return F.actor.params(scaled(environment, obs))

    def update(self, environment: Environment, F: ActorCriticPair, rows, r, gamma, tau, key) -> ActorCriticPair:
        return self.learn(environment, F, rows, r, gamma, tau, self.rate, self.actor_rate)

    def learn(self, environment: Environment, F: ActorCriticPair, rows, r, gamma, tau, beta, alpha) -> ActorCriticPair:
        """The update at given step sizes: beta of the critic, alpha of the actor."""
        law = self.law(environment)
        obs, after = scaled(environment, rows.t.obs), scaled(environment, rows.t.next_obs)
        log_pi = lambda actor: jax.vmap(law.log_prob)(actor(obs), rows.t.action)  # noqa: E731
        V = F.critic.params
        paid = r - tau * log_pi(F.actor.params)
        G = paid + gamma * ongoing(rows) * V(after)[:, 0] - V(obs)[:, 0]

        def critic_loss(critic: Any):
            return -jnp.mean(jax.lax.stop_gradient(G) * critic(obs)[:, 0])

        def actor_loss(actor: Any):
            return -jnp.mean(jax.lax.stop_gradient(G) * log_pi(actor))

        critic = F.critic.descend(jax.grad(critic_loss)(V), beta)
        actor = F.actor.descend(jax.grad(actor_loss)(F.actor.params), alpha)
        return ActorCriticPair(actor, critic)
