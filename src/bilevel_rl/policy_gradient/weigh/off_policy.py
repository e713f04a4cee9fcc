"""Responses that teach what to avoid are dropped once the policy has moved away from the one that wrote them."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from torch import Tensor

from bilevel_rl.policy_gradient.batch import Batch
from bilevel_rl.policy_gradient.component import Card, Effect, Scope, Slot, Status
from bilevel_rl.policy_gradient.logs import log_ratio
from bilevel_rl.policy_gradient.segments import masked_mean
from bilevel_rl.policy_gradient.setting import RATIO_ONE, Setting


@dataclasses.dataclass(frozen=True)
class OffPolicyMask:
    r"""Weight 0 on tokens of negative advantage in responses whose mean $\log\pi_{old} - \log\pi$ is above a threshold.

    It is taken anew at every gradient step, from the policy as it then is.

    Args:
        threshold: in nats a token.

    References:
        DeepSeek-V3.2: Pushing the Frontier of Open Large Language Models, arXiv 2512.02556 (off-policy sequence
        masking). SEEN (TRL 1.16). The default threshold is ours.
    """

    threshold: float = 0.5
    every_step: ClassVar[bool] = True

    card: ClassVar[Card] = Card(
        name="off_policy_mask",
        slot=Slot.WEIGH,
        effect=Effect.CHANGES,
        needs=("old", "advantage"),
        scope=Scope.RESPONSE,
        source="DeepSeek-V3.2, arXiv 2512.02556",
        status=Status.SEEN,
    )

    def idle(self, setting: Setting) -> str:
        """Why it can't act, or nothing."""
        return RATIO_ONE if setting.one_step else ""

    def __call__(self, batch: Batch) -> Tensor:
        """[N, T] weights, 0 or 1."""
        old, advantage = self.card.take(batch, "old", "advantage")
        logp = old if batch.logp is None else batch.inside("logp").detach()
        moved = masked_mean(log_ratio(old, logp), batch.mask, 1)[:, None] > self.threshold
        return (batch.mask & ~(moved & (advantage < 0))).to(advantage.dtype)
