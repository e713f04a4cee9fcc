"""CAPO: tokens whose predicted gain or policy shift is outside safe limits get no gradient."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

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

    The fields `predicted_gain` (m_H) and `predicted_shift` (m_F), [N, T], come from `last_layer_model`.

    Args:
        lowest: $\delta_H$, in units of advantage.
        highest: $\delta_H^{high}$.
        shift: $\delta_F$, in nats.

    References:
        Stabilizing Policy Gradients for Sample-Efficient Reinforcement Learning in LLM Reasoning
        (curvature-aware). SEEN (paper notes); the thresholds' published values aren't established, the
        defaults are ours.
    """

    lowest: float = -0.5
    highest: float = 0.5
    shift: float = 0.05

    card: ClassVar[Card] = Card(
        name="capo",
        slot=Slot.WEIGH,
        effect=Effect.CHANGES,
        needs=("predicted_gain", "predicted_shift"),
        scope=Scope.RESPONSE,
        source="Stabilizing Policy Gradients for Sample-Efficient RL in LLM Reasoning",
        status=Status.SEEN,
        number=11,
        cost="O(NT) + one product with the last layer's weights",
    )

    def __call__(self, batch: Batch) -> Tensor:
        """[N, T] weights, 0 or 1."""
        gain, shift = self.card.take(batch, "predicted_gain", "predicted_shift")
        good = (gain >= self.lowest) & (gain <= self.highest) & (shift <= self.shift)
        return (good & batch.mask).to(gain.dtype)
