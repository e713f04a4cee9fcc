"""SPO: credit by segments of tokens, from Monte-Carlo values at the cut points (chain) or a tree of them."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from bilevel_rl.policy_gradient.batch import Batch
from bilevel_rl.policy_gradient.component import Card, Effect, Scope, Slot, Status
from bilevel_rl.policy_gradient.credit.sums import Credit
from bilevel_rl.policy_gradient.segments import label, segment_mean


def cut_segments(logp: Tensor, mask: Tensor, threshold: float, interval: int) -> Tensor:
    r"""[N, T] segment numbers: a segment ends after `interval` cut points, tokens with $\pi(y_t)$ below the
    threshold.

    Example:
        >>> logp = torch.log(torch.tensor([[0.5, 0.99, 0.5, 0.5]]))
        >>> cut_segments(logp, torch.ones(1, 4, dtype=torch.bool), 0.9, 2)
        tensor([[0, 0, 0, 1]])
    """
    cut = mask & (logp.exp() < threshold)
    before = torch.cumsum(cut.long(), 1) - cut.long()
    return before // interval


def chain_advantage(value: Tensor, segment: Tensor, mask: Tensor, final: Tensor) -> Tensor:
    r"""$A_k = \hat V(t_{k+1}) - \hat V(t_k)$ at every token of segment k, $\hat V$ at the end being the
    reward.

    Args:
        value: [N, T], the Monte-Carlo value of the prefix before each token; read at the first token of
            segments.
        segment: [N, T] non-decreasing along action tokens.
        mask: [N, T] bool.
        final: [N] rewards.

    Returns:
        [N, T]; over the segments of a row they sum to the reward minus the first value.
    """
    out = torch.zeros_like(value)
    n, t = mask.shape
    ahead = final.to(value.dtype)  # value where the segment after the current one starts
    start = ahead  # value at the first token seen so far of the current segment
    current = torch.full((n,), -1, dtype=torch.long, device=mask.device)
    starts = torch.zeros_like(value)
    for k in reversed(range(t)):
        here = mask[:, k]
        new = here & (segment[:, k] != current)
        ahead = torch.where(new, start, ahead)
        current = torch.where(here, segment[:, k], current)
        start = torch.where(here, value[:, k], start)
        out[:, k] = torch.where(here, ahead, 0)
    first = torch.zeros_like(ahead)
    current = torch.full((n,), -1, dtype=torch.long, device=mask.device)
    for k in range(t):
        here = mask[:, k]
        new = here & (segment[:, k] != current)
        first = torch.where(new, value[:, k], first)
        current = torch.where(here, segment[:, k], current)
        starts[:, k] = torch.where(here, first, 0)
    return torch.where(mask, out - starts, 0)


@dataclasses.dataclass(frozen=True)
class SegmentChain(Credit):
    r"""Segment-level advantages from Monte-Carlo values of prefixes.

    $$A_{seg,k} = \hat V(t_{k+1}) - \hat V(t_k)$$

    `prefix_value` [N, T] is the mean return of rollouts from before each token; only its values at the
    first tokens of segments are read. Segments are cut from `old` (or given as the extra `segment` [N, T]).

    Args:
        threshold: tokens with a smaller probability are cut points.
        interval: cut points a segment.

    References:
        Segment Policy Optimization: Effective Segment-Level Credit Assignment in RL for Large Language
        Models, arXiv 2505.23564. SEEN (public repository). Keeps the objective; the release's mask of confident
        tokens is `weigh=probability_mask`. Cost: two scans over T; the rollouts cost far more.
    """

    threshold: float = 0.9
    interval: int = 5

    card: ClassVar[Card] = Card(
        name="segment_chain",
        slot=Slot.CREDIT,
        effect=Effect.KEEPS,
        needs=("reward", "old", "prefix_value"),
        scope=Scope.RESPONSE,
        source="Segment Policy Optimization: Effective Segment-Level Credit Assignment in RL for LLMs",
        status=Status.SEEN,
        number=40,
        cost="O(NT), T sequential steps, + rollouts from every cut point",
        note="with independent prefix values",
    )

    def __call__(self, batch: Batch) -> Tensor:
        """[N, T] advantages."""
        old, value = self.card.take(batch, "old", "prefix_value")
        segment = batch.extras.get("segment")
        if segment is None:
            segment = cut_segments(old.detach(), batch.mask, self.threshold, self.interval)
        return chain_advantage(value.detach(), segment, batch.mask, batch.score)


@dataclasses.dataclass(frozen=True)
class SegmentTree(Credit):
    r"""Advantages in a tree of segments: the value of a node is the mean reward of the leaves below it.

    $$A = \hat V(\mathrm{child}) - \hat V(\mathrm{parent})$$

    The extra `path` [N, D] numbers the node of each response at each depth (siblings differ, shared
    prefixes agree), and `depth` [N, T] says which of them each token belongs to. A response repeats the
    tokens that it shares with others.

    References:
        As `SegmentChain`. SEEN. Siblings sum to zero where every node has equally many leaves, paths
        telescope. Cost: D sorts.
    """

    card: ClassVar[Card] = Card(
        name="segment_tree",
        slot=Slot.CREDIT,
        effect=Effect.KEEPS,
        needs=("reward", "group", "path", "depth"),
        source="Segment Policy Optimization: Effective Segment-Level Credit Assignment in RL for LLMs",
        status=Status.SEEN,
        number=40,
        cost="O(NT) + D sorts of the responses",
        note="the parent's value contains the child's own leaves: (k-1)/k of the leave-one-out scale, "
        "as for group_mean",
    )

    def __call__(self, batch: Batch) -> Tensor:
        """[N, T] advantages."""
        path, depth = self.card.take(batch, "path", "depth")
        index, count = label(batch.group)
        above = segment_mean(batch.score, index, count)[index]
        gains = []
        for node in path.unbind(1):
            index, count = label(index, node)
            here = segment_mean(batch.score, index, count)[index]
            gains.append(here - above)
            above = here
        gain = torch.stack(gains, 1)
        return torch.where(batch.mask, gain.gather(1, depth.clamp(0, path.shape[1] - 1)), 0)
