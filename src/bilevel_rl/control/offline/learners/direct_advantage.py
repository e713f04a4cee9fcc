r"""Direct advantage: log ratios of policies are fitted to advantages, as a regression on stored actions.

$$\min_\theta\ E_{s, a \sim \pi_0}\ \tfrac12 \big(\beta \log\tfrac{\pi_\theta(a|s)}{\pi_0(a|s)} - \hat A(s, a)\big)^2, \qquad
\hat A = r + \gamma V(s') - V(s)$$

Where $E_{\pi_0}\, e^{A/\beta} = 1$ the minimiser is $\pi \propto \pi_0\, e^{A/\beta}$. A number for each state that is
added to the advantage moves it, so V has to be the value of $\pi_0$ itself: then $\hat A$ has mean 0 in every state.
"""

from __future__ import annotations

from typing import ClassVar

import equinox as eqx
import jax

from bilevel_rl.control import nets
from bilevel_rl.control.offline import parts
from bilevel_rl.control.offline.learner import Softly
from bilevel_rl.loop.settings import check_fields


class Regressed(eqx.Module):
    """What it has learnt.

    Attributes:
        actor: the policy.
        behaviour: the data's policy, cloned.
        V: the data's value.
    """

    actor: nets.Trained
    behaviour: nets.Trained
    V: nets.Trained


class DirectAdvantage(Softly):
    """One step of policy improvement on stored data, in the spirit of direct advantage policy optimisation.

    Not the DAPO of dynamic sampling, whose name it shares. Its published setting is the reasoning steps of language models
    with a critic of their accuracy; here steps are those of an environment, and the critic learns from one-step targets.

    Args:
        beta: how far the policy stays near the data's, in units of reward; towards infinity it is the data's.

    References:
        Liu et al. 2024, arXiv 2412.18279; the formulae are inferred from its abstract.
    """

    beta: float = 1.0

    name: ClassVar[str] = "direct_advantage"
    references: ClassVar[tuple[str, ...]] = ("liu2024directadvantage",)
    inferred: ClassVar[str] = "loss and advantage"

    def check(self, environment):
        super().check(environment)
        check_fields("learner direct_advantage", ("beta", self.beta, self.beta > 0, "it must be above 0"))

    def init(self, environment, facts, key):
        k_pi, k_v = jax.random.split(key)
        pi = parts.Soft.make(environment, self.width, k_pi)
        V = parts.state_net(environment, self.width, k_v)
        return Regressed(nets.Trained.begin(pi), nets.Trained.begin(pi), nets.Trained.begin(V))

    def update(self, environment, F, batch, gamma, k, key):
        y = target(environment, F.V.params, batch, gamma)

        def error(V):
            return parts.weighted_mean(batch.weight, (parts.state_values(environment, V, batch.t.obs) - y) ** 2)

        A = advantage(environment, F.V.params, batch, gamma)
        cloned = jax.grad(lambda pi: parts.cloning_loss(environment, pi, batch))(F.behaviour.params)
        behaviour = F.behaviour.descend(cloned, self.rate)
        base = parts.log_likelihood(environment, behaviour.params, batch.t.obs, batch.t.action)

        def loss(pi):
            logp = parts.log_likelihood(environment, pi, batch.t.obs, batch.t.action)
            return regression(logp - base, A, self.beta, batch.weight)

        actor = F.actor.descend(jax.grad(loss)(F.actor.params), self.rate)
        return Regressed(actor, behaviour, F.V.descend(jax.grad(error)(F.V.params), self.rate))


def target(environment, V, batch, gamma):
    r"""$r + \gamma V(s')$ [B]."""
    after = parts.state_values(environment, V, batch.t.next_obs)
    return batch.reward + gamma * parts.ongoing(batch.t.terminated, after.dtype) * after


def advantage(environment, V, batch, gamma):
    r"""$r + \gamma V(s') - V(s)$ [B]: of mean 0 in every state where V is the data's own value."""
    return target(environment, V, batch, gamma) - parts.state_values(environment, V, batch.t.obs)


def regression(log_ratio, advantage, beta, weight):
    r"""$E\, \tfrac12 (\beta \log(\pi/\pi_0) - A)^2$.

    Example:
        >>> import jax.numpy as jnp
        >>> float(regression(jnp.array([0.5]), jnp.array([1.0]), 2.0, jnp.ones(1)))
        0.0
    """
    return parts.weighted_mean(weight, 0.5 * (beta * log_ratio - advantage) ** 2)
