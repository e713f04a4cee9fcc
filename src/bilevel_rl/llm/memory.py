"""How much memory a run will hold, before it starts: counted where it can be, measured where not."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn

from bilevel_rl.errors import require
from bilevel_rl.llm.config import Config
from bilevel_rl.llm.roles.backend import FullRoles, LoraRoles, Roles


@dataclasses.dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that a run will need, before it starts.

    Attributes:
        weights: all weights, trained and frozen.
        training: gradients and optimiser state of what trains.
        logits: the vocabulary-wide tensors of one forward and backward pass.
        activations: what the blocks keep for it; 0 where the model does not tell its layers and width.
        passing: gradients of vocabulary-wide tensors, while the backward pass is there.
    """

    weights: int
    training: int
    logits: int
    activations: int
    passing: int = 0

    @property
    def total(self) -> int:
        """Their sum."""
        return self.weights + self.training + self.logits + self.activations + self.passing

    def __str__(self) -> str:
        g = 2**30
        return (
            f"about {self.total / g:.2f} GiB: weights {self.weights / g:.2f}, gradients and optimiser "
            f"{self.training / g:.2f}, logits {(self.logits + self.passing) / g:.2f}, activations {self.activations / g:.2f}"
        )


KEPT = 30  # ours: numbers kept a token, layer and width; measured 30.7 for GPT-2 and 21.8 for Llama without adapters


def estimate_memory(config: Config, roles: Roles, rows: int, size: int | None) -> MemoryEstimate:
    """How much memory a run with these roles will hold.

    Args:
        config: precision, optimiser, micro-batch, horizon.
        roles: counts the weights.
        rows: completions of this process in one forward pass.
        size: of the vocabulary, or None.
    """
    each = _fine(config)
    trained = [p for role in roles.names for p in roles.parameters(role).values()]
    own = sum(p.numel() * p.element_size() for p in trained)
    training = own + (sum(p.numel() * _state(p) for p in trained) if config.optimizer == "adam" else 0)
    policies = (1 + config.uses_penalised) if not config.micro_batch else 1
    logits = vocabulary_bytes(config, rows, size or 0)
    graphs = policies * (2 if "critic" in roles.names and not config.micro_batch else 1)
    tokens = rows * (config.max_prompt_tokens + config.max_new_tokens)
    held = 2 if config.weights == "bfloat16" or config.quantised else each  # what the blocks keep is of the weights' type
    activations = graphs * tokens * _kept(roles, config.gradient_checkpointing) * held
    passing = passing_bytes(config, rows, size or 0)
    return MemoryEstimate(own + _frozen(config, roles), training, logits, activations, passing)


def vocabulary_bytes(config: Config, rows: int, size: int) -> int:
    """Bytes of the vocabulary-wide tensors of a pass with a graph."""
    each = _fine(config)
    policies = (1 + config.uses_penalised) if not config.micro_batch else 1
    # log p, p and log p - log q are kept for each policy in the graph, and the reference's law
    return rows * config.max_new_tokens * size * each * (3 * policies + 2)


PASSING = 1.25  # measured on an H200 (docs/llm/gpu.md): 1.24 tensors of a row, from the peaks with 4 and with 32 rows


def passing_bytes(config: Config, rows: int, size: int) -> int:
    """Bytes of the gradients of vocabulary-wide tensors at the height of a backward pass."""
    each = _fine(config)
    return int(rows * config.max_new_tokens * size * each * PASSING)


def _fine(config: Config) -> int:
    """Bytes of a number of the vocabulary's statistics, which are 32-bit at least."""
    return 8 if config.dtype == "float64" else 4


def _state(p: torch.Tensor) -> int:
    """Bytes of Adam a trained number: two moments, and a master where the number itself is coarse."""
    fine = max(4, p.element_size())
    return 2 * fine + (fine if p.element_size() < 4 else 0)


def _frozen(config: Config, roles: Roles) -> int:
    """Bytes of the frozen weights, each storage once; a base in few bits is what its linear layers will shrink to."""
    if not roles.has_reference and config.backend == "full":
        return 0
    bits = {"4bit": 4.127, "8bit": 8.0}.get(config.quantised)  # NF4 with double quantisation; Dettmers et al., 2023
    frozen = {id(p): p for p in roles.standing().parameters() if not p.requires_grad}
    linear = {
        id(getattr(m, "base_layer", m).weight) for name, m in roles.standing().named_modules()
        if isinstance(getattr(m, "base_layer", m), nn.Linear) and "head" not in name
    }  # fmt: skip
    total = 0.0
    for key, p in frozen.items():
        p = p.to_local() if hasattr(p, "to_local") else p  # of a sharded base, the part that this process keeps
        total += p.numel() * (bits / 8 if bits and key in linear and p.is_floating_point() else p.element_size())
    return int(total)


def foreseen(config: Config, architecture: Any) -> MemoryEstimate:
    """The estimate of a run on a model that is not loaded: only its configuration is read, and no weight is made.

    Args:
        config: of the run; a reward "classifier" or "linear" is part of it, others are not.
        architecture: a transformers configuration, a hub id or a folder.

    Example:
        >>> from transformers import LlamaConfig
        >>> small = LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        ...                     num_attention_heads=2)
        >>> foreseen(Config(backend="lora", lora_targets=["q_proj"]), small).weights > 4 * 10_000
        True
    """
    roles, size = imagined(config, architecture)
    return estimate_memory(config, roles, config.micro_batch or config.batch, size)


def imagined(
    config: Config, architecture: Any, critics: bool = False, alone: bool = False
) -> tuple[Roles, int]:
    """The roles of a run without a number in them, and the size of the vocabulary.

    Args:
        config, architecture: as for `foreseen`.
        critics: whether there are any.
        alone: the policy's network alone, without those of the other roles.
    """
    transformers = require("transformers", "llm")
    if isinstance(architecture, str):
        architecture = transformers.AutoConfig.from_pretrained(architecture, trust_remote_code=False)
    coarse = config.weights == "bfloat16" or config.quantised
    penalised = config.uses_penalised and not alone
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(architecture)
        model.to(torch.bfloat16 if coarse else torch.float64 if config.dtype == "float64" else torch.float32)
        reward = config.reward if config.reward in ("classifier", "linear") else "linear"
        if config.backend == "lora":
            roles: Roles = LoraRoles(
                model, reward, penalised, critics and not alone, config.lora_rank, config.lora_scale, config.lora_targets
            )
        else:
            roles = FullRoles(model, reward, penalised, critics and not alone, train=config.train)
    return roles, model.config.vocab_size


def _kept(roles: Roles, recomputes: bool) -> int:
    """Numbers that the policy's blocks keep for the backward pass, a token."""
    with roles.model("policy") as model:
        config: Any = getattr(model, "config", None)
    body = config.get_text_config() if hasattr(config, "get_text_config") else None
    layers, width = getattr(body, "num_hidden_layers", 0), getattr(body, "hidden_size", 0)
    return width * (layers + KEPT) if recomputes else width * layers * KEPT
