"""The frozen base in pieces: each process keeps its part of every block and borrows the rest while it computes (FSDP2).

    accelerate launch --num_processes 2 --use_fsdp --fsdp_version 2 -m bilevel_rl llm train config.yaml backend=lora

What is sharded is what is large and never moves: the blocks of the base. Adapters and heads stay whole on every process, so
that their gradients are summed, clipped and stepped as without sharding, and a checkpoint is the same file. Embeddings stay
whole too: they are read by index and shared with the head.

A block's weights are gathered by all processes together, so all must call the model equally often. Two places know: the
sampler goes on until every process's completions have ended, and stored pairs are drawn only when each process gets some.
"""

from __future__ import annotations

import os

from torch import nn

from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.llm.roles.backend import LoraRoles, Roles


def asked() -> bool:
    """Whether `accelerate launch --use_fsdp` started this process.

    Raises:
        InvalidConfig: FSDP version 1, whose flat parameters can't leave the adapters whole.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() not in ("true", "1"):
        return False
    version = os.environ.get("FSDP_VERSION", "1")
    if version != "2":
        raise InvalidConfig(
            message("accelerate launch --use_fsdp", f"FSDP version {version}", "adapters stay whole, which needs version 2",
                    "Add --fsdp_version 2")
        )  # fmt: skip
    return True


def shard(roles: Roles) -> list[nn.Module]:
    """Shard the blocks of the frozen base over all processes, in place.

    Args:
        roles: with backend lora, on their device.

    Returns:
        The blocks.

    Raises:
        InvalidConfig: full roles, or a model without a list of blocks.
    """
    if not isinstance(roles, LoraRoles):
        raise InvalidConfig(
            message("config.backend", "'full' with FSDP", "what is sharded is the frozen base that the roles share",
                    "Set backend=lora, or leave --use_fsdp out")
        )  # fmt: skip
    from torch.distributed.fsdp import fully_shard

    own = {parameter for role in roles.names for parameter in roles.parameters(role).values()}
    found = blocks(roles.base)
    for block in found:
        fully_shard(block, ignored_params=own)
    return found


def blocks(model: nn.Module) -> list[nn.Module]:
    """The transformer blocks: the longest list of equal modules.

    Raises:
        InvalidConfig: none is found.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> len(blocks(GPT2LMHeadModel(GPT2Config(vocab_size=8, n_positions=4, n_embd=4, n_layer=3, n_head=1,
        ...                                       bos_token_id=0, eos_token_id=1))))
        3
    """
    lists = [
        m for m in model.modules() if isinstance(m, nn.ModuleList) and len({type(part) for part in m}) == 1
    ]
    # adapters keep lists too; the model's own come first and hold the most parameters
    best = max(lists, key=lambda m: sum(p.numel() for p in m.parameters()), default=None)
    if best is None:
        raise InvalidConfig(
            message("accelerate launch --use_fsdp", f"a {type(model).__name__} without a list of blocks",
                    "its blocks are what is sharded", "Leave --use_fsdp out")
        )  # fmt: skip
    return list(best)
