"""Learning from the forks: only the tokens of highest entropy get a gradient."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.policy_gradient.batch import Batch
from bilevel_rl.policy_gradient.component import Card, Effect, Scope, Slot, Status
from bilevel_rl.policy_gradient.setting import Setting


@dataclasses.dataclass(frozen=True)
class HighEntropy:
    r"""Weight 1 on the action tokens whose entropy is at least the batch's $(1-\text{share})$-quantile, 0 elsewhere.

    Args:
        share: of the tokens kept, in (0, 1].

    References:
        Wang et al., Beyond the 80/20 Rule: High-Entropy Minority Tokens Drive Effective Reinforcement Learning for
        LLM Reasoning, arXiv 2506.01939. SEEN (TRL 1.16, `top_entropy_quantile`, where tokens of weight 0 stay in the
        loss's mean too). Cost: a sort of the tokens.
    """

    share: float = 0.2

    card: ClassVar[Card] = Card(
        name="high_entropy",
        slot=Slot.WEIGH,
        effect=Effect.CHANGES,
        needs=("entropy",),
        scope=Scope.BATCH,
        source="Beyond the 80/20 Rule: High-Entropy Minority Tokens, arXiv 2506.01939",
        status=Status.SEEN,
        cost="O(NT) + a sort of the tokens",
    )

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise InvalidConfig(message("HighEntropy.share", self.share, "it must be in (0, 1]", "Use 0.2"))

    def idle(self, setting: Setting) -> str:
        """Why it can't act, or nothing."""
        return "share=1 keeps every token. Lower it" if self.share == 1 else ""

    def __call__(self, batch: Batch) -> Tensor:
        """[N, T] weights, 0 or 1."""
        (entropy,) = self.card.take(batch, "entropy")
        entropy = entropy.detach()
        inside = entropy[batch.mask]
        limit = torch.quantile(inside, 1 - self.share) if inside.numel() else entropy.new_zeros(())
        return (batch.mask & (entropy >= limit)).to(entropy.dtype)
