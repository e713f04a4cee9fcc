r"""Shared: two networks learn from theta's rows; theta^L by the ratios $\rho = \pi^L/\pi$.

x descends $\nabla_x f + E_\pi[c \nabla_x r]$ with $c = (1 - \rho)/w$ centred: noise that both followers share cancels
instead of being divided by w.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from torch import Tensor

from bilevel_rl.levels.estimators import Ratios, importance, penalty_coefficients
from bilevel_rl.levels.followers import Scored
from bilevel_rl.levels.leader import Answer
from bilevel_rl.levels.methods.base import Method
from bilevel_rl.schedules import Sequences


@dataclasses.dataclass(frozen=True)
class Shared(Method):
    """Both followers learn from y ~ pi_theta."""

    networks: int = dataclasses.field(default=2, init=False)
    answers: bool = dataclasses.field(default=True, init=False)

    def ratios(self, followers: Sequence[Scored]) -> Ratios:
        """See `Method`."""
        theta, theta_l = followers
        return importance(
            theta.logp, theta_l.logp, theta.rows.mask, self.settings.ratio, self.settings.ratio_clip
        )

    def coefficients(
        self, followers: Sequence[Scored], ratios: Ratios | None, answer: Answer, at: Sequences
    ) -> list[Tensor]:
        """See `Method`."""
        assert ratios is not None
        return [penalty_coefficients(ratios.change, at.w) / followers[0].rows.size]
