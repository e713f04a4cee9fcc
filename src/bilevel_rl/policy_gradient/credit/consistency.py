"""COPO: a prompt-level advantage takes over where all the answers to a prompt agree."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from bilevel_rl.policy_gradient.batch import Batch
from bilevel_rl.policy_gradient.component import Card, Effect, Scope, Slot, Status, TensorComponent
from bilevel_rl.policy_gradient.credit.group_normalised import GroupNorm
from bilevel_rl.policy_gradient.credit.sums import Credit
from bilevel_rl.policy_gradient.segments import label, segment_mean, segment_size, segment_sum
from bilevel_rl.policy_gradient.setting import ONE_ANSWER, Setting


def answer_entropy(answer: Tensor, group: Tensor) -> Tensor:
    r"""$H(q) = -\sum_c p_c\log p_c$ over the distinct answers to each response's prompt, in nats [N].

    Example:
        >>> import torch
        >>> h = answer_entropy(answer=torch.tensor([1, 2, 5, 5]), group=torch.tensor([0, 0, 1, 1]))
        >>> [round(float(x), 3) for x in h]
        [0.693, 0.693, 0.0, 0.0]
    """
    index, count = label(group)
    cluster, clusters = label(group, answer)
    dtype = torch.float64
    size = segment_size(index, count, dtype)
    share = segment_size(cluster, clusters, dtype)[cluster] / size[index]
    # each member carries -log p_c / k, so a cluster of size k p_c adds -p_c log p_c
    return segment_sum(-share.log() / size[index], index, count)[index].clamp(min=0)


@dataclasses.dataclass(frozen=True)
class Consistency(Credit):
    r"""Blend of the group's advantage and a prompt-level one, by how much the answers disagree.

    $$A = w A_{\mathrm{local}} + (1 - w) A_{\mathrm{global}}, \quad w = \sigma(\gamma(H - \rho)), \quad
      A_{\mathrm{global}}(q) = \frac{\bar R(q) - \mathrm{mean}_q \bar R}{\mathrm{std}_q \bar R + \epsilon}$$

    Where all answers agree the group's advantage is 0 and learns nothing; the global term still does.

    Args:
        inner: the local credit rule.
        gamma: sharpness of the blend.
        rho: entropy at which both count the same, in nats.
        eps: added to the standard deviation over prompts.

    References:
        COPO: Consistency-Aware Policy Optimization. SEEN (a digest of the paper). Blending advantages
            equals blending
        losses where the loss is linear in the advantage. Cost: O(NT).
    """

    inner: TensorComponent = GroupNorm()
    gamma: float = 20.0
    rho: float = 1.5
    eps: float = 1e-4

    card: ClassVar[Card] = Card(
        name="copo",
        slot=Slot.CREDIT,
        effect=Effect.CHANGES,
        needs=("reward", "group", "answer"),
        scope=Scope.BATCH,
        source="COPO: Consistency-Aware Policy Optimization",
        status=Status.SEEN,
        number=28,
    )

    def idle(self, setting: Setting) -> str:
        """Why it can't act, or nothing."""
        return ONE_ANSWER if setting.answers == 1 else ""

    def __call__(self, batch: Batch) -> Tensor:
        """[N, T] advantages."""
        (answer,) = self.card.take(batch, "answer")
        index, count = label(batch.group)
        prompt = segment_mean(batch.score, index, count)
        if count and bool(prompt.amax() > prompt.amin()):
            prompt = (prompt - prompt.mean()) / (prompt.std(correction=0) + self.eps)
        else:
            prompt = torch.zeros_like(prompt)
        entropy = answer_entropy(answer, batch.group).to(prompt.dtype)
        local = torch.sigmoid(self.gamma * (entropy - self.rho))
        return batch.spread(local) * self.inner(batch) + batch.spread((1 - local) * prompt[index])
