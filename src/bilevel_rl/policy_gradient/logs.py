"""Log-probabilities that may be -inf: ratios and differences with defined results and no NaN."""

from __future__ import annotations

from torch import Tensor

LOG_ZERO = -1e4  # ours: stands for log 0; finite in every floating-point type
LOG_RATIO_LIMIT = 20.0  # ours: exp(20) = 4.9e8 is representable in 32 bit with room to multiply


def floored(logp: Tensor) -> Tensor:
    """`logp` with -inf replaced by `LOG_ZERO`, where its gradient is 0."""
    return logp.clamp(min=LOG_ZERO)


def log_ratio(new: Tensor, old: Tensor) -> Tensor:
    """log(new/old) in [-20, 20]; 0 where both are log 0. Outside the limits the gradient is 0.

    Example:
        >>> import torch
        >>> inf = torch.inf
        >>> log_ratio(torch.tensor([-1.0, -inf, -inf]), torch.tensor([-2.0, -1.0, -inf])).tolist()
        [1.0, -20.0, 0.0]
    """
    return (floored(new) - floored(old)).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
