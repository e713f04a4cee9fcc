"""GPG: centred rewards, scaled up by the share of responses that teach something."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from torch import Tensor

from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.policy_gradient.batch import Batch
from bilevel_rl.policy_gradient.component import Card, Effect, Scope, Slot, Status
from bilevel_rl.policy_gradient.credit.group_normalised import group_deviation
from bilevel_rl.policy_gradient.credit.sums import Credit


@dataclasses.dataclass(frozen=True)
class GPG(Credit):
    r"""Group policy gradient: the deviation from the group's mean, times $\alpha$ for the rows that say nothing.

    $$A_{i,t} = \alpha\,\frac{R_i - \bar R}{F}, \qquad \alpha = \frac{N}{\#\{i : A_i \ne 0\}}$$

    Args:
        norm: F, 1 in the paper.
        count: what makes a row count in $\alpha$: "advantage", one that is not 0 (the paper); "score", a score that is
            not 0 (verl).

    References:
        Chu et al., GPG: A Simple and Strong Reinforcement Learning Baseline for Model Reasoning, arXiv 2504.02546.
        SEEN (verl, and the paper's own release for the count). Cost: O(N).
    """

    norm: float = 1.0
    count: str = "advantage"

    card: ClassVar[Card] = Card(
        name="gpg",
        slot=Slot.CREDIT,
        effect=Effect.RESCALES,
        needs=("reward", "group"),
        group=2,
        scope=Scope.BATCH,
        source="GPG: A Simple and Strong Reinforcement Learning Baseline for Model Reasoning, arXiv 2504.02546",
        status=Status.SEEN,
    )

    def __post_init__(self) -> None:
        if self.count not in ("advantage", "score") or not self.norm > 0:
            raise InvalidConfig(
                message("credit 'gpg'", f"norm={self.norm}, count={self.count!r}",
                        "norm above 0, count advantage (the paper) or score (verl)", "Use gpg()")
            )  # fmt: skip

    def __call__(self, batch: Batch) -> Tensor:
        """[N, T] advantages, one number a response."""
        self.card.require(batch)
        deviation = group_deviation(batch.score, batch.group, False, 0.0, 0)
        telling = (deviation if self.count == "advantage" else batch.score) != 0
        return batch.spread(deviation * len(batch) / telling.sum().clamp(min=1) / self.norm)
