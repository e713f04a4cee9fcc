"""REINFORCE's loss, and supervised learning as the same thing with advantage 1."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from torch import Tensor

from bilevel_rl.policy_gradient.aggregate import Aggregate, per_token, sum_of_tokens
from bilevel_rl.policy_gradient.batch import Batch
from bilevel_rl.policy_gradient.component import Card, Effect, Scope, Slot
from bilevel_rl.policy_gradient.logs import floored


def weighted_advantage(batch: Batch) -> Tensor:
    """[N, T]: advantage times weight, without gradient, 0 outside the mask."""
    value = batch.inside("advantage").detach()
    return value if batch.weight is None else value * batch.inside("weight").detach()


@dataclasses.dataclass(frozen=True)
class PolicyGradient:
    r"""The policy-gradient loss, whose gradient is the REINFORCE estimator.

    $$\ell = -\frac1N\sum_{i,t} m_{it}\, w_{it}\, A_{it}\, \log\pi(y_{it}|h_{it})$$

    Args:
        aggregate: denominator; `sum_of_tokens` keeps the scale of the gradient of E[R].

    References:
        Williams 1992. Classical.
    """

    aggregate: Aggregate = sum_of_tokens

    card: ClassVar[Card] = Card(
        name="policy_gradient",
        scope=Scope.RESPONSE,
        gradient=("logp",),
        slot=Slot.LOSS,
        effect=Effect.KEEPS,
        needs=("logp", "advantage"),
        source="Simple statistical gradient-following algorithms for connectionist reinforcement "
        "learning (1992)",
        cite=("williams1992reinforce",),
        note="on-policy; unbiased with sum_of_tokens or PerConstant, other denominators reweigh by length",
    )

    def __call__(self, batch: Batch) -> Tensor:
        """Scalar, to be minimised."""
        (logp,) = self.card.take(batch, "logp")
        return self.aggregate(-weighted_advantage(batch) * floored(logp), batch)


@dataclasses.dataclass(frozen=True)
class Supervised:
    r"""Cross-entropy on the tokens of the mask: $\ell = -\sum_t \log\pi(y_t|h_t)$ over the denominator.

    References:
        Textbook. The unified estimator with advantage 1 and the policy itself as denominator.
    """

    aggregate: Aggregate = per_token

    card: ClassVar[Card] = Card(
        name="supervised",
        scope=Scope.RESPONSE,
        gradient=("logp",),
        slot=Slot.LOSS,
        effect=Effect.CHANGES,
        needs=("logp",),
        source="textbook",
        note="imitates the data: the reward is not read",
    )

    def __call__(self, batch: Batch) -> Tensor:
        """Scalar, to be minimised."""
        (logp,) = self.card.take(batch, "logp")
        weight = 1 if batch.weight is None else batch.inside("weight").detach()
        return self.aggregate(-weight * floored(logp), batch)
