"""KL-Cov: a pull to the old policy on the few tokens whose covariance drives the entropy down."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from bilevel_rl.policy_gradient.aggregate import Aggregate, per_token
from bilevel_rl.policy_gradient.batch import Batch
from bilevel_rl.policy_gradient.component import Card, Effect, Scope, Slot, Status
from bilevel_rl.policy_gradient.logs import floored, log_ratio
from bilevel_rl.policy_gradient.segments import (
    masked_mean,
)
from bilevel_rl.policy_gradient.setting import RATIO_ONE, Setting


def covariances(logp: Tensor, advantage: Tensor, mask: Tensor) -> Tensor:
    r"""$(A_t - \bar A)(\log\pi_t - \overline{\log\pi})$ of each action token [N, T], 0 elsewhere; no
    gradient.
    """
    a, p = advantage.detach(), floored(logp.detach())
    return torch.where(mask, (a - masked_mean(a, mask)) * (p - masked_mean(p, mask)), 0)


def entropy_forecast(logits: Tensor, advantage: Tensor, step: float, natural: bool) -> Tensor:
    r"""First-order change of the entropy of each next-token law after one step on its logits.

    $$dH = -\eta\,\mathrm{Cov}_\pi(\log\pi, A)\ \text{(natural gradient)}, \qquad
      dH = -\eta\,\mathrm{Cov}_\pi(\log\pi, \pi A)\ \text{(vanilla)}$$

    Args:
        logits: [..., V].
        advantage: [..., V], of mean 0 under the policy for the vanilla form to be the policy gradient.
        step: $\eta$.
        natural: which of the two.
    """
    law = logits.log_softmax(-1)
    p = law.exp()
    a = advantage if natural else p * advantage
    return -step * ((p * law * a).sum(-1) - (p * law).sum(-1) * (p * a).sum(-1))


@dataclasses.dataclass(frozen=True)
class CovarianceKL:
    r"""$|\log\pi_t - \log\pi_{old,t}|$ on the tokens with the largest covariances between advantage and
    log-probability.

    The top $\max(\lfloor \text{share}\cdot N\rfloor, 1)$ action tokens by $(A_t - \bar A)(\log\pi_t -
    \overline{\log\pi})$, divided like the loss. Pair it with `unified` (no clip), as published.

    Args:
        share: of the action tokens; always at least one is touched.
        aggregate: denominator.

    References:
        The Entropy Mechanism of Reinforcement Learning for Reasoning Language Models. SEEN (a public
        trainer); the distance is the absolute log-ratio there, neither k1 nor k3. Cost: O(NT) + a
        selection.
    """

    share: float = 2e-4
    aggregate: Aggregate = per_token

    card: ClassVar[Card] = Card(
        name="kl_cov",
        slot=Slot.REGULAR,
        effect=Effect.CHANGES,
        needs=("logp", "old", "advantage"),
        scope=Scope.BATCH,
        gradient=("logp",),
        source="The Entropy Mechanism of Reinforcement Learning for Reasoning Language Models",
        status=Status.SEEN,
        number=29,
        cost="O(NT) + a selection",
        note="touches at least one token whatever the share",
    )

    def idle(self, setting: Setting) -> str:
        """Why it can't act, or nothing."""
        return RATIO_ONE if setting.one_step else ""

    def __call__(self, batch: Batch) -> Tensor:
        """Scalar, to be minimised."""
        logp, old, advantage = self.card.take(batch, "logp", "old", "advantage")
        chosen = top_tokens(covariances(logp, advantage, batch.mask), batch.mask, self.share)
        return self.aggregate(torch.where(chosen, log_ratio(logp, old.detach()).abs(), 0), batch)


def top_tokens(values: Tensor, mask: Tensor, share: float) -> Tensor:
    """[N, T] bool: the max(floor(share n), 1) largest of the n action tokens; none if there are none."""
    inside = values[mask]
    number = min(max(int(share * inside.numel()), 1), inside.numel())
    chosen = torch.zeros_like(mask)
    if number:
        picked = torch.zeros_like(inside, dtype=torch.bool)
        picked[inside.topk(number).indices] = True
        chosen[mask] = picked
    return chosen
