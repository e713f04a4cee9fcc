"""Addition and scaling of credit rules: a rule may be a weighted sum of others, as it may wrap another."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import torch
from torch import Tensor

from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.policy_gradient.batch import Batch
from bilevel_rl.policy_gradient.component import Card, Effect, Slot, TensorComponent


class Credit:
    """What lets credit rules be added and scaled: `GroupMean() + 0.5 * StepGroups()` is a `Sum`.

    A rule written elsewhere needs this only if it is to be written with the operators; any rule may be a term.
    """

    def __add__(self, other: TensorComponent) -> Sum:
        one, two = _as_sum(self), _as_sum(other)
        return Sum(one.terms + two.terms, one.weights + two.weights)

    def __mul__(self, factor: float) -> Sum:
        own = _as_sum(self)
        return Sum(own.terms, tuple(factor * weight for weight in own.weights))

    __rmul__ = __mul__


@dataclasses.dataclass(frozen=True)
class Sum(Credit):
    r"""A weighted sum of credit rules.

    $$A_{i,t} = \sum_j \omega_j A^{(j)}_{i,t}$$

    In compositions: `credit=episode + 0.5*step_groups`.

    Args:
        terms: the rules.
        weights: $\omega_j$, one a rule.

    Example:
        >>> from bilevel_rl.policy_gradient.credit import LeaveOneOut, Return
        >>> rule = LeaveOneOut() + 0.5 * Return()
        >>> rule(Batch.make(mask=[[1], [1]], reward=[1.0, 0.0], group=[0, 0])).tolist()
        [[1.5], [-1.0]]

    References:
        GiGPO's episode and step credit (arXiv 2505.10978, equation 8) is such a sum. Classical.
    """

    terms: tuple[TensorComponent, ...] = ()
    weights: tuple[float, ...] = ()

    card: ClassVar[Card] = Card(
        name="sum",
        slot=Slot.CREDIT,
        effect=Effect.KEEPS,
        source="textbook",
        note="its terms decide what happens to the objective; in compositions: one + 0.5*other",
    )

    def __post_init__(self) -> None:
        finite = all(math.isfinite(weight) for weight in self.weights)
        if len(self.terms) != len(self.weights) or not finite:
            raise InvalidConfig(
                message("credit 'sum'", f"{len(self.terms)} terms with weights {self.weights}",
                        "one finite weight a term", "Write credit=group_mean + 0.5*step_groups")
            )  # fmt: skip

    def __call__(self, batch: Batch) -> Tensor:
        """[N, T] advantages."""
        out = torch.zeros_like(batch.token_reward)
        for weight, term in zip(self.weights, self.terms, strict=True):
            out = out + weight * term(batch)
        return out


def _as_sum(rule: object) -> Sum:
    return rule if isinstance(rule, Sum) else Sum((rule,), (1.0,))  # type: ignore[arg-type]
