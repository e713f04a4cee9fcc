"""CAPO: tokens whose predicted gain or policy shift is outside safe limits get no gradient."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from bilevel_rl.policy_gradient.batch import Batch
from bilevel_rl.policy_gradient.component import Card, Effect, Scope, Slot, Status


def last_layer_model(
    hidden: Tensor, logits: Tensor, token: Tensor, advantage: Tensor, change: Tensor
) -> tuple[Tensor, Tensor]:
    r"""Second-order predictions, a token, of what a change of the last layer's weights does.

    With $z = \Delta W h$ the change of the logits:
    $$m_F = \tfrac12\mathrm{Var}_{k\sim p}(z_k) \approx \mathrm{KL}(p\|p'), \qquad
      m_H = A\left[(z_y - \bar z) + \tfrac12(z_y - \bar z)^2 - \tfrac12\mathrm{Var}_p(z)\right] \approx
      A\,(p'_y/p_y - 1)$$

    Args:
        hidden: [..., D], the input h of the last layer.
        logits: [..., V], its output.
        token: [...] integer, the token drawn.
        advantage: [...].
        change: [V, D], the candidate step on W (`adam_change`).

    Returns:
        m_H [...] in units of advantage, m_F [...] in nats. No Hessian is formed; the cost is one
        product with W.
    """
    z = hidden @ change.T
    p = logits.softmax(-1)
    mean = (p * z).sum(-1)
    variance = (p * (z - mean[..., None]).square()).sum(-1)
    own = z.gather(-1, token[..., None])[..., 0] - mean
    return advantage * (own + 0.5 * own.square() - 0.5 * variance), 0.5 * variance


def adam_change(
    gradient: Tensor, first: Tensor, second: Tensor, step: int, lr: float,
    betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
) -> Tensor:  # fmt: skip
    """What Adam would add to a parameter: from its gradient, its two moments before the step, and the
    step's number (1..).
    """
    m = betas[0] * first + (1 - betas[0]) * gradient
    v = betas[1] * second + (1 - betas[1]) * gradient.square()
    return -lr * (m / (1 - betas[0] ** step)) / ((v / (1 - betas[1] ** step)).sqrt() + eps)


@dataclasses.dataclass(frozen=True)
class Curvature:
    r"""Weight 1 where $\delta_H \le m_H \le \delta_H^{high}$ and $m_F \le \delta_F$, else 0.

    $m_H$ and $m_F$ are those of the step that Adam would take on the last layer's weights alone, from this batch's
    advantages and moments of its own (`last_layer_model`, `adam_change`); a batch that brings `predicted_gain` (m_H) and
    `predicted_shift` (m_F), [N, T], is taken at its word.

    Args:
        lowest: $\delta_H$, in units of advantage.
        highest: $\delta_H^{high}$.
        shift: $\delta_F$, in nats.
        rate: learning rate of the candidate step (ours).

    References:
        Stabilizing Policy Gradients for Sample-Efficient Reinforcement Learning in LLM Reasoning
        (curvature-aware). SEEN (paper notes); the thresholds' published values aren't established, the
        defaults are ours.
    """

    lowest: float = -0.5
    highest: float = 0.5
    shift: float = 0.05
    rate: float = 1e-3

    card: ClassVar[Card] = Card(
        name="capo",
        slot=Slot.WEIGH,
        effect=Effect.CHANGES,
        needs=("advantage", "hidden", "logits", "target"),
        scope=Scope.BATCH,
        source="Stabilizing Policy Gradients for Sample-Efficient RL in LLM Reasoning",
        status=Status.SEEN,
        number=11,
        cost="O(NTVD): the gradient of the last layer, and a product with it",
    )

    def init(self) -> dict[str, Tensor]:
        """No moments yet; they get the shape of the last layer with the first batch."""
        return {"step": torch.zeros(1, dtype=torch.long)}

    def update(self, state: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Adam's moments after the batch."""
        if not batch.has("hidden"):
            return dict(state)
        g = self._gradient(batch)
        first, second = (state[n].to(g) if n in state else torch.zeros_like(g) for n in ("first", "second"))
        return {"step": state["step"] + 1, "first": 0.9 * first + 0.1 * g, "second": 0.999 * second + 0.001 * g.square()}

    def _gradient(self, batch: Batch) -> Tensor:
        """[V, D] gradient, in the last layer's weights, of minus the mean over tokens of advantage times log-probability."""
        advantage, hidden, logits, target = self.card.take(batch, "advantage", "hidden", "logits", "target")
        inside = batch.mask
        pull = -logits[inside].softmax(-1)
        pull = pull.scatter_add(1, target[inside][:, None], torch.ones_like(pull[:, :1]))
        return -(pull * advantage[inside][:, None]).T @ hidden[inside] / max(int(inside.sum()), 1)

    def predicted(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """[N, T] m_H and m_F of this batch's candidate step; 0 outside the mask."""
        if batch.has("predicted_gain") and batch.has("predicted_shift"):
            return batch.inside("predicted_gain"), batch.inside("predicted_shift")
        advantage, hidden, logits, target = self.card.take(batch, "advantage", "hidden", "logits", "target")
        state = batch.memory.get(self.card.name) or self.init()
        g = self._gradient(batch)
        first, second = (state[n].to(g) if n in state else torch.zeros_like(g) for n in ("first", "second"))
        change = adam_change(g, first, second, int(state["step"]) + 1, self.rate)
        token = torch.where(batch.mask, target, 0)
        gain, shift = last_layer_model(hidden, logits, token, advantage, change)
        return torch.where(batch.mask, gain, 0), torch.where(batch.mask, shift, 0)

    def __call__(self, batch: Batch) -> Tensor:
        """[N, T] weights, 0 or 1."""
        self.card.require(batch)
        gain, shift = (x.detach() for x in self.predicted(batch))
        good = (gain >= self.lowest) & (gain <= self.highest) & (shift <= self.shift)
        return (good & batch.mask).to(gain.dtype)
