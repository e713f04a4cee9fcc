"""Tiny models, judges and scorers that the tests of the trainer share."""

from __future__ import annotations

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from bilevel_rl.llm.config import Config
from bilevel_rl.llm.trainer import BilevelTrainer

PROMPTS = [[3], [4, 5], [6, 7, 8], [9], [10]]


def gpt2(seed: int = 0, **changes) -> GPT2LMHeadModel:
    """Vocabulary 24, two layers of width 16."""
    torch.manual_seed(seed)
    options = {
        "vocab_size": 24, "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2, "bos_token_id": 0,
        "eos_token_id": 1, "pad_token_id": 2, "initializer_range": 0.2,
    } | changes  # fmt: skip
    return GPT2LMHeadModel(GPT2Config(**options)).eval()


def llama(seed: int = 0) -> LlamaForCausalLM:
    """Another architecture: rotary positions, so that a wrong position id shows."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=24, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, bos_token_id=0, eos_token_id=1, pad_token_id=2, initializer_range=0.2,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def gold(completion_ids, **_):
    """Sevens and eights are good."""
    return [float(sum(t in (7, 8) for t in ids)) for ids in completion_ids]


def judge(prompts, completions, shuffle_order=False):
    """Prefers more sevens and eights; the first of equals."""
    return [0 if gold([a])[0] >= gold([b])[0] else 1 for a, b in completions]


def config(**changes) -> Config:
    """A few steps on few rows."""
    options = {
        "steps": 3, "prompts_per_step": 4, "group": 4, "max_new_tokens": 6, "stop_ids": [1], "pairs_per_step": 4,
        "inner_steps": 2, "reward_steps": 2, "objective": "preference", "estimator": "shared",
        "alpha": 1e-2, "beta": 1e-2, "zeta": 1e-2,
    } | changes  # fmt: skip
    return Config.from_dict(options)


def trainer(policy=None, prompts=PROMPTS, **changes) -> BilevelTrainer:
    """A trainer on tiny things; keyword arguments that are not keys of the configuration go to the trainer."""
    objects = {"judge", "gold", "reward", "preferences", "tokenizer", "callbacks", "resume", "problem", "reference"}
    objects |= {"recipe", "fields", "cost", "held_out", "held_out_gold"}
    if isinstance(changes.get("resume"), str):
        objects -= {"resume"}  # the key of the configuration
    own = {k: v for k, v in changes.items() if k in objects or (k == "objective" and not isinstance(v, (str, dict)))}
    options = {k: v for k, v in changes.items() if k not in own}
    own = {"judge": judge, "gold": gold} | own
    return BilevelTrainer(config(**options), gpt2() if policy is None else policy, prompts=prompts, **own)


def weights(trainer: BilevelTrainer) -> dict[str, torch.Tensor]:
    """A copy of everything trained."""
    return {key: value.clone() for key, value in trainer.roles.state().items()}


def untimed(history):
    """The history without what depends on the clock or the machine."""
    return [
        {k: v for k, v in line.items() if k not in ("seconds", "tokens_per_second", "memory")} for line in history
    ]


def stirred(roles):
    """The roles with every trained number moved, so that no adapter is the identity."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for role in roles.names:
            for p in roles.parameters(role).values():
                p.add_(0.3 * torch.randn(p.shape, generator=generator).to(p))
    return roles
