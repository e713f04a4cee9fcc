"""A supervised loss that trades diversity for precision: next-token prediction as reward shaping."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from bilevel_rl.policy_gradient.aggregate import Aggregate, per_token
from bilevel_rl.policy_gradient.batch import Batch
from bilevel_rl.policy_gradient.component import Card, Effect, Scope, Slot, Status
from bilevel_rl.policy_gradient.logs import floored


@dataclasses.dataclass(frozen=True)
class Precision:
    r"""Cross-entropy as one-step policy gradient, with a shaped reward for the gold token and small ones
    for the rest.

    $$\nabla\ell = -\left[(1-\pi_y)^\beta\,\nabla\log\pi_y + \sum_{a\ne y} r_a \nabla\pi_a\right], \qquad
      r_a = \lambda_{top} \text{ if a is among the k likeliest, else } \lambda_{tail}$$

    At $\beta = 0$ and no other rewards it is cross-entropy exactly (reward $1\{a=y\}/\pi_a$). $\beta > 0$
    turns to gold tokens that are still unlikely (diversity, as in a focal loss), $\beta < 0$ to those that
    are nearly certain (precision).

    Args:
        beta: exponent; -0.25 was best in the study.
        top: $\lambda_{top}$, reward of likely wrong tokens.
        tail: $\lambda_{tail}$, reward of unlikely wrong tokens (negative pushes them down).
        k: how many tokens are likely.
        limit: largest weight of a gold token (ours: $\beta<0$ grows without bound at certainty).
        aggregate: denominator.

    References:
        Diversity or Precision? A Deep Dive into Next Token Prediction. In the spirit of: the mechanism is
        SEEN (abstract), the shape of the factor and the constants are INFERRED. Needs the whole law:
        `logits` [N, T, V] and `target` [N, T].
    """

    beta: float = -0.25
    top: float = 0.0
    tail: float = 0.0
    k: int = 100
    limit: float = 10.0
    aggregate: Aggregate = per_token

    card: ClassVar[Card] = Card(
        name="precision",
        slot=Slot.LOSS,
        effect=Effect.CHANGES,
        needs=("logits", "target"),
        scope=Scope.RESPONSE,
        gradient=("logits",),
        source="Diversity or Precision? A Deep Dive into Next Token Prediction",
        status=Status.INFERRED,
        number=12,
        cost="O(NTV)",
    )

    def __call__(self, batch: Batch) -> Tensor:
        """Scalar, to be minimised."""
        logits, target = self.card.take(batch, "logits", "target")
        law = logits.log_softmax(-1)
        target = torch.where(batch.mask, target, 0)
        gold = law.gather(-1, target[..., None])[..., 0]
        room = (1 - gold.detach().exp()).clamp(min=torch.finfo(law.dtype).eps)
        weight = room.pow(self.beta).clamp(max=self.limit)
        loss = -weight * floored(gold)
        if self.top or self.tail:
            width = law.shape[-1]
            likely = torch.zeros_like(law, dtype=torch.bool)
            likely.scatter_(-1, law.detach().topk(min(self.k, width), -1).indices, True)
            reward = torch.where(likely, law.new_tensor(self.top), law.new_tensor(self.tail))
            reward = reward.scatter(-1, target[..., None], 0.0)
            loss = loss - (law.exp() * reward).sum(-1)
        return self.aggregate(loss, batch)
