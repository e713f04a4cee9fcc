r"""A2PR: cloning is guided by a better action, where a generative model of good actions knows one.

A variational autoencoder of actions learns from what has an advantage. The actor is held near its suggestion where that is
at least as good as the data's action, else near the data's, and only where there is an advantage at all:

$$\min_\pi\ -\frac{\alpha}{E|Q|} Q(s, \pi(s)) + m\, 1\{A(s, \hat a) > 0\}\, |\pi(s) - \hat a|^2$$
"""

from __future__ import annotations

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel_rl.control import nets
from bilevel_rl.control.offline import parts, twin
from bilevel_rl.control.offline.learners.td3_bc import TD3BC
from bilevel_rl.loop.settings import check_fields


class Guide(eqx.Module):
    """A variational autoencoder of actions given observations.

    Attributes:
        encode: (obs, action) -> mean and log standard deviation of a code, [2z].
        decode: (obs, code) -> action in [-1, 1].
    """

    encode: nets.MLP
    decode: nets.MLP

    @classmethod
    def make(cls, environment, width: int, key: Array) -> Guide:
        """Random weights; a code has twice as many numbers as an action."""
        o, m = environment.observation.size, environment.action.size
        k_in, k_out = jax.random.split(key)
        return cls(nets.MLP.make((o + m, width, width, 4 * m), k_in), nets.MLP.make((o + 2 * m, width, width, m), k_out))

    def __call__(self, obs: Float[Array, "B o"], code: Float[Array, "B m"], key: Array):
        """Actions built again, and the divergence of their codes from N(0, 1): [B, m] and [B]."""
        mean, log_std = jnp.split(self.encode(jnp.concatenate([obs, code], -1)), 2, -1)
        log_std = jnp.clip(log_std, -4.0, 4.0)
        z = mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape, mean.dtype)
        kl = 0.5 * jnp.mean(mean**2 + jnp.exp(2 * log_std) - 1 - 2 * log_std, -1)
        return jnp.tanh(self.decode(jnp.concatenate([obs, z], -1))), kl


class Guided(eqx.Module):
    """What it has learnt.

    Attributes:
        actor, critics, slow_actor, slow_critics: as in TD3.
        V: network of V.
        guide: the model of good actions.
    """

    actor: nets.Trained
    critics: nets.Trained
    slow_actor: nets.MLP
    slow_critics: nets.MLP
    V: nets.Trained
    guide: nets.Trained


class A2PR(TD3BC):
    """Adaptive advantage-guided regularisation.

    Args:
        alpha: lambda is alpha / E|Q|.
        delay: updates of the critics for one of the actor.
        mask: m, weight of the guidance; 0 for plain TD3.
        vae: weight of what has an advantage in the guide's loss.
        detached: whether the guide's action is a fixed target for the actor; in the released code it is not.

    References:
        Liu et al. 2024, arXiv 2405.19909, and its released code.
    """

    mask: float = 1.0
    vae: float = 1.0
    detached: bool = eqx.field(static=True, default=False)

    name: ClassVar[str] = "a2pr"
    references: ClassVar[tuple[str, ...]] = ("liu2024a2pr", "fujimoto2021td3bc")

    def check(self, environment):
        super().check(environment)
        check_fields(
            "learner a2pr", ("mask", self.mask, self.mask >= 0, "it must be at least 0"),
            ("vae", self.vae, self.vae > 0, "it must be above 0"),
            ("environment", environment.name, environment.action.bounded, "the guide's actions need a bounded box"),
        )  # fmt: skip

    def init(self, environment, facts, key):
        k_twin, k_v, k_guide = jax.random.split(key, 3)
        F = twin.begin(environment, self.width, k_twin)
        V = nets.Trained.begin(parts.state_net(environment, self.width, k_v))
        guide = nets.Trained.begin(Guide.make(environment, self.width, k_guide))
        return Guided(F.actor, F.critics, F.slow_actor, F.slow_critics, V, guide)

    def update(self, environment, F, batch, gamma, k, key):
        k_next, k_guide, k_actor = jax.random.split(key, 3)
        obs, code = parts.scaled(environment, batch.t.obs), parts.encoded(environment.action, batch.t.action)
        y = twin.target(environment, F.slow_actor, F.slow_critics, batch, gamma, k_next)
        # V: towards the smaller of both targets
        online = twin.target(environment, F.actor.params, F.critics.params, batch, gamma, k_next)
        aim = jnp.minimum(online, y)

        def error(V):
            return parts.weighted_mean(batch.weight, (parts.state_values(environment, V, batch.t.obs) - aim) ** 2)

        V = F.V.descend(jax.grad(error)(F.V.params), self.rate)
        now = parts.state_values(environment, V.params, batch.t.obs)
        good = (jnp.min(parts.values(environment, F.critics.params, batch.t.obs, code), 0) > now).astype(jnp.float32)

        def rebuilt(guide):
            again, kl = guide(obs, code, k_guide)
            lost = self.vae * good * jnp.mean((again - code) ** 2, -1) + 0.5 * kl
            return parts.weighted_mean(batch.weight, lost)

        guide = F.guide.descend(jax.grad(rebuilt)(F.guide.params), self.rate)

        def loss(pi, Q):
            mine = parts.steered(environment, pi, batch.t.obs)
            suggested = guide.params(obs, mine, k_actor)[0]
            if self.detached:
                suggested = jax.lax.stop_gradient(suggested)
            return guided_loss(environment, Q, batch, mine, suggested, now, self.alpha, self.mask)

        at = twin.step(self, environment, twin.Twin(F.actor, F.critics, F.slow_actor, F.slow_critics), batch, y, k, loss)
        return Guided(at.actor, at.critics, at.slow_actor, at.slow_critics, V, guide)


def better(environment, Q, batch, suggested):
    """The suggestion where it is at least as good as the data's action, else that; and its Q: [B, m], [B]."""
    code = parts.encoded(environment.action, batch.t.action, suggested.dtype)
    q = lambda a: jnp.min(parts.values(environment, Q, batch.t.obs, a), 0)  # noqa: E731
    theirs, ours = q(code), q(suggested)
    return jnp.where((ours >= theirs)[:, None], suggested, code), jnp.maximum(ours, theirs)


def guided_loss(environment, Q, batch, mine, suggested, V, alpha, mask):
    """What the actor minimises; the squares are means over coordinates."""
    target, q = better(environment, Q, batch, suggested)
    near = (jax.lax.stop_gradient(q) > V).astype(mine.dtype) * jnp.mean((mine - target) ** 2, -1)
    return twin.improvement(environment, Q, batch, mine, alpha) + mask * parts.weighted_mean(batch.weight, near)
