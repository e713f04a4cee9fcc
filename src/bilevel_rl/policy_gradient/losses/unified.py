"""The unified policy-gradient estimator: mask, denominator, advantage and likelihood gradient as four
knobs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from bilevel_rl.policy_gradient.aggregate import Aggregate, per_token
from bilevel_rl.policy_gradient.batch import Batch
from bilevel_rl.policy_gradient.component import Card, Effect, Scope, Slot, Status
from bilevel_rl.policy_gradient.logs import log_ratio
from bilevel_rl.policy_gradient.losses.policy_gradient import weighted_advantage
from bilevel_rl.policy_gradient.setting import RATIO_ONE, Setting

Denominator = Callable[[Batch], Tensor]
Stable = Callable[[Tensor, Tensor], Tensor]


def itself(batch: Batch) -> Tensor:
    """[N, T] log-denominator: the policy itself, so that the estimator is A times grad log pi (SFT,
    REINFORCE).
    """
    return batch.inside("logp").detach()


def sampler(batch: Batch) -> Tensor:
    """[N, T] log-denominator: the policy that drew the tokens (PPO, GRPO, importance sampling)."""
    return batch.inside("old").detach()


def behaviour(batch: Batch) -> Tensor:
    """[N, T] log-denominator: the behaviour policy of an offline data set, extra `behaviour`."""
    return batch.inside("behaviour").detach()


def one(batch: Batch) -> Tensor:
    """[N, T] log-denominator 0: demonstrations of which no probability is known; the estimator is A times
    grad pi.
    """
    return torch.zeros_like(batch.inside("logp"))


def itself_on_demonstrations(batch: Batch) -> Tensor:
    """[N, T] log-denominator: the policy itself on demonstrations, the sampler elsewhere (HPT)."""
    return torch.where(batch.get("demonstration")[:, None], itself(batch), sampler(batch))


def always(ratio: Tensor, advantage: Tensor) -> Tensor:
    """Stabilisation mask: keep every token."""
    return torch.ones_like(ratio, dtype=torch.bool)


@dataclasses.dataclass(frozen=True)
class ClipMask:
    """Stabilisation mask of PPO: drop tokens that the clip would stop.

    Args:
        low: distance below 1 at which a token with negative advantage stops.
        high: distance above 1 at which one with positive advantage stops.
    """

    low: float = 0.2
    high: float = 0.2

    def __call__(self, ratio: Tensor, advantage: Tensor) -> Tensor:
        """[N, T] bool."""
        return ~torch.where(advantage > 0, ratio > 1 + self.high, (advantage < 0) & (ratio < 1 - self.low))


@dataclasses.dataclass(frozen=True)
class Unified:
    r"""One estimator whose settings are the textbook losses.

    $$\nabla = E\left[\mathbb 1_{stable}\ \frac{1}{\pi_{ref}(y)}\ \hat A\ \nabla\pi_\theta(y)\right]$$

    | method | denominator | stable | advantage |
    |---|---|---|---|
    | supervised | `itself` | `always` | 1 |
    | REINFORCE, RLOO | `itself` | `always` | R - b |
    | importance sampling | `sampler` or `behaviour` | `always` | R - b |
    | PPO, GRPO | `sampler` | `ClipMask` | GAE, group norm |
    | offline demonstrations | `one` | `always` | 1 |

    The loss is a surrogate with that gradient: $-\mathbb 1_{stable}\,\hat A\,\pi_\theta/\pi_{ref}$.

    Args:
        denominator: Batch -> [N, T] log-probabilities that divide, without gradient.
        stable: (ratio, advantage) -> [N, T] bool.
        aggregate: denominator of the mean.

    References:
        Towards a Unified View of Large Language Model Post-Training (HPT). SEEN (abstract and public
        repository).
    """

    denominator: Denominator = sampler
    stable: Stable = always
    aggregate: Aggregate = per_token

    card: ClassVar[Card] = Card(
        name="unified",
        slot=Slot.LOSS,
        effect=Effect.KEEPS,
        needs=("logp", "old", "advantage"),
        scope=Scope.RESPONSE,
        gradient=("logp",),
        source="Towards a Unified View of Large Language Model Post-Training",
        status=Status.SEEN,
        number=5,
        note="in its REINFORCE and importance-sampling settings; the PPO mask and demonstrations change it",
    )

    def idle(self, setting: Setting) -> str:
        """Why it can't act, or nothing."""
        return RATIO_ONE if setting.one_step and self.denominator is sampler else ""

    def __call__(self, batch: Batch) -> Tensor:
        """Scalar, to be minimised."""
        (logp,) = self.card.take(batch, "logp")
        advantage = weighted_advantage(batch)
        ratio = log_ratio(logp, self.denominator(batch)).exp()
        keep = self.stable(ratio.detach(), advantage)
        return self.aggregate(torch.where(keep, -advantage * ratio, 0), batch)
