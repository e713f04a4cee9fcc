"""Random batches with every field and extra, in 64 bit; one thread."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from bilevel_rl.policy_gradient.batch import Batch
from bilevel_rl.policy_gradient.checks import random_batch

torch.set_num_threads(1)


@pytest.fixture
def make_batch() -> Callable[..., Batch]:
    """The generator of random batches."""
    return random_batch


@pytest.fixture
def batch() -> Batch:
    """The default random batch."""
    return random_batch()
