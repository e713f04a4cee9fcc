"""SPO's probability mask: tokens that the policy is sure of are left out of the loss and of its mean."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from torch import Tensor

from bilevel_rl.policy_gradient.batch import Batch
from bilevel_rl.policy_gradient.component import Card, Effect, Scope, Slot, Status
from bilevel_rl.policy_gradient.setting import Setting


@dataclasses.dataclass(frozen=True)
class Confident:
    r"""Weight 1 on tokens with $\pi_{old}(y_t)$ below a limit; the others are no longer part of the response.

    The tokens of weight 0 are masked out of the numerator and of the denominator of the loss's mean.

    Args:
        below: the limit, a probability; 1 or more keeps all.

    References:
        Segment Policy Optimization: Effective Segment-Level Credit Assignment in RL for Large Language
        Models, arXiv 2505.23564. SEEN (public repository).
    """

    below: float = 0.9

    card: ClassVar[Card] = Card(
        name="probability_mask",
        slot=Slot.WEIGH,
        effect=Effect.CHANGES,
        needs=("old",),
        scope=Scope.RESPONSE,
        source="Segment Policy Optimization: Effective Segment-Level Credit Assignment in RL for LLMs",
        status=Status.SEEN,
        number=40,
        uncounted=True,
        note="tokens of weight 0 leave the loss's mean as well",
    )

    def idle(self, setting: Setting) -> str:
        """Why it can't act, or nothing."""
        return "below=1 keeps every token. Lower it" if self.below >= 1 else ""

    def __call__(self, batch: Batch) -> Tensor:
        """[N, T] weights, 0 or 1."""
        (old,) = self.card.take(batch, "old")
        p = old.detach().exp()
        return (batch.mask & ((p < self.below) | (self.below >= 1))).to(p.dtype)
