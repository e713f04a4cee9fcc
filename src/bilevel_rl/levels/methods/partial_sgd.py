"""Partial SGD: x descends grad_x f on fresh rows, as if the policy did not answer x (the usual online fitting)."""

from __future__ import annotations

import dataclasses

from bilevel_rl.levels.methods.base import Method


@dataclasses.dataclass(frozen=True)
class PartialSGD(Method):
    """theta ascends J, x descends grad_x f: the defaults of `Method`."""
