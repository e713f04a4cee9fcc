"""Policies of Pendulum in closed form, to be composed and guided: Gaussian laws of actions, as flows and chains know them.

Actions are in [-1, 1], observations scaled to their bounds. What the parents know is a hand-written expert's.
"""

from __future__ import annotations

import math

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel_rl.control.environments import pendulum
from bilevel_rl.control.policies import guidance
from bilevel_rl.control.problems import experts

SURE, UNSURE = 0.15, 1.0  # ours: standard deviations where a parent has seen the expert, and where it has not
YES = 0.4  # ours: how far from the expert an action may be to be called one of its own
STEPS = 16  # of the guided chain


def scale() -> Float[Array, " 3"]:
    """Bounds of observations."""
    return jnp.array([1.0, 1.0, pendulum.SPEED], jnp.float32)


def expert(obs: Float[Array, " 3"]) -> Float[Array, " 1"]:
    """Energy control."""
    return (experts.swing_up(obs * scale()) / pendulum.TORQUE).astype(jnp.float32)


class Half(eqx.Module):
    """The flow of a policy that knows the expert in one part of the states, and guesses in the other.

    Attributes:
        holds: whether it has seen the top, where the expert holds; else all but the top, where it swings up.
    """

    holds: bool = eqx.field(static=True)

    def law(self, obs: Float[Array, " 3"]) -> tuple[Array, Array]:
        """Mean [1] and standard deviation [] of its actions."""
        top = (obs[0] > 0.85) & (jnp.abs(obs[2]) < 3.0 / pendulum.SPEED)
        knows = top if self.holds else ~top
        return jnp.where(knows, expert(obs), 0.0), jnp.where(knows, SURE, UNSURE).astype(jnp.float32)

    def __call__(self, a: Float[Array, " 1"], t: Float[Array, ""], obs: Float[Array, " 3"]) -> Float[Array, " 1"]:
        """The velocity that matching learns on this law, E[action - noise | a]."""
        mean, std = self.law(obs)
        return mean + (t * std**2 - (1 - t)) / ((t * std) ** 2 + (1 - t) ** 2) * (a - t * mean)

    def log_prob(self, action: Float[Array, " 1"], obs: Float[Array, " 3"]) -> Float[Array, ""]:
        """Exact."""
        mean, std = self.law(obs)
        return -0.5 * jnp.sum(((action - mean) / std) ** 2) - jnp.log(std) - 0.5 * math.log(2 * math.pi)


class Pushes(eqx.Module):
    r"""The best pushes of the chain that stays at N(0, 1), towards $p(y|s,a)^\gamma$, by Doob's transform.

    With $E[p^\gamma(z_1)\,|\,z_t]$ known, since $z_1 \sim N(\alpha z_t, 1 - \alpha^2)$.

    Attributes:
        strength: gamma.
        chain: what is pushed.
    """

    strength: Array
    chain: guidance.Broad = guidance.Broad(STEPS)

    def __call__(self, z: Float[Array, " 1"], t: Float[Array, ""], obs: Float[Array, " 3"]) -> Float[Array, " 1"]:
        alpha, gamma = self.chain.alpha(t), self.strength.astype(z.dtype)
        std = jnp.sqrt(1 - (alpha / self.chain.alpha(jnp.minimum(t + 1 / self.chain.steps, 1))) ** 2)
        return std * gamma * alpha * (expert(obs) - alpha * z) / (YES**2 + gamma * (1 - alpha**2))


def log_likelihood(action: Float[Array, " 1"], obs: Float[Array, " 3"]) -> Float[Array, ""]:
    """log p(y | s, a), y: it might be the expert's."""
    return -0.5 * jnp.sum(((action - expert(obs)) / YES) ** 2)
