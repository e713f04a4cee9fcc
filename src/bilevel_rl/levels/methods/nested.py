"""Nested: x moves once for each inner loop of the followers, by whichever estimate of the penalty's gradient."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from bilevel_rl.levels.estimators import Ratios
from bilevel_rl.levels.followers import Scored
from bilevel_rl.levels.leader import Answer, Gradient, Leader
from bilevel_rl.levels.methods.base import IterationPlan, Method
from bilevel_rl.schedules import Sequences


@dataclasses.dataclass(frozen=True)
class Nested(Method):
    """`inner` in everything but the plan.

    Args:
        inner: tilted, shared or paired.
    """

    inner: Method = dataclasses.field(kw_only=True)

    answers: bool = dataclasses.field(default=True, init=False)
    loops: bool = dataclasses.field(default=True, init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "networks", self.inner.networks)
        object.__setattr__(self, "own_rows", self.inner.own_rows)
        object.__setattr__(self, "looks_at_theta", self.inner.looks_at_theta)
        object.__setattr__(self, "common", self.inner.common)

    def check(self, objective: Any) -> None:
        """See `Method`."""
        self.inner.check(objective)

    def plan(self, leader: Leader, k: int) -> IterationPlan:
        """See `Method`."""
        return IterationPlan(zeta=at_inner_end(self.settings, k))

    def ratios(self, followers: Sequence[Scored]) -> Ratios | None:
        """See `Method`."""
        return self.inner.ratios(followers)

    def hyper_gradient(
        self, leader: Leader, followers: Sequence[Scored], ratios: Ratios | None, answer: Answer, at: Sequences, k: int
    ) -> Gradient:  # fmt: skip
        """See `Method`."""
        return self.inner.hyper_gradient(leader, followers, ratios, answer, at, k)


def at_inner_end(settings: Any, k: int) -> float:
    """zeta in the last iteration of an inner loop, else 0."""
    last = (k + 1) % settings.inner_steps == 0
    return float(settings.schedules.zeta(k // settings.inner_steps)) if last and k >= settings.hold_x else 0.0
