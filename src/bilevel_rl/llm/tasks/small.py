"""A task of one's own size: everything that a run on a made-up world needs, its start policy trained in seconds on the spot.

A `SmallTask` carries what recipes ask for: prompts with solutions and gold answers, rewards, fields of the batch, a world.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from bilevel_rl.llm.data.prompts import as_prompts
from bilevel_rl.llm.sampling.rollout import Rollout
from bilevel_rl.llm.sampling.sampler import Generator, Sampler, uniforms
from bilevel_rl.llm.sampling.turns import TurnSampler, World
from bilevel_rl.llm.tasks.pretrain import stage

Row = dict[str, Any]
PAD, END = 0, 1


@dataclasses.dataclass(frozen=True)
class SmallTask:
    """One made-up task.

    Attributes:
        name: with its level.
        rows, held_out: prompts to learn from and to be judged on, with the columns `demonstration` and `answer` where there
            are any.
        reward: of TRL's signature; or several, which are added.
        symbols: the tokens, beside padding, end and unknown.
        horizon: longest completion, in tokens.
        lines: (number, random generator) -> that many pairs (prompt, completion): what the start policy imitates.
        enough: share of the reward at which imitation stops.
        fields: what the task knows of a completion, by field of `Batch`; given a tokenizer.
        world: what answers the policy, given a tokenizer; None: it writes alone.
        paths: whether a row's end token is written by the policy (no world ends it).
    """

    name: str
    rows: Sequence[Row]
    held_out: Sequence[Row]
    reward: Any
    symbols: Sequence[str]
    horizon: int
    lines: Callable[[int, np.random.Generator], Sequence[tuple[str, str]]]
    enough: float
    fields: Callable[[Any], Mapping[str, Callable[[Rollout], Tensor]]] = lambda _: {}
    world: Callable[[Any], World] | None = None

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """One token a symbol."""
        return symbols_tokenizer(self.symbols)

    def generator(self, tokenizer: Any, **law: Any) -> Generator | None:
        """What writes completions in the task's world; None: the trainer's own sampler."""
        return None if self.world is None else TurnSampler(self.world(tokenizer), PAD, tokenizer=tokenizer, **law)

    def start(self, cache: str | Path, seed: int = 0) -> Path:
        """The folder of the start policy with its tokenizer, trained when it is not in the cache."""
        inputs = {"task": self.name, "seed": seed, "version": 1, "prompts": [row["prompt"] for row in self.rows][:50]}
        return stage(cache, self.name.replace("@", "-"), inputs, lambda folder: self._train(folder, seed)).folder

    def score(self, model: Any, seed: int = 0, copies: int = 2) -> float:
        """Mean reward of some completions of each held-out prompt; worlds in which rows meet need an even number."""
        words = self.tokenizer
        prompts = [p for p in as_prompts(self.held_out, words) for _ in range(copies)]
        generator = self.generator(words) or Sampler((END,), PAD, tokenizer=words)
        rows = generator(model, prompts, uniforms(len(prompts), self.horizon, seed, 77))
        columns = {k: [p.columns[k] for p in prompts] for k in prompts[0].columns}
        first = self.reward[0] if isinstance(self.reward, Sequence) else self.reward
        ids = rows.completion_ids()
        return float(np.mean(first([p.text for p in prompts], list(rows.texts), completion_ids=ids, **columns)))

    def _train(self, folder: Path, seed: int) -> dict[str, Any]:
        """Imitate lines until the task is solved as often as `enough`, at most 4,000 steps."""
        words, random = self.tokenizer, np.random.default_rng(seed)
        width = max(len(words(row["prompt"])["input_ids"]) for row in self.rows)
        model = tiny_gpt2(len(words), seed, width + self.horizon + 4)
        optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
        step = 0
        for step in range(1, 4001):
            loss = self._loss(model, words, self.lines(64, random))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            if step % 10 == 0 and self.score(model) >= self.enough:
                break
        model.save_pretrained(folder)
        words.save_pretrained(folder)
        return {"steps": step, "score": self.score(model)}

    def _loss(self, model: Any, words: Any, lines: Sequence[tuple[str, str]]) -> Tensor:
        """Cross-entropy of completions, world's words included, and their end where the policy writes it."""
        rows = []
        for prompt, completion in lines:
            head, tail = words(prompt)["input_ids"], words(completion)["input_ids"]
            rows.append((head, [*tail, *([END] if self.world is None else [])]))
        width = max(len(head) + len(tail) for head, tail in rows)
        ids = torch.tensor([[*h, *t, *[PAD] * (width - len(h) - len(t))] for h, t in rows])
        inside = torch.tensor([[False] * len(h) + [True] * len(t) + [False] * (width - len(h) - len(t)) for h, t in rows])
        logits = model(ids[:, :-1]).logits
        target = torch.where(inside[:, 1:], ids[:, 1:], -100)
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten())


def symbols_tokenizer(symbols: Sequence[str]) -> PreTrainedTokenizerFast:
    """A tokenizer with one token a symbol, of one character each.

    Example:
        >>> symbols_tokenizer("ab")("abba")["input_ids"]
        [3, 4, 4, 3]
    """
    words = {"<pad>": PAD, "<end>": END, "<unk>": 2} | {s: i + 3 for i, s in enumerate(symbols)}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    inner.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>", pad_token="<pad>", unk_token="<unk>")


def tiny_gpt2(vocabulary: int, seed: int, positions: int, width: int = 48) -> GPT2LMHeadModel:
    """Two layers and two heads, without dropout."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=vocabulary, n_positions=positions, n_embd=width, n_layer=2, n_head=2, resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0, bos_token_id=END, eos_token_id=END, pad_token_id=PAD,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()
