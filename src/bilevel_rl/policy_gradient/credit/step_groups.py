"""GiGPO's two levels: an episode's score against the prompt's others, a step's return against its state's others."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.policy_gradient.batch import Batch
from bilevel_rl.policy_gradient.component import Card, Effect, Slot, Status
from bilevel_rl.policy_gradient.credit.group_normalised import group_deviation
from bilevel_rl.policy_gradient.credit.sums import Credit
from bilevel_rl.policy_gradient.segments import Turns, centred, label, scaled, turn_returns
from bilevel_rl.policy_gradient.setting import ONE_TURN, Setting

_SOURCE = "Group-in-Group Policy Optimization (GiGPO), arXiv 2505.10978"


@dataclasses.dataclass(frozen=True)
class Episode(Credit):
    r"""The episode's score, centred (or scaled) within the prompt's group; `over` says what the group counts.

    $$A^E_i = R_i - \bar R \quad\text{or}\quad \frac{R_i - \bar R}{\sigma + \epsilon}$$

    Args:
        scale: divide by the group's standard deviation (divisor n - 1).
        eps: added to it, in units of reward.
        over: "responses", each episode counts once, as in the paper; "steps", as often as it has turns, as in
            the release, where one row is one step.

    References:
        Feng et al., Group-in-Group Policy Optimization for LLM Agent Training, arXiv 2505.10978, equation 3.
        SEEN (public repository). The default of `over` is the paper's. Cost: O(N).
    """

    scale: bool = False
    eps: float = 1e-6
    over: str = "responses"

    card: ClassVar[Card] = Card(
        name="episode",
        slot=Slot.CREDIT,
        effect=Effect.RESCALES,
        needs=("reward", "group"),
        group=2,
        source=_SOURCE,
        status=Status.SEEN,
        note="keeps the objective with scale=False and over=responses; over=steps is the release's count",
    )

    def __post_init__(self) -> None:
        if self.over not in ("responses", "steps"):
            raise InvalidConfig(
                message("Episode.over", repr(self.over), "responses (the paper) or steps (the release)",
                        "Choose one")
            )  # fmt: skip

    def __call__(self, batch: Batch) -> Tensor:
        """[N, T] advantages, one number a response."""
        self.card.require(batch)
        if self.over == "responses":
            return batch.spread(group_deviation(batch.score, batch.group, self.scale, self.eps, 1))
        valid = Turns.of(batch).valid
        row = torch.nonzero(valid)[:, 0]  # one entry a step
        step = group_deviation(batch.score[row], batch.group[row], self.scale, self.eps, 1)
        out = torch.zeros_like(batch.score)
        out[row] = step  # equal on all the steps of a response
        return batch.spread(out)


@dataclasses.dataclass(frozen=True)
class StepGroups(Credit):
    r"""A step's discounted return against those of the steps of the prompt's group that share its state.

    $$A^S_u = G_u - \mathrm{mean}\{G_{u'} : s_{u'} = s_u\} \quad\text{or divided by}\quad \sigma + \epsilon$$

    with $G_u = \sum_{v \ge u}\gamma^{v-u} r_v$. A step alone with its state has $A^S = 0$.

    Args:
        gamma: discount a turn.
        scale: divide by the standard deviation (divisor n - 1) of the steps that share the state.
        eps: added to it.

    References:
        Feng et al., Group-in-Group Policy Optimization for LLM Agent Training, arXiv 2505.10978, equations 6
        and 7. SEEN (public repository). Cost: one sort of the steps.
    """

    gamma: float = 0.95
    scale: bool = False
    eps: float = 1e-6

    card: ClassVar[Card] = Card(
        name="step_groups",
        slot=Slot.CREDIT,
        effect=Effect.CHANGES,
        needs=("reward", "group", "turn", "state_key"),
        source=_SOURCE,
        status=Status.SEEN,
        cost="O(NT) + a sort of the steps",
        note="add it to an episode-level rule: credit=episode + 1.0*step_groups is GiGPO",
    )

    def idle(self, setting: Setting) -> str:
        """Why it can't act, or nothing."""
        return ONE_TURN if setting.turns is False else ""

    def __call__(self, batch: Batch) -> Tensor:
        """[N, T] advantages, one number a turn."""
        (key,) = self.card.take(batch, "state_key")
        turns = Turns.of(batch)
        valid = turns.valid
        returns = turn_returns(turns.sum(batch.token_reward), valid, self.gamma)[valid]
        group = batch.group[:, None].expand_as(valid)[valid]
        index, count = label(group, turns.at_first(key)[valid])
        step = centred(returns, index, count)
        if self.scale:
            step = scaled(step, index, count, self.eps, ddof=1)
        out = torch.zeros(valid.shape, dtype=returns.dtype, device=returns.device)
        out[valid] = step
        return turns.spread(out)
