"""Rollouts: completions sampled from the policy's exact law, on one padded layout, with their text.

Layout of a batch of N completions with prompts of at most P and completions of at most T tokens:

    ids        [N, P + T]   prompt padded on the left, completion padded on the right
    attention  [N, P + T]   1 on real tokens; made from lengths, never by comparing with the padding id
    mask       [N, T]       1 on tokens that the policy sampled, the end token among them; 0 on padding and on *given* tokens
                            (an environment's observation, a tool's answer) that stand between the policy's own

Given tokens are read by every model and part of the text, but no one's choice: they have no log-probability, no KL, no
advantage. A row ends with a token of the policy's, where its reward is paid.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bilevel_rl.errors import InvalidProblem, message
from bilevel_rl.llm.data.prompts import Prompt
from bilevel_rl.llm.data.templates import completion_texts


@dataclasses.dataclass(frozen=True)
class Rollout:
    """Completions of one policy.

    Attributes:
        prompts: N prompts, one a row (a prompt with several completions is repeated).
        ids: [N, P + T] token ids.
        attention: [N, P + T] 1 on real tokens.
        lengths: [N] real completion tokens, given ones included.
        ended: [N] whether a stop id ended the completion; False means truncated at the limit.
        logp: [N, T] log-probability under the law that sampled, in nats; 0 on padding.
        group: [N] index of the row's prompt in the batch.
        texts: N completions as a reward function receives them (strings, messages, or ids without a tokenizer).
        mask: [N, T] 1 where the policy sampled, in the type of `logp`; None: at every real token.
        extras: fields of `Batch` that were found out while sampling, [N, ...].
    """

    prompts: Sequence[Prompt]
    ids: Tensor
    attention: Tensor
    lengths: Tensor
    ended: Tensor
    logp: Tensor
    group: Tensor
    texts: Sequence[Any] = ()
    mask: Tensor = None  # type: ignore[assignment]  # made from lengths
    extras: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.mask is None:
            object.__setattr__(self, "mask", self.real)

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
    def real(self) -> Tensor:
        """[N, T] 1 on real completion tokens, sampled and given."""
        return (torch.arange(self.horizon, device=self.ids.device) < self.lengths[:, None]).to(
            self.logp.dtype
        )

    @property
    def positions(self) -> Tensor:
        """[N, P + T] position ids, counted from each row's first real token."""
        return (self.attention.cumsum(1) - 1).clamp(min=0)

    @property
    def last(self) -> Tensor:
        """[N] index into `ids` of the last real token, which is where the reward is paid."""
        return self.width + self.lengths - 1

    def packed(self, pad_id: int) -> tuple[Tensor, Tensor]:
        """[N, W] ids with each row's real tokens first and `pad_id` behind them, and their attention.

        For models that count positions from the first column: there a row must not know what it is batched with.

        Example:
            >>> rollout = from_pairs([(Prompt((3, 4), ""), (5,)), (Prompt((6,), ""), (7,))], pad_id=0)
            >>> rollout.packed(9)[0].tolist()
            [[3, 4, 5], [6, 7, 9]]
        """
        order = (1 - self.attention).argsort(dim=1, stable=True)
        width = int(self.attention.sum(1).max())
        attention = self.attention.gather(1, order)[:, :width]
        return self.ids.gather(1, order)[:, :width].masked_fill(attention == 0, pad_id), attention

    def rows(self, index: Any) -> Rollout:
        """The rows of a slice or an index tensor."""
        where = range(self.size)[index] if isinstance(index, slice) else [int(i) for i in index]
        return Rollout(
            [self.prompts[i] for i in where], self.ids[index], self.attention[index], self.lengths[index],
            self.ended[index], self.logp[index], self.group[index], [self.texts[i] for i in where] if self.texts else (),
            self.mask[index], {name: value[index] for name, value in self.extras.items()},
        )  # fmt: skip

    def completion_ids(self) -> list[list[int]]:
        """Real completion tokens of each row, as TRL's reward functions receive them."""
        rows = self.completions.tolist()
        return [row[: int(n)] for row, n in zip(rows, self.lengths.tolist(), strict=True)]


def pad_prompts(prompts: Sequence[Prompt], pad_id: int, device: Any = None) -> tuple[Tensor, Tensor]:
    """Left-padded ids [N, P] and attention [N, P] from the prompts' lengths."""
    width = max(len(prompt.ids) for prompt in prompts)
    ids = torch.tensor([[pad_id] * (width - len(p.ids)) + list(p.ids) for p in prompts], device=device)
    attention = torch.tensor([[0] * (width - len(p.ids)) + [1] * len(p.ids) for p in prompts], device=device)
    return ids, attention


def replaced_rows(old: Rollout, rows: Sequence[int], new: Rollout, pad_id: int) -> Rollout:
    """`old` with some rows taken from `new`, in order; the texts are the caller's to write again.

    What the policy did not sample stays marked. Fields found out while sampling are of one call's rows and are left out.
    """
    source = {row: i for i, row in enumerate(rows)}
    prompts = [new.prompts[source[r]] if r in source else old.prompts[r] for r in range(old.size)]
    width = max(old.horizon, new.horizon)
    index = torch.tensor(rows, dtype=torch.long, device=old.ids.device)

    def merged(one: Tensor, two: Tensor, fill: float) -> Tensor:
        one = torch.nn.functional.pad(one, (0, width - one.shape[1]), value=fill)
        two = torch.nn.functional.pad(two, (0, width - two.shape[1]), value=fill)
        return one.index_copy(0, index, two.to(one))

    ids, attention = pad_prompts(prompts, pad_id, old.ids.device)
    lengths = old.lengths.index_copy(0, index, new.lengths)
    real = torch.arange(width, device=old.ids.device) < lengths[:, None]
    return dataclasses.replace(
        assemble(
            prompts, ids, attention, merged(old.completions, new.completions, pad_id), lengths,
            old.ended.index_copy(0, index, new.ended), merged(old.logp, new.logp, 0.0),
            given=real & (merged(old.mask, new.mask, 0.0) == 0),
        ),
        texts=old.texts,
    )  # fmt: skip


def assemble(
    prompts: Sequence[Prompt], ids: Tensor, attention: Tensor, completion: Tensor, lengths: Tensor, ended: Tensor,
    logp: Tensor, tokenizer: Any = None, given: Tensor | None = None,
) -> Rollout:  # fmt: skip
    """A rollout from prompts [N, P] and completions [N, T]; rows with the same prompt share a group number.

    Args:
        prompts, ids, attention: the prompts and their padded layout.
        completion, lengths, ended, logp: see `Rollout`.
        tokenizer: makes the texts.
        given: [N, T] True at tokens that the policy did not sample; None: it sampled all.

    Raises:
        InvalidProblem: a row whose last token was given.

    Example:
        >>> prompt, one = Prompt((3,), ""), torch.ones(1, 1, dtype=torch.long)
        >>> made = assemble([prompt], 3 * one, one, torch.tensor([[5, 6, 7, 0]]), torch.tensor([3]), torch.tensor([True]),
        ...                 torch.zeros(1, 4), given=torch.tensor([[False, True, False, False]]))
        >>> made.mask.tolist(), made.completion_ids()
        ([[1.0, 0.0, 1.0, 0.0]], [[5, 6, 7]])
    """
    real = torch.arange(completion.shape[1], device=completion.device) < lengths[:, None]
    if given is not None:
        _check_ends(given, lengths)
    numbers: dict[tuple[int, ...], int] = {}
    group = torch.tensor([numbers.setdefault(p.ids, len(numbers)) for p in prompts], device=ids.device)
    rollout = Rollout(
        prompts, torch.cat([ids, completion], 1), torch.cat([attention, real.to(attention.dtype)], 1), lengths, ended,
        logp, group, mask=None if given is None else (real & ~given).to(logp.dtype),
    )  # fmt: skip
    return dataclasses.replace(rollout, texts=texts(rollout, tokenizer))


def _check_ends(given: Tensor, lengths: Tensor) -> None:
    ends = given.gather(1, (lengths[:, None] - 1).clamp(min=0))[:, 0]
    if bool(ends.any()):
        raise InvalidProblem(
            message(f"completion {int(ends.nonzero()[0])}", "a last token that was given",
                    "the reward of a row is paid at a sampled token",
                    "End each row with what the policy wrote: cut what comes after")
        )  # fmt: skip


def texts(rollout: Rollout, tokenizer: Any) -> list[Any]:
    """Completions as a reward function receives them: ids, text, or one assistant message."""
    ids = rollout.completion_ids()
    if tokenizer is None:
        return ids
    return [
        [{"role": "assistant", "content": text}] if prompt.conversational else text
        for prompt, text in zip(rollout.prompts, completion_texts(tokenizer, ids), strict=True)
    ]


def from_pairs(
    rows: Sequence[tuple[Prompt, Sequence[int]]], pad_id: int, device: Any = None, tokenizer: Any = None
) -> Rollout:
    """A rollout from given completions (stored preferences); log-probabilities are 0, and not to be used."""
    prompts = [prompt for prompt, _ in rows]
    ids, attention = pad_prompts(prompts, pad_id, device)
    horizon = max(len(c) for _, c in rows)
    completion = torch.tensor([list(c) + [pad_id] * (horizon - len(c)) for _, c in rows], device=device)
    lengths = torch.tensor([len(c) for _, c in rows], device=device)
    zeros = torch.zeros(len(rows), horizon, device=device)
    return assemble(prompts, ids, attention, completion, lengths, lengths < 0, zeros, tokenizer)
