"""How a Torch module is called: in which precision, whether its layers recompute, whether its weights are in pieces."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


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


def arguments(module: nn.Module) -> set[str]:
    """Names that the module's forward pass takes."""
    return set(inspect.signature(module.forward).parameters)


def context(model: nn.Module) -> int | None:
    """Longest input in tokens, or None where the configuration names none.

    RoBERTa and its kin count positions from behind the padding id, so their table holds fewer tokens than rows.

    Example:
        >>> from transformers import RobertaConfig, RobertaForSequenceClassification
        >>> config = RobertaConfig(vocab_size=8, hidden_size=4, num_hidden_layers=1, num_attention_heads=1,
        ...                        intermediate_size=4, max_position_embeddings=10, pad_token_id=1)
        >>> context(RobertaForSequenceClassification(config))
        8
    """
    config: Any = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    rows = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    if rows is None:
        return None
    table = next((m for name, m in model.named_modules() if name.endswith("position_embeddings")), None)
    first = getattr(table, "padding_idx", None)
    return int(rows) - (0 if first is None else first + 1)


def without(logits: Tensor, unheld: Tensor | None) -> Tensor:
    """Logits [..., V] with minus infinity where `unheld` [V] is True."""
    return logits if unheld is None else logits.masked_fill(unheld.to(logits.device), -torch.inf)
