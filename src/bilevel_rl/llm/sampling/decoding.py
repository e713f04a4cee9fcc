"""Next-token logits one step at a time: our own decoder for GPT-2 models, and any causal model of transformers.

On a GPU a step is captured (`captured`) where the model allows it.

A decoder answers `start(ids, attention)` with the logits after the prompt and `next(tokens)` with those after one
more token a row. It never samples; `Sampler` does.
"""

from __future__ import annotations

import inspect
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bilevel_rl.llm.forward import is_sharded
from bilevel_rl.llm.sampling.captured import StaticDecoder, can_stay_in_place


class Decoder(Protocol):
    """Holds the state of N sequences that grow together."""

    def start(self, ids: Tensor, attention: Tensor) -> Tensor:
        """Read the left-padded prompts [N, P]; returns logits [N, V]."""
        ...

    def next(self, tokens: Tensor) -> Tensor:
        """Append one token [N] to each row; returns logits [N, V]."""
        ...


def make_decoder(model: nn.Module, horizon: int) -> Decoder:
    """The fastest decoder that knows the model.

    Args:
        model: a causal language model; adapters that are active stay active.
        horizon: most tokens that will be appended.
    """
    on_gpu = next(model.parameters()).device.type == "cuda"
    if on_gpu and can_stay_in_place(model) and not any(is_sharded(part) for part in model.modules()):
        return StaticDecoder(model, horizon)
    if type(model).__name__ == "GPT2LMHeadModel" and _plain_gpt2(model.config) and not _in_pieces(model):
        return GPT2Decoder(model, horizon)
    if "past_key_values" in inspect.signature(model.forward).parameters:
        return CachedDecoder(model)
    return PrefixDecoder(model)


def _plain_gpt2(config: Any) -> bool:
    return not (
        config.scale_attn_by_inverse_layer_idx or config.add_cross_attention or not config.scale_attn_weights
    )


def _in_pieces(model: nn.Module) -> bool:
    # a sharded block gathers its weights when it is called, and our decoder calls what is inside
    return any(is_sharded(block) for block in model.transformer.h)


class GPT2Decoder:
    """GPT-2 with its keys and values in buffers made once; calls the model's own layers, adapters included."""

    def __init__(self, model: nn.Module, horizon: int) -> None:
        self.model, self.body, self.horizon = model, model.transformer, horizon
        self.heads = model.config.n_head

    def start(self, ids: Tensor, attention: Tensor) -> Tensor:
        """Read the prompts; see `Decoder`."""
        rows, width = ids.shape
        body, total = self.body, width + self.horizon
        self.length = width
        padded = not bool(attention.all())
        position = (attention.cumsum(1) - 1).clamp(min=0)
        self.position = position[:, -1]
        # allowed[i, 0, 0, t]: whether row i may look at column t
        self.allowed: Tensor | None = None
        causal: Tensor | None = None
        if padded:
            ones = attention.new_ones(rows, self.horizon)
            allowed = torch.cat([attention, ones], 1).bool()[:, None, None, :]
            below = torch.ones(width, width, dtype=torch.bool, device=ids.device).tril()[None, None]
            # a padding row looks at itself, so that its softmax is not empty
            eye = torch.eye(width, dtype=torch.bool, device=ids.device)[None, None]
            self.allowed, causal = allowed, (below & allowed[..., :width]) | eye
        hidden = body.wte(ids) + body.wpe(position)
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        for block in body.h:
            q, k, v = self._project(block, hidden)
            self.keys.append(k.new_empty(rows, self.heads, total, k.shape[-1]))
            self.values.append(torch.empty_like(self.keys[-1]))
            self.keys[-1][:, :, :width] = k
            self.values[-1][:, :, :width] = v
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=causal, is_causal=causal is None)
            hidden = self._finish(block, hidden, mixed)
        return self.model.lm_head(body.ln_f(hidden[:, -1]))

    def next(self, tokens: Tensor) -> Tensor:
        """Append a token; see `Decoder`."""
        body, at = self.body, self.length
        self.position = self.position + 1
        self.length += 1
        hidden = (body.wte(tokens) + body.wpe(self.position))[:, None]
        allowed = None if self.allowed is None else self.allowed[..., : at + 1]
        for layer, block in enumerate(body.h):
            q, k, v = self._project(block, hidden)
            self.keys[layer][:, :, at] = k[:, :, 0]
            self.values[layer][:, :, at] = v[:, :, 0]
            keys, values = self.keys[layer][:, :, : at + 1], self.values[layer][:, :, : at + 1]
            mixed = F.scaled_dot_product_attention(q, keys, values, attn_mask=allowed)
            hidden = self._finish(block, hidden, mixed)
        return self.model.lm_head(body.ln_f(hidden[:, 0]))

    def _project(self, block: Any, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rows, width, size = hidden.shape
        packed = block.attn.c_attn(block.ln_1(hidden))
        q, k, v = packed.view(rows, width, 3, self.heads, size // self.heads).permute(2, 0, 3, 1, 4)
        return q, k, v

    def _finish(self, block: Any, hidden: Tensor, mixed: Tensor) -> Tensor:
        hidden = hidden + block.attn.c_proj(mixed.transpose(1, 2).reshape(hidden.shape))
        return hidden + block.mlp(block.ln_2(hidden))


class CachedDecoder:
    """Any causal model of transformers, with its own cache."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.known = set(inspect.signature(model.forward).parameters)

    def start(self, ids: Tensor, attention: Tensor) -> Tensor:
        """Read the prompts; see `Decoder`."""
        from transformers import DynamicCache

        self.cache = DynamicCache(config=self.model.config)
        self.attention = attention
        position = (attention.cumsum(1) - 1).clamp(min=0)
        self.position = position[:, -1:]
        return self._call(ids, position)

    def next(self, tokens: Tensor) -> Tensor:
        """Append a token; see `Decoder`."""
        self.attention = torch.cat([self.attention, self.attention.new_ones(len(tokens), 1)], 1)
        self.position = self.position + 1
        return self._call(tokens[:, None], self.position)

    def _call(self, ids: Tensor, position: Tensor) -> Tensor:
        extra: dict[str, Any] = {"logits_to_keep": 1} if "logits_to_keep" in self.known else {}
        output = self.model(
            input_ids=ids, attention_mask=self.attention, position_ids=position, past_key_values=self.cache,
            use_cache=True, **extra,
        )  # fmt: skip
        return output.logits[:, -1]


class PrefixDecoder:
    """A model without a cache: the whole prefix is read again for each token."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def start(self, ids: Tensor, attention: Tensor) -> Tensor:
        """Read the prompts; see `Decoder`."""
        self.ids, self.attention = ids, attention
        return self._call()

    def next(self, tokens: Tensor) -> Tensor:
        """Append a token; see `Decoder`."""
        self.ids = torch.cat([self.ids, tokens[:, None]], 1)
        self.attention = torch.cat([self.attention, self.attention.new_ones(len(tokens), 1)], 1)
        return self._call()

    def _call(self) -> Tensor:
        position = (self.attention.cumsum(1) - 1).clamp(min=0)
        return self.model(input_ids=self.ids, attention_mask=self.attention, position_ids=position).logits[
            :, -1
        ]
