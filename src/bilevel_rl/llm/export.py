"""From a run folder to folders that transformers, PEFT, TRL and vLLM load: policy, reward, tokenizer, model
card.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from bilevel_rl.errors import InvalidConfig, RunNotFound, message
from bilevel_rl.levels import run_folder
from bilevel_rl.levels.objectives import Sample, Upper
from bilevel_rl.llm.config import Config
from bilevel_rl.llm.data.rows import load_prompts
from bilevel_rl.llm.tasks import by_name
from bilevel_rl.llm.trainer import BilevelTrainer
from bilevel_rl.metrics import BY_KEY
from bilevel_rl.records import Run, make_folder, read_json, write_bytes

FIGURES = ("gold", "kl", "learned_reward", "length", "labels", "samples", "upper", "entropy")


class Frozen:
    """An upper objective for looking at a run, not training it: it asks nobody and moves nothing."""

    needs_pairs = needs_gold = needs_stored = False

    def evaluate(self, sample: Sample) -> Upper:
        """A zero."""
        return Upper(0.0, None, torch.zeros_like(sample.weights))


def restore(
    folder: str | Path, policy: Any = None, tokenizer: Any = None, reward: Any = None, checkpoint: str = "last"
) -> BilevelTrainer:
    """The trainer of a run at its last checkpoint, for sampling and exporting.

    Args:
        folder: of the run.
        policy, tokenizer, reward: what the run was started with, when it was started with objects and not
            names.
        checkpoint: "last", "best" (of the held-out evaluations), or the iteration of one that is kept.

    Raises:
        RunNotFound: no run, or no checkpoint.
        InvalidConfig: the run's policy was an object and none is given.
    """
    folder = Path(folder)
    header = read_json(folder / "run.json")
    if not isinstance(header, dict) or header.get("kind") != "llm":
        raise RunNotFound(
            message(str(folder), f"a run of kind {header.get('kind') if isinstance(header, dict) else None!r}",
                    "a language-model run is needed", "Give the --out folder of `bilevel-rl llm train`")
        )  # fmt: skip
    place, step = _place(checkpoint)
    if not (folder / place / "state.json").exists():
        raise RunNotFound(
            message(str(folder), f"no checkpoint ({checkpoint})", "sampling and exporting start from one",
                    "Let the run reach a checkpoint (save_every), or its end")
        )  # fmt: skip
    config = Config.from_dict({**header["config"], "out": str(folder), **ALONE}, where=str(folder / "run.json"))
    if policy is None and not config.policy:
        raise InvalidConfig(
            message(str(folder), "a run whose policy was an object in Python", "its weights need that model's class",
                    "Call restore(folder, policy=..., tokenizer=...), or trainer.export_policy at the end of training")
        )  # fmt: skip
    given: dict[str, Any] = {"prompts": [[0]]}  # a prompt must be there; none is ever sampled from this list
    if config.task:
        config, given = by_name.prepared(config)
    elif config.fields and config.prompts:  # fields may be columns
        given["prompts"] = load_prompts(config.prompts, duplicates="drop")
    own = {"policy": policy, "reward": reward, "tokenizer": tokenizer}
    given |= {name: value for name, value in own.items() if value is not None}
    trainer = BilevelTrainer(config, objective=Frozen(), cost=_free if config.cost else None, **given)
    run_folder.load(trainer, folder / place, goes_on=False, step=step)
    return trainer


# keys with which a run is looked at and not trained
ALONE = {"resume": "never", "eval_every": 0, "patience": 0, "loggers": [], "generator": ""}


def _free(completions: Sequence[Any], **_: Any) -> list[float]:
    return [0.0] * len(completions)


def _place(checkpoint: str) -> tuple[str, int | None]:
    """Folder in the run folder, and iteration, that a checkpoint's name means."""
    if checkpoint in ("last", "best"):
        return ("best" if checkpoint == "best" else "checkpoint"), None
    try:
        return "checkpoint", int(checkpoint)
    except ValueError:
        raise InvalidConfig(
            message("checkpoint", repr(checkpoint), "a checkpoint is last, best, or an iteration", "Choose one of these")
        ) from None


def export(
    trainer: BilevelTrainer, folder: str | Path, figures: Mapping[str, float] | None = None, name: str = ""
) -> dict[str, Path]:
    """Write `policy/` (a full model, or a PEFT adapter), `reward/` (a sequence classifier) and their model
    cards.

    Args:
        trainer: trained or restored.
        figures: measured values for the cards; None takes the last line of the run's metrics.
        name: title of the cards.

    Returns:
        Folders by what they hold; `reward` is absent when the reward model is no sequence classifier.

    Raises:
        StorageFailed: the folder can't be written.
    """
    folder = make_folder(folder)
    figures = dict(last_figures(trainer) if figures is None else figures)
    title = name or f"{trainer.problem.replace('_', ' ')}, {trainer.config.method}"
    written = {"policy": folder / "policy"}
    trainer.export_policy(written["policy"])
    try:
        trainer.export_reward(folder / "reward")
        written["reward"] = folder / "reward"
    except InvalidConfig:  # a linear or user-defined reward: no other tool has a class for it
        pass
    for part, path in written.items():
        write_bytes(path / "README.md", model_card(trainer, part, title, figures).encode())
    return written


def last_figures(trainer: BilevelTrainer) -> dict[str, float]:
    """The last recorded value of each headline metric, from memory or from the run folder."""
    lines: list[Mapping[str, Any]] = list(trainer.history)
    path = Path(trainer.config.out) / "metrics.jsonl"
    if not lines and trainer.config.out and path.exists():
        trace = Run.read(trainer.config.out).trace
        size = next(iter(trace.values())).shape[1] if trace else 0
        lines = [{key: float(values[0, i]) for key, values in trace.items()} for i in range(size)]
    found: dict[str, float] = {}
    for key in FIGURES:
        values = [line[key] for line in lines if key in line and line[key] == line[key]]
        if values:
            found[key] = float(values[-1])
    return found


def model_card(trainer: BilevelTrainer, part: str, title: str, figures: Mapping[str, float]) -> str:
    """A model card in the hub's format: what it is, how it was trained, what was measured, how to load it."""
    config, adapter = trainer.config, trainer.config.backend == "lora"
    library = "peft" if adapter and part == "policy" else "transformers"
    head = ["---", f"library_name: {library}"]
    if config.policy and not Path(config.policy).exists():
        head.append(f"base_model: {config.policy}")
    head += [f"pipeline_tag: {'text-generation' if part == 'policy' else 'text-classification'}",
             "tags:", "- bilevel-rl", "- rlhf", "---", ""]  # fmt: skip
    what = {
        "policy": "The policy θ: a language model trained against a reward model that was learned with it.",
        "reward": "The reward model x: one logit, the reward of a whole text, read at its last token.",
    }[part]
    rows = [f"| {BY_KEY[k].label if k in BY_KEY else k} | {v:.4g} | {BY_KEY[k].unit if k in BY_KEY else ''} |"
            for k, v in figures.items()]  # fmt: skip
    load = {
        ("policy", False): "AutoModelForCausalLM.from_pretrained(FOLDER)",
        ("policy", True): "AutoPeftModelForCausalLM.from_pretrained(FOLDER)",
    }.get((part, adapter), "AutoModelForSequenceClassification.from_pretrained(FOLDER)")
    module = "peft" if load.startswith("AutoPeft") else "transformers"
    keys = {
        k: v
        for k, v in config.asdict().items()
        if k not in ("out", "policy", "prompts", "preferences", "judge")
    }
    return "\n".join(
        [*head, f"# {title}", "", what, "",
         f"Method `{config.method}`" + (f", estimator `{config.estimator}`" if config.method == "bilevel" else "")
         + f", {trainer.step} iterations, seed {config.seed}.", "",
         "| measured | value | unit |", "|---|---|---|", *rows, "",
         "The learned reward is what training maximises; only the gold score and the KL to the reference grade the policy.",
         "", "```python", f"from {module} import {load.split('.')[0]}", f"model = {load}", "```", "",
         "## Configuration", "", "```json", json.dumps(keys, indent=1), "```", ""]
    )  # fmt: skip
