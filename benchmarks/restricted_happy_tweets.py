r"""Happy tweets where the policy can't be its reward's tilt: the grammar's language model with few numbers that train.

Four settings, named before any fresh seed: adapters of rank 1 and rank 2, a frozen trunk (the last layer's MLP and norm
train), and a rank-1 policy under a whole reward model (`larger reward`). In each, at equal labels and with tau controlled to
equal KL: x fitted on fresh labels (`partial_sgd`), the usual pipeline (`fixed_reward`), and bi-level by `tilted`, `fisher`
(conjugate gradients on the batch) and `shared`.

    python benchmarks/restricted_happy_tweets.py run           every run of fresh seeds that is not there yet
    python benchmarks/restricted_happy_tweets.py collect       writes benchmarks/results/restricted_happy_tweets.json
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

from bilevel_rl.experiments import happy_tweets as experiment
from bilevel_rl.llm.config import Config
from bilevel_rl.llm.evaluation import evaluate
from bilevel_rl.llm.tasks import happy_tweets as task_of
from bilevel_rl.llm.trainer import BilevelTrainer
from bilevel_rl.records import hardware, make_folder, read_json, write_json

TARGET = 2.0  # nats a completion
LABELS, STEPS, LATE = 100, 50, 15
FRESH = tuple(range(10))
FIT = {"label_likelihood": 1.0}
SETTINGS: dict[str, dict[str, Any]] = {
    "rank 1": {"backend": "lora", "lora_rank": 1},
    "rank 2": {"backend": "lora", "lora_rank": 2},
    "frozen trunk": {"backend": "full", "train": ["h.1.mlp", "ln_f"]},
    "larger reward": {"backend": "lora", "lora_rank": 1, "whole_reward": True},
}
METHODS: dict[str, dict[str, Any]] = {
    "partial_sgd": {"method": "partial_sgd", "objective": FIT},
    "fixed_reward": {"method": "fixed_reward", "objective": FIT},
    "tilted": {"estimator": "tilted"},
    "fisher": {"estimator": "fisher", "fisher_steps": 4},
    "shared": {"estimator": "shared"},
}
# weights of the win rate that happy tweets was tuned to, not tuned again
WEIGHTS = {"tilted": 0.05, "fisher": 0.05, "shared": 3.0}
FOLDER, LIMIT = Path("runs/restricted_happy_tweets"), [float("inf")]


def configuration(setting: str, method: str, seed: int, weight: float, task: Any) -> Config:
    """One run's keys: the setting's, the method's, and budgets equal to every other's."""
    own = {k: v for k, v in SETTINGS[setting].items() if k != "whole_reward"}
    values = experiment.COMMON | own | METHODS[method] | {
        "seed": seed, "policy": str(task.model), "steps": STEPS, "label_budget": LABELS, "pairs_per_step": LABELS // STEPS,
        "target_kl": TARGET, "kl_rate": 0.05, "tau": 0.5, "alpha": 2e-3 if own["backend"] == "lora" else 1e-3,
        "save_every": 0, "samples_every": 0,
    }  # fmt: skip
    if "objective" not in METHODS[method]:
        values |= {"method": "bilevel", "objective": FIT | {"win_rate": weight}}
    if method == "fixed_reward":
        values |= {"pairs_per_step": 10, "reward_steps": LABELS // 10 + STEPS // 2, "steps": STEPS + STEPS // 2}
    return Config(**values)


def one(setting: str, method: str, seed: int, weight: float, task: Any, gold: Any, tokenizer: Any) -> dict[str, Any]:
    """A run, graded on held-out prompts."""
    began = time.process_time()
    config = configuration(setting, method, seed, weight, task)
    reward = None
    if SETTINGS[setting].get("whole_reward"):
        from transformers import AutoModelForCausalLM

        from bilevel_rl.llm.rewards.models import ClassifierReward
        from bilevel_rl.llm.roles.backend import classifier_like, trainable

        reward = trainable(ClassifierReward(classifier_like(AutoModelForCausalLM.from_pretrained(task.model))))
    trainer = BilevelTrainer(
        config, None, reward, task.prompts, tokenizer=tokenizer, gold=gold, judge=task.judge(8.0, seed, gold)
    )
    trainer.train()
    figures, _ = evaluate(
        trainer.roles, task.held_out, trainer.generator, tokenizer, gold, max_new_tokens=config.max_new_tokens, seed=0
    )
    return {
        "setting": setting, "method": method, "seed": seed, "weight": weight, "labels": trainer.labels,
        "tokens": trainer.tokens, "cpu_seconds": round(time.process_time() - began, 1),
        **{f"late_{key}": float(np.mean([line[key] for line in trainer.history[-LATE:]])) for key in ("kl", "gold")},
        **{key: figures[key] for key in ("gold", "gold_error", "kl", "kl_error", "length", "distinct")},
    }  # fmt: skip


def kept(setting: str, method: str, seed: int, weight: float, things: list) -> dict[str, Any]:
    """`one`, from its file where it is there."""
    path = FOLDER / f"{setting}-{method}-{seed}-{weight}.json".replace(" ", "_")
    if not path.exists():
        if time.process_time() > LIMIT[0]:
            raise SystemExit(f"{path.stem} is next")
        if not things:
            task = task_of.from_grammar(Path("runs/cache"), *task_of.sized("small", "grammar"))
            things += [task, task.gold(), task.tokenizer()]
        write_json(path, one(setting, method, seed, weight, *things))
        print(json.dumps(read_json(path)), flush=True)
    return read_json(path)


def collect(seeds: int) -> dict[str, Any]:
    """Differences to `partial_sgd` by seed with 95 % intervals, Holm's correction over the settings, and the KLs."""
    rows = [read_json(path) for path in sorted(FOLDER.glob("*-*-*.json"))]
    fresh = [r for r in rows if r["seed"] in FRESH[:seeds] and r["weight"] == WEIGHTS.get(r["method"], 0.0)]
    by = {(r["setting"], r["method"], r["seed"]): r for r in fresh}
    lines = []
    for setting in SETTINGS:
        for method in METHODS:
            mine = [by[setting, method, s] for s in FRESH[:seeds] if (setting, method, s) in by]
            if not mine:
                continue
            line = {"setting": setting, "method": method, "seeds": len(mine)}
            for key in ("gold", "kl", "late_gold", "late_kl"):
                line[key] = [float(np.mean([r[key] for r in mine])), float(np.std([r[key] for r in mine], ddof=1))]
            pairs = [(r, by[setting, "partial_sgd", r["seed"]]) for r in mine if (setting, "partial_sgd", r["seed"]) in by]
            gap = np.array([a["late_gold"] - b["late_gold"] for a, b in pairs])
            if method != "partial_sgd" and len(gap) > 1:
                half = scipy.stats.t.ppf(0.975, len(gap) - 1) * gap.std(ddof=1) / np.sqrt(len(gap))
                line |= {"gap": float(gap.mean()), "half": float(half), "ahead": int((gap > 0).sum()),
                         "kl_gap": float(np.mean([a["late_kl"] - b["late_kl"] for a, b in pairs])),
                         "p": float(scipy.stats.ttest_1samp(gap, 0.0).pvalue)}  # fmt: skip
            lines.append(line)
    for method in WEIGHTS:  # Holm over the four settings
        mine = sorted((line for line in lines if line["method"] == method and "p" in line), key=lambda line: line["p"])
        worst = 0.0
        for i, line in enumerate(mine):
            worst = max(worst, min(1.0, (len(mine) - i) * line["p"]))
            line["p_holm"] = worst
    return {
        "what": __doc__, "target_kl": TARGET, "labels": LABELS, "steps": STEPS, "late": LATE, "weights": WEIGHTS,
        "summary": lines, "runs": rows, "cpu_seconds": round(sum(r["cpu_seconds"] for r in rows), 1), "hardware": hardware(),
    }  # fmt: skip


def main() -> None:
    """Run or collect."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "collect"))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="of processor time; then call again")
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    LIMIT[0] = options.seconds
    make_folder(FOLDER)
    things: list[Any] = []
    if options.what == "run":
        for seed in FRESH[: options.seeds]:
            for setting in SETTINGS:
                for method in options.methods:
                    kept(setting, method, seed, WEIGHTS.get(method, 0.0), things)
    if options.what == "collect":
        path = Path(__file__).parent / "results/restricted_happy_tweets.json"
        path.write_text(json.dumps(collect(options.seeds), indent=1) + "\n")


if __name__ == "__main__":
    main()
