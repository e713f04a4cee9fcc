"""Finite differences: x shifted along a random direction, one follower at each end.

    f(x + c d, pi(x + c d)) - f(x - c d, pi(x - c d))
    -------------------------------------------------  along d
                        2 c

References:
    Spall, simultaneous perturbation stochastic approximation, 1992.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.levels.engine import POLICIES
from bilevel_rl.levels.estimators import Ratios
from bilevel_rl.levels.followers import Scored
from bilevel_rl.levels.leader import Answer, Gold, Gradient, Leader
from bilevel_rl.levels.methods.base import Incentive, IterationPlan, Method
from bilevel_rl.levels.methods.nested import at_inner_end
from bilevel_rl.schedules import Sequences

DIRECTION = 0x24  # random stream, beside those of engines and of `leader`


@dataclasses.dataclass(frozen=True)
class Ends(Answer):
    """f at both ends.

    Attributes:
        difference: f at x + c d less f at x - c d.
    """

    difference: float


@dataclasses.dataclass(frozen=True)
class FiniteDifference(Method):
    """theta answers x + c d, theta^L answers x - c d; at the end of an inner loop x moves along d."""

    networks: int = dataclasses.field(default=2, init=False)
    own_rows: bool = dataclasses.field(default=True, init=False)
    answers: bool = dataclasses.field(default=True, init=False)
    loops: bool = dataclasses.field(default=True, init=False)
    one_x: bool = dataclasses.field(default=False, init=False)

    def check(self, objective: Any) -> None:
        """See `Method`."""
        super().check(objective)
        if objective.needs_stored:
            raise InvalidConfig(
                message("config.objective", "stored_preference with method=finite_difference",
                        "it does not depend on the policy", "Choose preference or gold")
            )  # fmt: skip
        if self.settings.coupling:
            raise InvalidConfig(
                message("config.coupling", f"{self.settings.coupling} with method=finite_difference",
                        "the two policies answer two values of x and must differ", "Set coupling to 0")
            )  # fmt: skip

    def plan(self, leader: Leader, k: int) -> IterationPlan:
        """See `Method`; f is asked for when x moves."""
        zeta = at_inner_end(self.settings, k)
        return IterationPlan(asks=zeta > 0, zeta=zeta)

    def direction(self, leader: Leader, k: int) -> list[Tensor]:
        """Random signs, one for each number in x, fixed during the inner loop that iteration k belongs to."""
        random = np.random.default_rng([self.settings.seed, DIRECTION, k // self.settings.inner_steps])
        pieces = leader.pieces
        whole = (torch.from_numpy(random.choice([-1.0, 1.0], size=tuple(pieces.shape(p)))) for p in leader.parameters)
        return [pieces.piece(p, signs).to(p) for p, signs in zip(leader.parameters, whole, strict=True)]

    @contextlib.contextmanager
    def facing(self, leader: Leader, role: str, k: int) -> Iterator[None]:
        """See `Method`: x is shifted inside."""
        parameters = leader.parameters
        kept = [p.detach().clone() for p in parameters]
        c = self.settings.difference if role == POLICIES[0] else -self.settings.difference
        with torch.no_grad():
            for p, d in zip(parameters, self.direction(leader, k), strict=True):
                p.add_(c * d)
        try:
            yield
        finally:
            with torch.no_grad():
                for p, value in zip(parameters, kept, strict=True):
                    p.copy_(value)

    def ask(
        self, leader: Leader, followers: Sequence[Scored], ratios: Ratios | None, gold: Gold, plan: IterationPlan, k: int
    ) -> Ends | None:  # fmt: skip
        """See `Method`: f at both ends."""
        if not plan.asks:
            return None
        ends = []
        for f in followers:
            with self.facing(leader, f.role, k):
                ends.append(leader.ask(f, None, gold, k))
        plus, minus = ends
        if plus is None or minus is None:
            return None
        return Ends(plus.upper, plus.sample, plus.upper.value - minus.upper.value)

    def hyper_gradient(
        self, leader: Leader, followers: Sequence[Scored], ratios: Ratios | None, answer: Answer, at: Sequences, k: int
    ) -> Gradient:  # fmt: skip
        """See `Method`: the slope along d."""
        assert isinstance(answer, Ends)
        slope = answer.difference / (2 * self.settings.difference)
        lam, d = self.settings.x_penalty, self.direction(leader, k)
        direct = [slope * e + 2 * lam * p.detach() for e, p in zip(d, leader.parameters, strict=True)]
        return Gradient(direct, [torch.zeros_like(e) for e in d])

    def incentive(self, answer: Answer | None, at: Sequences) -> Incentive | None:
        """See `Method`: both followers ascend J alone."""
        return None
