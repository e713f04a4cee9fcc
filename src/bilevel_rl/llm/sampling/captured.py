"""Next-token logits on a GPU without the host in the way: keys and values in place, a step captured once as a CUDA graph.

A step of a small model is hundreds of kernels of some microseconds each; Python starts them more slowly than the GPU runs
them. Here a step reads and writes the same memory every time (tokens, positions, mask, cache), so that it can be recorded
once and started as one piece. Adapters and precision are those that were active when it was recorded.
"""

from __future__ import annotations

import inspect
import logging
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)


def can_stay_in_place(model: nn.Module) -> bool:
    """Whether `StaticDecoder` knows the model: every layer looks at all of the past, and positions come as ids.

    Args:
        model: a causal model of transformers.

    Example:
        >>> from transformers import BloomConfig, BloomForCausalLM, GPT2Config, GPT2LMHeadModel
        >>> small = GPT2Config(vocab_size=8, n_embd=4, n_layer=1, n_head=1)
        >>> can_stay_in_place(GPT2LMHeadModel(small))
        True
        >>> can_stay_in_place(BloomForCausalLM(BloomConfig(vocab_size=8, hidden_size=4, n_layer=1, n_head=1)))
        False
    """
    config: Any = getattr(model, "config", None)
    if config is None or "past_key_values" not in inspect.signature(model.forward).parameters:
        return False
    text = config.get_text_config(decoder=True)
    by_position = text.model_type == "gpt2" or bool(getattr(text, "rope_parameters", None))
    routed = getattr(text, "num_experts", None) or getattr(text, "num_local_experts", None)
    if not by_position or routed or getattr(config, "is_encoder_decoder", False):
        return False
    if getattr(text, "add_cross_attention", False) or getattr(config, "_attn_implementation", "") not in ("sdpa", "eager"):
        return False
    from transformers.cache_utils import StaticCache, StaticLayer

    try:
        layers = StaticCache(config=config, max_cache_len=1).layers
    except (KeyError, ValueError, TypeError, AttributeError):  # an architecture without such a cache
        return False
    return all(type(layer) is StaticLayer for layer in layers)


class StaticDecoder:
    """A causal model of transformers whose step touches the same memory every time; on a GPU it is captured once.

    The first step runs as it is written and warms everything up, the second one is captured, all others are started as one
    piece. What can't be captured goes on as it is written, and says so once.

    Args:
        model: see `can_stay_in_place`.
        horizon: most tokens that will be appended.

    Attributes:
        graph: the captured step; None before it, and on a CPU.
    """

    refused: ClassVar[set[str]] = set()  # classes of models that could not be captured in this process

    def __init__(self, model: nn.Module, horizon: int) -> None:
        self.model, self.horizon = model, horizon
        self.graph: torch.cuda.CUDAGraph | None = None
        self.last = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}

    def start(self, ids: Tensor, attention: Tensor) -> Tensor:
        """Read the prompts; see `Decoder`."""
        rows, width = ids.shape
        total = width + self.horizon
        self.cache = _cache(self.model, total)
        allowed = torch.zeros(rows, total, dtype=torch.bool, device=ids.device)
        allowed[:, :width] = attention.bool()
        below = torch.ones(width, total, dtype=torch.bool, device=ids.device).tril()
        # a padding row looks at itself, so that its softmax is not empty
        eye = torch.eye(width, total, dtype=torch.bool, device=ids.device)
        position = (attention.cumsum(1) - 1).clamp(min=0)
        logits = self._call(ids, position, ((below & allowed[:, None]) | eye)[:, None])
        self.allowed, self.position, self.tokens = allowed[:, None, None], position[:, -1:].clone(), ids[:, -1:].clone()
        self.at, self.steps = width, 0
        return logits

    def next(self, tokens: Tensor) -> Tensor:
        """Append a token; see `Decoder`. The logits are overwritten by the step after."""
        self.tokens.copy_(tokens[:, None])
        self.position.add_(1)
        self.allowed[..., self.at] = True
        self.at, self.steps = self.at + 1, self.steps + 1
        if self.graph is not None:
            self.graph.replay()
            return self.logits
        if self.tokens.device.type != "cuda" or type(self.model).__name__ in self.refused:
            return self._step()
        return self._warm() if self.steps == 1 else self._capture()

    def _step(self) -> Tensor:
        return self._call(self.tokens, self.position, self.allowed)

    def _warm(self) -> Tensor:
        """A step on a stream of its own, as capturing wants it."""
        here, aside = torch.cuda.current_stream(), torch.cuda.Stream()
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            logits = self._step()
        here.wait_stream(aside)
        return logits

    def _capture(self) -> Tensor:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self.logits = self._step()
        except RuntimeError as error:
            torch.cuda.synchronize()
            self.refused.add(type(self.model).__name__)
            log.warning("%s is sampled without a CUDA graph: %s", type(self.model).__name__, str(error).splitlines()[0])
            return self._step()
        self.graph = graph
        graph.replay()
        return self.logits

    def _call(self, ids: Tensor, position: Tensor, allowed: Tensor) -> Tensor:
        mask = allowed
        if self.model.config._attn_implementation == "eager":  # it adds its mask  # type: ignore[union-attr]
            dtype = next(self.model.parameters()).dtype
            mask = torch.zeros_like(allowed, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)
        output = self.model(
            input_ids=ids, attention_mask=mask, position_ids=position, past_key_values=self.cache, use_cache=True,
            **self.last,
        )  # fmt: skip
        return output.logits[:, -1]


def _cache(model: nn.Module, total: int) -> Any:
    """Buffers for so many tokens in all layers; keys and values each in the type in which they come."""
    from transformers.cache_utils import StaticCache, StaticLayer

    class Typed(StaticLayer):
        def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
            super().lazy_initialization(key_states, value_states)
            self.values: Tensor = self.values.to(value_states.dtype)

    cache = StaticCache(config=model.config, max_cache_len=total)
    cache.layers = [Typed(max_cache_len=total) for _ in cache.layers]
    return cache
