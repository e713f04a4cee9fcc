"""R3's credit: replayed responses count with a constant factor."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from bilevel_rl.policy_gradient.batch import Batch
from bilevel_rl.policy_gradient.component import Card, Effect, Slot, Status, TensorComponent
from bilevel_rl.policy_gradient.credit.group_normalised import GroupNorm
from bilevel_rl.policy_gradient.credit.sums import Credit
from bilevel_rl.policy_gradient.setting import Setting


@dataclasses.dataclass(frozen=True)
class ReplayCredit(Credit):
    r"""$A' = \alpha A$ on the responses that came from the replay buffer (extra `replayed` [N] bool), A
    elsewhere.

    Args:
        inner: credit rule; it sees replayed and fresh responses together.
        alpha: factor; ours, the published value isn't recorded here.

    References:
        R3: Replay, Reflection, and Ranking Rewards for LLM Reinforcement Learning, arXiv 2601.19620. SEEN.
    """

    inner: TensorComponent = GroupNorm()
    alpha: float = 0.5

    card: ClassVar[Card] = Card(
        name="replay_credit",
        slot=Slot.CREDIT,
        effect=Effect.CHANGES,
        needs=("replayed",),
        source="R3: Replay, Reflection, and Ranking Rewards, arXiv 2601.19620",
        status=Status.SEEN,
        number=49,
    )

    def idle(self, setting: Setting) -> str:
        """Why it can't act, or nothing."""
        return "alpha=1 leaves replayed responses as they are. Lower alpha" if self.alpha == 1 else ""

    def __call__(self, batch: Batch) -> Tensor:
        """[N, T] advantages."""
        (replayed,) = self.card.take(batch, "replayed")
        advantage = self.inner(batch)
        return torch.where(replayed.bool()[:, None], self.alpha * advantage, advantage)
