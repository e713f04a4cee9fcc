"""SPAE: outcome credit shaped by a potential of confidence and correctness, probed at every step."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from bilevel_rl.policy_gradient.batch import Batch
from bilevel_rl.policy_gradient.component import Card, Effect, Slot, Status, TensorComponent
from bilevel_rl.policy_gradient.credit.group_normalised import GroupNorm
from bilevel_rl.policy_gradient.credit.sums import Credit
from bilevel_rl.policy_gradient.segments import Turns
from bilevel_rl.policy_gradient.setting import ONE_TURN, Setting


def step_potential(accuracy: Tensor, confidence: Tensor) -> Tensor:
    r"""$\Phi = 1.5\,\mathrm{acc}\cdot\mathrm{conf} + 0.5\,\mathrm{acc} - \mathrm{conf} \in [-1, 1]$.

    Corners: right and sure 1, wrong and sure -1, right and unsure .5, wrong and unsure 0.

    Example:
        >>> step_potential(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0])).tolist()
        [1.0, -1.0]
    """
    return 1.5 * accuracy * confidence + 0.5 * accuracy - confidence


@dataclasses.dataclass(frozen=True)
class StepPotential(Credit):
    r"""Outcome credit that fades once the answer is known, plus the change of potential of each step.

    $$A'_u = A\, f(\Phi_u^-) + \xi\,(\Phi_u - \Phi_u^-), \qquad
      f(\Phi) = \mathrm{clip}\!\left(\tfrac{1-\Phi}{1-\Phi_{sat}}, 0, 1\right)$$

    with $\Phi_u$ probed after step u and $\Phi_u^-$ before it (the extra `start_potential` [N] for the
    first, else 0). The first step has no difference unless `first_step` asks for it.

    Args:
        inner: the outcome-level credit rule.
        saturation: $\Phi_{sat}$, above which outcome credit fades; 1 keeps f at 1.
        xi: size of the shaping, in units of the advantage.
        first_step: credit the first step with $\Phi_1 - \Phi_1^-$, so that the shaping telescopes (ours); False,
            the default, is the release's: the first step's difference is 0.

    References:
        Step Potential Advantage Estimation, arXiv 2601.03823. The potential is SEEN (public repository); f
        (a ramp) and the identity for g are INFERRED. Cost: O(NT); the probes cost a few short continuations
        a step.
    """

    inner: TensorComponent = GroupNorm()
    saturation: float = 0.9
    xi: float = 0.1
    first_step: bool = False

    card: ClassVar[Card] = Card(
        name="spae",
        slot=Slot.CREDIT,
        effect=Effect.CHANGES,
        needs=("turn", "accuracy", "confidence"),
        source="Step Potential Advantage Estimation, arXiv 2601.03823",
        status=Status.INFERRED,
        number=59,
        cost="O(NT) + probes at every step",
        note="the release computes its entropy on truncated, unnormalised top-k log-probabilities; give "
        "the exact one",
    )

    def idle(self, setting: Setting) -> str:
        """Why it can't act, or nothing."""
        return ONE_TURN if setting.turns is False else ""

    def __call__(self, batch: Batch) -> Tensor:
        """[N, T] advantages."""
        accuracy, confidence = self.card.take(batch, "accuracy", "confidence")
        turns = Turns.of(batch)
        after = step_potential(turns.at_first(accuracy.detach()), turns.at_first(confidence.detach()))
        start = batch.extras.get("start_potential")
        start = after.new_zeros(len(batch)) if start is None else start.to(after.dtype)
        before = previous_valid(after, turns.valid, start)
        room = 1.0 - self.saturation
        fade = ((1 - before) / room).clamp(0, 1) if room > 0 else torch.ones_like(before)
        change = torch.where(turns.valid, after - before, 0)
        if not self.first_step:
            change = torch.where(torch.cumsum(turns.valid.long(), 1) == 1, 0, change)
        return self.inner(batch) * turns.spread(fade) + self.xi * turns.spread(change)


def previous_valid(values: Tensor, valid: Tensor, start: Tensor) -> Tensor:
    """[N, U]: at each valid turn the value at the previous valid one of the row, `start` [N] at the first."""
    out, latest = torch.zeros_like(values), start
    for u in range(values.shape[1]):
        out[:, u] = torch.where(valid[:, u], latest, 0)
        latest = torch.where(valid[:, u], values[:, u], latest)
    return out
