"""T-PPO's windows: an iteration writes a few tokens of each row; what is not finished goes on in the next one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.policy_gradient.batch import Batch
from bilevel_rl.policy_gradient.component import Card, Effect, Scope, Slot, Status
from bilevel_rl.policy_gradient.rollout.ask import RolloutAsk, RolloutPlan
from bilevel_rl.policy_gradient.rollout.writing import Writer, Written
from bilevel_rl.policy_gradient.setting import Setting, unset


@dataclasses.dataclass(frozen=True)
class Windows:
    """Rows that an iteration leaves unfinished take the first places of the next one, and new starts the rest.

    A row is paid when it is finished. Credit is `truncated_gae`, and `weigh=window` teaches each token once.

    Args:
        tokens: new ones a row and iteration; None: half of the longest row.

    References:
        Truncated Proximal Policy Optimization (T-PPO). In the spirit of: the idea is SEEN in the abstract, the details are
        INFERRED.
    """

    tokens: int | None = None

    card: ClassVar[Card] = Card(
        name="windows",
        slot=Slot.ROLLOUT,
        effect=Effect.KEEPS,
        needs=("completions",),
        gives=("window_start", "pending"),
        scope=Scope.BATCH,
        source="Truncated Proximal Policy Optimization",
        status=Status.INFERRED,
        number=46,
        note="a row's earlier tokens are those of earlier policies",
    )
    begins: ClassVar[bool] = True  # rows; others may only go on from them
    one_policy: ClassVar[bool] = True  # a second policy's unfinished rows would be others

    def configured(self, setting: Setting) -> Windows:
        """Half of the longest row where nothing is said."""
        if self.tokens is not None or setting.max_new_tokens is None:
            return self
        return dataclasses.replace(self, tokens=max(setting.max_new_tokens // 2, 1))

    def __post_init__(self) -> None:
        if self.tokens is not None and self.tokens < 1:
            raise InvalidConfig(message("Windows.tokens", self.tokens, "at least 1", "Raise it"))

    def init(self) -> dict[str, Tensor]:
        """No row is unfinished."""
        none = torch.zeros(0, dtype=torch.long)
        return {"start": none, "tokens": none.reshape(0, 1), "mask": none.reshape(0, 1), "length": none}

    def update(self, state: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """The rows of the batch that are not finished."""
        unfinished = batch.get("pending").bool()
        kept = batch.rows(unfinished)
        width = max(int(kept.length.max()) if len(kept) else 1, 1)
        return {
            "start": kept.group.cpu(), "tokens": kept.get("completions")[:, :width].cpu(),
            "mask": kept.mask[:, :width].long().cpu(), "length": kept.length.cpu(),
        }  # fmt: skip

    def __call__(self, ask: RolloutAsk, plan: RolloutPlan) -> RolloutPlan:
        """The plan with the unfinished rows' starts in the first places."""
        waiting = ask.memory.get(self.card.name, self.init())["start"]
        return dataclasses.replace(plan, start=torch.cat([waiting, plan.start])[: ask.rows])

    def write(self, writer: Writer, ask: RolloutAsk, plan: RolloutPlan, written: Written | None) -> Written:
        """Rows with `window_start` and `pending` [N]; what was written before is not used."""
        if self.tokens is None:
            raise unset(self, "tokens", "Give windows(tokens=...)")
        state = ask.memory.get(self.card.name, self.init())
        number = min(len(state["start"]), len(plan.start))
        begun = torch.zeros(len(plan.start), dtype=torch.long)
        begun[:number] = state["length"][:number]
        width = state["tokens"].shape[1]
        tokens = torch.zeros(len(plan.start), width, dtype=torch.long)
        tokens[:number] = state["tokens"][:number]
        own = torch.zeros(len(plan.start), width, dtype=torch.bool)
        own[:number] = state["mask"][:number].bool()
        begin = Written(
            plan.start, tokens, own, begun, torch.zeros(len(begun), dtype=torch.bool), torch.zeros(len(begun), width)
        )
        rows = writer.write(plan.start, begin, begun, self.tokens)
        pending = ~rows.ended & (rows.length - begun >= self.tokens) & (rows.length < writer.horizon)
        return rows.knowing(window_start=begun, pending=pending)
