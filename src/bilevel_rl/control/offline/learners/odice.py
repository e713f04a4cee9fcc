r"""ODICE: the dual of a constrained problem, whose two gradients of V are made orthogonal.

$$\min_V\ (1-\lambda)\, E_D[V(s)] + \lambda\, E_D\big[f^*(r + \gamma V(s') - V(s))\big]$$

The gradient through V(s) is the forward one, $g_f$, that through V(s') the backward one, $g_b$. They pull against each
other; what of $g_b$ is orthogonal to $g_f$ is kept:

$$g = (1-\lambda)\, \nabla E[V] +
\lambda \Big[g_f + \eta \Big(g_b - \frac{\langle g_f, g_b \rangle}{|g_f|^2}\, g_f\Big)\Big]$$
"""

from __future__ import annotations

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from bilevel_rl.control import nets
from bilevel_rl.control.offline import parts
from bilevel_rl.control.offline.learner import Softly
from bilevel_rl.loop.settings import check_fields


class Dual(eqx.Module):
    """What it has learnt.

    Attributes:
        actor: the policy.
        V: network of V.
        slow: slow copy of it.
    """

    actor: nets.Trained
    V: nets.Trained
    slow: Any


class ODICE(Softly):
    r"""Orthogonal-gradient dual learning, with Pearson's chi-squared divergence and no network of Q.

    The policy clones actions by weights $\max(r + \gamma V(s') - V(s), 0)$.

    Args:
        weight: lambda, towards 1 for values of the best actions, at 0 V falls without end.
        eta: of the orthogonal part; 0 for the semi-gradient.

    References:
        Mao et al. 2024, arXiv 2402.00348, and its released code.
    """

    weight: float = 0.8
    eta: float = 1.0

    name: ClassVar[str] = "odice"
    references: ClassVar[tuple[str, ...]] = ("mao2024odice",)

    def check(self, environment):
        super().check(environment)
        check_fields(
            "learner odice", ("weight", self.weight, 0 < self.weight <= 1, "it must be in (0, 1]"),
            ("eta", self.eta, self.eta >= 0, "it must be at least 0"),
        )  # fmt: skip

    def init(self, environment, facts, key):
        k_pi, k_v = jax.random.split(key)
        V = parts.state_net(environment, self.width, k_v)
        pi = parts.Soft.make(environment, self.width, k_pi)
        return Dual(nets.Trained.begin(pi), nets.Trained.begin(V), V)

    def update(self, environment, F, batch, gamma, k, key):
        g = orthogonal_gradient(environment, F.V.params, F.slow, batch, gamma, self.weight, self.eta)
        V = F.V.descend(g, self.rate)
        excess = residual(environment, V.params, V.params, batch, gamma)
        slope = jax.grad(lambda pi: parts.cloning_loss(environment, pi, batch, policy_weight(excess)))(F.actor.params)
        return Dual(F.actor.descend(slope, self.rate), V, nets.follow(F.slow, V.params, self.polyak))


def conjugate(u):
    r"""$f^*(u) = u\,\omega - (\omega - 1)^2$ with $\omega = \max(u/2 + 1, 0)$, for $f(\omega) = (\omega - 1)^2$.

    Example:
        >>> float(conjugate(jnp.array(2.0))), float(conjugate(jnp.array(-9.0)))
        (3.0, -1.0)
    """
    w = jnp.maximum(u / 2 + 1, 0.0)
    return u * w - (w - 1) ** 2


def residual(environment, V_now, V_next, batch, gamma):
    r"""$r + \gamma V(s') - V(s)$ [B], each V by its own network."""
    after = parts.state_values(environment, V_next, batch.t.next_obs)
    now = parts.state_values(environment, V_now, batch.t.obs)
    return batch.reward + gamma * parts.ongoing(batch.t.terminated, after.dtype) * after - now


def policy_weight(excess):
    """How much each action counts: its residual, cut below at 0 and above at `parts.LIMIT`."""
    return jnp.clip(excess, 0.0, parts.LIMIT)


def gradients(environment, V, slow, batch, gamma):
    """Flat gradients: of E[V], forward, backward."""
    linear = lambda V: parts.weighted_mean(batch.weight, parts.state_values(environment, V, batch.t.obs))  # noqa: E731
    forward = lambda V: parts.weighted_mean(batch.weight, conjugate(residual(environment, V, slow, batch, gamma)))  # noqa: E731
    backward = lambda V: parts.weighted_mean(batch.weight, conjugate(residual(environment, slow, V, batch, gamma)))  # noqa: E731
    return [ravel_pytree(jax.grad(loss)(V))[0] for loss in (linear, forward, backward)]


def projected(backward, forward):
    """What of one vector is orthogonal to the other."""
    return backward - jnp.vdot(forward, backward) / jnp.maximum(jnp.vdot(forward, forward), 1e-20) * forward


def orthogonal_gradient(environment, V, slow, batch, gamma, weight, eta):
    """The gradient g as a tree like V."""
    g_0, g_f, g_b = gradients(environment, V, slow, batch, gamma)
    g = (1 - weight) * g_0 + weight * (g_f + eta * projected(g_b, g_f))
    return ravel_pytree(V)[1](g)
