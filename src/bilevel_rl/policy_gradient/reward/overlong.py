"""DAPO's soft overlong punishment: a penalty that grows over the last stretch before the length limit."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.policy_gradient.batch import Batch, paid_at_end
from bilevel_rl.policy_gradient.component import Card, Effect, Scope, Slot


@dataclasses.dataclass(frozen=True)
class SoftOverlong:
    r"""One more reward term: 0 up to $L - C$ tokens, falling linearly to -1 at L, -1 beyond.

    Args:
        limit: L, in tokens.
        cache: C, length of the soft stretch, in tokens.

    References:
        Yu et al., DAPO: An Open-Source LLM Reinforcement Learning System at Scale, arXiv 2503.14476,
        section 3.4. Classical.
    """

    limit: int = 64
    cache: int = 16

    card: ClassVar[Card] = Card(
        name="soft_overlong",
        slot=Slot.REWARD,
        effect=Effect.CHANGES,
        needs=("reward",),
        scope=Scope.RESPONSE,
        source="DAPO, arXiv 2503.14476",
        cite=("yu2025dapo",),
        note="adds a length cost on purpose",
    )

    def __post_init__(self) -> None:
        if not 0 < self.cache <= self.limit:
            raise InvalidConfig(
                message(
                    "SoftOverlong",
                    f"limit={self.limit}, cache={self.cache}",
                    "0 < cache <= limit",
                    "Lower cache",
                )
            )

    def __call__(self, batch: Batch) -> Tensor:
        """[N, T, K + 1] rewards."""
        self.card.require(batch)
        over = (batch.length - (self.limit - self.cache)).to(batch.reward.dtype) / self.cache
        return add_term(batch, -over.clamp(0, 1))


def add_term(batch: Batch, values: Tensor) -> Tensor:
    """[N, T, K + 1]: the rewards and one more term, [N] paid at the last action token or [N, T]."""
    term = paid_at_end(batch.mask, values[:, None]) if values.ndim == 1 else values[..., None]
    return torch.cat([batch.reward, term.to(batch.reward.dtype)], -1)
