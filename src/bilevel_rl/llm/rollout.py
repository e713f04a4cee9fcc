"""Rollouts: completions sampled from the policy's exact law, on one padded layout, with their text.

Layout of a batch of N completions with prompts of at most P and completions of at most T tokens:

    ids        [N, P + T]   prompt padded on the left, completion padded on the right
    attention  [N, P + T]   1 on real tokens; made from lengths, never by comparing with the padding id
    mask       [N, T]       1 on real completion tokens, the end token among them
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from bilevel_rl.llm.prompts import Prompt


@dataclasses.dataclass(frozen=True)
class Rollout:
    """Completions of one policy.

    Attributes:
        prompts: N prompts, one a row (a prompt with several completions is repeated).
        ids: [N, P + T] token ids.
        attention: [N, P + T] 1 on real tokens.
        lengths: [N] real completion tokens.
        ended: [N] whether a stop id ended the completion; False means truncated at the limit.
        logp: [N, T] log-probability under the law that sampled, in nats; 0 on padding.
        group: [N] index of the row's prompt in the batch.
        texts: N completions as a reward function receives them (strings, messages, or ids without a tokenizer).
    """

    prompts: Sequence[Prompt]
    ids: Tensor
    attention: Tensor
    lengths: Tensor
    ended: Tensor
    logp: Tensor
    group: Tensor
    texts: Sequence[Any] = ()

    @property
    def size(self) -> int:
        """N, the number of completions."""
        return self.ids.shape[0]

    @property
    def horizon(self) -> int:
        """T, the width of the completion part."""
        return self.logp.shape[1]

    @property
    def width(self) -> int:
        """P, the width of the prompt part."""
        return self.ids.shape[1] - self.horizon

    @property
    def completions(self) -> Tensor:
        """[N, T] completion ids."""
        return self.ids[:, self.width :]

    @property
    def mask(self) -> Tensor:
        """[N, T] 1 on real completion tokens."""
        return (torch.arange(self.horizon, device=self.ids.device) < self.lengths[:, None]).to(self.logp.dtype)

    @property
    def positions(self) -> Tensor:
        """[N, P + T] position ids, counted from each row's first real token."""
        return (self.attention.cumsum(1) - 1).clamp(min=0)

    @property
    def last(self) -> Tensor:
        """[N] index into `ids` of the last real token, which is where the reward is paid."""
        return self.width + self.lengths - 1

    def rows(self, index: Any) -> Rollout:
        """The rows of a slice or an index tensor."""
        where = range(self.size)[index] if isinstance(index, slice) else [int(i) for i in index]
        return Rollout(
            [self.prompts[i] for i in where], self.ids[index], self.attention[index], self.lengths[index],
            self.ended[index], self.logp[index], self.group[index], [self.texts[i] for i in where] if self.texts else (),
        )  # fmt: skip

    def completion_ids(self) -> list[list[int]]:
        """Real completion tokens of each row, as TRL's reward functions receive them."""
        rows = self.completions.tolist()
        return [row[: int(n)] for row, n in zip(rows, self.lengths.tolist(), strict=True)]


class Generator(Protocol):
    """Samples completions. `Sampler` is ours; an inference server can take its place.

    A generator must sample from the policy's untruncated law (no top-p, no top-k).
    """

    def __call__(self, model: Any, prompts: Sequence[Prompt], uniforms: Tensor) -> Rollout:
        """Sample one completion of each prompt.

        Args:
            model: the policy, called as `model(input_ids=..., attention_mask=..., position_ids=...)`.
            prompts: N prompts.
            uniforms: [N, T] numbers in [0, 1), one a token: the only randomness.

        Returns:
            A rollout with horizon at most T.
        """
        ...


def uniforms(rows: int, horizon: int, *stream: int) -> Tensor:
    """[rows, horizon] uniform numbers (float64), a function of the integers `stream` alone: (seed, name, step)."""
    return torch.from_numpy(np.random.default_rng(list(stream)).random((rows, horizon)))
