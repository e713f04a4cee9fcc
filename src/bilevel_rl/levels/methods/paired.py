r"""Paired: two networks, each with rows of its own (the paper's estimator).

x descends $\nabla_x f + \frac1w\big(\frac1N\sum_i \nabla_x r(y_i) - \frac1N\sum_i \nabla_x r(y^L_i)\big)$.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from bilevel_rl.levels.estimators import Ratios
from bilevel_rl.levels.followers import Scored
from bilevel_rl.levels.leader import Answer
from bilevel_rl.levels.methods.base import Method
from bilevel_rl.schedules import Sequences


@dataclasses.dataclass(frozen=True)
class Paired(Method):
    """y ~ pi_theta and y_ ~ pi_theta^L."""

    networks: int = dataclasses.field(default=2, init=False)
    own_rows: bool = dataclasses.field(default=True, init=False)
    answers: bool = dataclasses.field(default=True, init=False)
    common: bool = dataclasses.field(default=True, init=False)

    def coefficients(
        self, followers: Sequence[Scored], ratios: Ratios | None, answer: Answer, at: Sequences
    ) -> list[Tensor]:
        """See `Method`."""
        ones = torch.ones_like(followers[0].reward) / (at.w * followers[0].rows.size)
        return [ones, -ones]
