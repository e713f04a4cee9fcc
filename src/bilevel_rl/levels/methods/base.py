"""What a method is: the phases of an iteration in which methods differ.

    plan            does the policy move, is f asked for, how far does x go
    sample          whose rows each follower learns from
    ratios          importance of those rows, where they are another policy's
    ask             f on the rows of one follower (or of both)
    hyper_gradient  how x moves
    incentive       what theta^L ascends beside J

The defaults are those of a method with one policy whose x follows grad_x f alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from bilevel_rl.levels.engine import CRITICS, POLICIES, Engine
from bilevel_rl.levels.estimators import Ratios
from bilevel_rl.levels.followers import Scored, check_regularizer
from bilevel_rl.levels.leader import Answer, Gold, Gradient, Leader, check_fits, check_pairs
from bilevel_rl.levels.objectives import PairBonus
from bilevel_rl.levels.settings import Settings
from bilevel_rl.schedules import Sequences


@dataclasses.dataclass(frozen=True)
class IterationPlan:
    """What an iteration does.

    Attributes:
        moves: the policies take a step.
        asks: f is asked for.
        zeta: step of x; 0: x stays.
        draws: rows are sampled; False: x is fitted on the pairs there are.
    """

    moves: bool = True
    asks: bool = True
    zeta: float = 0.0
    draws: bool = True


@dataclasses.dataclass(frozen=True)
class Incentive:
    """What theta^L ascends beside J.

    Attributes:
        bonus: [N] w times what each row earns by itself.
        pairs: w times what judged pairs earn, or None.
    """

    bonus: Tensor
    pairs: PairBonus | None


@dataclasses.dataclass(frozen=True)
class Method:
    """One algorithm on two levels.

    Attributes:
        settings: constants.
        networks: 2 where theta^L is a network of its own.
        own_rows: whether theta^L, where it is a network, writes the rows that it learns from.
        answers: whether x learns from how the policy answers it.
        keeps: whether labelled pairs are always used again.
        asks: whether there is an f at all.
        looks_at_theta: whether x's step goes back to theta where the rows were drawn.
        loops: whether x moves once for each inner loop of the followers.
        one_x: whether all followers answer the same x.
        common: whether both policies may draw with the same random numbers.
    """

    settings: Settings

    networks: int = dataclasses.field(default=1, init=False)
    own_rows: bool = dataclasses.field(default=False, init=False)
    answers: bool = dataclasses.field(default=False, init=False)
    keeps: bool = dataclasses.field(default=False, init=False)
    asks: bool = dataclasses.field(default=True, init=False)
    loops: bool = dataclasses.field(default=False, init=False)
    one_x: bool = dataclasses.field(default=True, init=False)
    common: bool = dataclasses.field(default=False, init=False)
    looks_at_theta: bool = dataclasses.field(default=False, init=False)

    def check(self, objective: Any) -> None:
        """Raise `InvalidConfig` for what this method can't do with these settings and this f.

        A method that can't do something adds it to what followers and leader refuse by themselves.
        """
        self.settings.schedules.check("config")
        check_regularizer(self.settings)
        check_pairs(self.settings, objective)
        if not self.answers:
            check_fits(self.settings, objective)

    def plan(self, leader: Leader, k: int) -> IterationPlan:
        """What iteration k does."""
        settings = self.settings
        return IterationPlan(zeta=float(settings.schedules.zeta(k)) if k >= settings.hold_x else 0.0)

    def sample(self, engine: Engine, k: int) -> list[tuple[str, str, Any]]:
        """(policy, critic, rows) of each follower, theta first."""
        found = [(POLICIES[0], CRITICS[0], engine.sample(POLICIES[0], k))]
        if self.networks == 2:
            rows = engine.sample(POLICIES[1], k) if self.own_rows else found[0][2]
            found.append((POLICIES[1], CRITICS[1], rows))
        return found

    def facing(self, leader: Leader, role: str, k: int) -> contextlib.AbstractContextManager[Any]:
        """At which x a role is rewarded in iteration k."""
        return contextlib.nullcontext()

    def ratios(self, followers: Sequence[Scored]) -> Ratios | None:
        """Importance of theta's rows for theta^L; None when each has its own."""
        return None

    def ask(
        self, leader: Leader, followers: Sequence[Scored], ratios: Ratios | None, gold: Gold, plan: IterationPlan, k: int
    ) -> Answer | None:  # fmt: skip
        """What the leader learns of f in this iteration."""
        return leader.ask(followers[-1], ratios, gold, k) if plan.asks else None

    def coefficients(
        self, followers: Sequence[Scored], ratios: Ratios | None, answer: Answer, at: Sequences
    ) -> list[Tensor] | None:
        """[N] for each distinct batch of rows: what multiplies grad_x r_i; None: x sees no penalty."""
        return None

    def hyper_gradient(
        self, leader: Leader, followers: Sequence[Scored], ratios: Ratios | None, answer: Answer, at: Sequences, k: int
    ) -> Gradient:  # fmt: skip
        """How x moves."""
        return leader.hyper_gradient(followers, self.coefficients(followers, ratios, answer, at), answer)

    def incentive(self, answer: Answer | None, at: Sequences) -> Incentive | None:
        """What theta^L ascends beside J; None: nothing."""
        if answer is None or self.networks < 2:
            return None
        pairs = answer.upper.pairs
        return Incentive(at.w * answer.upper.bonus, None if pairs is None else pairs.times(at.w))
