"""Weights in pieces: each process keeps its part of every block and borrows the rest while it computes (FSDP2).

    accelerate launch --num_processes 2 --use_fsdp --fsdp_version 2 -m bilevel_rl llm train config.yaml backend=full

What is in pieces are the blocks of transformers' models, and their embeddings and heads over the vocabulary where the two
are no one weight: of the frozen base where roles are adapters on it, of every role and of the reference where each has its
own weights. Adapters, small heads, tied embeddings and reward models of a user's own stay whole on every process, and their
gradients are summed as without pieces. So do weights that several roles hold in common (`config.train`).

A block's weights are gathered when it is called and let go afterwards, forward and backward; its gradient arrives summed, in
pieces. What steps is the piece: as a parameter of its own on the same memory (`Sharded`), so that optimisers know nothing of
it. A policy of its own weights is gathered once for a whole rollout, which costs less than what it does not hold: its
gradient and moments, and those of the other roles. A base that roles share is gathered token by token: whole is what it
can't be.

As blocks are gathered by all processes together, all must call a model equally often. Two places know: the sampler goes on
until every process's completions have ended, and stored pairs are drawn only when each process gets some.
"""

from __future__ import annotations

import contextlib
import copy
import os
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.levels.engine import REWARD
from bilevel_rl.levels.pieces import Pieces
from bilevel_rl.llm.forward import is_sharded
from bilevel_rl.llm.rewards.models import ClassifierReward
from bilevel_rl.llm.roles.backend import FullRoles, LoraRoles, Roles


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


class Sharded(Pieces):
    """Parameters of which each process has a piece, beside others that are whole.

    Attributes:
        of: the sharded tensor that a piece, a parameter on the same memory, belongs to.
    """

    def __init__(self) -> None:
        self.of: dict[Tensor, Any] = {}

    def own(self, sharded: Any) -> nn.Parameter:
        """This process's piece of a sharded parameter, as a parameter."""
        piece = nn.Parameter(sharded.detach().to_local())
        self.of[piece] = sharded
        return piece

    def divided(self, p: Tensor) -> bool:
        """See `Pieces`."""
        return p in self.of

    def gradients(self, loss: Tensor, inputs: Sequence[Tensor], retain_graph: bool = False) -> list[Tensor | None]:
        """See `Pieces`. A gathered block hands its gradient over in a backward pass alone, which fills `.grad`."""
        if not any(p in self.of for p in inputs):
            return super().gradients(loss, inputs, retain_graph)
        places = [self.of.get(p, p) for p in inputs]
        before = [p.grad for p in places]
        for p in places:
            p.grad = None
        loss.backward(retain_graph=retain_graph)
        found = [p.grad for p in places]
        for p, grad in zip(places, before, strict=True):
            p.grad = grad
        return [g.to_local() if g is not None and p in self.of else g for p, g in zip(inputs, found, strict=True)]

    @torch.no_grad()
    def deliver(self, parameters: Sequence[Tensor]) -> None:
        """See `Pieces`: what has come for the sharded tensors goes to the pieces."""
        for p in parameters:
            sharded = self.of.get(p)
            if sharded is not None and sharded.grad is not None:
                grad, sharded.grad = sharded.grad.to_local(), None
                p.grad = grad if p.grad is None else p.grad + grad

    @contextlib.contextmanager
    def gathered(self, module: nn.Module) -> Iterator[None]:
        """See `Pieces`."""
        found: list[Any] = [block for block in module.modules() if is_sharded(block)]
        for block in found:
            block.set_reshard_after_forward(False)
            block.unshard()
        try:
            yield
        finally:
            for block in found:
                block.set_reshard_after_forward(True)
                block.reshard()

    def shape(self, p: Tensor) -> torch.Size:
        """See `Pieces`."""
        return self.of[p].shape if p in self.of else p.shape

    @torch.no_grad()
    def whole(self, p: Tensor, value: Tensor) -> Tensor:
        """See `Pieces`; on the CPU, where there is room for all of them."""
        if p not in self.of:
            return value
        from torch.distributed.tensor import DTensor

        like = self.of[p]
        placed = DTensor.from_local(
            value.detach(), like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
        )
        return placed.full_tensor().cpu()

    def piece(self, p: Tensor, value: Tensor) -> Tensor:
        """See `Pieces`: the rows that FSDP gives this process, which may be none."""
        if p not in self.of:
            return value
        mesh = self.of[p].device_mesh
        each = -(-len(value) // mesh.size())
        first = min(mesh.get_local_rank() * each, len(value))
        return value[first : first + each]


def shard(roles: Roles) -> list[nn.Module]:
    """Put the blocks of all models in pieces over all processes, in place; `roles.pieces` then knows of them.

    Args:
        roles: on their device.

    Returns:
        What is in pieces.

    Raises:
        InvalidConfig: a policy without a list of blocks.
    """
    if isinstance(roles, LoraRoles):
        own = {parameter for role in roles.names for parameter in roles.parameters(role).values()}
        return _in_pieces(roles.base, own)
    assert isinstance(roles, FullRoles)
    models = {role: m for role, m in roles.modules.items() if role != REWARD or isinstance(m, ClassifierReward)}
    standing = [roles.reference] if roles.reference is not None else []
    held = Counter(p for model in (*models.values(), *standing) for p in set(model.parameters()))
    common = {p for p, count in held.items() if count > 1}
    trained = {role: {n for n, p in model.named_parameters() if p.requires_grad} for role, model in models.items()}
    found = [block for model in (*models.values(), *standing) for block in _in_pieces(model, common)]
    pieces = Sharded()
    for role, model in models.items():
        roles.divided[role] = {
            name: pieces.own(p) if hasattr(p, "to_local") else p
            for name, p in model.named_parameters() if name in trained[role]
        }  # fmt: skip
    roles.pieces = pieces
    return found


def _in_pieces(model: nn.Module, ignored: Collection[nn.Parameter]) -> list[nn.Module]:
    from torch.distributed.fsdp import fully_shard

    found = [*blocks(model), *ends(model)]
    for block in found:
        # said, because by default a block without others around it would keep what it has gathered
        fully_shard(block, reshard_after_forward=True, ignored_params=set(ignored))
        block.set_gradient_divide_factor(1.0)  # type: ignore[operator]  # a sum, as gradients are elsewhere
        block.set_force_sum_reduction_for_comms(True)  # type: ignore[operator]
    return found


def whole(model: nn.Module) -> nn.Module:
    """A model of transformers with whole weights: itself, or a copy on the CPU where it is in pieces.

    Every process must call it.
    """
    if not any(is_sharded(m) for m in model.modules()):
        return model
    own: Any = model
    state = {
        name: (value.full_tensor() if hasattr(value, "full_tensor") else value).detach().cpu()
        for name, value in own.state_dict().items()
    }
    made = type(own)(copy.deepcopy(own.config)).to(own.dtype).eval()
    made.load_state_dict(state)
    if getattr(own, "generation_config", None) is not None:
        made.generation_config = own.generation_config
    return made


def ends(model: nn.Module) -> list[nn.Module]:
    """The embedding and the head over the vocabulary, as far as a model has them; none where they are one weight.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> size = {"vocab_size": 8, "n_positions": 4, "n_embd": 4, "n_layer": 1, "n_head": 1}
        >>> [len(ends(GPT2LMHeadModel(GPT2Config(tie_word_embeddings=tied, **size)))) for tied in (True, False)]
        [0, 2]
    """
    found: list[Any] = []
    for name in ("get_input_embeddings", "get_output_embeddings"):
        with contextlib.suppress(AttributeError, NotImplementedError):  # an architecture without one
            found += [part for part in [getattr(model, name)()] if part is not None]
    weights = {id(getattr(part, "weight", None)) for part in found}
    plain = all(type(part) in (nn.Embedding, nn.Linear) for part in found)  # not one that an adapter wraps
    return found if plain and len(weights) == len(found) else []


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
