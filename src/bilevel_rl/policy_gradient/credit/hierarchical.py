"""HAE: generalised advantage estimation on two levels, sub-goals over segments and actions inside them."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from bilevel_rl.policy_gradient.batch import Batch
from bilevel_rl.policy_gradient.component import Card, Effect, Scope, Slot, Status
from bilevel_rl.policy_gradient.credit.state_values import StateValues
from bilevel_rl.policy_gradient.credit.sums import Credit
from bilevel_rl.policy_gradient.segments import Turns
from bilevel_rl.policy_gradient.setting import ONE_TURN, Setting


def hierarchical_advantages(
    reward: Tensor, low: Tensor, high: Tensor, switch: Tensor, valid: Tensor,
    gamma: float, lam_turn: float, lam_segment: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    r"""Advantages of the actions inside segments, and of the segments' sub-goals.

    $$\delta_u = r_u + \gamma \tilde V_{u+1} - V^{low}_u, \quad A_u = \delta_u + \gamma\lambda A_{u+1}
      \ (\text{same segment})$$
    with $\tilde V_{u+1}$ the high value at a segment's end and the low value elsewhere, and, for
    segments of duration d,
    $$\delta_k = \sum_{i<d}\gamma^i r + \gamma^d V^{high}_{k+1} - V^{high}_k, \quad
      A_k = \delta_k + \gamma^d\lambda_{seg} A_{k+1}.$$

    Args:
        reward: [N, U] by turn.
        low: [N, U] value of the low level.
        high: [N, U] value of the high level.
        switch: [N, U] bool, the turn opens a segment (a row's first turn always does).
        valid: [N, U] bool.
        gamma: discount a turn.
        lam_turn: $\lambda$ inside a segment.
        lam_segment: $\lambda_{seg}$ over segments.

    Returns:
        [N, U] low-level advantages; [N, U] high-level ones, 0 except where a segment opens.
    """
    n, width = valid.shape
    zero = low.new_zeros(n)
    seen = torch.cumsum(valid.long(), 1)
    opens = valid & (switch | (seen == 1))
    a_low, a_high = torch.zeros_like(low), torch.zeros_like(low)
    next_low, next_high, low_follow, high_follow = zero, zero, zero, zero
    gain, discount = zero, torch.ones_like(zero)
    ahead_opens = torch.ones_like(zero, dtype=torch.bool)  # after the last turn nothing continues
    for u in reversed(range(width)):
        here = valid[:, u]
        value_ahead = torch.where(ahead_opens, next_high, next_low)
        step = reward[:, u] + gamma * value_ahead - low[:, u]
        step = step + gamma * lam_turn * torch.where(ahead_opens, 0, low_follow)
        run = reward[:, u] + gamma * torch.where(ahead_opens, 0, gain)
        reach = gamma * torch.where(ahead_opens, 1, discount)
        segment = run + reach * (next_high + lam_segment * high_follow) - high[:, u]
        boundary = here & opens[:, u]
        a_low[:, u] = torch.where(here, step, 0)
        a_high[:, u] = torch.where(boundary, segment, 0)
        low_follow = torch.where(here, step, low_follow)
        gain, discount = torch.where(here, run, gain), torch.where(here, reach, discount)
        next_low = torch.where(here, low[:, u], next_low)
        next_high = torch.where(boundary, high[:, u], next_high)
        high_follow = torch.where(boundary, segment, high_follow)
        ahead_opens = torch.where(here, opens[:, u], ahead_opens)
    return a_low, a_high


@dataclasses.dataclass(frozen=True)
class Hierarchical(Credit):
    r"""Hierarchical advantage estimation for agents whose turns are (keep or switch, sub-goal, action).

    Fields: `value` is the low-level critic and `value_high` the high-level one (both read at a turn's
        first action
    token), `switch` [N, T] marks turns that open a segment. The extra `role` [N, T] says what each token
    is: 0 action (gets the low advantage; the default for all), 1 sub-goal (the high one, at boundaries), 2
    the switch decision, which gets $(q_u - \beta_u)(V^{high}_u - V^{low}_u)$ with q the decision and
    $\beta$ the extra `switch_probability` [N, T] (0 without it).

    Args:
        gamma: discount a turn.
        lam_turn: inside segments.
        lam_segment: over segments.
        high: the high level's critic, a table by state key (`state_values`, ours); None: the field `value_high`.

    References:
        HiPER: Hierarchical Reinforcement Learning with Explicit Credit Assignment for Large Language
            Model Agents. SEEN
        (public repository) for the two recursions; the switch advantage is the paper's form, the released
        code differs. Unbiased at lambda = 1. Cost: one scan over turns.
    """

    gamma: float = 0.99
    lam_turn: float = 0.95
    lam_segment: float = 0.95
    high: StateValues | None = None

    card: ClassVar[Card] = Card(
        name="hierarchical",
        slot=Slot.CREDIT,
        effect=Effect.CHANGES,
        needs=("reward", "value", "value_high", "switch", "turn"),
        scope=Scope.RESPONSE,
        source="HiPER: Hierarchical Reinforcement Learning with Explicit Credit Assignment for LLM Agents",
        status=Status.SEEN,
        number=51,
        cost="O(NT), U sequential steps",
        note="unbiased at lambda = 1",
    )

    @property
    def needs(self) -> tuple[str, ...]:
        """Fields that it reads: `value_high` only where no table stands in its place."""
        return tuple(n for n in self.card.needs if self.high is None or n != "value_high")

    def idle(self, setting: Setting) -> str:
        """Why it can't act, or nothing."""
        return ONE_TURN if setting.turns is False else ""

    def __call__(self, batch: Batch) -> Tensor:
        """[N, T] advantages."""
        for name in self.needs:
            if not batch.has(name):
                raise self.card.lacks(name)
        value, switch = batch.inside("value"), batch.inside("switch")
        turns = Turns.of(batch)
        v_low = turns.at_first(value.detach())
        if self.high is None:
            (known,) = self.card.take(batch, "value_high")
            v_high = turns.at_first(known.detach())
        else:
            v_high = self.high.values(batch).to(v_low)
        flags = turns.sum(switch.to(value.dtype)) > 0
        a_low, a_high = hierarchical_advantages(
            turns.sum(batch.token_reward.to(value.dtype)), v_low, v_high, flags, turns.valid,
            self.gamma, self.lam_turn, self.lam_segment,
        )  # fmt: skip
        if not batch.has("role"):
            return turns.spread(a_low)
        role = batch.get("role")
        probability = (
            turns.at_first(batch.inside("switch_probability")) if batch.has("switch_probability") else 0
        )
        decision = (
            (flags.to(value.dtype) - probability) * (v_high - v_low) * float(batch.has("switch_probability"))
        )
        out = torch.where(role == 1, turns.spread(a_high), turns.spread(a_low))
        return torch.where(role == 2, turns.spread(decision), out)
