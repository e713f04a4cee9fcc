"""DAPO's soft overlong punishment: a penalty that grows over the last stretch before the length limit."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import torch
from torch import Tensor

from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.policy_gradient.batch import Batch, paid_at_end
from bilevel_rl.policy_gradient.component import Card, Effect, Scope, Slot
from bilevel_rl.policy_gradient.setting import Setting, unset


@dataclasses.dataclass(frozen=True)
class SoftOverlong:
    r"""One more reward term: 0 up to $L - C$ tokens, falling linearly to -1 at L, -1 beyond.

    Args:
        limit: L, in tokens; None takes the run's `max_new_tokens`.
        cache: C, length of the soft stretch, in tokens; None takes a fifth of L, the paper's proportion
            (4,096 of 20,480).

    References:
        Yu et al., DAPO: An Open-Source LLM Reinforcement Learning System at Scale, arXiv 2503.14476,
        section 3.4. Classical.
    """

    limit: int | None = None
    cache: int | None = None

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
        limit = math.inf if self.limit is None else self.limit
        if not (limit > 0 and (self.cache is None or 0 < self.cache <= limit)):
            raise InvalidConfig(
                message(
                    "SoftOverlong",
                    f"limit={self.limit}, cache={self.cache}",
                    "0 < cache <= limit",
                    "Lower cache",
                )
            )

    def configured(self, setting: Setting) -> SoftOverlong:
        """With the limits of the run where they were left open."""
        limit = self.limit or setting.max_new_tokens
        cache = self.cache if self.cache or not limit else max(limit // 5, 1)
        return dataclasses.replace(self, limit=limit, cache=cache)

    def idle(self, setting: Setting) -> str:
        """Why it can't act, or nothing."""
        own, longest = self.configured(setting), setting.max_new_tokens
        if setting.truncates is False:
            return "no response can reach the limit. Leave it out, or allow responses of any length"
        if own.limit and own.cache and longest and longest <= own.limit - own.cache:
            return (
                f"responses have at most {longest} tokens and the penalty begins after {own.limit - own.cache}. "
                "Lower limit, or leave it to the run's max_new_tokens"
            )
        return ""

    def __call__(self, batch: Batch) -> Tensor:
        """[N, T, K + 1] rewards."""
        self.card.require(batch)
        if self.limit is None:
            raise unset(self, "limit", "Set limit to the longest response allowed, in tokens")
        cache = self.cache or max(self.limit // 5, 1)
        over = (batch.length - (self.limit - cache)).to(batch.reward.dtype) / cache
        return add_term(batch, -over.clamp(0, 1))


def add_term(batch: Batch, values: Tensor) -> Tensor:
    """[N, T, K + 1]: the rewards and one more term, [N] paid at the last action token or [N, T]."""
    term = paid_at_end(batch.mask, values[:, None]) if values.ndim == 1 else values[..., None]
    return torch.cat([batch.reward, term.to(batch.reward.dtype)], -1)
