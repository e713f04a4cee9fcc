"""Whom the leader asks: an oracle of pairwise labels and of scores, in the engine's own terms."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bilevel_rl.errors import BilevelError


class LabelsPending(BilevelError):
    """A judge has no answers yet (a human queue): the loop saves, stops, and asks again on resume."""


class Labels(abc.ABC):
    """Answers about rows, and pairs of rows that are kept.

    Attributes:
        stored: pairs known from the start, (preferred, other), in the engine's own form.
    """

    stored: Sequence[Any] = ()

    @property
    def overlaps(self) -> bool:
        """Whether answers may be asked for while something else is computed: they depend on nothing but the rows."""
        return False

    @abc.abstractmethod
    def answers(self, rows: Any, pairs: Tensor) -> Tensor:
        """[M] 0 or 1, the preferred row of each of the pairs [M, 2], or -1 where there is no answer.

        Raises:
            LabelsPending: there are no answers yet.
        """

    def gold(self, rows: Any) -> Tensor | None:
        """[n] the score of each row; None: nobody can be asked."""
        return None

    def cost(self, rows: Any) -> Tensor | None:
        """[n] what a second judge charges for each row; None: there is none."""
        return None

    def contents(self, rows: Any) -> Sequence[Any]:
        """What is judged of each row, for telling equal ones; empty: rows are never equal."""
        return ()

    def kept(self, rows: Any, pairs: Tensor) -> list[Any]:
        """Pairs of rows as they are kept for later."""
        return []

    @abc.abstractmethod
    def rows(self, pairs: Sequence[Any]) -> tuple[Any, Any]:
        """Kept pairs as rows: the preferred ones, and the others."""

    def dump(self, pairs: Sequence[Any]) -> list[Any]:
        """Kept pairs as JSON values."""
        return list(pairs)

    def load(self, values: Sequence[Any]) -> list[Any]:
        """What `dump` gave, back."""
        return list(values)


def choose_pairs(group: Tensor, count: int, seed: int, step: int, contents: Sequence[Any] = ()) -> Tensor:
    """[count, 2] disjoint pairs of rows of one group, a function of (seed, step), the groups and the contents alone.

    Args:
        group: [N] group of each row.
        count: pairs wanted; fewer come back when the groups have no more.
        seed, step: of the draw.
        contents: N contents; a pair of equal ones tells nothing and is left out, before it costs a label.
    """
    random = np.random.default_rng([seed, 0x9A125, step])
    pairs = []
    groups = group.cpu().numpy()
    for g in np.unique(groups):
        rows = random.permutation(np.flatnonzero(groups == g))
        pairs += [rows[i : i + 2] for i in range(0, len(rows) - 1, 2)]
    if len(contents):
        pairs = [pair for pair in pairs if contents[pair[0]] != contents[pair[1]]]
    chosen = random.permutation(len(pairs))[:count]
    if not len(chosen):
        return torch.empty(0, 2, dtype=torch.long)
    return torch.from_numpy(np.stack([pairs[i] for i in chosen]).astype(np.int64))
