"""Several reward functions: learn how much each should count from what people think of the result.

Three functions score what a model writes: `helps` counts the useful words, `long` the words, `polite` the courtesies. They
are all we can compute cheaply. What we want is the opinion of a judge who is asked about samples: useful, and short. With
fixed weights the policy writes long, polite texts. Here the weights are the upper variable x of a bi-level run: the policy
maximises sum_k x_k r_k - tau KL by DVAO (each term weighed by its spread), and x descends minus the judge's score of
what that policy writes.

    python examples/07_llm_weights_of_rewards.py      under a minute; five seeds, fixed weights beside learnt ones
"""

from __future__ import annotations

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from bilevel_rl.llm import BilevelTrainer, Config
from bilevel_rl.llm.rewards.models import WeightedRewards

HELPFUL, COURTEOUS, PROMPTS = (7, 8), (11, 12, 13), [[3], [4], [5], [6]]
ITERATIONS = 60


def helps(completion_ids, **_):
    return [float(sum(t in HELPFUL for t in ids)) for ids in completion_ids]


def long(completion_ids, **_):
    return [float(len(ids)) for ids in completion_ids]


def polite(completion_ids, **_):
    return [float(sum(t in COURTEOUS for t in ids)) for ids in completion_ids]


def opinion(completion_ids, **_):
    """What people say: every useful word is worth 1, every word costs half a point."""
    return [h - 0.5 * n for h, n in zip(helps(completion_ids), long(completion_ids), strict=True)]


def model(seed: int) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=16, n_positions=16, n_embd=32, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=1)
    )


def run(seed: int, learnt: bool) -> tuple[float, list[float]]:
    """The judge's mean score over the last ten iterations, and the weights at the end."""
    config = Config(
        method="bilevel" if learnt else "plain", recipe="dvao", objective={"gold": 1.0}, seed=seed, steps=ITERATIONS,
        prompts_per_step=4, group=16, max_new_tokens=8, stop_ids=[1], tau=0.1, alpha=5e-3, zeta=0.1, kl_estimator="k1",
    )  # fmt: skip
    reward = WeightedRewards([helps, long, polite], [1.0, 1.0, 1.0])
    trainer = BilevelTrainer(config, model(seed), reward, PROMPTS, gold=opinion)
    history = trainer.train()
    return float(np.mean([line["gold"] for line in history[-10:]])), reward.x.tolist()


if __name__ == "__main__":
    torch.set_num_threads(1)
    gains = []
    print("seed  fixed  learnt  weights of helps, long, polite")
    for seed in range(5):
        (fixed, _), (learnt, x) = run(seed, False), run(seed, True)
        gains.append(learnt - fixed)
        print(f"{seed:4d}  {fixed:5.2f}  {learnt:6.2f}  {x[0]:.2f} {x[1]:.2f} {x[2]:.2f}")
    print(f"learnt weights are ahead in {sum(g > 0 for g in gains)} of 5 seeds, by {np.mean(gains):.2f} on average")
    assert all(gain > 1 for gain in gains)
