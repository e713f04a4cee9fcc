"""HPT's loss: supervised learning on the demonstrations and a policy gradient on the samples, each with its own mean."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from bilevel_rl.policy_gradient.batch import Batch
from bilevel_rl.policy_gradient.component import Card, Effect, Scope, Slot, Status
from bilevel_rl.policy_gradient.logs import floored, log_ratio
from bilevel_rl.policy_gradient.losses.clipped import clipped_surrogate
from bilevel_rl.policy_gradient.losses.policy_gradient import weighted_advantage
from bilevel_rl.policy_gradient.setting import Setting, unset


@dataclasses.dataclass(frozen=True)
class Hybrid:
    r"""A token mean over the demonstrations in use, plus the sum over sampled tokens divided by the longest response.

    $$\ell = -\frac{\sum_{D} A_{it}\log\pi(y_{it})}{|D|} + \frac1T\sum_{S}\ell^{clip}_{it}$$

    D are the tokens of demonstrations whose advantage is not 0 (`hpt_gate` gives those of unsolved prompts the
    coefficient and the others 0), S those of samples. Rows that the gate has switched off are in neither mean.

    Args:
        length: T, the longest response allowed, in tokens; None takes the run's `max_new_tokens`.
        low, high: limits of the clip on the samples' ratio.

    References:
        Towards a Unified View of Large Language Model Post-Training (HPT). SEEN (public repository: the two terms
        and their means).
    """

    length: int | None = None
    low: float = 0.2
    high: float = 0.2

    card: ClassVar[Card] = Card(
        name="hybrid",
        slot=Slot.LOSS,
        effect=Effect.CHANGES,
        needs=("logp", "old", "advantage", "demonstration"),
        scope=Scope.BATCH,
        gradient=("logp",),
        source="Towards a Unified View of Large Language Model Post-Training",
        status=Status.SEEN,
        number=5,
        note="the samples' term is a sum over the batch, as released: it grows with the number of responses",
    )

    def configured(self, setting: Setting) -> Hybrid:
        """With T from the run where it was left open."""
        return dataclasses.replace(self, length=self.length or setting.max_new_tokens)

    def __call__(self, batch: Batch) -> Tensor:
        """Scalar, to be minimised."""
        if not self.length:
            raise unset(self, "length", "Set length to the longest response allowed, in tokens")
        logp, old, demonstration = self.card.take(batch, "logp", "old", "demonstration")
        advantage, shown = weighted_advantage(batch), demonstration.bool()[:, None] & batch.mask
        used = shown & (advantage != 0).any(1, keepdim=True)
        supervised = torch.where(used, -advantage * floored(logp), 0).sum() / used.sum().clamp(min=1)
        ratio = log_ratio(logp, old.detach()).exp()
        sampled = torch.where(shown, 0, clipped_surrogate(ratio, advantage, self.low, self.high))
        return supervised + sampled.sum() / self.length
