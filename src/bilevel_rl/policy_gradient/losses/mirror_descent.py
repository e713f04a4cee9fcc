"""MDPO and Nash mirror prox: proximal policy steps by samples, and their closed forms on tables."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from torch import Tensor

from bilevel_rl.policy_gradient.aggregate import Aggregate, per_token
from bilevel_rl.policy_gradient.batch import Batch
from bilevel_rl.policy_gradient.component import Card, Effect, Scope, Slot, Status
from bilevel_rl.policy_gradient.logs import log_ratio
from bilevel_rl.policy_gradient.losses.policy_gradient import weighted_advantage
from bilevel_rl.policy_gradient.setting import RATIO_ONE, Setting


def proximal_step(log_center: Tensor, advantage: Tensor, step: float) -> Tensor:
    r"""$\log\pi' = \log\pi_k + t A - \log Z$, the exact mirror-descent step of each row of a table.

    Args:
        log_center: [..., A] log-probabilities of $\pi_k$.
        advantage: [..., A].
        step: t.

    Example:
        >>> import torch
        >>> proximal_step(torch.log(torch.tensor([0.5, 0.5])), torch.tensor([0.0, 0.0]), 1.0).exp().tolist()
        [0.5, 0.5]
    """
    return (log_center + step * advantage).log_softmax(-1)


def projection_loss(logits: Tensor, old_logits: Tensor, q: Tensor, step: float) -> Tensor:
    r"""Off-policy MDPO on a finite action set: $\mathrm{KL}(\pi_\theta\|\pi_k e^{tQ}/Z)$ up to $\log Z$,
    averaged.

    With `old_logits` constant (a uniform centre) and t = 1/alpha it is SAC's actor loss divided by
    alpha, up to a constant.

    Args:
        logits: [..., A] of the policy, with gradient.
        old_logits: [..., A] of the centre.
        q: [..., A] action values, in units of reward.
        step: t.
    """
    law, center = logits.log_softmax(-1), old_logits.detach().log_softmax(-1)
    return (law.exp() * (law - center - step * q.detach())).sum(-1).mean()


def mirror_prox_step(
    log_center: Tensor, log_ref: Tensor, opponent: Tensor, preference: Tensor, beta: float, eta: float
) -> Tensor:
    r"""$\log\pi' = \frac{\log\pi_k/\eta + \beta\log\pi_{ref} + P\,\pi_{opp}}{1/\eta + \beta} - \log Z$.

    Args:
        log_center: [Y] log-probabilities of $\pi_k$.
        log_ref: [Y].
        opponent: [Y] probabilities.
        preference: [Y, Y], P[y, y'] the probability that y is preferred to y'.
        beta: strength of the reference.
        eta: step size.
    """
    return ((log_center / eta + beta * log_ref + preference @ opponent) / (1 / eta + beta)).log_softmax(-1)


def mirror_prox(log_center: Tensor, log_ref: Tensor, preference: Tensor, beta: float, eta: float) -> Tensor:
    r"""One iteration of Nash mirror prox: a half step against $\pi_k$, then the full one against the half
    step.

    Both steps are centred at $\pi_k$. The last iterate converges linearly to the $\beta$-regularised
    Nash policy.
    """
    half = mirror_prox_step(log_center, log_ref, log_center.exp(), preference, beta, eta)
    return mirror_prox_step(log_center, log_ref, half.exp(), preference, beta, eta)


def sampled_divergence(log_new_old: Tensor, log_new_ref: Tensor) -> Tensor:
    r"""$\rho\log\frac{\pi}{\pi_{ref}} - \rho + 1$ for a token drawn from the old policy, $\rho =
    \pi/\pi_{old}$.

    Its mean over the old policy is $\mathrm{KL}(\pi\|\pi_{ref})$ and so is its gradient's; with the old
    policy as reference it is never negative.
    """
    ratio = log_new_old.exp()
    return ratio * log_new_ref - ratio + 1


@dataclasses.dataclass(frozen=True)
class MirrorDescent:
    r"""Mirror descent policy optimisation on samples of $\pi_k$ (field `old`).

    $$\ell = -\rho_t A_t + \tfrac{1}{t_k}\mathrm{KL}(\pi\|\pi_k), \qquad \rho_t = \pi(y_t)/\pi_k(y_t)$$

    Take several gradient steps on one batch (m = 5 in the release). The first one's gradient is the policy
    gradient; the optimum on a table is $\pi_k e^{t_k A}/Z$.

    Args:
        step: $t_k$ at the start.
        anneal: fall linearly with `Batch.progress`, as the release does by default; False keeps the step.
        floor: smallest share of the step that annealing leaves; the release's 0 makes the penalty infinite at the
            very end, 0.1 is ours.
        aggregate: denominator.

    References:
        Mirror Descent Policy Optimization. SEEN (abstract and public repository). The KL is estimated from
        the same samples with a control variate (ours).
    """

    step: float = 1.0
    anneal: bool = True
    floor: float = 0.1
    aggregate: Aggregate = per_token

    card: ClassVar[Card] = Card(
        name="mdpo",
        slot=Slot.LOSS,
        effect=Effect.KEEPS,
        needs=("logp", "old", "advantage"),
        scope=Scope.RESPONSE,
        gradient=("logp",),
        source="Mirror Descent Policy Optimization",
        status=Status.SEEN,
        number=26,
    )

    def idle(self, setting: Setting) -> str:
        """Why it can't act, or nothing."""
        return RATIO_ONE if setting.one_step else ""

    def __call__(self, batch: Batch) -> Tensor:
        """Scalar, to be minimised."""
        logp, old = self.card.take(batch, "logp", "old")
        drift = log_ratio(logp, old.detach())
        step = self.step * (max(1 - batch.progress, self.floor) if self.anneal else 1.0)
        proximal = sampled_divergence(drift, drift) / step
        return self.aggregate(proximal - weighted_advantage(batch) * drift.exp(), batch)


@dataclasses.dataclass(frozen=True)
class NashMirrorProx:
    r"""A proximal step of Nash mirror prox by samples: mirror descent with one more pull, to the reference.

    $$\ell = -\rho_t A_t + \beta\,\mathrm{KL}(\pi\|\pi_{ref}) + \tfrac1\eta\mathrm{KL}(\pi\|\pi_k)$$

    The advantage is that of the probability of being preferred to the opponent's responses: reward
    `win_rate` against the current policy for the half step, against the half step's responses for the full
    one; both steps have the same centre $\pi_k$ = `old`. A lagged copy of the policy serves as opponent in
    practice.

    Args:
        beta: strength of the reference.
        eta: step size.
        aggregate: denominator.

    References:
        Accelerating Nash Learning from Human Feedback via Mirror Prox. In the spirit of: the template is
        INFERRED; the linear rate of the last iterate is the paper's. `mirror_prox` is the exact step on a
        table.
    """

    beta: float = 0.1
    eta: float = 1.0
    aggregate: Aggregate = per_token

    card: ClassVar[Card] = Card(
        name="nash_mirror_prox",
        slot=Slot.LOSS,
        effect=Effect.KEEPS,
        needs=("logp", "old", "ref", "advantage"),
        scope=Scope.RESPONSE,
        gradient=("logp",),
        source="Accelerating Nash Learning from Human Feedback via Mirror Prox",
        status=Status.INFERRED,
        number=31,
        note="of a regularised preference game",
    )

    def __call__(self, batch: Batch) -> Tensor:
        """Scalar, to be minimised."""
        logp, old, ref = self.card.take(batch, "logp", "old", "ref")
        drift = log_ratio(logp, old.detach())
        pull = self.beta * sampled_divergence(drift, log_ratio(logp, ref.detach()))
        proximal = sampled_divergence(drift, drift) / self.eta
        return self.aggregate(pull + proximal - weighted_advantage(batch) * drift.exp(), batch)
