"""Reductions over segments (groups, turns, state keys), written once, without loops, on any device and
precision.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from bilevel_rl.policy_gradient.batch import Batch


def label(*keys: Tensor) -> tuple[Tensor, int]:
    """Number the distinct combinations of integer keys 0, 1, ...; the count comes second.

    Args:
        keys: integer tensors of one shape.

    Example:
        >>> label(torch.tensor([7, 7, 3]), torch.tensor([1, 1, 1]))
        (tensor([1, 1, 0]), 2)
    """
    index, count = keys[0].new_zeros(keys[0].shape), 1
    for key in keys:
        distinct, inverse = torch.unique(key, return_inverse=True)
        index, count = index * max(len(distinct), 1) + inverse, len(distinct)
        if len(keys) > 1:
            distinct, index = torch.unique(index, return_inverse=True)
            count = len(distinct)
    return index, count


def label_tokens(batch: Batch, *keys: Tensor) -> tuple[Tensor, int]:
    """Number the distinct key combinations of the action tokens; everything else gets the number `count`.

    Args:
        batch: supplies the mask.
        keys: [N] or [N, T] integer tensors.

    Returns:
        [N, T] labels in 0..count, and count. Reduce with `count + 1` segments and drop the last.
    """
    inside = batch.mask
    flat = [(key if key.ndim == 2 else key[:, None].expand_as(inside))[inside] for key in keys]
    index, count = label(*flat)
    labels = torch.full(inside.shape, count, dtype=torch.long, device=inside.device)
    labels[inside] = index
    return labels, count


def segment_sum(values: Tensor, index: Tensor, count: int) -> Tensor:
    """Sum of `values` [..., M] over segments of `index` [...]: the result is [count, M] (or [count])."""
    tail = values.shape[index.ndim :]
    out = values.new_zeros((count, *tail))
    return out.index_add(0, index.reshape(-1), values.reshape(-1, *tail))


def segment_size(index: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    """[count]: number of members of each segment, as `dtype`."""
    return torch.bincount(index.reshape(-1), minlength=count).to(dtype)


def segment_mean(values: Tensor, index: Tensor, count: int) -> Tensor:
    """Mean over segments; an empty segment has mean 0."""
    size = segment_size(index, count, values.dtype).clamp(min=1)
    total = segment_sum(values, index, count)
    return total / size.reshape(-1, *([1] * (total.ndim - 1)))


def segment_max(values: Tensor, index: Tensor, count: int) -> Tensor:
    """[count]: largest of `values` (same shape as `index`); an empty segment has -inf."""
    out = values.new_full((count,), -torch.inf)
    return out.scatter_reduce(0, index.reshape(-1), values.reshape(-1), "amax")


def segment_min(values: Tensor, index: Tensor, count: int) -> Tensor:
    """[count]: smallest of `values`; an empty segment has +inf."""
    return -segment_max(-values, index, count)


def centred(values: Tensor, index: Tensor, count: int) -> Tensor:
    """`values` minus the mean of their segment; exactly 0 where all members of a segment are equal."""
    highest = segment_max(values, index, count)
    constant = (highest == segment_min(values, index, count))[index]
    return torch.where(constant, 0, values - segment_mean(values, index, count)[index])


def segment_std(values: Tensor, index: Tensor, count: int, ddof: int = 0) -> Tensor:
    """[count]: standard deviation of each segment; exactly 0 when all members are equal (or there is only
    one).
    """
    spread = segment_sum(centred(values, index, count).square(), index, count)
    return (spread / (segment_size(index, count, values.dtype) - ddof).clamp(min=1)).sqrt()


def scaled(deviation: Tensor, index: Tensor, count: int, eps: float, ddof: int) -> Tensor:
    """`centred` values in units of their segment's standard deviation plus `eps`; 0 stays 0 whatever the spread."""
    spread = segment_std(deviation, index, count, ddof)[index] + eps
    return torch.where(deviation == 0, 0, deviation / torch.where(deviation == 0, 1, spread))


def members(index: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Rows of each segment side by side.

    Returns:
        [count, k] row numbers, k the size of the largest segment (0 where there is none), and [count, k]
        bool that tells which are real.
    """
    size = torch.bincount(index, minlength=count)
    order = torch.argsort(index, stable=True)
    width = int(size.max()) if count else 0
    column = torch.arange(width, device=index.device)
    real = column < size[:, None]
    start = torch.cumsum(size, 0) - size
    position = torch.where(real, start[:, None] + column, 0)
    return (order[position] if len(order) else position), real


def rank_in_segment(values: Tensor, index: Tensor, tie: Tensor | None = None) -> Tensor:
    """[M]: position of each of `values` [M] in its segment, largest first; ties by `tie` (smaller first),
    then order.
    """
    order = torch.arange(len(values), device=values.device)
    if tie is not None:
        order = order[torch.argsort(tie, stable=True)]
    order = order[torch.argsort(values[order], descending=True, stable=True)]
    order = order[torch.argsort(index[order], stable=True)]
    size = torch.bincount(index, minlength=int(index.max()) + 1 if len(index) else 0)
    start = torch.cumsum(size, 0) - size
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(values), device=values.device) - start[index[order]]
    return rank


# -- turns --------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Turns:
    """The action tokens of a batch by turn: U = 1 + the largest turn index.

    Attributes:
        turn: [N, T] turn of each token, clipped to 0 outside the mask.
        mask: [N, T] the batch's.
        valid: [N, U] bool, the turn has an action token.
        first: [N, U] position of its first action token (0 where there is none).
    """

    turn: Tensor
    mask: Tensor
    valid: Tensor
    first: Tensor

    @classmethod
    def of(cls, batch: Batch) -> Turns:
        """Turns of a batch; without the field `turn` a response is one turn."""
        n, t = batch.mask.shape
        zero = torch.zeros((n, t), dtype=torch.long, device=batch.mask.device)
        turn = zero if batch.turn is None else torch.where(batch.mask, batch.turn, 0)
        width = int(turn.max()) + 1 if turn.numel() else 1
        position = torch.arange(t, device=turn.device).expand(n, t)
        far = torch.where(batch.mask, position, t)
        first = torch.full((n, width), t, dtype=torch.long, device=turn.device)
        first = first.scatter_reduce(1, turn, far, "amin") if t else first
        return cls(turn, batch.mask, first < t, torch.where(first < t, first, 0))

    def sum(self, values: Tensor) -> Tensor:
        """[N, T] -> [N, U]: sum over the action tokens of each turn."""
        out = values.new_zeros(self.valid.shape)
        return out.scatter_add(1, self.turn, torch.where(self.mask, values, 0))

    def mean(self, values: Tensor) -> Tensor:
        """[N, T] -> [N, U]: mean over the action tokens of each turn; 0 for none."""
        return self.sum(values) / self.sum(torch.ones_like(values)).clamp(min=1)

    def at_first(self, values: Tensor) -> Tensor:
        """[N, T] -> [N, U]: the value at the first action token of each turn; 0 where there is none."""
        if not values.shape[1]:
            return values.new_zeros(self.valid.shape)
        return torch.where(self.valid, values.gather(1, self.first), 0)

    def spread(self, values: Tensor) -> Tensor:
        """[N, U] -> [N, T]: the turn's value at each of its action tokens, 0 elsewhere."""
        return torch.where(self.mask, values.gather(1, self.turn), 0)


def turn_returns(reward: Tensor, valid: Tensor, gamma: float) -> Tensor:
    """[N, U]: discounted sum of the turn rewards from each turn on."""
    out, follow = torch.zeros_like(reward), reward.new_zeros(len(reward))
    for u in reversed(range(reward.shape[1])):
        follow = torch.where(valid[:, u], reward[:, u] + gamma * follow, follow)
        out[:, u] = torch.where(valid[:, u], follow, 0)
    return out


# -- means that know about masks ----------------------------------------------------------------------------


def masked_sum(values: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Sum over the positions where `mask` holds; what is elsewhere (even NaN) is not read."""
    kept = torch.where(mask, values, 0)
    return kept.sum() if dim is None else kept.sum(dim)


def masked_mean(values: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Mean over the positions where `mask` holds; 0 where there are none."""
    size = mask.sum() if dim is None else mask.sum(dim)
    return masked_sum(values, mask, dim) / size.clamp(min=1)


def masked_std(values: Tensor, mask: Tensor) -> Tensor:
    """Population standard deviation over the positions where `mask` holds; 0 for none or one."""
    return masked_mean((values - masked_mean(values, mask)).square(), mask).sqrt()


# -- random choices that do not depend on the order of rows -------------------------------------------------


def token_noise(batch: Batch, seed: int) -> Tensor:
    """[N, T] uniform numbers in [0, 1), a pure function of seed, iteration, trajectory id and position.

    Permuting rows permutes the numbers, and a resumed run draws the same ones.
    """
    t = batch.mask.shape[1]
    position = torch.arange(t, device=batch.mask.device)
    return uniform_hash(seed, batch.iteration, batch.trajectory[:, None], position[None, :])


def uniform_hash(seed: int, *keys: int | Tensor) -> Tensor:
    """Uniform numbers in [0, 1) with 31 random bits, from integer keys that broadcast together."""
    state = torch.as_tensor(_mix_int(seed))
    for key in keys:
        key = torch.as_tensor(key)
        state = (
            _mix(state.to(key.device) ^ (key.long() * 0x9E3779B1 & 0x7FFFFFFF))
            if key.ndim
            else _mix(state ^ (int(key) * 0x9E3779B1 & 0x7FFFFFFF))
        )
    return state.to(torch.float64) / 2147483648.0


def _mix(x: Tensor) -> Tensor:
    # 31-bit integer hash with shifts, xors and products that stay inside 62 bits
    for factor in (0x45D9F3B, 0x3C6EF35F, 0x119DE1F3):
        x = ((x >> 15) ^ x) * factor & 0x7FFFFFFF
    return (x >> 16) ^ x


def _mix_int(x: int) -> int:
    return int(_mix(torch.tensor(x & 0x7FFFFFFF)))
