"""What the trainer asks of a language model at each token: log-probability, exact KL and entropy, in one pass.

With logits z, p = softmax(z) and log q the reference's log-probabilities, at each position

    logp    = log p[token]            d logp / dz    = onehot(token) - p
    kl      = sum p (log p - log q)   d kl / dz      = p (log p - log q - kl)
    entropy = - sum p log p           d entropy / dz = - p (log p + entropy)

`token_statistics` saves p and log p - log q only as [N, T, V] and writes the three gradients at once: autograd's own
chain reads and writes the vocabulary about three times as often.
"""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bilevel_rl.llm.forward import recomputing
from bilevel_rl.llm.sampling.rollout import Rollout

LOWEST = -1e30  # ours: stands for log 0, finite so that 0 x log 0 is 0; times any weight still finite


class TokenStatistics(NamedTuple):
    """At each completion token: [N, T] each, 0 on padding, in nats."""

    logp: Tensor
    kl: Tensor
    entropy: Tensor

    def detach(self) -> TokenStatistics:
        """The same without a graph."""
        return TokenStatistics(*(value.detach() for value in self))


class _Statistics(torch.autograd.Function):
    """logp, kl and entropy from logits; the backward pass is the closed form of the module's head."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, tokens: Tensor, reference: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        log_p = torch.log_softmax(logits, -1)
        p = log_p.exp()
        entropy = -torch.linalg.vecdot(p, log_p)
        barred = bool(torch.isnan(entropy).any())  # 0 log 0: ids that a law leaves out contribute nothing
        if barred:
            log_p = log_p.clamp(min=LOWEST)
            entropy = -torch.linalg.vecdot(p, log_p)
        logp = log_p.gather(-1, tokens[..., None])[..., 0]
        if reference is None:
            kl, difference = torch.zeros_like(entropy), None
        else:
            difference = log_p - (reference.clamp(min=LOWEST) if barred else reference)
            kl = torch.linalg.vecdot(p, difference).clamp_(min=0)  # rounding alone can put it below
        ctx.save_for_backward(p, log_p, difference, tokens, kl, entropy)
        return logp, kl, entropy

    @staticmethod
    def backward(ctx: Any, g_logp: Tensor | None, g_kl: Tensor | None, g_entropy: Tensor | None) -> Any:
        p, log_p, difference, tokens, kl, entropy = ctx.saved_tensors
        g_logp = torch.zeros_like(kl) if g_logp is None else g_logp
        inner: Tensor | None
        if g_kl is not None and difference is not None and bool(g_kl.any()):
            inner = difference * g_kl[..., None]
            constant = g_logp + g_kl * kl
        else:
            inner, constant = None, g_logp
        if g_entropy is not None and bool(g_entropy.any()):
            term = log_p * -g_entropy[..., None]
            inner = term if inner is None else inner.add_(term)
            constant = constant + g_entropy * entropy
        grad = -p * constant[..., None] if inner is None else inner.sub_(constant[..., None]).mul_(p)
        grad.scatter_add_(-1, tokens[..., None], g_logp[..., None])
        return grad, None, None


def token_statistics(logits: Tensor, tokens: Tensor, reference: Tensor | None = None) -> TokenStatistics:
    """Log-probability of the tokens, exact KL to the reference and entropy of each next-token law.

    Args:
        logits: [..., V] of the policy.
        tokens: [...] ids.
        reference: [..., V] log-probabilities of the reference; None: the KL is 0.

    Returns:
        Three tensors [...], in nats, differentiable in `logits`.

    Example:
        >>> z = torch.tensor([[0.0, 0.0]])
        >>> [round(v.item(), 3) for v in token_statistics(z, torch.tensor([1]))]
        [-0.693, 0.0, 0.693]
    """
    return TokenStatistics(*_Statistics.apply(logits, tokens, reference))


def completion_logits(model: nn.Module, rollout: Rollout, temperature: float = 1.0) -> Tensor:
    """[N, T, V] logits of each completion token, at least 32-bit.

    The model is any module with the calling convention of transformers' causal models.
    """
    known = _parameters(model)
    extra: dict[str, Any] = {}
    if "use_cache" in known:
        extra["use_cache"] = False
    if "logits_to_keep" in known:
        extra["logits_to_keep"] = rollout.horizon + 1
    with recomputing(model):
        output = model(
            input_ids=rollout.ids, attention_mask=rollout.attention, position_ids=rollout.positions, **extra
        )
    logits = output.logits[:, -rollout.horizon - 1 : -1]
    if logits.dtype in (torch.bfloat16, torch.float16):
        logits = logits.float()
    return logits if temperature == 1.0 else logits / temperature


def hidden_states(model: nn.Module, rollout: Rollout) -> Tensor:
    """[N, P + T, H] last hidden states of a transformers model's body."""
    body = model.base_model if hasattr(model, "base_model") else model
    extra = {"use_cache": False} if "use_cache" in _parameters(body) else {}
    with recomputing(body):
        output = body(
            input_ids=rollout.ids, attention_mask=rollout.attention, position_ids=rollout.positions, **extra
        )
    return output.last_hidden_state


def _parameters(model: nn.Module) -> set[str]:
    return set(inspect.signature(model.forward).parameters)
