"""Advantage alignment: credit for what one agent's good turns make of the other agent's."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from bilevel_rl.policy_gradient.batch import Batch
from bilevel_rl.policy_gradient.component import Card, Effect, Slot, Status, TensorComponent
from bilevel_rl.policy_gradient.credit.leave_one_out import LeaveOneOut
from bilevel_rl.policy_gradient.credit.sums import Credit
from bilevel_rl.policy_gradient.segments import Turns
from bilevel_rl.policy_gradient.setting import ONE_TURN, Setting


def aligned(own: Tensor, other: Tensor, valid: Tensor, beta: float, gamma: float) -> Tensor:
    r"""$A^*_u = A^1_u + \beta\left(\sum_{k<u}\gamma^{u-k}A^1_k\right)A^2_u$, by a forward recursion that
    never overflows.

    Args:
        own: [N, U] advantages of the learning agent, by turn.
        other: [N, U] those of the other agent.
        valid: [N, U] bool.
        beta: strength; 0 is the plain gradient.
        gamma: discount a turn.

    Returns:
        [N, U], 0 where not valid.
    """
    out, past = torch.zeros_like(own), own.new_zeros(len(own))
    for u in range(own.shape[1]):
        here = valid[:, u]
        out[:, u] = torch.where(here, own[:, u] + beta * past * other[:, u], 0)
        past = torch.where(here, gamma * (past + own[:, u]), past)
    return out


@dataclasses.dataclass(frozen=True)
class Alignment(Credit):
    r"""Opponent shaping: the other agent's advantage, weighted by one's own past ones.

    $$A^*_u = A^1_u + \beta\left(\sum_{k<u}\gamma^{u-k}A^1_k\right)A^2_u$$

    Args:
        inner: the learning agent's own credit rule.
        beta: strength.
        gamma: discount a turn.

    References:
        Learning Robust Social Strategies with Large Language Models (advantage alignment). SEEN (public
        repository; its option that multiplies by one more gamma, and its gamma to the power -t, are left
        out). Intended to change the objective: it shapes the other agent. Cost: one scan over turns.
    """

    inner: TensorComponent = LeaveOneOut()
    beta: float = 2.0
    gamma: float = 0.96

    card: ClassVar[Card] = Card(
        name="advantage_alignment",
        slot=Slot.CREDIT,
        effect=Effect.CHANGES,
        needs=("turn", "other_advantage"),
        source="Learning Robust Social Strategies with Large Language Models",
        status=Status.SEEN,
        number=65,
        cost="O(NT), U sequential steps",
    )

    def idle(self, setting: Setting) -> str:
        """Why it can't act, or nothing."""
        return ONE_TURN if setting.turns is False else ""

    def __call__(self, batch: Batch) -> Tensor:
        """[N, T] advantages."""
        (other,) = self.card.take(batch, "other_advantage")
        turns = Turns.of(batch)
        advantage = self.inner(batch)
        own = turns.mean(advantage)
        shaped = aligned(own, turns.mean(other.detach()).to(own.dtype), turns.valid, self.beta, self.gamma)
        return advantage + turns.spread(shaped - own)
