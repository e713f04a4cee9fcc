"""What a run begins with, as fingerprints: initial weights, data and configuration, and the seed that fixes the first.

Two processes of one run, or a run and its continuation, must have all three in common; a digest tells, in 32 letters.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


@contextlib.contextmanager
def seeded(*stream: int) -> Iterator[None]:
    """Torch draws by the integers `stream` alone, (seed, name), and goes on after as if nothing had been drawn.

    For the initialisers of libraries, which draw from Torch's global generators.

    Example:
        >>> with seeded(3, 0):
        ...     one = torch.rand(2)
        >>> with seeded(3, 0):
        ...     torch.equal(torch.rand(2), one)
        True
    """
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(int(np.random.default_rng(list(stream)).integers(2**63)))
        yield


def of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Digest of names, types, shapes and bits, in the order of the names.

    Example:
        >>> of_tensors({"a": torch.zeros(2)}) == of_tensors({"a": torch.zeros(2, 1)})
        False
    """
    found = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        found.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        found.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def of_values(value: Any) -> str:
    """Digest of plain JSON values; what JSON does not know counts by its text."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
