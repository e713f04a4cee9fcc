r"""Steps that treat both followers alike.

The hyper-gradient is a difference of the two policies divided by w. Whatever an optimiser decides from a gradient's size
(Adam's denominator, a clip) must therefore be decided once for both, or they drift apart by amounts that have nothing to
do with w f and that 1/w magnifies. `CoupledAdam` gives all its groups one denominator:

    m_i <- b1 m_i + (1 - b1) g_i            for each follower i
    v   <- b2 v   + (1 - b2) mean_i g_i^2
    p_i <- p_i - lr m_i / (sqrt(v) + eps)   with the usual bias corrections

With one group this is Adam.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


class CoupledAdam(torch.optim.Optimizer):
    """Adam whose groups (followers) share their second moment.

    Args:
        followers: parameter lists of equal shapes, one a follower.
        lr: step; the trainer sets it each iteration.
        betas, eps: as in Adam.

    References:
        Kingma and Ba, "Adam", 2015; the shared denominator is ours.
    """

    def __init__(
        self, followers: Sequence[Sequence[Tensor]], lr: float = 1.0, betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:  # fmt: skip
        super().__init__([{"params": list(f)} for f in followers], {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:
        """One step from the gradients, which every parameter must have."""
        first = self.param_groups[0]
        b1, b2 = first["betas"]
        lead = first["params"]
        for p in lead:
            if "exp_avg_sq" not in self.state[p]:
                self.state[p]["exp_avg_sq"] = torch.zeros_like(p, dtype=_fine(p))
                self.state[p]["step"] = torch.tensor(0.0)
        v = [self.state[p]["exp_avg_sq"] for p in lead]
        for p in lead:
            self.state[p]["step"] += 1
        count = float(self.state[lead[0]]["step"])
        torch._foreach_mul_(v, b2)
        grads = [[p.grad.to(_fine(p)) for p in group["params"]] for group in self.param_groups]
        for g in grads:
            torch._foreach_addcmul_(v, g, g, (1 - b2) / len(grads))
        denominator = torch._foreach_sqrt(v)
        torch._foreach_div_(denominator, math.sqrt(1 - b2**count))
        torch._foreach_add_(denominator, first["eps"])
        for group, g in zip(self.param_groups, grads, strict=True):
            for p in group["params"]:
                if "exp_avg" not in self.state[p]:
                    self.state[p]["exp_avg"] = torch.zeros_like(p, dtype=_fine(p))
            m = [self.state[p]["exp_avg"] for p in group["params"]]
            torch._foreach_lerp_(m, g, 1 - b1)
            masters = [self._master(p) for p in group["params"]]
            torch._foreach_addcdiv_(masters, m, denominator, -group["lr"] / (1 - b1**count))
            for p, master in zip(group["params"], masters, strict=True):
                if master is not p:
                    p.copy_(master)

    def _master(self, p: Tensor) -> Tensor:
        """What a step is added to: a parameter, or the 32-bit copy of one in which small steps would be lost."""
        if _fine(p) == p.dtype:
            return p
        if "master" not in self.state[p]:
            self.state[p]["master"] = p.detach().to(_fine(p))
        master: Tensor = self.state[p]["master"]
        return master


def _fine(p: Tensor) -> torch.dtype:
    """The type of moments and masters: 32 bits at least."""
    return torch.float32 if p.dtype in (torch.bfloat16, torch.float16) else p.dtype
