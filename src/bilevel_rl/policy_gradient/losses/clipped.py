"""The clipped surrogate: PPO, DAPO's clip-higher, and the dual clip."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.policy_gradient.aggregate import Aggregate, per_token
from bilevel_rl.policy_gradient.batch import Batch
from bilevel_rl.policy_gradient.component import Card, Effect, Scope, Slot
from bilevel_rl.policy_gradient.logs import log_ratio
from bilevel_rl.policy_gradient.losses.policy_gradient import weighted_advantage
from bilevel_rl.policy_gradient.setting import RATIO_ONE, Setting


def clipped_surrogate(
    ratio: Tensor, advantage: Tensor, low: float, high: float, dual: float | None = None
) -> Tensor:
    r"""$-\min(\rho A,\ \mathrm{clip}(\rho, 1-\epsilon_l, 1+\epsilon_h) A)$, at most $-cA$ for $A<0$ under
    the dual clip.

    Example:
        >>> clipped_surrogate(torch.tensor([2.0]), torch.tensor([1.0]), low=0.2, high=0.2)
        tensor([-1.2000])
    """
    loss = -torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)
    if dual is not None:
        loss = torch.where(advantage < 0, torch.minimum(loss, -dual * advantage), loss)
    return loss


@dataclasses.dataclass(frozen=True)
class Clipped:
    r"""PPO's clipped surrogate with its two sides apart.

    $$\ell = -\min\left(\rho_t A_t,\ \mathrm{clip}(\rho_t, 1-\epsilon_l, 1+\epsilon_h) A_t\right),\quad
      \rho_t = \pi(y_t)/\pi_{\mathrm{old}}(y_t)$$

    Args:
        low: $\epsilon_l$; 0.2, PPO.
        high: $\epsilon_h$; 0.2 is PPO and GRPO, 0.28 is DAPO's clip-higher.
        dual: $c > 1$, the bound for negative advantages; None: no such bound.
        aggregate: `per_token` (DAPO), `per_sequence` (GRPO), `PerConstant` (Dr. GRPO).

    References:
        Schulman et al., Proximal Policy Optimization Algorithms, arXiv 1707.06347, equation 7; Yu et al.,
        DAPO: An Open-Source LLM Reinforcement Learning System at Scale, arXiv 2503.14476 (clip-higher); Ye
        et al., Mastering Complex Control in MOBA Games with Deep Reinforcement Learning (dual clip).
        Classical.
    """

    low: float = 0.2
    high: float = 0.2
    dual: float | None = None
    aggregate: Aggregate = per_token

    card: ClassVar[Card] = Card(
        name="clipped",
        scope=Scope.RESPONSE,
        gradient=("logp",),
        slot=Slot.LOSS,
        effect=Effect.CHANGES,
        needs=("logp", "old", "advantage"),
        source="Proximal Policy Optimization Algorithms, arXiv 1707.06347; DAPO, arXiv 2503.14476",
        cite=("schulman2017ppo", "yu2025dapo"),
        note="the first step of each batch (ratio 1) is exactly the policy gradient; later ones are "
        "biased by the clip",
    )

    def __post_init__(self) -> None:
        if not (0 <= self.low <= 1 and self.high >= 0 and (self.dual is None or self.dual > 1)):
            raise InvalidConfig(
                message("Clipped", f"low={self.low}, high={self.high}, dual={self.dual}",
                        "low must be in [0, 1], high at least 0, dual above 1 or "
                        "None", "Use low=0.2, high=0.2")
            )  # fmt: skip

    def idle(self, setting: Setting) -> str:
        """Why it can't act, or nothing."""
        return RATIO_ONE if setting.one_step else ""

    def __call__(self, batch: Batch) -> Tensor:
        """Scalar, to be minimised."""
        logp, old = self.card.take(batch, "logp", "old")
        ratio = log_ratio(logp, old.detach()).exp()
        return self.aggregate(
            clipped_surrogate(ratio, weighted_advantage(batch), self.low, self.high, self.dual), batch
        )


def clip_fraction(batch: Batch, low: float = 0.2, high: float = 0.2) -> Tensor:
    """Scalar: share of the action tokens whose gradient the clip removes (a metric; no gradient)."""
    logp, old, advantage = Clipped.card.take(batch, "logp", "old", "advantage")
    ratio = log_ratio(logp, old).exp().detach()
    outside = torch.where(advantage > 0, ratio > 1 + high, (advantage < 0) & (ratio < 1 - low))
    return torch.where(batch.mask, outside, False).sum() / batch.mask.sum().clamp(min=1)
