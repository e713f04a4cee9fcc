"""Checks of what a run computes: a number that is no number stops it, with the quantity and the iteration named."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from bilevel_rl.errors import NonFiniteState, message


def check_finite(quantity: str, value: Tensor, k: int) -> None:
    """Raise `NonFiniteState` on NaN or infinity, naming the quantity and the iteration."""
    if not bool(torch.isfinite(value.detach()).all()):
        kind = "NaN" if bool(torch.isnan(value.detach()).any()) else "infinity"
        raise NonFiniteState(
            message(f"{quantity}, iteration {k}", kind, "every quantity must stay finite",
                    "Lower alpha or zeta or raise w, then continue from the last checkpoint (resume=auto), or start again")
        )  # fmt: skip


@contextlib.contextmanager
def during(what: str, k: int) -> Iterator[None]:
    """A `NonFiniteState` that leaves this block names what was being done and the iteration."""
    try:
        yield
    except NonFiniteState as error:
        raise NonFiniteState(f"{what}, iteration {k}: {error}") from error
