r"""TD3+BC: $\max_\pi \lambda Q(s, \pi(s)) - |\pi(s) - a|^2$ with $\lambda = \alpha / E|Q|$, twin critics, delayed actors."""

from __future__ import annotations

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp

from bilevel_rl.control.offline import parts, twin
from bilevel_rl.control.offline.learner import Directly
from bilevel_rl.loop.settings import check_fields


class TD3BC(Directly):
    """TD3 with behaviour cloning in the actor's loss.

    Args:
        alpha: weight of the critic against cloning.
        delay: updates of the critics for one of the actor.

    References:
        Fujimoto, Gu 2021, arXiv 2106.06860.
    """

    alpha: float = 2.5
    delay: int = eqx.field(static=True, default=2)

    name: ClassVar[str] = "td3_bc"
    references: ClassVar[tuple[str, ...]] = ("fujimoto2021td3bc",)

    def check(self, environment):
        super().check(environment)
        check_fields(
            "learner td3_bc", ("alpha", self.alpha, self.alpha > 0, "it must be above 0"),
            ("delay", self.delay, self.delay >= 1, "it must be at least 1"),
        )  # fmt: skip

    def init(self, environment, facts, key):
        return twin.begin(environment, self.width, key)

    def update(self, environment, F, batch, gamma, k, key):
        y = twin.target(environment, F.slow_actor, F.slow_critics, batch, gamma, key)
        loss = lambda pi, Q: actor_loss(environment, pi, Q, batch, self.alpha)  # noqa: E731
        return twin.step(self, environment, F, batch, y, k, loss)


def actor_loss(environment, actor, Q, batch, alpha):
    r"""$E\big[-\lambda Q_1(s, \pi(s)) + |\pi(s) - a|^2\big]$, the square a mean over coordinates."""
    code = parts.steered(environment, actor, batch.t.obs)
    cloned = jnp.mean((code - parts.encoded(environment.action, batch.t.action)) ** 2, -1)
    return twin.improvement(environment, Q, batch, code, alpha) + parts.weighted_mean(batch.weight, cloned)
