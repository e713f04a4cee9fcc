r"""Upper objectives f(x, pi): what the upper level minimises, as a sampled value, its gradient in x and in the policy.

On a batch y_1..y_N of the penalised policy an objective answers with

    value   the sample estimate of f
    loss    the same with a graph: its gradient in the rewards r_x(y_i), and in x itself where stored pairs enter
    bonus   [N] with   - grad_theta f = E[ (1/N) sum_i bonus_i grad log pi(y_i) ]
            so that the penalised follower ascends J - w f by adding w * bonus to its rewards
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor

from bilevel_rl.llm.rollout import Rollout


@dataclasses.dataclass
class Sample:
    """What an objective may look at in one iteration.

    Attributes:
        rollout: N completions of all processes.
        rewards: [N] r_x(y), a leaf: differentiate `loss` through it.
        weights: [N] importance weights of mean one when the completions are not the penalised policy's own.
        gold: [N] gold scores, or None.
        pairs: [M, 2] rows of the judged pairs, the preferred completion first; None or empty without labels.
        reward: r_x itself, for completions that are not in the batch.
        stored: stored or replayed pairs of this process, as (preferred, other) rollouts of equal size, or None.
        stored_total: stored pairs of all processes together.
        step: iteration.
    """

    rollout: Rollout
    rewards: Tensor
    weights: Tensor
    gold: Tensor | None
    pairs: Tensor | None
    reward: Callable[[Rollout], Tensor]
    stored: tuple[Rollout, Rollout] | None
    stored_total: int
    step: int


@dataclasses.dataclass
class Upper:
    """An objective's answer: see the module's head."""

    value: float
    loss: Tensor | None
    bonus: Tensor


class UpperObjective(Protocol):
    """A user's own objective: any object with `evaluate`, and flags for what it needs.

    Attributes:
        needs_pairs: the judge is asked to label pairs each iteration.
        needs_gold: the gold scorer is called each iteration.
        needs_stored: stored preference pairs are drawn each iteration.
    """

    needs_pairs: bool
    needs_gold: bool
    needs_stored: bool

    def evaluate(self, sample: Sample) -> Upper:
        """Estimate f and its gradients on one batch."""
        ...


def make_objective(weights: dict[str, float]) -> Any:
    """The weighted sum of the objectives named in a configuration."""
    raise NotImplementedError
