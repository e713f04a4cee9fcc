"""EMPG: advantages modulated by the entropy of each step, with a bonus for what follows being clear."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from bilevel_rl.policy_gradient.batch import Batch
from bilevel_rl.policy_gradient.component import Card, Effect, Scope, Slot, Status, TensorComponent
from bilevel_rl.policy_gradient.credit.group_normalised import GroupNorm
from bilevel_rl.policy_gradient.credit.sums import Credit
from bilevel_rl.policy_gradient.segments import Turns
from bilevel_rl.policy_gradient.setting import ONE_TURN, Setting


@dataclasses.dataclass(frozen=True)
class EMPG(Credit):
    r"""Entropy-modulated credit: confident steps get more of it, uncertain ones less, and clear futures a
    bonus.

    $$A'_t = A_t\, g(H_t) + \zeta f(H_{t+1}) - \text{mean}, \quad
      g(H) = \frac{e^{-k\bar H}}{\mathrm{mean}\, e^{-k\bar H}}, \quad f(H) = e^{-k'\bar H}$$

    with $H_t$ the mean token entropy of step t (a turn) and $\bar H$ its min-max normalisation over the
    batch. The last step of a response has no next step and no bonus. Means are over steps.

    Args:
        inner: the credit rule that is modulated.
        k: sharpness of the scaling.
        k_future: sharpness of the bonus.
        zeta: size of the bonus, in units of the advantage; 0 leaves the objective's bonus out.
        centre: subtract the mean over steps at the end.

    References:
        Harnessing Uncertainty: Entropy-Modulated Policy Gradients for Long-Horizon LLM Agents, arXiv
        2509.09265. SEEN (project page). Changes the objective: the bonus is not potential-based. Cost:
        O(NT).
    """

    inner: TensorComponent = GroupNorm()
    k: float = 1.0
    k_future: float = 1.0
    zeta: float = 0.1
    centre: bool = True

    card: ClassVar[Card] = Card(
        name="empg",
        slot=Slot.CREDIT,
        effect=Effect.CHANGES,
        needs=("entropy", "turn"),
        scope=Scope.BATCH,
        source="Harnessing Uncertainty: Entropy-Modulated Policy Gradients, arXiv 2509.09265",
        status=Status.SEEN,
        number=6,
    )

    def idle(self, setting: Setting) -> str:
        """Why it can't act, or nothing."""
        return ONE_TURN if setting.turns is False else ""

    def __call__(self, batch: Batch) -> Tensor:
        """[N, T] advantages."""
        (entropy,) = self.card.take(batch, "entropy")
        advantage = self.inner(batch)
        turns = Turns.of(batch)
        step = normalised_range(turns.mean(entropy.detach()), turns.valid)
        gain = torch.where(turns.valid, torch.exp(-self.k * step), 0)
        gain = gain / (gain.sum() / turns.valid.sum().clamp(min=1)).clamp(min=torch.finfo(gain.dtype).tiny)
        clear = torch.where(turns.valid, torch.exp(-self.k_future * step), 0)
        future = next_valid(clear, turns.valid)
        out = advantage * turns.spread(gain) + self.zeta * turns.spread(future)
        if self.centre:
            per_step = turns.mean(out)
            out = out - per_step.sum() / turns.valid.sum().clamp(min=1)
        return torch.where(batch.mask, out, 0)


def normalised_range(values: Tensor, valid: Tensor) -> Tensor:
    """[N, U] in [0, 1] by the smallest and largest valid value; all 0 when they are equal."""
    if not values.numel():
        return values
    low = torch.where(valid, values, torch.inf).amin()
    high = torch.where(valid, values, -torch.inf).amax()
    wide = high > low
    return torch.where(valid & wide, (values - low) / torch.where(wide, high - low, 1), 0)


def next_valid(values: Tensor, valid: Tensor) -> Tensor:
    """[N, U]: at each valid turn the value at the next valid one of the row, 0 at the last."""
    out, follow = torch.zeros_like(values), values.new_zeros(len(values))
    for u in reversed(range(values.shape[1])):
        out[:, u] = torch.where(valid[:, u], follow, 0)
        follow = torch.where(valid[:, u], values[:, u], follow)
    return out
