"""Clip-Cov: a few random tokens of high covariance between advantage and log-probability get no gradient."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from bilevel_rl.policy_gradient.batch import Batch
from bilevel_rl.policy_gradient.component import Card, Effect, Scope, Slot, Status
from bilevel_rl.policy_gradient.logs import log_ratio
from bilevel_rl.policy_gradient.regularizers.covariance import covariances
from bilevel_rl.policy_gradient.segments import (
    token_noise,
)


@dataclasses.dataclass(frozen=True)
class ClipCovariance:
    r"""Weight 0 on $\max(\lfloor \text{share}\cdot N\rfloor, 1)$ tokens drawn from those with covariance in
    (low, high).

    Candidates have $\text{low} < (A_t - \bar A)(\log\pi_t - \overline{\log\pi}) < \text{high}$ and aren't
    stopped by the clip already. The draw is a function of seed, iteration, trajectory and position: it
    doesn't depend on the order of rows.

    The tokens are chosen anew at every gradient step, from the policy as it then is; each follower of a bi-level run
    chooses its own.

    Args:
        share: of the action tokens; at least one is dropped whenever there is a candidate.
        low, high: limits of the covariance.
        clip: tokens whose ratio PPO's clip at this distance stops are no candidates.
        seed: of the draw.
        every_step: choose at every gradient step, as the release does; False chooses once an iteration and for both
            followers of a bi-level run alike, as the other weights do.

    References:
        The Entropy Mechanism of Reinforcement Learning for Reasoning Language Models. SEEN (a public
        trainer).
    """

    share: float = 2e-4
    low: float = 1.0
    high: float = 5.0
    clip: float = 1.0
    seed: int = 0
    every_step: bool = True

    card: ClassVar[Card] = Card(
        name="clip_cov",
        slot=Slot.WEIGH,
        effect=Effect.CHANGES,
        needs=("old", "advantage"),
        scope=Scope.BATCH,
        source="The Entropy Mechanism of Reinforcement Learning for Reasoning Language Models",
        status=Status.SEEN,
        number=29,
        note="drops at least one candidate whatever the share; chooses anew at every gradient step",
    )

    def __call__(self, batch: Batch) -> Tensor:
        """[N, T] weights, 0 or 1."""
        old, advantage = self.card.take(batch, "old", "advantage")
        logp = old if batch.logp is None else batch.inside("logp")
        ratio = log_ratio(logp, old).detach().exp()
        stopped = torch.where(advantage > 0, ratio > 1 + self.clip, (advantage < 0) & (ratio < 1 - self.clip))
        cov = covariances(logp, advantage, batch.mask)
        candidate = batch.mask & ~stopped & (cov > self.low) & (cov < self.high)
        wanted = max(int(self.share * int(batch.mask.sum())), 1)
        noise = token_noise(batch, self.seed)[candidate]
        number = min(wanted, noise.numel())
        dropped = torch.zeros_like(noise, dtype=torch.bool)
        if number:
            dropped[noise.topk(number).indices] = True
        weight = batch.mask.to(advantage.dtype)
        weight[candidate] = torch.where(dropped, 0, weight[candidate])
        return weight
