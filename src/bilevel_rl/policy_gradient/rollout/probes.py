"""SPAE's probes: after every step the policy is asked for the answer at once."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch

from bilevel_rl.policy_gradient.component import Card, Effect, Scope, Slot, Status
from bilevel_rl.policy_gradient.credit.step_potential import step_potential
from bilevel_rl.policy_gradient.rollout.ask import RolloutAsk, RolloutPlan
from bilevel_rl.policy_gradient.rollout.writing import Writer, Written


@dataclasses.dataclass(frozen=True)
class StepProbe:
    """Ask for the answer after each step (turn) of each row: how likely the gold one is, and how sure the policy.

    The credit rule is `spae`. Needs the task's `turn`, and gold answers (the column `answer` of prompts).

    Args:
        tail: the words that ask for the answer.

    References:
        Step Potential Advantage Estimation, arXiv 2601.03823. SEEN (public repository): probability of the gold answer
        and exp(-entropy) of what is drawn, of all tokens of the law (the release truncates it). Cost: two short rows a step.
    """

    tail: str = ""

    card: ClassVar[Card] = Card(
        name="probe",
        slot=Slot.ROLLOUT,
        effect=Effect.KEEPS,
        needs=("turn", "gold_answers"),
        gives=("accuracy", "confidence", "start_potential"),
        scope=Scope.RESPONSE,
        source="Step Potential Advantage Estimation, arXiv 2601.03823",
        status=Status.SEEN,
        number=59,
        cost="two short rows a step",
    )

    def __call__(self, ask: RolloutAsk, plan: RolloutPlan) -> RolloutPlan:
        """The plan as it is."""
        return plan

    def write(self, writer: Writer, ask: RolloutAsk, plan: RolloutPlan, written: Written | None) -> Written:
        """The rows, with `accuracy` and `confidence` [N, T] after each token's step, and `start_potential` [N]."""
        rows = writer.write(plan.start) if written is None else written
        turn = torch.where(rows.mask, writer.field("turn", rows).cpu(), -1)
        accuracy, confidence = torch.zeros(rows.tokens.shape), torch.zeros(rows.tokens.shape)
        for u in range(int(turn.max()) + 1 if turn.numel() else 0):
            here = turn == u
            some = torch.nonzero(here.any(1))[:, 0]
            if len(some):
                last = torch.where(here[some], torch.arange(rows.width) + 1, 0).amax(1)  # tokens up to the step's end
                right, sure = writer.probe(rows.rows(some), last, self.tail)
                accuracy[some] = torch.where(here[some], right.cpu()[:, None], accuracy[some])
                confidence[some] = torch.where(here[some], sure.cpu()[:, None], confidence[some])
        right, sure = writer.probe(rows, torch.zeros(len(rows), dtype=torch.long), self.tail)
        return rows.knowing(
            accuracy=accuracy, confidence=confidence, start_potential=step_potential(right.cpu(), sure.cpu())
        )
