"""VESPO: the sequence's importance ratio is reshaped by a gamma density before it weighs the policy gradient."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import torch
from torch import Tensor

from bilevel_rl.policy_gradient.aggregate import Aggregate, per_token
from bilevel_rl.policy_gradient.batch import Batch
from bilevel_rl.policy_gradient.component import Card, Effect, Scope, Slot, Status
from bilevel_rl.policy_gradient.logs import floored, log_ratio
from bilevel_rl.policy_gradient.losses.policy_gradient import weighted_advantage
from bilevel_rl.policy_gradient.segments import masked_sum
from bilevel_rl.policy_gradient.setting import RATIO_ONE, Setting

SMALLEST = math.log(1e-8)  # of the log-ratio of a sequence, as released


@dataclasses.dataclass(frozen=True)
class GammaWeight:
    r"""REINFORCE weighted by $\varphi$ of the sequence's ratio, without gradient in the weight.

    $$\ell = -\varphi(w_i)\,A_t\log\pi(y_t), \qquad \varphi(w) = w^k e^{\lambda(1 - w)}, \qquad w_i = \prod_t\rho_t$$

    with k and $\lambda$ by the sign of the advantage; $\varphi(1) = 1$.

    Args:
        k_positive, rate_positive: k and $\lambda$ for $A \ge 0$.
        k_negative, rate_negative: for $A < 0$.
        aggregate: denominator.

    References:
        VESPO: Variational Sequence-Level Soft Policy Optimization for Stable Off-Policy LLM Training, arXiv
        2602.10693. SEEN (TRL 1.16, whose defaults these are).
    """

    k_positive: float = 2.0
    rate_positive: float = 3.0
    k_negative: float = 3.0
    rate_negative: float = 2.0
    aggregate: Aggregate = per_token

    card: ClassVar[Card] = Card(
        name="vespo",
        slot=Slot.LOSS,
        effect=Effect.CHANGES,
        needs=("logp", "old", "advantage"),
        scope=Scope.RESPONSE,
        gradient=("logp",),
        source="VESPO: Variational Sequence-Level Soft Policy Optimization, arXiv 2602.10693",
        status=Status.SEEN,
    )

    def idle(self, setting: Setting) -> str:
        """Why it can't act, or nothing."""
        return RATIO_ONE if setting.one_step else ""

    def __call__(self, batch: Batch) -> Tensor:
        """Scalar, to be minimised."""
        logp, old = self.card.take(batch, "logp", "old")
        advantage = weighted_advantage(batch)
        drift = masked_sum(log_ratio(logp, old).detach(), batch.mask, 1)[:, None].clamp(SMALLEST, 20.0)
        good = advantage >= 0
        k = torch.where(good, self.k_positive, self.k_negative).to(drift)
        rate = torch.where(good, self.rate_positive, self.rate_negative).to(drift)
        weight = (rate + k * drift - rate * drift.exp()).exp()
        return self.aggregate(-weight * advantage * floored(logp), batch)
