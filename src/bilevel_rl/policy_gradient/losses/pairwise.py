"""One squared-difference core and the four losses on it: CoPG, direct advantage, INPO (IPO), and P3O
beside.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.policy_gradient.batch import Batch
from bilevel_rl.policy_gradient.component import Card, Effect, Slot, Status
from bilevel_rl.policy_gradient.logs import floored, log_ratio
from bilevel_rl.policy_gradient.losses.policy_gradient import weighted_advantage
from bilevel_rl.policy_gradient.segments import (
    Turns,
    centred,
    label,
    members,
    segment_max,
    segment_size,
    segment_sum,
)
from bilevel_rl.policy_gradient.setting import RATIO_ONE, Setting


def sequence_log_ratio(logp: Tensor, ref: Tensor, mask: Tensor) -> Tensor:
    r"""$\log\frac{\pi(y)}{\pi_{ref}(y)} = \sum_t \log\frac{\pi(y_t)}{\pi_{ref}(y_t)}$ over the action
    tokens [N].
    """
    return torch.where(mask, log_ratio(logp, ref), 0).sum(1)


def squared_differences(h: Tensor, group: Tensor) -> Tensor:
    r"""$\frac{1}{k-1}\sum_{i>j}(h_i - h_j)^2 = \frac{k}{k-1}\sum_i (h_i - \bar h)^2$ in each group, shared
    among members.

    Args:
        h: [N], with gradient.
        group: [N] integers.

    Returns:
        [N]: each member's $\frac{k}{k-1}(h_i - \bar h)^2$, whose sum over a group is the sum over its
        pairs; 0 for a group of one. Linear in the number of responses: no pair is formed.

    Example:
        >>> squared_differences(torch.tensor([1.0, 3.0]), torch.tensor([0, 0])).sum().item()
        4.0
    """
    index, count = label(group)
    size = segment_size(index, count, h.dtype)[index]
    mean = segment_sum(h, index, count)[index] / size
    return torch.where(size > 1, size / (size - 1).clamp(min=1) * (h - mean).square(), 0)


@dataclasses.dataclass(frozen=True)
class Contrastive:
    r"""Contrastive policy gradient: the regularised rewards of responses to one prompt are regressed onto
    each other.

    $$R^\pi_\beta(y) = R(y) - \beta\log\frac{\pi(y)}{\pi_{ref}(y)}, \qquad
      \ell = \frac{1}{2\beta N}\sum_{prompts}\frac{1}{k-1}\sum_{i>j}\left(R^\pi_\beta(y_i) -
      R^\pi_\beta(y_j)\right)^2$$

    Every pair is 0 at $\pi \propto \pi_{ref} e^{R/\beta}$, whatever law the responses were drawn from:
    samples may be off-policy, with no importance weights. The factor $1/2\beta$ makes the gradient
    $-\frac1N\sum_i \mathrm{RLOO}_i(R^\pi_\beta)\nabla\log\pi(y_i)$.

    Args:
        beta: strength of the regularisation, in units of reward; the core method's tau.

    References:
        Contrastive Policy Gradient: Aligning LLMs on sequence-level scores in a supervised-friendly
        fashion, arXiv 2406.19185. SEEN. Cost: O(NT); linear in the number of responses.
    """

    beta: float = 0.1

    card: ClassVar[Card] = Card(
        name="copg",
        slot=Slot.LOSS,
        effect=Effect.KEEPS,
        needs=("reward", "group", "logp", "ref"),
        group=2,
        gradient=("logp",),
        source="Contrastive Policy Gradient, arXiv 2406.19185",
        status=Status.SEEN,
        number=7,
        note="its minimiser is the KL-regularised optimum with tau = beta; reads the rewards, not the "
        "credit slot",
    )

    def __post_init__(self) -> None:
        _positive("Contrastive", "beta", self.beta)

    def __call__(self, batch: Batch) -> Tensor:
        """Scalar, to be minimised."""
        logp, ref = self.card.take(batch, "logp", "ref")
        drift = sequence_log_ratio(logp, ref.detach(), batch.mask)
        pairs = squared_differences(batch.score.detach() - self.beta * drift, batch.group)
        return _over_responses(pairs, batch) / (2 * self.beta)


@dataclasses.dataclass(frozen=True)
class DirectAdvantage:
    r"""Direct advantage optimisation: each step's log-ratio is regressed onto its advantage (not
    ByteDance's DAPO).

    $$\ell = \frac{1}{\beta}\,\mathrm{mean}_u\ \tfrac12\left(\beta\log\frac{\pi(a_u|s_u)}{\pi_{ref}(a_u|s_u)}
      - \hat A_u + c(s_u)\right)^2$$

    The optimum is $\pi_{ref}e^{\hat A/\beta}$ when its log-partition is 0. A constant added to $\hat A$ in
    a state moves the solution, so `centre` subtracts $c = \beta\log\mathrm{mean}\, e^{\hat A/\beta}$ over
    the sampled steps that share a state (same prompt and `state_key`; without keys, the same prompt's first
    steps). A step alone in its state is left as it is.

    Args:
        beta: strength of the regularisation, in units of reward.
        centre: make the log-partition 0 on the sample.

    References:
        Improving Multi-Step Reasoning Abilities of Large Language Models with Direct Advantage Policy
        Optimization, arXiv 2412.18279. In the spirit of: INFERRED. Meant for samples from the reference.
        Cost: O(NT).
    """

    beta: float = 0.1
    centre: bool = True

    card: ClassVar[Card] = Card(
        name="direct_advantage",
        slot=Slot.LOSS,
        effect=Effect.KEEPS,
        needs=("group", "logp", "ref", "advantage"),
        gradient=("logp",),
        source="Direct Advantage Policy Optimization, arXiv 2412.18279",
        status=Status.INFERRED,
        number=33,
        note="with centring; steps are turns (a response without turns is one step)",
    )

    def __post_init__(self) -> None:
        _positive("DirectAdvantage", "beta", self.beta)

    def __call__(self, batch: Batch) -> Tensor:
        """Scalar, to be minimised."""
        logp, ref = self.card.take(batch, "logp", "ref")
        turns = Turns.of(batch)
        valid = turns.valid
        target = turns.mean(weighted_advantage(batch))[valid]
        if self.centre:
            group = batch.group[:, None].expand_as(valid)[valid]
            column = torch.arange(valid.shape[1], device=valid.device).expand_as(valid)[valid]
            if batch.state_key is not None:
                state = turns.at_first(batch.state_key)[valid]
            else:  # later steps of different responses are in different states
                row = torch.arange(len(batch), device=valid.device)[:, None].expand_as(valid)[valid]
                state = torch.where(column == 0, -1, row * valid.shape[1] + column)
            target = target - log_partition(target / self.beta, group, state) * self.beta
        drift = turns.sum(log_ratio(logp, ref.detach()))[valid]
        error = 0.5 * (self.beta * drift - target).square() / self.beta
        per_row = torch.zeros(valid.shape, dtype=error.dtype, device=error.device)
        per_row = per_row.masked_scatter(valid, error)
        return _over_responses(per_row.sum(1), batch)


def log_partition(values: Tensor, *state: Tensor) -> Tensor:
    """[M]: log of the mean of exp(values) over the members of each state; 0 for a member alone."""
    index, count = label(*state)
    top = segment_max(values, index, count)[index] if len(values) else values
    size = segment_size(index, count, values.dtype)[index]
    mean = segment_sum((values - top).exp(), index, count)[index] / size.clamp(min=1)
    return torch.where(size > 1, mean.log() + top, 0)


@dataclasses.dataclass(frozen=True)
class NashPreference:
    r"""INPO: pairs preferred and not, drawn from the current policy, give one step toward the Nash policy.

    $$h = \Delta\log\pi - \tfrac\tau\eta\Delta\log\pi_{ref} -
    \tfrac{\eta-\tau}{\eta}\Delta\log\pi_{old}, \qquad
      \ell = E\left(h - \tfrac{1}{2\eta}\right)^2$$

    $\Delta$ is winner minus loser. The minimiser over the population of pairs is the mirror-descent step
    $\pi \propto \pi_{ref}^{\tau/\eta}\pi_{old}^{1-\tau/\eta}\exp(P(\cdot\succ\pi_{old})/\eta)$; at
    $\tau=\eta$ it is IPO.

    Args:
        eta: inverse step size.
        tau: strength of the reference, 0 to eta.

    References:
        Iterative Nash Policy Optimization: Aligning LLMs with General Preferences via No-Regret Learning.
        SEEN (released code). Pairs are all (winner, loser) of a prompt, by the extra `winner` [N] bool.
        Cost: O(NT + pairs).
    """

    eta: float = 7.5e-3
    tau: float = 2.5e-3

    card: ClassVar[Card] = Card(
        name="inpo",
        slot=Slot.LOSS,
        effect=Effect.KEEPS,
        needs=("group", "logp", "old", "ref", "winner"),
        group=2,
        gradient=("logp",),
        source="Iterative Nash Policy Optimization",
        status=Status.SEEN,
        number=52,
        cost="O(NT) + winners x losers of each prompt",
        note="of a preference game; reads `winner`, not the credit slot",
    )

    def __post_init__(self) -> None:
        _positive("NashPreference", "eta", self.eta)
        if not 0 <= self.tau <= self.eta:
            raise InvalidConfig(
                message("NashPreference.tau", self.tau, "it must be in [0, eta]", "Use tau = eta / 3")
            )

    def __call__(self, batch: Batch) -> Tensor:
        """Scalar, to be minimised: the mean over pairs."""
        logp, old, ref, winner = self.card.take(batch, "logp", "old", "ref", "winner")
        share = self.tau / self.eta
        to_ref = sequence_log_ratio(logp, ref.detach(), batch.mask)
        to_old = sequence_log_ratio(logp, old.detach(), batch.mask)
        h = share * to_ref + (1 - share) * to_old
        index, count = label(batch.group)
        row, real = members(index, count)
        won = winner.bool()[row]
        pair = (real & won)[:, :, None] & (real & ~won)[:, None, :]
        loss = (h[row][:, :, None] - h[row][:, None, :] - 1 / (2 * self.eta)).square()
        return torch.where(pair, loss, 0).sum() / pair.sum().clamp(min=1)


@dataclasses.dataclass(frozen=True)
class PairwisePPO:
    r"""P3O: the gradient sees only differences of rewards and of log-probabilities of two responses to one
    prompt.

    $$\nabla = -\,\mathrm{mean}_{i \ne j}\ \rho_i\rho_j\ (R_i - R_j)\ \nabla\tfrac12\left(\log\pi(y_i) -
    \log\pi(y_j)\right)$$

    Args:
        clip: $\epsilon$ on response ratios; None leaves the importance weights unclipped.
        joint: one decision a pair on $\rho_i/\rho_j$ (V2); False decides for each response apart (V1).

    References:
        Pairwise Proximal Policy Optimization: Harnessing Relative Feedback for LLM Alignment. SEEN (the
        authors' blog); where the two clips act is INFERRED. Keeps the objective on-policy. Cost: O(NT +
        pairs).
    """

    clip: float | None = 0.2
    joint: bool = False

    card: ClassVar[Card] = Card(
        name="p3o",
        slot=Slot.LOSS,
        effect=Effect.KEEPS,
        needs=("reward", "group", "logp", "old"),
        group=2,
        gradient=("logp",),
        source="Pairwise Proximal Policy Optimization",
        status=Status.SEEN,
        number=9,
        cost="O(NT) + pairs of each prompt",
        note="on-policy; reads the rewards, not the credit slot",
    )

    def idle(self, setting: Setting) -> str:
        """Why it can't act, or nothing."""
        return RATIO_ONE if setting.one_step and self.clip is not None else ""

    def __call__(self, batch: Batch) -> Tensor:
        """Scalar, to be minimised; on-policy its gradient is RLOO's."""
        logp, old = self.card.take(batch, "logp", "old")
        sequence = torch.where(batch.mask, floored(logp), 0).sum(1)
        index, count = label(batch.group)
        row, real = members(index, count)
        pair = real[:, :, None] & real[:, None, :]
        pair = pair & ~torch.eye(row.shape[1], dtype=torch.bool, device=row.device)
        drift = sequence_log_ratio(logp, old, batch.mask).detach()[row].clamp(-10, 10)
        one, two = drift[:, :, None], drift[:, None, :]
        weight = (one + two).exp()
        gap = centred(batch.score, index, count)[row].detach()
        gap = gap[:, :, None] - gap[:, None, :]
        size = real.sum(1).clamp(min=2).to(gap.dtype)[:, None, None] - 1
        # the term of i in the pair (i, j); that of j is its mirror image, so the half is counted twice
        keep = torch.ones_like(pair)
        if self.clip is not None:
            ratio = (one - two if self.joint else one).exp()
            low = 1 / (1 + self.clip) if self.joint else 1 - self.clip  # joint: both members decide alike
            keep = ~torch.where(gap > 0, ratio > 1 + self.clip, (gap < 0) & (ratio < low))
        coefficient = torch.where(pair & keep, weight * gap, 0) / size
        per_member = coefficient.sum(2) * sequence[row]
        return -torch.where(real, per_member, 0).sum() / _responses(batch)


def _positive(name: str, field: str, value: float) -> None:
    if not value > 0:
        raise InvalidConfig(message(f"{name}.{field}", value, "it must be above 0", f"Use {field}=0.1"))


def _responses(batch: Batch) -> float:
    return max(float(len(batch)) if batch.sequences is None else batch.sequences, 1.0)


def _over_responses(values: Tensor, batch: Batch) -> Tensor:
    return values.sum() / _responses(batch)
