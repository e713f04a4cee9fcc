"""The step slot of a recipe as an optimiser: one rule for both followers, decided from both together.

A rule that divides by a norm divides both followers by the norm of their gradients as one vector, and one that asks for
two half-batch gradients compares those of both; what differs between the followers is then the gradient alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bilevel_rl.schedules import PowerDecay


class StepRule(torch.optim.Optimizer):
    """A component of the step slot, on the followers' parameters.

    Args:
        rule: with `init` and `step`; its `rate` is replaced by alpha.
        followers: parameter lists, one a follower.

    Attributes:
        halves: whether it needs the gradients of two halves of the batch: `keep_half` after the first.
    """

    def __init__(self, rule: Any, followers: Sequence[Sequence[Tensor]]) -> None:
        super().__init__([{"params": list(f)} for f in followers], {"lr": 1.0})
        self.rule = rule
        self.rule_state: dict[str, Tensor] = rule.init(self._named())
        self.halves = rule.card.name == "snr"
        self.first: dict[str, Tensor] | None = None
        self.base: dict[str, Tensor] | None = None

    def _named(self) -> dict[str, Tensor]:
        return {
            f"{i}.{j}": p for i, group in enumerate(self.param_groups) for j, p in enumerate(group["params"])
        }

    @contextlib.contextmanager
    def ahead(self) -> Iterator[None]:
        """Where to sample and take gradients: at the rule's extrapolated point, if it has one, until the step."""
        if hasattr(self.rule, "query"):
            named = self._named()
            self.base = {name: p.detach().clone() for name, p in named.items()}
            self._write(self.rule.query(self.rule_state, self.base))
        try:
            yield
        finally:
            self._back()

    @torch.no_grad()
    def _write(self, values: Mapping[str, Tensor]) -> None:
        for name, p in self._named().items():
            p.copy_(values[name])

    def _back(self) -> None:
        if self.base is not None:
            self._write(self.base)
            self.base = None

    def keep_half(self, add: Callable[[Sequence[Tensor]], None]) -> None:
        """The gradients now there are those of the first half; `add` sums them over processes."""
        self.first = self._gradients()
        add(list(self.first.values()))
        self.zero_grad(set_to_none=True)

    def _gradients(self) -> dict[str, Tensor]:
        return {
            n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in self._named().items()
        }

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:
        """One step of the rule, of length alpha."""
        self._back()
        rule = dataclasses.replace(self.rule, rate=PowerDecay(self.param_groups[0]["lr"], 0.0))
        named = {name: p.detach() for name, p in self._named().items()}
        gradients = self._gradients()
        both = (gradients,) if not self.halves else (self.first or gradients, gradients)
        new, self.rule_state = rule.step(self.rule_state, named, *both)
        self.first = None
        self._write(new)

    def tensors(self) -> dict[str, Tensor]:
        """What the rule remembers."""
        return dict(self.rule_state)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `tensors` gave."""
        self.rule_state = {name: value.clone() for name, value in tensors.items()}
