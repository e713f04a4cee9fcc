r"""Happy tweets where the policy can't be its reward's tilt: the grammar's language model with few numbers that train.

Four settings, named before any fresh seed: adapters of rank 1 and rank 2, a frozen trunk (the last layer's MLP and norm
train), and a rank-1 policy under a whole reward model (`larger reward`). In each, at equal labels and with tau controlled to
equal KL: x fitted on fresh labels (`partial_sgd`), the usual pipeline (`fixed_reward`), bi-level by `shared`, `paired` and
`fisher` (conjugate gradients on the batch), and TRL's online DPO, whose beta the same controller moves and whose pairs are
labelled by the same law (8 times the gold score plus Gumbel noise ranks a pair as the judge does).

Every method has six settings of its own (`SEARCHED`), tried in rank 1 and in the frozen trunk on one tuning seed; the
three best go on to two more (`HALVED`). Rank 2 and the larger reward take rank 1's choice. The rate of the policy is
the same for all of ours and was set on the gold score itself. The last two settings of each were added when the first
four had nearly all their runs of the first seed, because the smallest rates were the best; the weight of the win rate
has an edge at 0, where bi-level is `partial_sgd`. Ten fresh seeds; what is compared is the mean gold score of the last
`LATE` iterations. The larger reward takes a choice made in rank 1; as fresh seeds had `partial_sgd` far behind there,
and a little at rank 1, it has its other two halved rates on all fresh seeds of both too (`CONTROLS`), named after those
had been seen.

    python benchmarks/restricted_happy_tweets.py tune          the tuning seeds' runs that are not there yet
    python benchmarks/restricted_happy_tweets.py run           every run of fresh seeds that is not there yet
    python benchmarks/restricted_happy_tweets.py control       fresh seeds of `CONTROLS`
    python benchmarks/restricted_happy_tweets.py collect       writes benchmarks/results/restricted_happy_tweets.json
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bilevel_rl import statistics
from bilevel_rl.experiments import happy_tweets as experiment
from bilevel_rl.levels.kl_controller import KlController
from bilevel_rl.llm.config import Config
from bilevel_rl.llm.tasks import happy_tweets as task_of
from bilevel_rl.llm.trainer import BilevelTrainer
from bilevel_rl.records import hardware, make_folder, read_json, write_json

TARGET = 2.0  # nats a completion
STEPS, PAIRS, LATE = 200, 8, 60
LABELS = STEPS * PAIRS
TAU, KL_RATE = 0.5, 0.05
FRESH, TUNING = tuple(range(10)), (100, 101, 102)
FIT = {"label_likelihood": 1.0}
ADAPTER, TRUNK = (
    {"backend": "lora", "alpha": 1e-2},
    {"backend": "full", "train": ["h.1.mlp", "ln_f"], "alpha": 5e-3},
)
SETTINGS: dict[str, dict[str, Any]] = {
    "rank 1": {**ADAPTER, "lora_rank": 1},
    "rank 2": {**ADAPTER, "lora_rank": 2},
    "frozen trunk": TRUNK,
    "larger reward": {**ADAPTER, "lora_rank": 1, "whole_reward": True},
}
TUNED_IN = {"rank 1": "rank 1", "rank 2": "rank 1", "frozen trunk": "frozen trunk", "larger reward": "rank 1"}
TRL = "trl online_dpo"
METHODS: dict[str, dict[str, Any]] = {
    "partial_sgd": {"method": "partial_sgd", "objective": FIT},
    "fixed_reward": {"method": "fixed_reward", "objective": FIT},
    "paired": {"estimator": "paired"},
    "fisher": {"estimator": "fisher", "fisher_steps": 2},
    "shared": {"estimator": "shared"},
    TRL: {},
}
BILEVEL = ("paired", "fisher", "shared")
HALVED = 3
_RATES = [{"zeta": z} for z in (3e-3, 1e-2, 3e-2, 1e-1, 1e-3, 3e-4)]
SEARCHED: dict[str, list[dict[str, float]]] = {
    "partial_sgd": _RATES,
    "fixed_reward": _RATES,
    "paired": [{"zeta": z, "win_rate": w} for z in (1e-2, 3e-2) for w in (1.0, 3.0)]
    + [{"zeta": 3e-3, "win_rate": w} for w in (1.0, 0.3)],
    "fisher": [{"zeta": z, "win_rate": w} for z in (1e-2, 3e-2) for w in (0.05, 0.5)]
    + [{"zeta": 3e-3, "win_rate": w} for w in (0.05, 0.01)],
    "shared": [{"zeta": z, "win_rate": w} for z in (1e-2, 3e-2) for w in (1.0, 3.0)]
    + [{"zeta": 3e-3, "win_rate": w} for w in (1.0, 0.3)],
    TRL: [{"learning_rate": rate} for rate in (1e-3, 3e-3, 1e-2, 3e-2, 5e-3, 3e-4)],
}
# asked for once fresh seeds had been seen: the rival's other halved rates where something is ahead of it
CONTROLS = [(setting, "partial_sgd", choice) for setting in ("larger reward", "rank 1") for choice in (0, 4)]
FOLDER, LIMIT = Path("runs/restricted_happy_tweets"), [float("inf")]


def configuration(setting: str, method: str, seed: int, own: dict[str, float], task: Any) -> Config:
    """One run's keys: the setting's, the method's, and budgets equal to every other's."""
    places = {k: v for k, v in SETTINGS[setting].items() if k != "whole_reward"}
    values = experiment.COMMON | places | METHODS[method] | {
        "seed": seed, "policy": str(task.model), "steps": STEPS, "label_budget": LABELS, "pairs_per_step": PAIRS,
        "replay_pairs": 4 * PAIRS, "target_kl": TARGET, "kl_rate": KL_RATE, "tau": TAU, "zeta": own["zeta"],
        "save_every": 0, "samples_every": 0,
    }  # fmt: skip
    if method in BILEVEL:
        values |= {"method": "bilevel", "objective": FIT | {"win_rate": own["win_rate"]}}
    if method == "fixed_reward":
        # all labels, 16 an iteration, then x alone; then the policy for as long as the others
        alone = LABELS // 16 + STEPS // 2
        values |= {"pairs_per_step": 16, "reward_steps": alone, "steps": alone + STEPS}
    return Config(**values)


def one(
    setting: str, method: str, seed: int, own: dict[str, float], task: Any, gold: Any, tokenizer: Any
) -> dict[str, Any]:
    """A run, graded by the gold score of its last iterations."""
    began = time.process_time()
    run = online_dpo if method == TRL else ours
    history = run(setting, method, seed, own, task, gold, tokenizer)
    written = [line for line in history if "kl" in line]  # iterations that only fit x write nothing
    kl, score = (np.array([line[key] for line in written]) for key in ("kl", "gold"))
    return {
        "setting": setting, "method": method, "seed": seed, "own": own, "labels": LABELS, "iterations": len(history),
        "cpu_seconds": round(time.process_time() - began, 1),
        "kl": float(kl[-LATE:].mean()), "gold": float(score[-LATE:].mean()), "kl_spread": float(kl[-LATE:].std()),
        "curve": [[round(float(x[i : i + 20].mean()), 4) for x in (kl, score)] for i in range(0, len(kl), 20)],
    }  # fmt: skip


def ours(
    setting: str, method: str, seed: int, own: dict[str, float], task: Any, gold: Any, tokenizer: Any
) -> list[dict[str, float]]:
    """The iterations of a run of the library's trainer."""
    config = configuration(setting, method, seed, own, task)
    reward = None
    if SETTINGS[setting].get("whole_reward"):
        from transformers import AutoModelForCausalLM

        from bilevel_rl.llm.rewards.models import ClassifierReward
        from bilevel_rl.llm.roles.backend import classifier_like, trainable

        reward = trainable(
            ClassifierReward(classifier_like(AutoModelForCausalLM.from_pretrained(task.model)))
        )
    trainer = BilevelTrainer(
        config, None, reward, task.prompts, tokenizer=tokenizer, gold=gold, judge=task.judge(8.0, seed, gold)
    )
    trainer.train()
    return trainer.history


def online_dpo(
    setting: str, method: str, seed: int, own: dict[str, float], task: Any, gold: Any, tokenizer: Any
) -> list[dict[str, float]]:
    """The iterations of TRL's online DPO: one pair for each of `PAIRS` prompts, which is what its trainer draws."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, TrainerCallback
    from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

    places = SETTINGS[setting]
    model, reference = (AutoModelForCausalLM.from_pretrained(task.model) for _ in range(2))
    adapter = None
    if places["backend"] == "lora":
        rank = places["lora_rank"]
        adapter, reference = LoraConfig(r=rank, lora_alpha=2 * rank, task_type="CAUSAL_LM"), None
    else:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(any(part in name for part in places["train"]))
    noise, golds, laws, nats = np.random.default_rng([seed, 8]), [], [], []

    def labelled(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
        scores = gold(prompts=prompts, completions=completions)
        golds.append(float(np.mean(scores)))
        return [8.0 * float(x) + noise.gumbel() for x in scores]

    class Control(TrainerCallback):
        def __init__(self) -> None:
            self.controller, self.seen = KlController(TARGET, KL_RATE), []

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.seen.append(nats.pop())
            self.controller.see(self.seen[-1])
            trainer._beta = TAU * self.controller.factor

    control = Control()
    config = OnlineDPOConfig(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=PAIRS, max_new_tokens=experiment.COMMON["max_new_tokens"],
        max_length=128, temperature=1.0, beta=[TAU], learning_rate=own["learning_rate"], lr_scheduler_type="constant",
        max_steps=STEPS, seed=seed, report_to=[], use_cpu=True, save_strategy="no", logging_strategy="no",
        disable_tqdm=True, bf16=False, gradient_checkpointing=False, max_grad_norm=1.0,
    )  # fmt: skip
    rows = Dataset.from_dict({"prompt": list(task.prompts)})
    trainer = OnlineDPOTrainer(
        model=model, ref_model=reference, reward_funcs=labelled, args=config, train_dataset=rows, processing_class=tokenizer,
        peft_config=adapter, callbacks=[control],
    )  # fmt: skip
    score = trainer._forward

    def watched(model: Any, prompt_ids: Any, prompt_mask: Any, ids: Any, mask: Any, *rest: Any) -> Any:
        """TRL scores the policy, then the reference. Its own KL counts what stands behind the end; this one is exact."""
        with torch.no_grad():
            attention = torch.cat([prompt_mask, mask], 1)
            logits = model(torch.cat([prompt_ids, ids], 1), attention_mask=attention,
                           position_ids=(attention.cumsum(1) - 1).clamp(min=0)).logits  # fmt: skip
            laws.append(logits[:, prompt_ids.shape[1] - 1 : -1].log_softmax(-1))
            if len(laws) == 2:
                ours, reference = laws
                nats.append(float(((ours.exp() * (ours - reference)).sum(-1) * mask).sum(1).mean()))
                laws.clear()
        return score(model, prompt_ids, prompt_mask, ids, mask, *rest)

    trainer._forward = watched
    trainer.train()
    return [{"kl": kl, "gold": score} for kl, score in zip(control.seen, golds, strict=True)]


def kept(setting: str, method: str, seed: int, choice: int, things: list) -> dict[str, Any]:
    """`one` with the method's setting number `choice`, from its file where it is there."""
    path = FOLDER / f"{setting}-{method}-{choice}-{seed}.json".replace(" ", "_")
    if not path.exists():
        if time.process_time() > LIMIT[0]:
            raise SystemExit(f"{path.stem} is next")
        if not things:
            task = task_of.from_grammar(Path("runs/cache"), *task_of.sized("small", "grammar"))
            things += [task, task.gold(), task.tokenizer()]
        write_json(path, one(setting, method, seed, SEARCHED[method][choice], *things) | {"choice": choice})
        print(json.dumps(read_json(path)), flush=True)
    return read_json(path)


def scored(
    rows: list[dict[str, Any]], setting: str, method: str, seeds: tuple[int, ...] = TUNING
) -> dict[int, tuple[float, float]]:
    """Mean gold score and KL on tuning seeds, of every setting that has them all."""
    found: dict[int, list[float]] = {}
    for row in rows:
        if (row["setting"], row["method"]) == (setting, method) and row["seed"] in seeds:
            found.setdefault(row["choice"], []).append((row["gold"], row["kl"]))
    means = {c: np.mean(pairs, 0) for c, pairs in sorted(found.items()) if len(pairs) == len(seeds)}
    return {choice: (float(gold), float(kl)) for choice, (gold, kl) in means.items()}


def ranked(means: dict[int, tuple[float, float]]) -> list[int]:
    """Best first: those within half the target's KL of it by gold score, then the others by their distance."""

    def order(choice: int) -> tuple[bool, float]:
        gold, kl = means[choice]
        far = abs(kl - TARGET) > TARGET / 2
        return far, abs(kl - TARGET) if far else -gold

    return sorted(means, key=order)


def chosen(rows: list[dict[str, Any]], setting: str, method: str) -> int:
    """The best of a method's settings on all tuning seeds."""
    where = TUNED_IN[setting]
    first, whole = scored(rows, where, method, TUNING[:1]), scored(rows, where, method)
    going = ranked(first)[:HALVED]
    if len(first) < len(SEARCHED[method]) or not set(going) <= set(whole):
        raise SystemExit(f"{method} in {where} is not tuned yet; `tune` first")
    return ranked({c: whole[c] for c in going})[0]


def found() -> list[dict[str, Any]]:
    """Every run on record."""
    return [read_json(path) for path in sorted(FOLDER.glob("*-*-*.json"))]


def summed(
    setting: str, method: str, choice: int, mine: list[dict[str, Any]], rival: dict[int, dict[str, Any]] | None
) -> dict[str, Any]:
    """Mean and spread of a method's runs, and the differences to a rival's by seed."""
    line = {"setting": setting, "method": method, "own": SEARCHED[method][choice], "seeds": len(mine)}
    for key in ("gold", "kl"):
        values = np.array([r[key] for r in mine])
        line[key] = [float(values.mean()), float(values.std(ddof=1))]
    pairs = [(r, rival[r["seed"]]) for r in mine if r["seed"] in (rival or {})]
    if len(pairs) > 1:
        ours, theirs = (np.array([pair[i]["gold"] for pair in pairs]) for i in (0, 1))
        gap, *interval = statistics.mean_interval(ours - theirs)
        line |= {"gap": gap, "interval": interval, "ahead": int((ours > theirs).sum()),
                 "kl_gap": float(np.mean([a["kl"] - b["kl"] for a, b in pairs])),
                 "p": statistics.paired_test(ours, theirs)}  # fmt: skip
    return line


def controls(rows: list[dict[str, Any]], by: dict[tuple[str, str, int], dict[str, Any]]) -> list[dict[str, Any]]:
    """Rivals with another rate than the chosen one, and every other method against them."""
    found = []
    for setting, method, choice in CONTROLS:
        held = {r["seed"]: r for r in rows if (r["setting"], r["method"], r["choice"]) == (setting, method, choice)}
        held = {seed: r for seed, r in held.items() if seed in FRESH}
        if len(held) < 2:
            continue
        against = []
        for other in METHODS:
            mine = [r for (a, b, _), r in sorted(by.items()) if (a, b) == (setting, other)]
            if other != method and len(mine) > 1:
                against.append(summed(setting, other, mine[0]["choice"], mine, held))
        found.append(summed(setting, method, choice, list(held.values()), None) | {"against": against})
    return found


def collect(seeds: int) -> dict[str, Any]:
    """Differences to `partial_sgd` by seed with 95 % intervals, Holm's correction over the settings, and the KLs."""
    rows = found()
    tuned = [
        m for m in METHODS if all(len(scored(rows, s, m)) >= HALVED for s in TUNED_IN.values())
    ]
    choices = {(setting, method): chosen(rows, setting, method) for setting in SETTINGS for method in tuned}
    fresh = [
        r for r in rows if r["seed"] in FRESH[:seeds] and r["choice"] == choices[r["setting"], r["method"]]
    ]
    by = {(r["setting"], r["method"], r["seed"]): r for r in fresh}
    lines = []
    for (setting, method), choice in choices.items():
        mine = [by[setting, method, s] for s in FRESH[:seeds] if (setting, method, s) in by]
        if len(mine) > 1:
            rival = {s: r for (a, b, s), r in by.items() if (a, b) == (setting, "partial_sgd")}
            lines.append(summed(setting, method, choice, mine, None if method == "partial_sgd" else rival))
    for method in METHODS:  # Holm over the four settings
        against = [line for line in lines if line["method"] == method and "p" in line]
        for line, p in zip(against, statistics.holm([line["p"] for line in against]), strict=True):
            line["p_holm"] = float(p)
    tuning = [
        {
            "setting": setting,
            "method": method,
            "settings": SEARCHED[method],
            "gold and KL of the first seed": scored(rows, setting, method, TUNING[:1]),
            "of all": scored(rows, setting, method),
        }
        for setting in dict.fromkeys(TUNED_IN.values())
        for method in METHODS
    ]
    return {
        "what": __doc__, "target_kl": TARGET, "labels": LABELS, "steps": STEPS, "late": LATE, "tuning": tuning,
        "summary": lines, "controls": controls(rows, by), "runs": rows,
        "cpu_seconds": round(sum(r["cpu_seconds"] for r in rows), 1), "hardware": hardware(),
    }  # fmt: skip


def main() -> None:
    """Tune, run or collect."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("tune", "run", "control", "collect"))
    parser.add_argument("--seeds", type=int, default=len(FRESH))
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="of processor time; then call again"
    )
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    LIMIT[0] = options.seconds
    make_folder(FOLDER)
    things: list[Any] = []
    if options.what == "tune":
        for seed in TUNING:
            for setting in dict.fromkeys(TUNED_IN.values()):
                for method in options.methods:
                    going: Any = range(len(SEARCHED[method]))
                    if seed != TUNING[0]:
                        going = ranked(scored(found(), setting, method, TUNING[:1]))[:HALVED]
                    for choice in going:
                        kept(setting, method, seed, choice, things)
    if options.what == "run":
        rows = found()
        for seed in FRESH[: options.seeds]:
            for setting in SETTINGS:
                for method in options.methods:
                    kept(setting, method, seed, chosen(rows, setting, method), things)
    if options.what == "control":
        for seed in FRESH[: options.seeds]:
            for setting, method, choice in CONTROLS:
                kept(setting, method, seed, choice, things)
    if options.what == "collect":
        path = Path(__file__).parent / "results/restricted_happy_tweets.json"
        path.write_text(json.dumps(collect(options.seeds), indent=1) + "\n")


if __name__ == "__main__":
    main()
