r"""Fisher: the implicit hyper-gradient of a policy that need not be able to be its reward's tilt.

At the lower optimum the policy answers x by $d\theta = B^{-1} \mathrm{Cov}(s, \nabla_x r)\,dx$, s its scores and B its
curvature (`curvature`), so that

$$\nabla_x f(x, \pi^*_x) = \nabla_x f - \mathrm{Cov}(u, s)\, B^{-1}\, \mathrm{Cov}(s, \nabla_x r).$$

B is $\tau F$ where the policy is the tilt of its reward, and $\tau F - R$ in general. The system is solved for
$z = B^{-1} \mathrm{Cov}(s, u)$ on the batch; x then descends $\nabla_x f - \frac1N\sum_i (s_i^\top z)\,\nabla_x r_i$. A row
never meets a z that it helped to make: half of the groups gives the z of the other half.

`tilted` is what is left where the policy can be any tilt: there $s_i^\top z = (u_i - \bar u)/\tau$.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.levels.curvature import LowerCurvature, Vector, conjugate_gradients
from bilevel_rl.levels.estimators import Ratios, leave_pair_out
from bilevel_rl.levels.followers import Scored
from bilevel_rl.levels.leader import Answer, Gradient, Leader
from bilevel_rl.levels.methods.base import Method
from bilevel_rl.levels.methods.tilted import Tilted
from bilevel_rl.policy_gradient.credit.to_go import weighted_leave_one_out
from bilevel_rl.policy_gradient.segments import label
from bilevel_rl.schedules import Sequences


@dataclasses.dataclass(frozen=True)
class Fisher(Method):
    """One policy; x descends grad_x f - Cov(u, s) B^-1 Cov(s, grad_x r)."""

    answers: bool = dataclasses.field(default=True, init=False)
    looks_at_theta: bool = dataclasses.field(default=True, init=False)

    def check(self, objective: Any) -> None:
        """See `Method`; two halves of the groups solve for one another."""
        Tilted(self.settings).check(objective)
        if self.settings.batch < 2 * self.settings.group:
            raise InvalidConfig(
                message("config.prompts_per_step", f"one group of {self.settings.group} with estimator=fisher",
                        "half of the groups gives the direction of the other half", "Raise prompts_per_step to 2 or more")
            )  # fmt: skip

    def hyper_gradient(
        self, leader: Leader, followers: Sequence[Scored], ratios: Ratios | None, answer: Answer, at: Sequences, k: int
    ) -> Gradient:  # fmt: skip
        """See `Method`."""
        return leader.hyper_gradient(followers, [self.pushes(leader, followers[0], answer, at)], answer)

    def pushes(self, leader: Leader, f: Scored, answer: Answer, at: Sequences) -> Tensor:
        """[N] what multiplies grad_x r_i."""
        upper, group = answer.upper, f.rows.group
        u = weighted_leave_one_out(upper.bonus, group)
        if upper.pairs is not None:
            u = u + leave_pair_out(upper.pairs.raw, group, upper.pairs.partner)
        curvature = LowerCurvature(leader, f, at.tau)
        found = torch.zeros_like(u)
        number, _ = label(group)
        for half in (0, 1):
            mine = number % 2 == half
            if not bool(u[mine].any()):
                continue
            # a mean over the half's rows
            g = curvature.scores_transposed(torch.where(mine, u, 0.0) * (len(u) / mine.sum()))
            z = conjugate_gradients(
                lambda v: self._curved(curvature, v, at.tau), g, self.settings.fisher_steps, self.settings.fisher_damping,
                curvature.dot,
            )  # fmt: skip
            along = weighted_leave_one_out(curvature.scores_times(z), group)  # scores have mean 0: variance alone
            found = torch.where(mine, found, -along.to(found))
        return found / len(u)

    def _curved(self, curvature: LowerCurvature, v: Vector, tau: float) -> Vector:
        """(tau F - R) v, or tau F v."""
        flat = [tau * x for x in curvature.fisher(v)]
        if self.settings.curvature == "fisher":
            return flat
        return [x - y for x, y in zip(flat, curvature.residual(v), strict=True)]


