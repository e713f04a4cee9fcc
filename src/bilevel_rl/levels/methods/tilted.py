r"""Tilted: theta^L is known in closed form, $\pi^L \propto \pi e^{w u/\tau}$, where transitions are deterministic.

$\frac1w(E_\pi - E_{\pi^L})[\nabla_x r] \to -\frac1\tau \mathrm{Cov}_\pi(u, \nabla_x r)$ as $w \to 0$: see
`estimators.tilted_coefficients`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.levels.estimators import Ratios, tilted_coefficients
from bilevel_rl.levels.followers import Scored
from bilevel_rl.levels.leader import Answer
from bilevel_rl.levels.methods.base import Method
from bilevel_rl.schedules import Sequences


@dataclasses.dataclass(frozen=True)
class Tilted(Method):
    """One policy; x descends grad_x f - Cov(u, grad_x r) / tau, the covariance within each group."""

    answers: bool = dataclasses.field(default=True, init=False)

    def check(self, objective: Any) -> None:
        """See `Method`; what both rows of a pair earn needs a third row to be centred on."""
        super().check(objective)
        if getattr(objective, "contrasts", False) and self.settings.group < 3:
            raise InvalidConfig(
                message("config.group", f"{self.settings.group} with estimator=tilted and objective=preference",
                        "both rows of a pair earn the same, so its covariance needs a third row of the same start",
                        "Set group to 3 or more, or estimator to shared or paired")
            )  # fmt: skip

    def coefficients(
        self, followers: Sequence[Scored], ratios: Ratios | None, answer: Answer, at: Sequences
    ) -> list[Tensor]:
        """See `Method`."""
        rows, upper = followers[0].rows, answer.upper
        group = rows.group if self.settings.group > 1 else torch.zeros_like(rows.group)
        return [tilted_coefficients(upper.bonus, at.tau, group, upper.pairs) / rows.size]
