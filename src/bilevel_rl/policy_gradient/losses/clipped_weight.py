"""CISPO: the importance weight is clipped and detached, so that every token keeps a gradient."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from torch import Tensor

from bilevel_rl.policy_gradient.aggregate import Aggregate, per_token
from bilevel_rl.policy_gradient.batch import Batch
from bilevel_rl.policy_gradient.component import Card, Effect, Scope, Slot
from bilevel_rl.policy_gradient.logs import floored, log_ratio
from bilevel_rl.policy_gradient.losses.policy_gradient import weighted_advantage
from bilevel_rl.policy_gradient.setting import RATIO_ONE, Setting


@dataclasses.dataclass(frozen=True)
class ClippedWeight:
    r"""REINFORCE with a clipped, detached importance weight.

    $$\ell = -\mathrm{sg}\left[\mathrm{clip}(\rho_t, 1-\epsilon_l, 1+\epsilon_h)\right] A_t \log\pi(y_t)$$

    Args:
        low: $\epsilon_l$; 1 sets no lower limit, as in the paper's runs.
        high: $\epsilon_h$.
        aggregate: denominator.

    References:
        MiniMax-M1: Scaling Test-Time Compute Efficiently with Lightning Attention, arXiv 2506.13585
        (CISPO). Classical; the upper limit of the published runs isn't recorded here, the default is ours.
    """

    low: float = 1.0
    high: float = 2.0
    aggregate: Aggregate = per_token

    card: ClassVar[Card] = Card(
        name="cispo",
        slot=Slot.LOSS,
        effect=Effect.CHANGES,
        needs=("logp", "old", "advantage"),
        scope=Scope.RESPONSE,
        gradient=("logp",),
        source="MiniMax-M1, arXiv 2506.13585",
    )

    def idle(self, setting: Setting) -> str:
        """Why it can't act, or nothing."""
        return RATIO_ONE if setting.one_step else ""

    def __call__(self, batch: Batch) -> Tensor:
        """Scalar, to be minimised."""
        logp, old = self.card.take(batch, "logp", "old")
        weight = log_ratio(logp, old).exp().clamp(1 - self.low, 1 + self.high).detach()
        return self.aggregate(-weight * weighted_advantage(batch) * floored(logp), batch)
