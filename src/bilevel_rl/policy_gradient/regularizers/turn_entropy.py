"""EPO: hold each turn's entropy near its own history, with a hinge that has a gradient."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from bilevel_rl.policy_gradient.aggregate import Aggregate, per_token
from bilevel_rl.policy_gradient.batch import Batch
from bilevel_rl.policy_gradient.component import Card, Effect, Scope, Slot, Status
from bilevel_rl.policy_gradient.segments import (
    segment_mean,
    segment_size,
)
from bilevel_rl.policy_gradient.setting import ONE_TURN, Setting


@dataclasses.dataclass(frozen=True)
class TurnEntropy:
    r"""Entropy bonus less a penalty for leaving the band around each turn's past entropy.

    $$-\left(\bar H - \beta_k P\right), \qquad
      P = \mathrm{mean}_t\left[(\kappa_l H^{hist}_u - H_t)_+ + (H_t - \kappa_h H^{hist}_u)_+\right]$$

    with u the turn of token t. The history is the running mean of past batches' mean entropy at that turn,
    kept in `memory`; before there is one the penalty is 0. The phase weight has two halves, each with its own
    clock: $1 - .2(1 - e^{-4p})$ up to the middle of training, then $.8e^{-3(2p - 1)}$, p the progress. Use it
    with the coefficient $\lambda_e$.

    Args:
        low: $\kappa_l$.
        high: $\kappa_h$.
        smooth: weight of the penalty.
        turns: largest number of turns remembered.
        aggregate: denominator of both means.

    References:
        EPO: Entropy-regularized Policy Optimization for LLM Agents Reinforcement Learning. SEEN (public
            repository), where the
        penalty is built from constants and has no gradient; the differentiable hinge is ours. Cost: O(NT).
    """

    low: float = 0.8
    high: float = 1.2
    smooth: float = 1.0
    turns: int = 64
    aggregate: Aggregate = per_token

    card: ClassVar[Card] = Card(
        name="epo",
        slot=Slot.REGULAR,
        effect=Effect.CHANGES,
        needs=("entropy", "turn"),
        scope=Scope.RESPONSE,
        gradient=("entropy",),
        source="EPO: Entropy-regularized Policy Optimization for LLM Agents",
        status=Status.SEEN,
        number=24,
        note="the public release's penalty has no gradient; ours does",
    )

    def init(self) -> dict[str, Tensor]:
        """History: mean entropy of each turn index, and how many batches it was seen in."""
        return {"mean": torch.zeros(self.turns), "seen": torch.zeros(self.turns)}

    def idle(self, setting: Setting) -> str:
        """Why it can't act, or nothing."""
        return ONE_TURN if setting.turns is False else ""

    def __call__(self, batch: Batch) -> Tensor:
        """Scalar, to be minimised."""
        entropy, turn = self.card.take(batch, "entropy", "turn")
        state = batch.memory.get(self.card.name) or self.init()
        where = torch.where(batch.mask, turn, 0).clamp(0, self.turns - 1)
        history = state["mean"].to(entropy)[where]
        known = (state["seen"].to(entropy.device) > 0)[where]
        outside = torch.relu(self.low * history - entropy) + torch.relu(entropy - self.high * history)
        penalty = self.aggregate(torch.where(known, outside, 0), batch)
        return -(self.aggregate(entropy, batch) - self.smooth * self.phase(batch.progress) * penalty)

    def update(self, state: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Add this batch's mean entropy of each turn to the history."""
        entropy = batch.inside("entropy").detach()
        turn = torch.where(batch.mask, batch.get("turn"), 0).clamp(0, self.turns - 1)
        index = torch.where(batch.mask, turn, self.turns)
        size = segment_size(index, self.turns + 1, torch.float32)[:-1].cpu()
        mean = segment_mean(entropy.float(), index, self.turns + 1)[:-1].cpu()
        here = size > 0
        seen = state["seen"] + here.float()
        step = torch.where(here, (mean - state["mean"]) / seen.clamp(min=1), 0)
        return {"mean": state["mean"] + step, "seen": seen}

    @staticmethod
    def phase(progress: float) -> float:
        """The weight of the penalty over training, as released: epoch e of M with p = e/M.

        Example:
            >>> round(TurnEntropy.phase(0.5), 4), round(TurnEntropy.phase(1.0), 4)
            (0.8271, 0.0398)
        """
        if progress <= 0.5:
            return 1 - 0.2 * (1 - math.exp(-4 * progress))
        return 0.8 * math.exp(-3 * (2 * progress - 1))
