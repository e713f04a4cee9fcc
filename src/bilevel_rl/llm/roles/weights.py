"""What other tools load: the policy as a transformers model or PEFT adapter, the reward as a sequence classifier."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import torch

from bilevel_rl.errors import InvalidConfig, message, require
from bilevel_rl.levels.engine import POLICIES, REWARD
from bilevel_rl.llm.forward import is_sharded
from bilevel_rl.llm.rewards.models import ClassifierReward, LinearReward
from bilevel_rl.llm.roles.backend import LoraRoles, Roles, classifier_like
from bilevel_rl.llm.roles.sharding import whole
from bilevel_rl.records import make_folder, read_json, write_json

log = logging.getLogger(__name__)
PAD = "<|reward_pad|>"  # ours: a padding token that no text holds


def export_policy(roles: Roles, folder: str | Path, tokenizer: Any = None, write: bool = True) -> None:
    """Write theta: a full model, or the adapter named "policy" as PEFT's own files. Safetensors in both cases.

    Weights in pieces are put together by all processes, so all call it; with `write=False` nothing is written.

    An adapter names its base by hub id or absolute path. A base that was loaded from nowhere (built in Python, or merged
    from adapters when the run began) is written beside it, in `base/`.
    """
    if not isinstance(roles, LoraRoles):
        with roles.model("policy") as part:
            model: Any = whole(part)
    if not write:
        return
    folder = make_folder(folder)
    if isinstance(roles, LoraRoles):
        with roles.model("policy"):
            roles.peft.save_pretrained(folder, selected_adapters=["policy"], safe_serialization=True)
        # PEFT puts an adapter that is not called "default" in a folder of its name
        for file in (folder / "policy").glob("*"):
            file.replace(folder / file.name)
        (folder / "policy").rmdir()
        header = read_json(folder / "adapter_config.json")
        write_json(folder / "adapter_config.json", {**header, "base_model_name_or_path": _base(roles, folder)})
    else:
        _as_it_came(model, roles.came.get(POLICIES[0])).save_pretrained(folder, safe_serialization=True)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def _as_it_came(model: Any, kind: torch.dtype | None) -> Any:
    """A model in the type of 16 bits in which it came; itself where there is none."""
    return model if kind in (None, model.dtype) else copy.deepcopy(model).to(kind)


def _base(roles: LoraRoles, folder: Path) -> str | None:
    """Where the adapters' base is to be found: a hub id, an absolute path, or written now."""
    name = getattr(roles.base, "name_or_path", "") or ""
    if name:
        return str(Path(name).resolve()) if Path(name).exists() else name
    if any(is_sharded(m) for m in roles.base.modules()):
        log.warning("export_policy: the base has no name and is in pieces: keep it to load the adapter in %s", folder)
        return None
    copy.deepcopy(roles.peft).unload().save_pretrained(folder / "base", safe_serialization=True)
    log.info("export_policy: the base was loaded from nowhere; it is written to %s", folder / "base")
    return str((folder / "base").resolve())


@torch.no_grad()
def export_reward(roles: Roles, folder: str | Path, tokenizer: Any = None, write: bool = True) -> None:
    """Write x as an `AutoModelForSequenceClassification`; an adapter is merged into a copy of its base, and a linear reward
    becomes the reference's body with x as its head.

    transformers reads a decoder's score at the last token that is not padding. Where the padding id is one that texts end
    with (often the end token itself) the exported model gets a padding id of its own, one more than the tokenizer has.

    As with `export_policy`, all processes call it where weights are in pieces.

    Raises:
        InvalidConfig: a reward model that is not a classifier.
    """
    transformers = require("transformers", "llm")
    if isinstance(roles, LoraRoles) and any(is_sharded(m) for m in roles.base.modules()):
        raise InvalidConfig(
            message("export_reward", "a sharded base", "an adapter is merged into weights that are whole",
                    "Run `bilevel-rl llm export` in one process on the run folder")
        )  # fmt: skip
    if isinstance(roles, LoraRoles) and not write:
        return
    if isinstance(roles.reward, ClassifierReward):
        model, tokenizer = whole(roles.reward.model), roles.reward.tokenizer or tokenizer
    elif isinstance(roles, LoraRoles) and "reward" in roles.heads:
        base = copy.deepcopy(roles.peft)
        base.set_adapter("reward")
        merged = base.merge_and_unload(adapter_names=["reward"])
        model = classifier_like(merged)
        model.score.weight.copy_(roles.heads["reward"].weight)
    elif isinstance(roles.reward, LinearReward) and roles.reward.of_reference:
        body = copy.deepcopy(roles.peft).unload() if isinstance(roles, LoraRoles) else whole(roles.standing())
        model = classifier_like(body)
        model.score.weight.copy_(roles.reward.x)
    else:
        raise InvalidConfig(
            message("export_reward", type(roles.reward).__name__, "a sequence classifier is needed",
                    "Save its parameters with safetensors.torch.save_file(reward.state_dict(), ...)")
        )  # fmt: skip
    assert isinstance(model, transformers.PreTrainedModel)
    if not write:
        return
    model, tokenizer = _padded_apart(_as_it_came(model, roles.came.get(REWARD)), tokenizer)
    model.save_pretrained(make_folder(folder), safe_serialization=True)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def _padded_apart(model: Any, tokenizer: Any) -> tuple[Any, Any]:
    """Model and tokenizer with a padding id that no text ends with; copies where one had to be made."""
    own = tokenizer.pad_token_id if tokenizer is not None else model.config.pad_token_id
    if not hasattr(model, "score"):  # an encoder reads its first token
        return model, tokenizer
    ends = getattr(model.config, "eos_token_id", None)
    taken = set(ends) if isinstance(ends, list) else {ends}
    if tokenizer is not None:
        taken |= {tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id}
    if own is not None and own not in taken:
        model.config.pad_token_id = own
        return model, tokenizer
    model, pad = copy.deepcopy(model), model.config.vocab_size
    if tokenizer is not None:
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.add_special_tokens({"pad_token": PAD})
        pad = tokenizer.pad_token_id
    if pad >= model.config.vocab_size:
        model.resize_token_embeddings(pad + 1, mean_resizing=False)
    model.config.pad_token_id = pad
    return model, tokenizer
