"""`Recipe`: one component a slot, composed by naming them; the solver calls `prepare` once and `objective`
each step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.policy_gradient.batch import Batch
from bilevel_rl.policy_gradient.component import Effect, check_before, needs_of, parts
from bilevel_rl.policy_gradient.credit.gae import value_targets
from bilevel_rl.policy_gradient.credit.leave_one_out import LeaveOneOut
from bilevel_rl.policy_gradient.credit.reward_to_go import RewardToGo
from bilevel_rl.policy_gradient.losses.policy_gradient import PolicyGradient
from bilevel_rl.policy_gradient.rollout.ask import RolloutAsk, RolloutPlan, planned
from bilevel_rl.policy_gradient.select.replay import fitted
from bilevel_rl.policy_gradient.setting import Setting, configured, idle
from bilevel_rl.policy_gradient.writing import composition

Memory = dict[str, dict[str, Tensor]]
# what every prepared batch has
ALWAYS = (
    "advantage", "weight", "reward", "group", "mask", "trajectory", "length", "done", "truncated",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Recipe:
    r"""A policy optimiser as its parts: rollout -> select -> reward -> credit -> weigh -> loss + regular ->
    step.

    Args:
        name: label in tables and run folders.
        rollout: functions (RolloutAsk, RolloutPlan) -> RolloutPlan, in order: what to generate, decided before
            it is generated.
        reward: functions Batch -> [N, T, K], in order (rewards first, so that a selection may read credit).
        select: functions Batch -> Batch, in order. With a `credit` that they read, selection happens
            after credit.
        credit: Batch -> [N, T] advantages.
        weigh: functions Batch -> [N, T], multiplied.
        loss: Batch -> scalar, minimised.
        regular: pairs (coefficient, Batch -> scalar), added.
        step: rule that turns the gradient into an update; None leaves it to whoever runs the recipe.

    Generation belongs to the caller, who asks `plan` what to generate. `prepare` runs under no_grad, once an
    iteration; what it selects and weighs for one follower of a bi-level run, `follow` applies to the other, or the
    difference of their gradients is biased.

    Example:
        >>> import torch
        >>> recipe = Recipe()
        >>> batch = Batch.make(mask=torch.ones(2, 3), reward=torch.tensor([1.0, 0.0]), group=[0, 0])
        >>> recipe.prepare(batch).advantage[:, 0].tolist()
        [1.0, -1.0]
    """

    name: str = "rloo"
    reward: tuple[Callable[[Batch], Tensor], ...] = ()
    select: tuple[Callable[[Batch], Batch], ...] = ()
    credit: Callable[[Batch], Tensor] = LeaveOneOut()
    weigh: tuple[Callable[[Batch], Tensor], ...] = ()
    loss: Callable[[Batch], Tensor] = PolicyGradient()
    regular: tuple[tuple[float, Callable[[Batch], Tensor]], ...] = ()
    step: Any = None
    rollout: tuple[Callable[[RolloutAsk, RolloutPlan], RolloutPlan], ...] = ()

    @property
    def components(self) -> Iterator[Any]:
        """Every component with a card, decorators and what they wrap."""
        for one in self._slots():
            yield from parts(one)

    def _slots(self) -> tuple[Any, ...]:
        regular = (r for _, r in self.regular)
        step = () if self.step is None else (self.step,)
        return (
            *self.rollout,
            *self.reward,
            *self.select,
            self.credit,
            *self.weigh,
            self.loss,
            *regular,
            *step,
        )

    def check(self, fields: Collection[str], group_size: int = 2) -> None:
        """Say before training what will be missing.

        Args:
            fields: names of the fields and extras that batches will have in the loss.
            group_size: responses a prompt.

        Raises:
            InvalidConfig: naming the component, the field and who provides it.
        """
        have = {*fields, *ALWAYS, *(name for c in self.components for name in c.card.gives)}
        self.init()  # says when two memories would be one
        for one in self._slots():
            check_before(one, have, group_size)

    def plan(self, ask: RolloutAsk) -> RolloutPlan:
        """What an iteration is to generate."""
        if not self.rollout:
            return RolloutPlan.plain(ask)
        asks = (dataclasses.replace(ask, memory=self._memory_of(one, ask.memory)) for one in self.rollout)
        return planned(list(zip(self.rollout, asks, strict=True)))

    def configured(self, setting: Setting) -> Recipe:
        """The recipe with the limits that its components leave open taken from the run."""
        changed = {
            slot: configured(getattr(self, slot), setting)
            for slot in ("credit", "loss", "step")
            if getattr(self, slot) is not None
        }
        for slot in ("rollout", "reward", "select", "weigh"):
            changed[slot] = tuple(configured(one, setting) for one in getattr(self, slot))
        regular = tuple((k, configured(one, setting)) for k, one in self.regular)
        return dataclasses.replace(self, **changed, regular=regular)

    def idle(self, setting: Setting) -> list[str]:
        """Sentences, one for each component that can't act in this setting; to be said before training."""
        return [sentence for one in self._slots() for sentence in idle(one, setting)]

    def describe(self) -> dict[str, str]:
        """What a run folder keeps of the recipe: its name, and the text that makes it again with every field.

        Raises:
            InvalidConfig: a part that no name finds again.

        Example:
            >>> Recipe().describe()["composition"]
            'credit=leave_one_out(), loss=policy_gradient(aggregate=sum_of_tokens)'
        """
        return {"name": self.name, "composition": composition(self)}

    @property
    def _remembering(self) -> dict[str, tuple[Any, Any]]:
        """Stateful components by the key of their memory, each with the part of the recipe that it stands in.

        The key is the component's name; further ones of that name get a number.
        """
        found: dict[str, tuple[Any, Any]] = {}
        for top in self._slots():
            here: set[str] = set()
            for c in parts(top):
                if not (hasattr(c, "update") and hasattr(c, "init")):
                    continue
                name = c.card.name
                if name in here:
                    raise InvalidConfig(
                        message(f"{c.card.slot} '{name}'", "two of them, with a memory each, in one part of the slot",
                                "components find their memory by name within a part", "Give them a part each")
                    )  # fmt: skip
                here.add(name)
                number = sum(key.split("#")[0] == name for key in found)
                found[f"{name}#{number + 1}" if number else name] = (c, top)
        return found

    def _seen_by(self, top: Any, batch: Batch) -> Batch:
        """The batch with the memory of this part of the recipe under the names that its components look for."""
        return batch.replace(memory=self._memory_of(top, batch.memory))

    def _memory_of(self, top: Any, memory: Mapping[str, Mapping[str, Tensor]]) -> Mapping[str, Mapping[str, Tensor]]:
        own = {c.card.name: key for key, (c, part) in self._remembering.items() if part is top}
        if all(name == key for name, key in own.items()):
            return memory
        others = {key: state for key, state in memory.items() if key not in own}
        return others | {name: memory[key] for name, key in own.items() if key in memory}

    def init(self) -> Memory:
        """What the stateful components remember at the start: plain tensors, ready for safetensors."""
        return {key: dict(c.init()) for key, (c, _) in self._remembering.items()}

    def update(self, memory: Mapping[str, Mapping[str, Tensor]], batch: Batch) -> Memory:
        """What they remember after a batch (call it once an iteration, after the last step on it)."""
        after = {name: dict(state) for name, state in memory.items()}
        with torch.no_grad():
            for key, (c, _) in self._remembering.items():
                after[key] = dict(c.update(memory.get(key) or c.init(), batch))
        return after

    def value_targets(self, batch: Batch) -> Tensor:
        """[N, T]: what a critic regresses on, from the rule that reads the value (before anything scales it)."""
        for c in parts(self.credit):
            if hasattr(c, "value_targets"):
                return c.value_targets(batch)
        return value_targets(batch)

    @torch.no_grad()
    def prepare(self, batch: Batch) -> Batch:
        """Rewards, selection, advantages and weights of a fresh batch, without gradient.

        A selection that reads advantages gets them; whatever is selected keeps the advantage that it had in
        its whole group (no second normalisation). Advantages and weights that the batch came with are
        dropped.
        """
        return self.decide(self.paid(batch))

    @torch.no_grad()
    def paid(self, batch: Batch) -> Batch:
        """The batch with the reward slot's rewards, and without advantages or weights."""
        batch = batch.replace(advantage=None, weight=None, counted=None)
        for reward in self.reward:
            batch = batch.replace(reward=reward(self._seen_by(reward, batch)))
        return batch

    @torch.no_grad()
    def decide(self, batch: Batch) -> Batch:
        """Selection, advantages and weights of a batch that is paid.

        The extra `cost` [N, T, K'], where there is one, holds the price of the regulariser as reward terms. A
        selection does not see it, since it differs between any two responses; a credit rule that is linear in
        the rewards does. One that rescales them does not either, or where all rewards are equal it would blow
        the price up to the size of a reward: the price then has its own reward to go, unscaled.
        """
        for select in self.select:
            if self._reads_advantage(select) and batch.advantage is None:
                batch = batch.replace(advantage=self._advantage(batch))
            batch = self._selected(select, batch)
        if batch.advantage is None:
            batch = batch.replace(advantage=self._advantage(batch))
        return self._weighed(_charged(batch), every_step=False)

    def _selected(self, select: Any, batch: Batch) -> Batch:
        chosen = select(self._seen_by(select, batch))
        return chosen.replace(memory=batch.memory)

    @torch.no_grad()
    def _weighed(self, batch: Batch, every_step: bool) -> Batch:
        """The batch with the weights of those that are chosen once, or of those chosen at every gradient step."""
        for weigh in self.weigh:
            if getattr(weigh, "every_step", False) is not every_step:
                continue
            weight = weigh(self._seen_by(weigh, batch))
            if getattr(getattr(weigh, "card", None), "uncounted", False):
                kept = weight > 0
                batch = batch.replace(counted=kept if batch.counted is None else batch.counted & kept)
            batch = batch.replace(weight=weight if batch.weight is None else batch.weight * weight)
        return batch

    @torch.no_grad()
    def follow(self, batch: Batch, decided: Batch) -> Batch:
        """Another follower's batch, paid, with the rows and weights decided for the first one.

        Args:
            batch: its rows have the trajectory ids of the first follower's.
            decided: from `decide`; rows that it added are added here too.
        """
        if any(self._reads_advantage(select) for select in self.select):
            batch = batch.replace(advantage=self._advantage(batch))
        known = {int(t): i for i, t in enumerate(batch.trajectory.tolist())}
        ids = decided.trajectory.tolist()
        order = [known[t] for t in ids if t in known]
        if order != list(range(len(batch))):
            batch = batch.rows(torch.tensor(order, dtype=torch.long, device=batch.mask.device))
        added = [decided.rows(torch.tensor([i])) for i, t in enumerate(ids) if t not in known]
        if added:  # they stand at the end
            batch = Batch.cat([batch, *(fitted(row, batch) for row in added)])
        if batch.advantage is None:
            batch = batch.replace(advantage=self._advantage(batch))
        return _charged(batch).replace(weight=decided.weight, counted=decided.counted)

    def _advantage(self, batch: Batch) -> Tensor:
        cost = batch.extras.get("cost")
        batch = self._seen_by(self.credit, batch)
        rules = list(parts(self.credit))
        needs = {name for c in rules for name in needs_of(c)}
        linear = all(c.card.effect is Effect.KEEPS for c in rules) or "value" in needs
        linear = linear and "prefix_value" not in needs  # what goes on from a prefix is paid the reward alone
        if cost is None or linear:
            return self.credit(_charged(batch))
        return self.credit(batch) + RewardToGo()(batch.replace(reward=cost.to(batch.reward)))

    @staticmethod
    def _reads_advantage(select: Any) -> bool:
        return "advantage" in getattr(getattr(select, "card", None), "needs", ())

    def objective(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar to minimise, and its terms (detached) by name.

        Args:
            batch: from `prepare`, with `logp` (and what the regularisers need) evaluated with gradient.
        """
        seen = self._weighed(batch, every_step=True).counting()
        loss = self.loss(self._seen_by(self.loss, seen))
        terms = {"loss": loss.detach()}
        for k, (coefficient, regular) in enumerate(self.regular):
            value = regular(self._seen_by(regular, batch))
            loss = loss + coefficient * value
            card = getattr(regular, "card", None)
            name = card.name if card else f"regular_{k}"
            terms[name if name not in terms else f"{name}#{k + 1}"] = value.detach()
        return loss, terms


def _charged(batch: Batch) -> Batch:
    """The batch with the extra `cost` among its reward terms."""
    cost = batch.extras.get("cost")
    if cost is None:
        return batch
    extras = {name: value for name, value in batch.extras.items() if name != "cost"}
    return batch.replace(reward=torch.cat([batch.reward, cost.to(batch.reward)], -1), extras=extras)
