r"""Estimators: importance ratios, and the weights of the penalty's hyper-gradient.

Pure functions on tensors of the whole batch, [N] or [N, T], no model in sight. J counts a completion once and sums
over its tokens, so every mean here is over completions.

With rollouts of theta alone (`shared`), $\rho(y) = \pi^L(y)/\pi(y)$,

    theta^L ascends   E_pi[ rho A^L grad log pi^L ]
    x descends        grad_x f  +  E_pi[ c grad_x r ],   c = (1 - rho) / w

and E_pi[c] = 0, so c is centred on the batch: noise that both followers share cancels instead of being divided by w.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from bilevel_rl.levels.objectives import PairBonus
from bilevel_rl.policy_gradient.credit.to_go import weighted_leave_one_out
from bilevel_rl.policy_gradient.segments import label, segment_sum


class Ratios(NamedTuple):
    """Importance of each completion of theta for theta^L.

    Attributes:
        weight: [N, T] what multiplies theta^L's loss at each token.
        change: [N] rho - 1 as the hyper-gradient uses it: of the sequence, or its first order.
        sequence: [N] clipped ratio of whole completions.
        effective: effective sample size as a share of N, in (0, 1].
        clipped: share of ratios at the bound.
    """

    weight: Tensor
    change: Tensor
    sequence: Tensor
    effective: float
    clipped: float


def importance(
    logp: Tensor, logp_l: Tensor, mask: Tensor, kind: str = "sequence", clip: float = 3.0
) -> Ratios:
    r"""Ratios of theta^L to theta on completions of theta.

    `sequence`: $\rho(y) = \prod_t \rho_t$ at every token, unbiased where the clip does not bind. `token`: $\rho_t$ at
    token t, and $\rho - 1 \approx \sum_t (\rho_t - 1)$: its variance grows with the length and not exponentially, but
    it drops the change of what theta^L sees, a bias that does not vanish with w.

    Args:
        logp: [N, T] of theta.
        logp_l: [N, T] of theta^L, on the same tokens.
        mask: [N, T].
        kind: "sequence" or "token".
        clip: bound on |log rho|.

    Example:
        >>> one = torch.zeros(2, 3)
        >>> importance(one, one, torch.ones(2, 3)).effective
        1.0
    """
    per_token = (logp_l - logp) * mask
    total = per_token.sum(1)
    sequence = total.clamp(-clip, clip).exp()
    if kind == "sequence":
        weight, change, at_bound = sequence[:, None] * mask, sequence - 1, total.abs() >= clip
    else:
        ratio = per_token.clamp(-clip, clip).exp()
        weight, change = ratio * mask, ((ratio - 1) * mask).sum(1)
        at_bound = (per_token.abs() >= clip).any(1)
    effective = float(sequence.sum().square() / (len(sequence) * sequence.square().sum()))
    return Ratios(weight, change, sequence, effective, float(at_bound.double().mean()))


def off_policy(logp: Tensor, wrote: Tensor, mask: Tensor, clip: float) -> Tensor:
    r"""$\min(\pi/\pi_{wrote}, C)$ at each token, for rows that another law wrote than the one that learns.

    Truncated from above alone: the mean stays near 1 and no token counts more than C times. 0 outside the mask.

    Example:
        >>> off_policy(torch.tensor([[0.0, 5.0]]), torch.zeros(1, 2), torch.ones(1, 2), 2.0).tolist()
        [[1.0, 2.0]]

    References:
        Espeholt et al., "IMPALA", ICML 2018 (truncated ratios); Yao et al., 2025, for engines of inference.
    """
    return ((logp - wrote) * mask).exp().clamp(max=clip) * mask


def penalty_coefficients(change: Tensor, w: float) -> Tensor:
    r"""$c_i$ with $\frac1N \sum_i c_i \nabla_x r_i$ the estimate of $\frac1w(E_\pi - E_{\pi^L})[\nabla_x r]$.

    $c_i = \frac{N}{N-1}(u_i - \bar u)$, $u_i = -(\rho_i - 1)/w$: the sample covariance of u and the gradient, unbiased
    because u has mean zero under theta.

    Args:
        change: [N] $\rho - 1$.
        w: penalty constant.
    """
    u = -change / w
    return (u - u.mean()) * (len(u) / max(len(u) - 1, 1))


def tilted_coefficients(bonus: Tensor, tau: float, group: Tensor, pairs: PairBonus | None = None) -> Tensor:
    r"""The penalty's coefficients when theta^L is known: no second policy, no ratio, no bias in w.

    The transitions of a language model are deterministic and gamma = 1, so the optimum of J - w f is a tilt of the
    optimum of J: $\pi^L(y) \propto \pi(y) e^{w u(y)/\tau}$. Then $(1 - \rho)/w \to -(u - E_\pi u)/\tau$ as $w \to 0$, and

    $$\tfrac1w (E_\pi - E_{\pi^L})[\nabla_x r] \to -\tfrac1\tau \mathrm{Cov}_\pi(u, \nabla_x r),$$

    the implicit hyper-gradient itself where theta is optimal (ours: derived; exact to rounding in the conformance
    tests). Where theta still lags, it is what theta would do to r if it had caught up.

    Args:
        bonus: [N] the upper objective's bonus u.
        tau: weight of the KL.
        group: [N] completions of one prompt: the expectation is each prompt's own, left-one-out.
        pairs: what judged pairs earn, each left out as a pair.

    A scale of J (group normalisation) cancels: s J is tilted by u / (s tau), and its gradient has the factor s.
    """
    own = weighted_leave_one_out(bonus, group)
    return -(own if pairs is None else own + leave_pair_out(pairs.raw, group, pairs.partner)) / tau


def leave_pair_out(bonus: Tensor, group: Tensor, partner: Tensor) -> Tensor:
    r"""$c_i = b_i - \frac{1}{G-2} \sum_{k \notin \{i, partner(i)\}} b_k$ within each group of G rows.

    The U-statistic of a covariance with what a pair earns: $\sum_i c_i g_i$ gives each pair's $b_a g_a + b_b g_b$ less
    $(b_a + b_b)$ times the mean of g over the rows outside of the pair, which are independent of both.

    Args:
        bonus: [N] what each row earns by its pair; 0 without one.
        group: [N].
        partner: [N] the other row of the pair, -1 without one.

    Returns:
        [N]; the bonus itself in a group of two, right where the two of a pair cancel.

    Example:
        >>> leave_pair_out(torch.tensor([1.0, 1.0, 0.0]), torch.tensor([0, 0, 0]), torch.tensor([1, 0, -1]))
        tensor([ 1.,  1., -2.])
    """
    index, count = label(group)
    others = segment_sum(bonus, index, count)[index] - bonus
    others = others - torch.where(partner >= 0, bonus[partner.clamp(min=0)], 0)
    size = torch.bincount(index, minlength=count)[index]
    return bonus - others / (size - 2).clamp(min=1)


def value_loss(values: Tensor, targets: Tensor, weight: Tensor, mask: Tensor, tokens: float) -> Tensor:
    """Half the weighted mean squared error of a critic, a mean over the tokens of all rows and processes."""
    return 0.5 * ((values - targets).square() * weight * mask).sum() / tokens


def sampled_kl(logp: Tensor, reference: Tensor, kind: str) -> Tensor:
    """One-sample estimates of the KL at each token: k1 (unbiased, any sign) or k3 (not negative).

    References:
        Schulman, "Approximating KL divergence", 2020.
    """
    log_ratio = reference - logp
    return -log_ratio if kind == "k1" else log_ratio.exp() - 1 - log_ratio
