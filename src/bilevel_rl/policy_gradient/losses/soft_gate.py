"""SAPO: a smooth gate on the ratio instead of a clip."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.policy_gradient.aggregate import Aggregate, per_sequence
from bilevel_rl.policy_gradient.batch import Batch
from bilevel_rl.policy_gradient.component import Card, Effect, Scope, Slot, Status
from bilevel_rl.policy_gradient.logs import log_ratio
from bilevel_rl.policy_gradient.losses.policy_gradient import weighted_advantage
from bilevel_rl.policy_gradient.setting import RATIO_ONE, Setting


@dataclasses.dataclass(frozen=True)
class SoftGate:
    r"""Soft adaptive policy optimisation: the ratio passes through a sigmoid that fades the gradient off the policy.

    $$\ell = -\tfrac4\tau\,\sigma(\tau(\rho_t - 1))\,A_t, \qquad \tau = \tau_+ \text{ for } A_t > 0, \text{ else }
      \tau_-$$

    At $\rho = 1$ its gradient is the policy gradient's.

    Args:
        positive, negative: the temperatures $\tau_\pm$, at least 0.
        aggregate: denominator.

    References:
        Gao et al., Soft Adaptive Policy Optimization, arXiv 2511.20347. SEEN (TRL 1.16, whose defaults these are).
    """

    positive: float = 1.0
    negative: float = 1.05
    aggregate: Aggregate = per_sequence

    card: ClassVar[Card] = Card(
        name="sapo",
        slot=Slot.LOSS,
        effect=Effect.CHANGES,
        needs=("logp", "old", "advantage"),
        scope=Scope.RESPONSE,
        gradient=("logp",),
        source="Soft Adaptive Policy Optimization, arXiv 2511.20347",
        status=Status.SEEN,
    )

    def __post_init__(self) -> None:
        if not (self.positive > 0 and self.negative > 0):
            raise InvalidConfig(
                message("loss 'sapo'", f"positive={self.positive}, negative={self.negative}", "both above 0",
                        "Use 1.0 and 1.05")
            )  # fmt: skip

    def idle(self, setting: Setting) -> str:
        """Why it can't act, or nothing."""
        return RATIO_ONE if setting.one_step else ""

    def __call__(self, batch: Batch) -> Tensor:
        """Scalar, to be minimised."""
        logp, old = self.card.take(batch, "logp", "old")
        advantage = weighted_advantage(batch)
        ratio = log_ratio(logp, old.detach()).exp()
        heat = torch.where(advantage > 0, self.positive, self.negative).to(ratio)
        return self.aggregate(-4 / heat * torch.sigmoid(heat * (ratio - 1)) * advantage, batch)
