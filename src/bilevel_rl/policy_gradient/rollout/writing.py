"""`Written` and `Writer`: rows as the rollout slot sees them while they are generated, and who generates them.

A component of the slot that generates in a way of its own has a method

    write(writer, ask, plan, written) -> Written

which is given what those before it wrote (None: nothing yet) and may begin rows, go on from any prefix of a row, or add
what it has found out about rows as fields of the batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Written:
    """Rows of actions.

    Attributes:
        start: [N] the start that each row answers.
        tokens: [N, T] actions and what an environment gave between them; 0 behind the end.
        mask: [N, T] bool, the policy's own.
        length: [N] real tokens.
        ended: [N] bool, ended by itself.
        logp: [N, T] log-probability under the law that drew them; 0 where nothing was drawn.
        fields: fields of `Batch` found out on the way, [N, ...].
    """

    start: Tensor
    tokens: Tensor
    mask: Tensor
    length: Tensor
    ended: Tensor
    logp: Tensor
    fields: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.start)

    @property
    def width(self) -> int:
        """T."""
        return self.tokens.shape[1]

    def rows(self, index: Tensor) -> Written:
        """The rows at `index`, in that order.

        Example:
            >>> Written.given(torch.tensor([4, 5]), [(1, 2), (3,)]).rows(torch.tensor([1, 1])).tokens.tolist()
            [[3, 0], [3, 0]]
        """
        own = {f.name: getattr(self, f.name)[index] for f in dataclasses.fields(self) if f.name != "fields"}
        return Written(**own, fields={name: value[index] for name, value in self.fields.items()})

    def knowing(self, **fields: Tensor) -> Written:
        """The same rows with further fields."""
        return dataclasses.replace(self, fields={**self.fields, **fields})

    @classmethod
    def given(cls, start: Tensor, rows: Sequence[Sequence[int]]) -> Written:
        """Rows that nobody drew (parts of solutions), as something to go on from: all tokens count as the policy's own."""
        length = torch.tensor([len(row) for row in rows], dtype=torch.long)
        width = int(length.max()) if len(rows) else 0
        padded = [[*row, *[0] * (width - len(row))] for row in rows]
        tokens = torch.tensor(padded, dtype=torch.long).reshape(len(rows), width)
        mask = torch.arange(width) < length[:, None]
        return cls(start, tokens, mask, length, torch.zeros(len(rows), dtype=torch.bool), torch.zeros(len(rows), width))


class Writer(Protocol):
    """Who generates: an engine, on behalf of the follower whose turn it is.

    Attributes:
        horizon: most tokens of a row.
    """

    horizon: int

    def write(
        self, start: Tensor, begin: Written | None = None, keep: Tensor | None = None, limit: int | None = None
    ) -> Written:
        """Rows of these starts [N], from their beginning or going on from prefixes.

        Args:
            start: [N].
            begin: N rows to go on from; None: from the beginning. Their fields are dropped.
            keep: [N] tokens kept of each of them; a row that has ended and is kept whole stays as it is.
            limit: new tokens a row at most; None: up to the horizon.
        """
        ...

    def rewards(self, written: Written) -> Tensor:
        """[N] r_x of each row."""
        ...

    def shown(self, start: int) -> tuple[int, ...]:
        """The solution that is known for a start; () where there is none."""
        ...

    def field(self, name: str, written: Written) -> Tensor:
        """A field that the task knows of rows, such as `turn` [N, T]."""
        ...

    def probe(self, written: Written, keep: Tensor, tail: str) -> tuple[Tensor, Tensor]:
        """What the policy would answer if it had to answer after the first `keep` [N] tokens of each row.

        Args:
            written: rows.
            keep: [N].
            tail: the words that ask for the answer.

        Returns:
            [N] mean probability of the gold answer's tokens, and [N] mean exp(-entropy) of the answer that it draws.
        """
        ...


def joined(parts: Sequence[Written]) -> Written:
    """Rows of several, padded to the widest; fields that not all of them have are dropped."""
    width = max(part.width for part in parts)

    def wide(x: Tensor, own: int) -> Tensor:
        along = x.ndim >= 2 and x.shape[1] == own
        return torch.cat([x, x.new_zeros((len(x), width - own, *x.shape[2:]))], 1) if along else x

    names = [f.name for f in dataclasses.fields(Written) if f.name != "fields"]
    own = {name: torch.cat([wide(getattr(part, name), part.width) for part in parts]) for name in names}
    shared = set.intersection(*(set(part.fields) for part in parts))
    fields = {name: torch.cat([wide(part.fields[name], part.width) for part in parts]) for name in sorted(shared)}
    return Written(**own, fields=fields)
