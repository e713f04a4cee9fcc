"""Credit against a table of states: the return from a turn on, minus what its state has been worth so far."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from bilevel_rl.policy_gradient.batch import Batch
from bilevel_rl.policy_gradient.component import Card, Effect, Scope, Slot
from bilevel_rl.policy_gradient.credit.sums import Credit
from bilevel_rl.policy_gradient.segments import Turns, segment_mean, segment_size, turn_returns
from bilevel_rl.policy_gradient.setting import ONE_TURN, Setting


@dataclasses.dataclass(frozen=True)
class StateValues(Credit):
    r"""A critic without a network, for tasks whose states come back: a running mean of returns by state key.

    $$A_u = \sum_{v\ge u}\gamma^{v-u} r_v - \hat V(s_u), \qquad
      \hat V(s) \leftarrow \hat V(s) + \frac{n}{n_s + n}\left(\bar G(s) - \hat V(s)\right)$$

    The table is that of earlier iterations: a response is not compared with itself, and at $\gamma = 1$ the objective is
    kept. As an option of `hierarchical` it is the critic of the high level.

    Args:
        gamma: discount a turn.
        size: of the table; keys that agree modulo it share a value.
        memory: largest number of visits that count, so that the table follows a policy that moves.

    References:
        Classical: Monte-Carlo evaluation with a table. Cost: a scan over turns.
    """

    gamma: float = 1.0
    size: int = 4096
    memory: float = 200.0

    card: ClassVar[Card] = Card(
        name="state_values",
        slot=Slot.CREDIT,
        effect=Effect.KEEPS,
        needs=("reward", "turn", "state_key"),
        scope=Scope.RESPONSE,
        source="textbook (Monte-Carlo evaluation)",
        cost="O(NT), U sequential steps",
        note="at gamma = 1",
    )

    def idle(self, setting: Setting) -> str:
        """Why it can't act, or nothing."""
        return ONE_TURN if setting.turns is False else ""

    def init(self) -> dict[str, Tensor]:
        """Every state is worth 0 and has never been seen."""
        return {"value": torch.zeros(self.size), "seen": torch.zeros(self.size)}

    def update(self, state: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Take in the returns of a batch's turns."""
        turns, key, returns = self._turns(batch)
        device = state["seen"].device
        key, returns = key[turns.valid].to(device), returns[turns.valid].detach().float().to(device)
        number = segment_size(key, self.size, torch.float32)
        mean = segment_mean(returns, key, self.size)
        seen = state["seen"] + number
        value = state["value"] + torch.where(number > 0, (mean - state["value"]) * number / seen.clamp(min=1), 0)
        return {"value": value, "seen": seen.clamp(max=self.memory)}

    def values(self, batch: Batch) -> Tensor:
        """[N, U] what the table says of each turn's state; 0 where there is no turn."""
        turns, key, _ = self._turns(batch)
        table = (batch.memory.get(self.card.name) or self.init())["value"].to(batch.reward)
        return torch.where(turns.valid, table[key], 0)

    def __call__(self, batch: Batch) -> Tensor:
        """[N, T] advantages, one number a turn."""
        turns, _, returns = self._turns(batch)
        return turns.spread(torch.where(turns.valid, returns - self.values(batch), 0))

    def _turns(self, batch: Batch) -> tuple[Turns, Tensor, Tensor]:
        """The turns, the row of the table and the return of each, [N, U]."""
        (key,) = self.card.take(batch, "state_key")
        turns = Turns.of(batch)
        returns = turn_returns(turns.sum(batch.token_reward), turns.valid, self.gamma)
        return turns, turns.at_first(key) % self.size, returns
