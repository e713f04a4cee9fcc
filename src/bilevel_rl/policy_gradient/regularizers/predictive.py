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

PHASES = {"WARMUP": 1.5, "CLIMBING": 1.2, "PLATEAU": 0.8, "CONVERGED": 1.0}  # released code
WINDOW = 50  # rewards that the phase is read from, and as many before them (released code)


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

    $\overline{KL}$ = .9 x the average of past batches + .1 x this batch's, whose gradient it carries; it starts at 0.
    The PID (.3, .01, .05; integral within [-1, 1]) acts on the velocity of the reward's moving average (.95) less
    `target`. The phase is read from the last 50 rewards and the 50 before them: WARMUP (fewer than 50 so far) 1.5,
    CLIMBING (mean up by more than .01) 1.2, CONVERGED (deviation under .02, mean above .7) 1.0, else PLATEAU .8. All
    of it is in `memory`. KL and entropy are means a token; the reward is the batch's mean score.

    Args:
        target: reward velocity aimed at, a batch.
        base, lowest, highest: of the threshold, in nats a token.
        scale: 0.1 in the release.

    References:
        SAFE: Stable Alignment Finetuning with Entropy-Aware Predictive Control for RLHF, arXiv 2602.04651. SEEN
        (public repository). There the penalty is a Python float without gradient and is updated at every gradient
        step; ours has the gradient of its own batch's share and is updated once an iteration.
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
        source="SAFE: Stable Alignment Finetuning with Entropy-Aware Predictive Control, arXiv 2602.04651",
        status=Status.SEEN,
        number=67,
        note="the public release's penalty has no gradient; ours does",
    )

    def init(self) -> dict[str, Tensor]:
        """Moving averages, the controller's state and the last rewards (newest last)."""
        names = ("kl_short", "kl_long", "average", "integral", "error", "adjustment", "batches")
        state = {name: torch.zeros((), dtype=torch.float64) for name in names}
        return {**state, "rewards": torch.zeros(2 * WINDOW, dtype=torch.float64)}

    def threshold(self, state: Mapping[str, Tensor]) -> float:
        """The KL above which the penalty acts after the batch that `state` last saw, in nats a token."""
        raw = (self.base + float(state["adjustment"])) * PHASES[self.phase(state)]
        return min(max(raw, self.lowest), self.highest)

    @staticmethod
    def phase(state: Mapping[str, Tensor]) -> str:
        """WARMUP, CLIMBING, CONVERGED or PLATEAU, from the rewards seen."""
        seen, rewards = int(state["batches"]), state["rewards"]
        if seen < WINDOW:
            return "WARMUP"
        recent = rewards[WINDOW:]
        before = rewards[:WINDOW] if seen >= 2 * WINDOW else recent
        if float(recent.mean()) > float(before.mean()) + 0.01:
            return "CLIMBING"
        steady = float(recent.std(correction=0)) < 0.02 and float(recent.mean()) > 0.7
        return "CONVERGED" if steady else "PLATEAU"

    def __call__(self, batch: Batch) -> Tensor:
        """Scalar, to be minimised."""
        kl, entropy = self.card.take(batch, "kl", "entropy")
        before = self._remembered(batch)
        smooth = 0.9 * float(before["kl_short"]) + 0.1 * per_token(kl, batch)
        over = torch.relu(smooth - self.threshold(self.update(before, batch)))
        mean_entropy = per_token(entropy, batch).detach()
        return self.scale * over.square() * (2.0 / (mean_entropy.clamp(min=0) + 0.1)).clamp(min=0.5)

    def _remembered(self, batch: Batch) -> Mapping[str, Tensor]:
        return batch.memory.get(self.card.name) or self.init()

    def update(self, state: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """The state after a batch: averages of its KL, the controller's terms for its reward, and the reward itself."""
        kl = masked_mean(batch.inside("kl").detach(), batch.mask).double().cpu()
        last = state["rewards"][-1]
        reward = batch.score.detach().double().mean().cpu() if len(batch) else last
        after = {
            "kl_short": 0.9 * state["kl_short"] + 0.1 * kl, "kl_long": 0.99 * state["kl_long"] + 0.01 * kl,
            "batches": state["batches"] + 1, "rewards": torch.cat([state["rewards"][1:], reward[None]]),
        }  # fmt: skip
        return after | self._controlled(state, reward)

    def _controlled(self, state: Mapping[str, Tensor], reward: Tensor) -> dict[str, Tensor]:
        """The PID's memory after one more reward; at the first there is no velocity and no adjustment."""
        if float(state["batches"]) == 0:
            kept = {name: state[name] for name in ("integral", "error", "adjustment")}
            return {"average": reward, **kept}
        average = 0.95 * state["average"] + 0.05 * reward
        error = average - state["average"] - self.target
        integral = (state["integral"] + error).clamp(-1, 1)
        adjustment = 0.3 * error + 0.01 * integral + 0.05 * (error - state["error"])
        return {"average": average, "error": error, "integral": integral, "adjustment": adjustment}


def preview_scale(preview_kl: float, limit: float = 0.5) -> float:
    """Factor in (0, 1] on a step whose predicted KL is `preview_kl` nats: 1 up to the limit, limit / KL
    above.
    """
    return 1.0 if preview_kl <= limit else limit / preview_kl
