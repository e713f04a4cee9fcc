"""Objectives that are not the labels' mean, one small experiment each at equal labels and equal KL.

A tiny GPT-2 (two layers of width 16, 24 tokens, made here, untrained) on 16 prompts of two tokens, groups of 8, KL held at
1 nat; seeds differ in the model too. Gold is the share of useful tokens; which ones depends on the prompt's first token: a
quarter of the prompts wants tokens that the others never want. A constrained run has groups of 4: its costs are labels too.

    worst        f = mean of the worst quarter of prompts, against f = mean over all; graded by the worst quarter
    constraint   cost is the share of the tokens that most prompts want, at most .25, against the same f without it
    calibration  the Brier score against the likelihood as what fits x; graded by the Brier score of fresh pairs

    python benchmarks/risk_objectives.py      writes benchmarks/results/risk_objectives.json (about two minutes)
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from bilevel_rl.llm.config import Config
from bilevel_rl.llm.trainer import BilevelTrainer
from bilevel_rl.records import hardware, make_folder, read_json, write_json

PROMPTS = [[3 + i % 4, 7 + i // 4] for i in range(16)]
DEAR = (20, 21, 22)
SEEDS, LAST = range(4), 20
FOLDER, LIMIT = Path("runs/risk_objectives"), [float("inf")]
COMMON = {
    "steps": 80, "prompts_per_step": 16, "group": 8, "max_new_tokens": 4, "stop_ids": [1], "alpha": 4e-3, "zeta": 2e-2,
    "target_kl": 1.0, "kl_rate": 0.2, "tau": 0.2, "reward": "classifier",
}  # fmt: skip


def wanted(prompt: int, token: int) -> bool:
    """Whether a token is useful after a prompt that begins with this one: for a quarter of them it is other tokens."""
    return token in ((16, 17, 18) if prompt == 3 else DEAR)


def gold(prompts, completion_ids, **_):
    """Share of the four places that hold a useful token."""
    return [sum(wanted(p[0], t) for t in ids) / 4 for p, ids in zip(prompts, completion_ids, strict=True)]


def cost(completion_ids, **_):
    """Share of places that hold tokens that are useful for most prompts, and dear."""
    return [sum(t in DEAR for t in ids) / 4 for ids in completion_ids]


def judge(prompts, completions, shuffle_order=False):
    """Bradley-Terry of slope 8 in the gold score, drawn by the texts."""
    found = []
    for p, pair in zip(prompts, completions, strict=True):
        a, b = gold([p, p], pair)
        draw = np.random.default_rng([17, *p, *pair[0], 0, *pair[1]]).random()
        found.append(int(draw >= 1 / (1 + np.exp(-8 * (a - b)))))
    return found


def run(seed: int, **changes) -> BilevelTrainer:
    """A trained run."""
    torch.manual_seed(seed)
    policy = GPT2LMHeadModel(GPT2Config(vocab_size=24, n_positions=16, n_embd=16, n_layer=2, n_head=2, bos_token_id=0,
                                        eos_token_id=1, pad_token_id=2, initializer_range=0.2)).eval()  # fmt: skip
    objects = {"cost": changes.pop("cost_function", None)}
    config = Config(**COMMON | {"seed": seed} | changes)
    made = BilevelTrainer(config, policy, prompts=PROMPTS, judge=judge, gold=gold, **objects)
    made.train()
    return made


def graded(trainer: BilevelTrainer) -> dict[str, float]:
    """Gold by prompt, cost and Brier score of 64 fresh completions a prompt, and the KL of the last iterations."""
    from bilevel_rl.llm.data.prompts import as_prompts
    from bilevel_rl.llm.sampling.sampler import uniforms

    prompts = [p for p in as_prompts(PROMPTS, None) for _ in range(64)]
    with trainer.roles.model("policy") as model, torch.no_grad():
        rows = trainer.generator(model, prompts, uniforms(len(prompts), 4, 12345))
        reward = trainer.roles.rewards(rows).double()
    ids = rows.completion_ids()
    scores = torch.tensor(gold([p.ids for p in prompts], ids)).reshape(16, 64)
    means = scores.mean(1).sort().values
    labels = judge([list(p.ids) for p in prompts[::2]], list(zip(ids[::2], ids[1::2], strict=True)))
    right = torch.sigmoid(reward[::2] - reward[1::2])
    first = torch.tensor([1.0 - label for label in labels], dtype=torch.double)
    return {
        "gold": float(scores.mean()), "worst": float(means[:4].mean()), "cost": float(np.mean(cost(ids))),
        "brier": float((right - first).square().mean()), "labels": float(trainer.labels),
        "kl": float(np.mean([line["kl"] for line in trainer.history[-LAST:]])),
    }  # fmt: skip


EXPERIMENTS = {
    "worst": {"mean": {"objective": "gold"}, "worst": {"objective": "worst_prompts", "tail": 0.25}},
    "constraint": {
        "free": {"objective": "gold"},
        "constrained": {"objective": "gold", "cost_bound": 0.25, "cost_function": cost, "group": 4},
    },
    "calibration": {
        "likelihood": {"objective": "preference", "pairs_per_step": 16},
        "brier": {"objective": "calibration", "pairs_per_step": 16},
    },
}  # fmt: skip


def kept(kind: str, seed: int, changes: dict) -> dict[str, float]:
    """A run's grades, from their file where it is there."""
    path = FOLDER / f"{kind}-{seed}.json"
    if not path.exists():
        if time.process_time() > LIMIT[0]:
            raise SystemExit(f"{path.stem} is next")
        began = time.process_time()
        write_json(path, graded(run(seed, **dict(changes))) | {"cpu_seconds": time.process_time() - began})
    return read_json(path)


def main() -> None:
    """Run all, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="of processor time; then call again")
    LIMIT[0] = parser.parse_args().seconds
    make_folder(FOLDER)
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for name, kinds in EXPERIMENTS.items():
        rows = {kind: [kept(kind, seed, changes) for seed in SEEDS] for kind, changes in kinds.items()}
        one, two = rows
        gaps = {}
        for key in rows[one][0]:
            d = np.array([b[key] - a[key] for a, b in zip(rows[one], rows[two], strict=True)])
            half = scipy.stats.t.ppf(0.975, len(d) - 1) * d.std(ddof=1) / np.sqrt(len(d))
            gaps[key] = {"mean": float(d.mean()), "half": float(half)}
        means = {kind: {key: float(np.mean([r[key] for r in lines])) for key in lines[0]} for kind, lines in rows.items()}
        found[name] = {"means": means, "gap": gaps, "runs": rows}
        print(json.dumps({name: means, "gap": gaps}), flush=True)
    result = {"what": __doc__, "common": COMMON, "experiments": found, "hardware": hardware(),
              "cpu_seconds": round(sum(read_json(p)["cpu_seconds"] for p in FOLDER.glob("*.json")), 1)}  # fmt: skip
    (Path(__file__).parent / "results/risk_objectives.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
