"""From a loss a token to one number: the four denominators in use, each so that parts of a batch add up."""

from __future__ import annotations

import dataclasses
from typing import Protocol

from torch import Tensor

from bilevel_rl.policy_gradient.batch import Batch
from bilevel_rl.policy_gradient.segments import masked_mean, masked_sum


class Aggregate(Protocol):
    """[N, T] losses and their batch -> scalar."""

    def __call__(self, values: Tensor, batch: Batch) -> Tensor: ...


def per_token(values: Tensor, batch: Batch) -> Tensor:
    r"""$\sum_{i,t} m_{it} v_{it} / \sum_{i,t} m_{it}$: every token counts the same (DAPO)."""
    total = batch.mask.sum().clamp(min=1) if batch.tokens is None else max(batch.tokens, 1.0)
    return masked_sum(values, batch.mask) / total


def per_sequence(values: Tensor, batch: Batch) -> Tensor:
    r"""$\frac1N\sum_i \frac{1}{|y_i|}\sum_t v_{it}$: every response counts the same (GRPO); long ones less
    a token.
    """
    total = len(batch) if batch.sequences is None else batch.sequences
    return masked_mean(values, batch.mask, 1).sum() / max(total, 1)


def sum_of_tokens(values: Tensor, batch: Batch) -> Tensor:
    r"""$\frac1N\sum_i\sum_t v_{it}$: the policy gradient's own scale (REINFORCE, RLOO)."""
    total = len(batch) if batch.sequences is None else batch.sequences
    return masked_sum(values, batch.mask) / max(total, 1)


@dataclasses.dataclass(frozen=True)
class PerConstant:
    r"""$\frac{1}{N L}\sum_{i,t} v_{it}$ with a constant L, the longest response allowed: no length bias
    (Dr. GRPO).
    """

    length: float

    def __call__(self, values: Tensor, batch: Batch) -> Tensor:
        """Divide the sum by N times the constant."""
        return sum_of_tokens(values, batch) / self.length
