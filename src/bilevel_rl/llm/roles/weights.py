"""What other tools load: the policy as a transformers model or PEFT adapter, the reward as a sequence classifier."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch

from bilevel_rl.errors import InvalidConfig, message, require
from bilevel_rl.llm.forward import is_sharded
from bilevel_rl.llm.rewards.models import ClassifierReward
from bilevel_rl.llm.roles.backend import LoraRoles, Roles, classifier_like
from bilevel_rl.records import make_folder


def export_policy(roles: Roles, folder: str | Path, tokenizer: Any = None) -> None:
    """Write theta: a full model, or the adapter named "policy" as PEFT's own files. Safetensors in both cases."""
    folder = make_folder(folder)
    if isinstance(roles, LoraRoles):
        with roles.model("policy"):
            roles.peft.save_pretrained(folder, selected_adapters=["policy"], safe_serialization=True)
        # PEFT puts an adapter that is not called "default" in a folder of its name
        for file in (folder / "policy").glob("*"):
            file.replace(folder / file.name)
        (folder / "policy").rmdir()
    else:
        with roles.model("policy") as model:
            model.save_pretrained(folder, safe_serialization=True)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


@torch.no_grad()
def export_reward(roles: Roles, folder: str | Path, tokenizer: Any = None) -> None:
    """Write x as an `AutoModelForSequenceClassification`; an adapter is merged into a copy of its base.

    Raises:
        InvalidConfig: a reward model that is not a classifier.
    """
    transformers = require("transformers", "llm")
    if isinstance(roles, LoraRoles) and any(is_sharded(m) for m in roles.base.modules()):
        raise InvalidConfig(
            message("export_reward", "a sharded base", "an adapter is merged into weights that are whole",
                    "Run `bilevel-rl llm export` in one process on the run folder")
        )  # fmt: skip
    if isinstance(roles.reward, ClassifierReward):
        model = roles.reward.model
    elif isinstance(roles, LoraRoles) and "reward" in roles.heads:
        base = copy.deepcopy(roles.peft)
        base.set_adapter("reward")
        merged = base.merge_and_unload(adapter_names=["reward"])
        model = classifier_like(merged)
        model.score.weight.copy_(roles.heads["reward"].weight)
    else:
        raise InvalidConfig(
            message("export_reward", type(roles.reward).__name__, "a sequence classifier is needed",
                    "Save its parameters with safetensors.torch.save_file(reward.state_dict(), ...)")
        )  # fmt: skip
    assert isinstance(model, transformers.PreTrainedModel)
    if tokenizer is not None and tokenizer.pad_token_id is not None:
        model.config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(make_folder(folder), safe_serialization=True)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
