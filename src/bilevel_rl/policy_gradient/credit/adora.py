"""ADORA: groups where thinking longer pays count fully, the others a tenth; its text and its vision release."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.policy_gradient.batch import Batch
from bilevel_rl.policy_gradient.component import Card, Effect, Slot, Status, TensorComponent
from bilevel_rl.policy_gradient.credit.group_normalised import GroupNorm
from bilevel_rl.policy_gradient.credit.sums import Credit
from bilevel_rl.policy_gradient.segments import label, segment_max, segment_sum
from bilevel_rl.policy_gradient.setting import Setting


@dataclasses.dataclass(frozen=True)
class Adora(Credit):
    r"""A weight a group: 1 where the longest correct response is longer than the wrong ones' mean, else
    $\lambda$.

    $$A' = w_q A, \quad w_q = 1 \text{ if } \max_{i\ \mathrm{correct}} |y_i| >
      \mathrm{mean}_{i\ \mathrm{wrong,\ not\ truncated}} |y_i|, \text{ else } \lambda$$

    The two public releases differ where one side is missing:

    | | no correct response | correct ones, but no wrong one that ended by itself |
    |---|---|---|
    | text | $\lambda$ | 1 |
    | vision | 1 | $\lambda$ |

    Args:
        inner: the credit rule that is weighted.
        weight: $\lambda$.
        threshold: a response is correct when its reward is above this.
        release: "text" or "vision".

    References:
        ADORA: Training Reasoning Models with Dynamic Advantage Estimation on Reinforcement Learning. SEEN (public
        repository, both versions); the default is the text one's. Cost: O(N).
    """

    inner: TensorComponent = GroupNorm()
    weight: float = 0.1
    threshold: float = 0.5
    release: str = "text"

    card: ClassVar[Card] = Card(
        name="adora",
        slot=Slot.CREDIT,
        effect=Effect.RESCALES,
        needs=("reward", "group"),
        source="ADORA: Training Reasoning Models with Dynamic Advantage Estimation",
        status=Status.SEEN,
        number=38,
        note="the weight is computed from the responses that it weighs: exact per prompt only for an "
        "independent one",
    )

    def __post_init__(self) -> None:
        if self.release not in ("text", "vision"):
            raise InvalidConfig(
                message("Adora.release", repr(self.release), "text or vision", "Choose the release to follow")
            )

    def idle(self, setting: Setting) -> str:
        """Why it can't act, or nothing."""
        return "weight=1 leaves every group as it is. Lower weight" if self.weight == 1 else ""

    def __call__(self, batch: Batch) -> Tensor:
        """[N, T] advantages."""
        self.card.require(batch)
        index, count = label(batch.group)
        length = batch.length.to(batch.reward.dtype)
        correct = batch.score > self.threshold
        wrong = (~correct & ~batch.truncated).to(length.dtype)
        longest = segment_max(torch.where(correct, length, -torch.inf), index, count)
        number = segment_sum(wrong, index, count)
        mean = segment_sum(wrong * length, index, count) / number.clamp(min=1)
        solved = longest > -torch.inf
        if self.release == "text":
            full = solved & ((number == 0) | (longest > mean))
        else:
            full = ~solved | ((number > 0) & (longest > mean))
        advantage = self.inner(batch)
        return torch.where(full[index][:, None], advantage, self.weight * advantage)
