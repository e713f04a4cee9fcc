"""GSPO: the clipped surrogate on the length-normalised ratio of the whole response."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from torch import Tensor

from bilevel_rl.policy_gradient.aggregate import Aggregate, per_sequence
from bilevel_rl.policy_gradient.batch import Batch
from bilevel_rl.policy_gradient.component import Card, Effect, Scope, Slot
from bilevel_rl.policy_gradient.logs import log_ratio
from bilevel_rl.policy_gradient.losses.clipped import clipped_surrogate
from bilevel_rl.policy_gradient.losses.policy_gradient import weighted_advantage
from bilevel_rl.policy_gradient.segments import masked_mean, masked_sum
from bilevel_rl.policy_gradient.setting import RATIO_ONE, Setting


@dataclasses.dataclass(frozen=True)
class SequenceRatio:
    r"""Group sequence policy optimisation: one ratio a response, the geometric mean of its tokens' ratios.

    $$s_i = \exp\left(\frac{1}{|y_i|}\sum_t \log\frac{\pi(y_{it})}{\pi_{old}(y_{it})}\right), \qquad
      \ell = -\frac1N\sum_i \min\left(s_i A_i,\ \mathrm{clip}(s_i, 1-\epsilon_l, 1+\epsilon_h) A_i\right)$$

    With `by_token` the ratio keeps its value and has each token's own gradient, for advantages that differ between
    tokens: $s_{it} = \mathrm{sg}[s_i]\,\pi(y_{it})/\mathrm{sg}[\pi(y_{it})]$ (GSPO-token). With one advantage
    a response both have the same value and gradient.

    Args:
        low: $\epsilon_l$; sequence ratios stay near 1, so the limits are small.
        high: $\epsilon_h$.
        normalised: divide the log-ratio by the length (GSPO); False is the ratio of the whole response's probability, as
            the sequence-level RLOO of public trainers clips it.
        by_token: GSPO-token, the form that verl computes; False is the paper's sequence form.
        aggregate: how the responses are averaged.

    References:
        Zheng et al., Group Sequence Policy Optimization, arXiv 2507.18071 (section 4.3 for GSPO-token). Classical.
    """

    low: float = 3e-4
    high: float = 4e-4
    by_token: bool = False
    normalised: bool = True
    aggregate: Aggregate = per_sequence

    card: ClassVar[Card] = Card(
        name="gspo",
        slot=Slot.LOSS,
        effect=Effect.CHANGES,
        needs=("logp", "old", "advantage"),
        scope=Scope.RESPONSE,
        gradient=("logp",),
        source="Group Sequence Policy Optimization, arXiv 2507.18071",
    )

    def idle(self, setting: Setting) -> str:
        """Why it can't act, or nothing."""
        return RATIO_ONE if setting.one_step else ""

    def __call__(self, batch: Batch) -> Tensor:
        """Scalar, to be minimised."""
        logp, old = self.card.take(batch, "logp", "old")
        over = masked_mean if self.normalised else masked_sum
        mean = over(log_ratio(logp, old.detach()), batch.mask, 1)[:, None]
        ratio = (mean.detach() + log_ratio(logp, logp.detach())).exp() if self.by_token else mean.exp()
        loss = clipped_surrogate(ratio, weighted_advantage(batch), self.low, self.high)
        return self.aggregate(loss, batch)
