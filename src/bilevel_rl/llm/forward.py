"""How a Torch module is called: in which precision, whether its layers recompute, whether its weights are in pieces."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn


@contextlib.contextmanager
def precision(dtype: str, device: torch.device) -> Iterator[None]:
    """bfloat16: autocast of the forward passes; otherwise nothing."""
    if dtype == "bfloat16":
        with torch.autocast(device.type, torch.bfloat16):
            yield
    else:
        yield


@contextlib.contextmanager
def recomputing(model: nn.Module) -> Iterator[None]:
    """Let checkpointing layers checkpoint, when a graph is being built.

    transformers checkpoints in training mode only, and then drops the KV cache. Here the mode of the layer alone is
    switched, not of its children: dropout stays off, and sampling keeps its cache.
    """
    layers = [m for m in model.modules() if getattr(m, "gradient_checkpointing", False)]
    if not torch.is_grad_enabled():
        layers = []
    for layer in layers:
        layer.training = True
    try:
        yield
    finally:
        for layer in layers:
            layer.training = False


def is_sharded(module: nn.Module) -> bool:
    """Whether `shard` has been here: the module must then be called as a whole, for its weights to be gathered."""
    from torch.distributed.fsdp import FSDPModule

    return isinstance(module, FSDPModule)
