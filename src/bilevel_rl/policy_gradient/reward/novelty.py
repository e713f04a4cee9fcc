"""G2RL: rewards scaled by how different a response's gradient is from those of the other responses."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from bilevel_rl.policy_gradient.batch import Batch
from bilevel_rl.policy_gradient.component import Card, Effect, Slot, Status
from bilevel_rl.policy_gradient.segments import (
    label,
    members,
)
from bilevel_rl.policy_gradient.setting import ONE_ANSWER, Setting


def sensitivity(logits: Tensor, token: Tensor, head: Tensor, mask: Tensor) -> Tensor:
    r"""$\Phi = \sum_t W^\top(e_{y_t} - p_t)$: the log-likelihood's gradient in the last hidden states,
    summed [N, D].

    Args:
        logits: [N, T, V].
        token: [N, T] integer.
        head: [V, D], the weights W of the last layer.
        mask: [N, T] bool.
    """
    law = logits.detach().softmax(-1)
    chosen = head.detach()[torch.where(mask, token, 0)]
    return torch.where(mask[..., None], chosen - law @ head.detach(), 0).sum(1)


@dataclasses.dataclass(frozen=True)
class Novelty:
    r"""A bounded factor on the reward: responses with a gradient direction of their own get more.

    $$\nu_i = \left(1 - \sum_{j\ne i} w_{ij}\cos^2(\Phi_i, \Phi_j)\right)_+,\ w_{ij} \propto e^{R_j}, \qquad
      \tilde R_i = R_i\,\mathrm{clip}(1 + \lambda\nu_i, low, high)$$

    Args:
        scale: $\lambda$.
        low, high: limits of the factor; positive, so that no reward changes its sign.

    References:
        Can LLMs Guide Their Own Exploration? Gradient-Guided Reinforcement Learning for LLM Reasoning,
        arXiv 2512.15687. In the spirit of: INFERRED from the abstract. The extra `sensitivity` [N, D] is
        from the function of that name. Cost: O(NkD).
    """

    scale: float = 0.5
    low: float = 0.5
    high: float = 1.5

    card: ClassVar[Card] = Card(
        name="g2rl",
        slot=Slot.REWARD,
        effect=Effect.CHANGES,
        needs=("reward", "group", "sensitivity"),
        group=2,
        source="Gradient-Guided Reinforcement Learning for LLM Reasoning, arXiv 2512.15687",
        status=Status.INFERRED,
        number=21,
        cost="O(NT + NkD)",
    )

    def idle(self, setting: Setting) -> str:
        """Why it can't act, or nothing."""
        return ONE_ANSWER if setting.answers == 1 else ""

    def __call__(self, batch: Batch) -> Tensor:
        """[N, T, K] rewards."""
        (feature,) = self.card.take(batch, "sensitivity")
        novelty = gradient_novelty(feature.detach(), batch.score, batch.group)
        factor = (1 + self.scale * novelty).clamp(self.low, self.high)
        return batch.reward * factor.to(batch.reward.dtype)[:, None, None]


def gradient_novelty(feature: Tensor, score: Tensor, group: Tensor) -> Tensor:
    """[N] in [0, 1]: 0 for identical directions, 1 for orthogonal ones (and for a response alone)."""
    index, count = label(group)
    norm = feature.norm(dim=-1, keepdim=True)
    unit = torch.where(norm > 0, feature / torch.where(norm > 0, norm, 1), 0)
    if not count:
        return feature.new_ones(0)
    row, real = members(index, count)
    cosine = (unit[row] @ unit[row].transpose(1, 2)).square()
    other = real[:, None, :] & ~torch.eye(row.shape[1], dtype=torch.bool, device=row.device)
    preference = torch.where(other, score[row][:, None, :].to(unit.dtype), -torch.inf)
    top = preference.amax(-1, keepdim=True)
    weight = torch.where(other, (preference - torch.where(top.isfinite(), top, 0)).exp(), 0)
    total = weight.sum(-1)
    shared = (weight * cosine).sum(-1) / torch.where(total > 0, total, 1)
    out = torch.ones(len(feature), dtype=unit.dtype, device=unit.device)
    out[row[real]] = (1 - shared).clamp(0, 1)[real]
    return out
