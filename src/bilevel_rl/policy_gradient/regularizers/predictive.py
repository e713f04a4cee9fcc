"""SAFE: a penalty on the KL above a threshold that a controller moves, with a gradient."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from bilevel_rl.policy_gradient.aggregate import per_token
from bilevel_rl.policy_gradient.batch import Batch
from bilevel_rl.policy_gradient.component import Card, Effect, Scope, Slot, Status
from bilevel_rl.policy_gradient.segments import (
    masked_mean,
)

PHASES = (1.5, 1.2, 0.8, 1.0)  # warm-up, climb, plateau, converged (released code)


def soft_min(values: Tensor, alpha: float) -> Tensor:
    r"""$V = -\alpha\left(\mathrm{LSE}(-v_1/\alpha, ..., -v_n/\alpha) - \log n\right)$ over the last axis.

    Between the smallest and the mean: the smallest as alpha -> 0, the mean as alpha grows. A double
    critic's value.

    Args:
        values: [..., n].
        alpha: softness, in units of value; 0.3 in the release.

    Example:
        >>> round(soft_min(torch.tensor([1.0, 3.0]), 0.01).item(), 2)
        1.01
    """
    return -alpha * (torch.logsumexp(-values / alpha, -1) - math.log(values.shape[-1]))


@dataclasses.dataclass(frozen=True)
class PredictiveKL:
    r"""A one-sided quadratic penalty on a moving average of the KL, stronger where the entropy is low.

    $$0.1\,(\overline{KL} - \kappa)_+^2\ \max\left(\tfrac12, \tfrac{2}{H + 0.1}\right), \qquad
      \kappa = \mathrm{clamp}\left((0.3 + \mathrm{PID})\cdot\text{phase}, 0.1, 0.6\right)$$

    $\overline{KL}$ = .9 x the average of past batches + .1 x this batch's, whose gradient it carries. The
    PID (.3, .01, .05) acts on the difference between the reward's velocity (moving average, .95) and
    `target`. All of it is in `memory`. KL and entropy are means a token.

    Args:
        target: reward velocity aimed at, a batch.
        base, lowest, highest: of the threshold, in nats a token.
        scale: 0.1 in the release.

    References:
        SAFE: Stable Alignment Finetuning with Entropy-Aware Predictive Control for RLHF. SEEN (public
            repository) for the
        constants; there the penalty is a Python float without gradient, ours is differentiable. When each
        phase holds is INFERRED: warm-up in the first tenth of training, converged in the last, plateau
        while the
            velocity is under the
        target, climb otherwise.
    """

    target: float = 0.001
    base: float = 0.3
    lowest: float = 0.1
    highest: float = 0.6
    scale: float = 0.1

    card: ClassVar[Card] = Card(
        name="safe",
        slot=Slot.REGULAR,
        effect=Effect.CHANGES,
        needs=("reward", "kl", "entropy"),
        scope=Scope.BATCH,
        gradient=("kl",),
        source="SAFE: Stable Alignment Finetuning with Entropy-Aware Predictive Control",
        status=Status.SEEN,
        number=67,
        note="the public release's penalty has no gradient; ours does. Phases INFERRED",
    )

    def init(self) -> dict[str, Tensor]:
        """Moving averages and the controller's state."""
        names = ("kl_short", "kl_long", "velocity", "reward", "integral", "error", "derivative", "batches")
        return {name: torch.zeros((), dtype=torch.float64) for name in names}

    def threshold(self, state: Mapping[str, Tensor], progress: float) -> float:
        """The KL above which the penalty acts, in nats a token."""
        pid = float(0.3 * state["error"] + 0.01 * state["integral"] + 0.05 * state["derivative"])
        velocity = float(state["velocity"])
        phase = 0 if progress < 0.1 else 3 if progress >= 0.9 else 2 if velocity < self.target else 1
        return min(max((self.base + pid) * PHASES[phase], self.lowest), self.highest)

    def __call__(self, batch: Batch) -> Tensor:
        """Scalar, to be minimised."""
        kl, entropy = self.card.take(batch, "kl", "entropy")
        state = batch.memory.get(self.card.name) or self.init()
        now = per_token(kl, batch)
        share = 0.1 if float(state["batches"]) else 1.0
        smooth = (1 - share) * float(state["kl_short"]) + share * now
        over = torch.relu(smooth - self.threshold(state, batch.progress))
        mean_entropy = per_token(entropy, batch).detach()
        return self.scale * over.square() * (2.0 / (mean_entropy.clamp(min=0) + 0.1)).clamp(min=0.5)

    def update(self, state: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Moving averages of the KL and of the reward's velocity, and the PID's error, integral and
        derivative.
        """
        kl = masked_mean(batch.inside("kl").detach(), batch.mask).double().cpu()
        reward = batch.score.detach().double().mean().cpu() if len(batch) else state["reward"]
        first = float(state["batches"]) == 0
        change = torch.zeros((), dtype=torch.float64) if first else reward - state["reward"]
        velocity = change if first else 0.95 * state["velocity"] + 0.05 * change
        # at the target velocity the controller rests, whatever came before
        error = torch.zeros_like(velocity) if first else velocity - self.target
        return {
            "kl_short": kl if first else 0.9 * state["kl_short"] + 0.1 * kl,
            "kl_long": kl if first else 0.99 * state["kl_long"] + 0.01 * kl,
            "velocity": velocity, "reward": reward, "error": error,
            "integral": state["integral"] + error, "derivative": error - state["error"],
            "batches": state["batches"] + 1,
        }  # fmt: skip


def preview_scale(preview_kl: float, limit: float = 0.5) -> float:
    """Factor in (0, 1] on a step whose predicted KL is `preview_kl` nats: 1 up to the limit, limit / KL
    above.
    """
    return 1.0 if preview_kl <= limit else limit / preview_kl
