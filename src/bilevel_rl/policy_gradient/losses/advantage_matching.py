"""Advantage weighted matching: a flow's error in its own samples stands for minus a log-probability."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from torch import Tensor

from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.policy_gradient.aggregate import Aggregate, per_sequence
from bilevel_rl.policy_gradient.batch import Batch
from bilevel_rl.policy_gradient.component import Card, Effect, Scope, Slot, Status
from bilevel_rl.policy_gradient.logs import log_ratio
from bilevel_rl.policy_gradient.losses.clipped import clipped_surrogate
from bilevel_rl.policy_gradient.losses.policy_gradient import weighted_advantage
from bilevel_rl.policy_gradient.segments import masked_mean

WEIGHTINGS = ("uniform", "t", "t2", "huber", "ghuber")
ORDERS = ("exp_first", "sum_first")
TINY = 1e-12  # ours: a root has no derivative at an error of 0


def surrogate(error: Tensor, time: Tensor, weighting: str = "ghuber", power: float = 0.25) -> Tensor:
    r"""What stands for $\log\pi$ of a clean sample, given the time and the noise at which its error was taken.

    | weighting | $\ell$ of an error e at time t |
    |---|---|
    | uniform | $-e$ |
    | t, t2 | $-t\,e$, $-t^2 e$ |
    | huber | $-t\,\sqrt e$ |
    | ghuber | $-t\, e^p / p$ |

    Args:
        error: squared error of the velocity, a mean over coordinates.
        time: 0 at the sample, 1 at the noise.
        weighting: of `WEIGHTINGS`.
        power: p of ghuber; at 1 it is t.

    Example:
        >>> import torch
        >>> surrogate(torch.tensor([4.0]), torch.tensor([0.5]), "huber")
        tensor([-1.])
    """
    if weighting == "uniform":
        return -error
    if weighting in ("t", "t2"):
        return -(time if weighting == "t" else time**2) * error
    if weighting == "huber":
        return -time * (error + TINY).sqrt()
    return -time * (error + TINY) ** power / power


@dataclasses.dataclass(frozen=True)
class AdvantageMatching:
    r"""The clipped surrogate with a flow's matching error in place of log-probabilities.

    $$\ell_\theta(x_0; t, \varepsilon) = -w(t)\,\phi\big(|v_\theta(x_t, t) - (\varepsilon - x_0)|^2\big), \qquad
    \rho = e^{\ell_\theta - \ell_{old}}, \qquad x_t = (1-t)\,x_0 + t\,\varepsilon$$

    One "token" is one pair of a time and a noise, drawn once and kept for all steps on a batch. With advantage 1 and no
    clip its gradient is that of pre-training.

    Args:
        weighting: w and phi, by the names of `surrogate`.
        power: of ghuber.
        clip: range of the ratio about 1.
        order: `exp_first`, a ratio a time; `sum_first`, one of the mean over times.
        advantage_clip: bound on advantages, which are then divided by it.
        advantage_max: what the largest advantage becomes.
        aggregate: denominator.

    References:
        Advantage Weighted Matching: Aligning RL with Pretraining in Diffusion Models. SEEN (public repository
        scxue/advantage_weighted_matching, train_sd3_awm.py). Its pull to a reference is `velocity_gap`.
    """

    weighting: str = "ghuber"
    power: float = 0.25
    clip: float = 1.0
    order: str = "exp_first"
    advantage_clip: float = 5.0
    advantage_max: float = 1.0
    aggregate: Aggregate = per_sequence

    card: ClassVar[Card] = Card(
        name="advantage_matching",
        scope=Scope.RESPONSE,
        gradient=("matching_error",),
        slot=Slot.LOSS,
        effect=Effect.CHANGES,
        needs=("advantage", "matching_error", "matching_error_old", "matching_time"),
        source="Advantage Weighted Matching: Aligning RL with Pretraining in Diffusion Models",
        status=Status.SEEN,
        number=60,
        cite=("xue2025awm",),
        note="a surrogate likelihood: weighted pre-training, and no policy gradient of a likelihood",
    )

    def __post_init__(self) -> None:
        for name, value, allowed in (("weighting", self.weighting, WEIGHTINGS), ("order", self.order, ORDERS)):
            if value not in allowed:
                raise InvalidConfig(
                    message(f"AdvantageMatching.{name}", repr(value), f"known are {', '.join(allowed)}", "Take one of them")
                )
        if not (0 < self.power <= 1 and 0 <= self.clip <= 1 and self.advantage_clip > 0 and self.advantage_max > 0):
            raise InvalidConfig(
                message("AdvantageMatching",
                        f"power={self.power}, clip={self.clip}, advantage_clip={self.advantage_clip}, "
                        f"advantage_max={self.advantage_max}",
                        "power must be in (0, 1], clip in [0, 1], the bounds of advantages above 0",
                        "Use power=0.25, clip=1, advantage_clip=5, advantage_max=1")
            )  # fmt: skip

    def __call__(self, batch: Batch) -> Tensor:
        """Scalar, to be minimised."""
        error, old, time = self.card.take(batch, "matching_error", "matching_error_old", "matching_time")
        log_pi = surrogate(error, time, self.weighting, self.power)
        log_old = surrogate(old.detach(), time, self.weighting, self.power)
        if self.order == "sum_first":
            log_pi, log_old = (masked_mean(v, batch.mask, 1)[:, None].expand_as(v) for v in (log_pi, log_old))
        bound = self.advantage_clip
        advantage = weighted_advantage(batch).clamp(-bound, bound) * (self.advantage_max / bound)
        ratio = log_ratio(log_pi, log_old).exp()
        return self.aggregate(clipped_surrogate(ratio, advantage, self.clip, self.clip), batch)
