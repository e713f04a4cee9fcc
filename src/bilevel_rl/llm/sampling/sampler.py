"""Sampling completions from a policy's exact law: inverse distribution functions at named uniform numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from bilevel_rl.errors import NonFiniteState, message
from bilevel_rl.llm.data.prompts import Prompt
from bilevel_rl.llm.forward import precision, without
from bilevel_rl.llm.sampling.decoding import make_decoder
from bilevel_rl.llm.sampling.rollout import Rollout, assemble, pad_prompts

AT_ONCE = 1 << 15  # ours: numbers of a race on a CPU that are in work at a time, so that they stay in its cache


class Generator(Protocol):
    """Samples completions. `Sampler` is ours; an inference server can take its place.

    A generator must sample from the policy's untruncated law (no top-p, no top-k). Where a frozen base is in pieces, all
    processes must call the model equally often: a generator with an attribute `together` is given the function that says
    whether all of them are done.
    """

    def __call__(self, model: Any, prompts: Sequence[Prompt], uniforms: Tensor) -> Rollout:
        """Sample one completion of each prompt.

        Args:
            model: the policy, called as `model(input_ids=..., attention_mask=..., position_ids=...)`.
            prompts: N prompts.
            uniforms: [N, T] numbers in [0, 1), one a token: the only randomness.

        Returns:
            A rollout with horizon at most T.
        """
        ...


def uniforms(rows: int, horizon: int, *stream: int) -> Tensor:
    """[rows, horizon] uniform numbers (float64), a function of the integers `stream` alone: (seed, name, step)."""
    return torch.from_numpy(np.random.default_rng(list(stream)).random((rows, horizon)))


def inverse_cdf(logits: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    r"""Sample each row of a softmax by inverting its distribution function at one uniform number.

    The token is the first index whose cumulative weight exceeds $u \sum_j e^{z_j}$; a token of weight 0 is never
    drawn. About a tenth of the cost of `torch.multinomial`, and the log-probability comes with it.

    Args:
        logits: [N, V].
        u: [N] in [0, 1).

    Returns:
        Tokens [N] and their log-probabilities [N], in nats.

    Example:
        >>> inverse_cdf(torch.tensor([[0.0, 0.0, 0.0, 0.0]]), torch.tensor([0.6]))[0]
        tensor([2])
    """
    top = logits.amax(-1, keepdim=True)
    cumulative = (logits - top).exp_().cumsum(-1)
    total = cumulative[:, -1:]
    # stay strictly below the total, so that rounding can't choose a token of weight 0 at the end
    at = torch.minimum(u.to(logits.dtype)[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    # logits that are no numbers have no first index: the last one, whose log-probability is no number either
    token = torch.searchsorted(cumulative, at, right=True).clamp_(max=logits.shape[-1] - 1)
    return token[:, 0], (logits.gather(-1, token) - top - total.log())[:, 0]


def race(logits: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    r"""Sample each row of a softmax by an exponential race whose clocks are hashed from one uniform number.

    Token j arrives at $E_j / p_j$, where $E_j$ is exponential and a hash of (u, j); the first one is
    drawn: $\arg\max_j (\log p_j - \log E_j)$. Two laws that run with the same u choose different tokens about as seldom as
    two laws can, wherever in the vocabulary they differ; with inverse distribution functions a change at a low index
    moves all that come after it.

    Args:
        logits: [N, V].
        u: [N] in [0, 1).

    Returns:
        Tokens [N] and their log-probabilities [N], in nats.

    Example:
        >>> logits = torch.tensor([[0.0, float("-inf"), 0.0]]).expand(100, 3)
        >>> sorted(set(race(logits, torch.arange(100) / 100)[0].tolist()))
        [0, 2]

    References:
        Maddison, Tarlow and Minka, "A* sampling", 2014 (Gumbel-max); the hash is SplitMix64's.
    """
    key = (u.double() * 2**53).long()[:, None]
    some = max(1, AT_ONCE // logits.shape[-1]) if logits.device.type == "cpu" else len(logits)
    tokens = [(z + _clocks(k, z)).argmax(-1, keepdim=True) for k, z in zip(key.split(some), logits.split(some), strict=True)]
    token = torch.cat(tokens)
    return token[:, 0], (logits.gather(-1, token) - logits.logsumexp(-1, keepdim=True))[:, 0]


def _clocks(key: Tensor, like: Tensor) -> Tensor:
    """[n, V] minus the logs of exponential numbers, hashed from the rows' keys [n, 1] and the tokens' indices."""
    word = key + torch.arange(1, like.shape[-1] + 1, device=like.device) * -0x61C8864680B583EB
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        word.bitwise_xor_((word >> shift).bitwise_and_((1 << 64 - shift) - 1)).mul_(factor)
    word.bitwise_xor_((word >> 31).bitwise_and_((1 << 33) - 1))
    whole = (word >> 11).bitwise_and_((1 << 53) - 1)
    # the distance from 1, where the winners are: floating point resolves it to its last bit, single precision too
    distance = whole.neg_().add_((1 << 53) - 1).to(like.dtype).add_(0.5).mul_(2.0**-53)
    return distance.neg_().log1p_().neg_().log_().neg_()


def check_logits(model: Any, logp: Tensor) -> None:
    """Raise `NonFiniteState` where a drawn token's log-probability is NaN or infinite.

    Args:
        model: what gave the logits.
        logp: [N, T] of the tokens that were drawn.
    """
    fine = torch.isfinite(logp).all(0)
    if not bool(fine.all()):
        first = int((~fine).nonzero()[0])
        raise NonFiniteState(
            message(f"logits of a {type(model).__name__} that writes", f"NaN or infinity at token {first}",
                    "every token that is drawn has a finite log-probability",
                    "Its weights are beyond floating point: lower alpha and go on from an earlier checkpoint")
        )  # fmt: skip


class Sampler:
    """Our own generator: KV cache, inverse-CDF sampling, exact log-probabilities of the law that sampled.

    Args:
        stop_ids: ids that end a completion; the end token is part of it. Empty: every completion has full length.
        pad_id: id that fills the padding; it may equal a stop id, masks never look at it.
        temperature: divides the logits.
        tokenizer: turns completions into text; None: texts are id lists.
        dtype: precision of the forward passes (`Config.dtype`).
        together: maps "this process is done" to "all are", where processes must call the model equally often.
        unheld: [V] True for ids that no text can hold (rows of a padded vocabulary): never drawn.
        choose: from logits and uniform numbers to tokens and their log-probabilities: `inverse_cdf` or `race`.
    """

    def __init__(
        self, stop_ids: Sequence[int] = (), pad_id: int = 0, temperature: float = 1.0, tokenizer: Any = None,
        dtype: str = "float32", together: Callable[[bool], bool] = bool, unheld: Tensor | None = None,
        choose: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = inverse_cdf,
    ) -> None:  # fmt: skip
        self.choose = choose
        self.stop_ids, self.pad_id, self.temperature = tuple(stop_ids), pad_id, temperature
        self.tokenizer, self.dtype, self.together, self.unheld = tokenizer, dtype, together, unheld

    @torch.no_grad()
    def __call__(self, model: Any, prompts: Sequence[Prompt], uniforms: Tensor) -> Rollout:
        """Sample one completion of each prompt; see `Generator`.

        Raises:
            NonFiniteState: the model's logits are no numbers.
        """
        device = next(model.parameters()).device
        uniforms = uniforms.to(device)
        rows, horizon = uniforms.shape
        ids, attention = pad_prompts(prompts, self.pad_id, device)
        stop = torch.tensor(self.stop_ids, device=device, dtype=torch.long)
        lengths = torch.full((rows,), horizon, device=device)
        ended = torch.zeros(rows, dtype=torch.bool, device=device)
        decoder = make_decoder(model, horizon)
        tokens, logps = [], []
        with precision(self.dtype, device):
            logits = decoder.start(ids, attention)
            for t in range(horizon):
                logits = without(logits.float() if logits.dtype == torch.bfloat16 else logits, self.unheld)
                token, logp = self.choose(
                    logits if self.temperature == 1 else logits / self.temperature, uniforms[:, t]
                )
                tokens.append(torch.where(ended, self.pad_id, token))
                logps.append(torch.where(ended, 0.0, logp))
                if self.stop_ids:
                    now = torch.isin(token, stop) & ~ended
                    lengths = torch.where(now, t + 1, lengths)
                    ended = ended | now
                    if self.together(bool(ended.all())):
                        break
                if t + 1 < horizon:
                    logits = decoder.next(tokens[-1])
        logp = torch.stack(logps, 1)
        check_logits(model, logp)
        return assemble(
            prompts, ids, attention, torch.stack(tokens, 1), lengths, ended, logp, tokenizer=self.tokenizer
        )
