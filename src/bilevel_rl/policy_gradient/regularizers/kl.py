"""KL to the reference: exact, or from samples by k1, k2, k3; as a loss term, or as a reward; fixed or
adaptive.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.policy_gradient.aggregate import Aggregate, per_token
from bilevel_rl.policy_gradient.batch import Batch
from bilevel_rl.policy_gradient.component import Card, Effect, Scope, Slot
from bilevel_rl.policy_gradient.logs import LOG_ZERO, log_ratio

_SOURCE = "Schulman, Approximating KL Divergence (2020)"


def exact_kl(logits: Tensor, ref_logits: Tensor) -> Tensor:
    r"""$\mathrm{KL}(\pi\|\pi_{\mathrm{ref}}) = \sum_v \pi(v)\log\frac{\pi(v)}{\pi_{\mathrm{ref}}(v)}$ of
    each row of logits.

    Args:
        logits: [..., V]; -inf where a token is forbidden.
        ref_logits: [..., V]; a token forbidden here but not there counts as log-probability -1e4.

    Returns:
        [...], in nats, never below 0 but for rounding.

    Example:
        >>> exact_kl(torch.zeros(2), torch.zeros(2)).item()
        0.0
    """
    log_p = logits.log_softmax(-1)
    log_q = ref_logits.log_softmax(-1).clamp(min=LOG_ZERO)
    possible = log_p > LOG_ZERO
    safe = torch.where(possible, log_p, 0)
    return torch.where(possible, safe.exp() * (safe - log_q), 0).sum(-1)


def k1(logp: Tensor, ref: Tensor) -> Tensor:
    r"""$\log\pi - \log\pi_{\mathrm{ref}}$: unbiased for the KL's value, may be negative; as a loss its mean
    gradient is 0.
    """
    return log_ratio(logp, ref)


def k2(logp: Tensor, ref: Tensor) -> Tensor:
    r"""$\frac12(\log\pi - \log\pi_{\mathrm{ref}})^2$: biased value, but on-policy its mean gradient is the
    KL's.
    """
    return 0.5 * log_ratio(logp, ref).square()


def k3(logp: Tensor, ref: Tensor) -> Tensor:
    r"""$\frac{\pi_{\mathrm{ref}}}{\pi} - 1 + \log\frac{\pi}{\pi_{\mathrm{ref}}} \ge 0$: unbiased value, low
    variance.

    On-policy its mean gradient is that of the forward KL, KL(ref || policy), not of the one it estimates.
    """
    d = log_ratio(ref, logp)
    return d.exp() - 1 - d


@dataclasses.dataclass(frozen=True)
class ExactKL:
    r"""The full-vocabulary KL of every next-token law, as a loss term: $\sum_t
    \mathrm{KL}(\pi(\cdot|h_t)\|\pi_{\mathrm{ref}}(\cdot|h_t))$.

    Its gradient is that of the KL at the visited prefixes; the dependence of the visits on the policy is
    left to the score-function term (give the KL as a reward as well for that).

    References:
        Textbook; the field `kl` comes from the policy. Cost: O(NTV), in the policy's own forward pass.
    """

    aggregate: Aggregate = per_token

    card: ClassVar[Card] = Card(
        name="exact_kl",
        scope=Scope.RESPONSE,
        gradient=("kl",),
        slot=Slot.REGULAR,
        effect=Effect.CHANGES,
        needs=("kl",),
        source="textbook",
        cost="O(NTV) where the logits are",
        note="adds tau KL: the regularised objective is the library's own J_tau",
    )

    def __call__(self, batch: Batch) -> Tensor:
        """Scalar, to be minimised."""
        (kl,) = self.card.take(batch, "kl")
        return self.aggregate(kl, batch)


@dataclasses.dataclass(frozen=True)
class SampledKL:
    r"""KL to the reference from the sampled tokens, as a loss term.

    Args:
        estimator: `k2` (the right gradient on-policy; the default), `k3` (as in GRPO), or `k1` (no
            gradient on average).
        corrected: multiply by the ratio of new to old policy, with its gradient (TRL's bias correction off the policy;
            reads `old`).
        aggregate: denominator.

    References:
        Schulman, Approximating KL Divergence, 2020 (blog). Classical; which gradient each has is tested
        by enumeration.
    """

    estimator: Callable[[Tensor, Tensor], Tensor] = k2
    corrected: bool = False
    aggregate: Aggregate = per_token

    card: ClassVar[Card] = Card(
        name="sampled_kl",
        scope=Scope.RESPONSE,
        gradient=("logp",),
        slot=Slot.REGULAR,
        effect=Effect.CHANGES,
        needs=("logp", "ref"),
        source=_SOURCE,
        note="k2's mean gradient is the KL's, k3's is that of KL(ref || policy), k1's is 0",
    )

    def __call__(self, batch: Batch) -> Tensor:
        """Scalar, to be minimised."""
        logp, ref = self.card.take(batch, "logp", "ref")
        value = self.estimator(logp, ref.detach())
        if self.corrected:
            if batch.old is None:
                raise self.card.lacks("old")
            value = value * log_ratio(logp, batch.inside("old").detach()).exp()
        return self.aggregate(value, batch)


@dataclasses.dataclass(frozen=True)
class KLReward:
    r"""KL to the reference as a reward on each token: one more reward term $-\tau(\log\pi_{\mathrm{old}} -
    \log\pi_{\mathrm{ref}})$.

    On-policy this makes every unbiased credit rule ascend $E[R] -
    \tau\,\mathrm{KL}(\pi\|\pi_{\mathrm{ref}})$ exactly.

    Args:
        coefficient: $\tau \ge 0$, in units of reward.

    References:
        Textbook (InstructGPT's PPO uses it). Cost: one subtraction a token.
    """

    coefficient: float = 0.05

    card: ClassVar[Card] = Card(
        name="kl_reward",
        scope=Scope.RESPONSE,
        slot=Slot.REWARD,
        effect=Effect.CHANGES,
        needs=("reward", "old", "ref"),
        source="textbook",
        note="adds tau KL: the regularised objective is the library's own J_tau",
    )

    def __call__(self, batch: Batch) -> Tensor:
        """[N, T, K + 1] rewards."""
        old, ref = self.card.take(batch, "old", "ref")
        penalty = -self.coefficient * log_ratio(old, ref).detach()
        return torch.cat([batch.reward, penalty[..., None].to(batch.reward.dtype)], -1)


@dataclasses.dataclass(frozen=True)
class Entropy:
    r"""Minus the mean entropy of the next-token laws: with coefficient $\tau$ the loss falls by $\tau H$.

    References:
        Textbook; with `sum_of_tokens` it is the entropy term of the paper's own J_tau at the visited states.
    """

    aggregate: Aggregate = per_token

    card: ClassVar[Card] = Card(
        name="entropy",
        scope=Scope.RESPONSE,
        gradient=("entropy",),
        slot=Slot.REGULAR,
        effect=Effect.CHANGES,
        needs=("entropy",),
        source="textbook",
        cost="O(NTV) where the logits are",
        note="adds tau H: the regularised objective is the library's own J_tau",
    )

    def __call__(self, batch: Batch) -> Tensor:
        """Scalar, to be minimised."""
        (entropy,) = self.card.take(batch, "entropy")
        return -self.aggregate(entropy, batch)


# -- coefficients -------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class FixedCoefficient:
    """A coefficient that stays what it is."""

    value: float = 0.05

    def init(self) -> float:
        """The coefficient to begin with."""
        return self.value

    def update(self, coefficient: float, observed: float, samples: int) -> float:
        """The same coefficient."""
        return coefficient


@dataclasses.dataclass(frozen=True)
class AdaptiveCoefficient:
    r"""A proportional controller that holds the KL near a target.

    $$\tau \leftarrow \tau\left(1 + \mathrm{clip}(\mathrm{KL}/\mathrm{target} - 1, -0.2, 0.2)\, n / h\right)$$

    Args:
        initial: first coefficient.
        target: the KL wanted, in nats a response.
        horizon: h, in responses; larger is slower.

    Example:
        >>> AdaptiveCoefficient(initial=0.1, target=6.0, horizon=100).update(0.1, observed=12.0, samples=10)
        0.10200000000000001

    References:
        Ziegler et al., Fine-Tuning Language Models from Human Preferences, arXiv 1909.08593, section 2.2.
        Classical. An adaptive coefficient leaves the schedule of tau: no convergence claim of the core
        paper goes with it.
    """

    initial: float = 0.05
    target: float = 6.0
    horizon: float = 10000.0

    def __post_init__(self) -> None:
        for name in ("initial", "target", "horizon"):
            if not 0 < getattr(self, name) < float("inf"):
                raise InvalidConfig(
                    message(f"AdaptiveCoefficient.{name}", getattr(self, name), "it must be finite and "
                        "above 0",
                            f"Set {name} accordingly")
                )  # fmt: skip

    def init(self) -> float:
        """The coefficient to begin with."""
        return self.initial

    def update(self, coefficient: float, observed: float, samples: int) -> float:
        """The next coefficient, after `samples` responses whose mean KL was `observed` nats."""
        error = min(max(observed / self.target - 1, -0.2), 0.2)
        return coefficient * (1 + error * samples / self.horizon)
