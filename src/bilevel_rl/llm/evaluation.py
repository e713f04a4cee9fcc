"""Grading a policy on prompts that no training step saw: gold score, exact KL to the reference, length,
variety.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from bilevel_rl.llm.data.prompts import as_prompts
from bilevel_rl.llm.forward import precision
from bilevel_rl.llm.rewards.functions import call_reward_function
from bilevel_rl.llm.roles.backend import Roles
from bilevel_rl.llm.roles.policy import token_statistics
from bilevel_rl.llm.sampling.rollout import Rollout
from bilevel_rl.llm.sampling.sampler import Generator, uniforms

EVALUATION = 0x30  # random stream, beside the trainer's
GOOD = 0.5  # a completion counts as a success above this gold score


@torch.no_grad()
def evaluate(
    roles: Roles,
    prompts: Sequence[Any],
    generator: Generator,
    tokenizer: Any = None,
    gold: Callable[..., Sequence[float]] | None = None,
    role: str = "policy",
    max_new_tokens: int = 32,
    seed: int = 0,
    batch: int = 64,
    longest: int = 64,
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Sample one completion of each prompt and measure it.

    Args:
        roles: of a trainer.
        prompts: held-out prompts, as the trainer takes them.
        generator: of a trainer.
        gold: scorer with TRL's reward-function signature, or None.
        role: `"policy"`, `"policy_l"` or `"reference"`.
        max_new_tokens: longest completion, in tokens.
        seed: two policies evaluated with one seed answer the same random numbers.
        batch: prompts at a time.
        longest: longest prompt allowed, in tokens.

    Returns:
        Figures (`gold` with its standard error, `happy` the share above one half, `kl` in nats a completion
        with its standard error, `reward`, `length` in tokens, `truncated` and `distinct` shares) and one row
        a completion.
    """
    rows = as_prompts(prompts, tokenizer, longest)
    kl, rewards, scores, lengths, ended, table = [], [], [], [], [], []
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        u = uniforms(len(part), max_new_tokens, seed, EVALUATION, start)
        with roles.writing(role) as model:
            rollout: Rollout = generator(model, part, u)
        with precision(getattr(generator, "dtype", "float32"), rollout.ids.device):
            if roles.has_reference:
                law = roles.logits("reference", rollout).log_softmax(-1)
                own = token_statistics(roles.logits(role, rollout), rollout.completions, law)
                kl.append((own.kl * rollout.mask).sum(1).double())
            rewards.append(roles.rewards(rollout).double())
        if gold is not None:
            scores.append(call_reward_function(gold, rollout, "gold"))
        lengths.append(rollout.lengths.double())
        ended.append(rollout.ended)
        table += [{"prompt": p.text, "completion": text} for p, text in zip(part, rollout.texts, strict=True)]
    all_kl = torch.cat(kl) if kl else None
    all_rewards = torch.cat(rewards)
    for name, values in (
        ("kl", all_kl),
        ("reward", all_rewards),
        ("gold", torch.cat(scores) if scores else None),
    ):
        if values is not None:
            for row, value in zip(table, values.tolist(), strict=True):
                row[name] = value
    figures = {
        "reward": float(all_rewards.mean()),
        "length": float(torch.cat(lengths).mean()),
        "truncated": float((~torch.cat(ended)).double().mean()),
        "distinct": len({str(row["completion"]) for row in table}) / len(table),
        "completions": len(table),
    }
    if all_kl is not None:
        figures |= {"kl": float(all_kl.mean()), "kl_error": _error(all_kl)}
    if scores:
        values = torch.cat(scores)
        figures |= {
            "gold": float(values.mean()),
            "gold_error": _error(values),
            "happy": float((values > GOOD).double().mean()),
        }
    return figures, table


def _error(values: torch.Tensor) -> float:
    return float(values.std() / len(values) ** 0.5) if len(values) > 1 else 0.0
