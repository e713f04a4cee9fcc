r"""Estimators: importance ratios, advantages of both followers, and the weights of the penalty's hyper-gradient.

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

from bilevel_rl.policy_gradient.credit.gae import discounted_residuals
from bilevel_rl.policy_gradient.credit.leave_one_out import leave_one_out
from bilevel_rl.policy_gradient.losses.clipped import clipped_surrogate
from bilevel_rl.policy_gradient.segments import label, segment_std, segment_sum


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


def penalty_coefficients(change: Tensor, w: float, scale: Tensor | None = None) -> Tensor:
    r"""$c_i$ with $\frac1N \sum_i c_i \nabla_x r_i$ the estimate of $\frac1w(E_\pi - E_{\pi^L})[\nabla_x r]$.

    $c_i = \frac{N}{N-1}(u_i - \bar u)$, $u_i = -(\rho_i - 1)/w$: the sample covariance of u and the gradient, unbiased
    because u has mean zero under theta.

    Args:
        change: [N] $\rho - 1$.
        w: penalty constant.
        scale: [N] weight of each completion in J (group normalisation); None: 1.
    """
    u = -change / w
    if scale is not None:
        u = u * scale
    return (u - u.mean()) * (len(u) / max(len(u) - 1, 1))


def tilted_coefficients(bonus: Tensor, tau: float, group: Tensor) -> Tensor:
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

    A scale of J (group normalisation) cancels: s J is tilted by u / (s tau), and its gradient has the factor s.
    """
    return -weighted_leave_one_out(bonus, group) / tau


def group_scale(returns: Tensor, group: Tensor, eps: float = 1e-4) -> Tensor:
    """[N] one over the standard deviation of each group's returns, for both followers (GRPO's scale)."""
    index, count = label(group)
    return 1.0 / (segment_std(returns, index, count, ddof=1)[index] + eps)


def weighted_leave_one_out(values: Tensor, group: Tensor, weights: Tensor | None = None) -> Tensor:
    r"""$v_i - \sum_{j \ne i} \omega_j v_j / \sum_{j \ne i} \omega_j$ within each group.

    Args:
        values: [N] or [N, T].
        group: [N].
        weights: [N] positive; None: plain leave-one-out.

    Returns:
        The shape of `values`; values themselves for a group of one.
    """
    if weights is None and values.ndim == 1:
        return leave_one_out(values, group)
    weights = torch.ones_like(values[:, 0]) if weights is None else weights
    index, count = label(group)
    column = weights.reshape(-1, *[1] * (values.ndim - 1))
    total = segment_sum(column * values, index, count)[index] - column * values
    mass = segment_sum(weights, index, count)[index] - weights
    alone = torch.bincount(index, minlength=count)[index] < 2
    mass = torch.where(alone, 1.0, mass).reshape(column.shape)
    return values - torch.where(alone.reshape(column.shape), 0.0, total / mass)


def advantages(
    total: Tensor, cost: Tensor, mask: Tensor, group: Tensor, *, credit: str = "leave_one_out", level: str = "token",
    cost_is_sampled: bool = False, weights: Tensor | None = None, values: Tensor | None = None, lam: float = 0.95,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    r"""Advantages of one follower on the batch.

    Args:
        total: [N] reward of a completion, paid at its last token (for theta^L with w times the bonus in it).
        cost: [N, T] tau times the regulariser at each token: exact (a function of the prefix, so that only later
            costs are an action's doing) or sampled (of the token, its own included).
        mask: [N, T].
        group: [N] completions with the same prompt.
        credit, level: as in `Config`.
        cost_is_sampled: whether `cost` is the token's own.
        weights: [N] importance ratios: baselines are means under theta^L.
        values: [N, T] of the critic, for gae.
        lam: GAE's lambda.

    Returns:
        [N, T] advantages, and for gae the critic's targets [N, T].
    """
    cost = cost * mask
    if credit == "gae":
        assert values is not None
        inside = mask.bool()
        position = torch.arange(mask.shape[1], device=mask.device)
        end = (position == mask.sum(1, keepdim=True) - 1).to(cost.dtype)
        values = values.detach()
        advantage = discounted_residuals(total[:, None] * end - cost, values, inside, 1.0, lam)
        return advantage * mask, (advantage + values) * mask
    if level == "sequence":
        returns = total - cost.sum(1)
        return weighted_leave_one_out(returns, group, weights)[:, None] * mask, None
    later = cost.flip(1).cumsum(1).flip(1)
    if not cost_is_sampled:
        later = later - cost
    # what is to come after each token; a completion that has ended has nothing to come
    to_go = (total[:, None] - later) * mask
    return weighted_leave_one_out(to_go, group, weights) * mask, None


def policy_loss(
    logp: Tensor, old: Tensor, advantage: Tensor, weight: Tensor, direct: Tensor | None, mask: Tensor, clip: float,
    completions: int,
) -> Tensor:  # fmt: skip
    """A follower's loss on some rows: minus its clipped surrogate plus the direct part of the regulariser.

    Args:
        logp: [n, T] with a graph.
        old: [n, T] log-probabilities when the batch was drawn.
        advantage, weight: [n, T] from `advantages` and `importance` (1 for a follower's own completions).
        direct: [n, T] tau times the exact KL (or k3) with a graph; None when the regulariser is in the rewards.
        mask: [n, T].
        clip: half-width of the ratio's trust interval.
        completions: N, of all rows and processes: the denominators of the parts add up.
    """
    ratio = ((logp - old) * mask).exp()
    terms = clipped_surrogate(ratio, advantage, clip, clip)
    if direct is not None:
        terms = terms + direct
    return (terms * weight * mask).sum() / completions


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
