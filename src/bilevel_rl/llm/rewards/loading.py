"""A reward model by name: a classifier with one label, its tokenizer where it is not the policy's, its head."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bilevel_rl.errors import InvalidConfig, message, require
from bilevel_rl.llm.forward import context
from bilevel_rl.llm.loading import explain, load_tokenizer
from bilevel_rl.llm.rewards.models import ClassifierReward

log = logging.getLogger(__name__)


def load_reward(name: str | Path, tokenizer: Any = None) -> ClassifierReward:
    """The classifier in a folder or on the hub as a reward model.

    A model without a classification head gets one that starts at zero. Where the model's tokenizer is not `tokenizer`,
    the reward reads text.

    Args:
        name: folder or hub id.
        tokenizer: of the policy; None: prompts and completions are ids.

    Raises:
        InvalidConfig: it can't be read, or has more than one label.
    """
    transformers = require("transformers", "llm")
    try:
        config = transformers.AutoConfig.from_pretrained(str(name), trust_remote_code=False)
        graded = any("Classification" in kind for kind in config.architectures or ())
        if graded and config.num_labels != 1:
            raise InvalidConfig(
                message("config.reward", f"{str(name)!r}, a classifier with {config.num_labels} labels "
                        f"({', '.join(map(str, config.id2label.values()))})", "a reward model has one output",
                        "Use it as a judge or gold scorer (judge: FOLDER@LABEL), or train a classifier with num_labels=1")
            )  # fmt: skip
        model, found = transformers.AutoModelForSequenceClassification.from_pretrained(
            str(name), trust_remote_code=False, use_safetensors=True, num_labels=1, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, InvalidConfig):
            raise
        raise InvalidConfig(
            message("config.reward", f"{str(name)!r}, which can't be loaded ({explain(error)})",
                    "a hub id or a folder with config.json and safetensors weights", "Check the name and the network")
        ) from error  # fmt: skip
    _zero(model, found["missing_keys"], str(name))
    return ClassifierReward(model, _other_tokenizer(name, tokenizer))


@torch.no_grad()
def _zero(model: nn.Module, missing: Any, name: str) -> None:
    """Weights that the folder lacks start at zero, not at random ones that no seed of the run decides."""
    parameters = dict(model.named_parameters())
    for key in sorted(set(missing) & parameters.keys()):
        log.warning("reward model %s has no %s: it starts at zero", name, key)
        parameters[key].zero_()


def _other_tokenizer(name: str | Path, tokenizer: Any) -> Any:
    """The model's own tokenizer, or None where it is the policy's (or the policy has none)."""
    if tokenizer is None:
        return None
    try:
        own = load_tokenizer(name)
    except InvalidConfig:
        log.warning("reward model %s comes without a tokenizer: it is given the policy's ids", name)
        return None
    ids = tokenizer.get_vocab()
    shared = {text: i for text, i in own.get_vocab().items() if text in ids}
    # an exported reward model may have one padding token more
    if len(shared) >= len(ids) and all(ids[text] == i for text, i in shared.items()):
        return None
    log.info("reward model %s has a tokenizer of its own: it reads the completions' text", name)
    return own


def check_reward(reward: nn.Module, vocabulary: int | None, longest: int) -> None:
    """Raise unless a classifier can read the policy's ids and its longest text.

    Args:
        reward: any reward module; only classifiers are looked at.
        vocabulary: ids that the policy may write.
        longest: tokens of the longest prompt and completion together.

    Raises:
        InvalidConfig: naming what does not fit.
    """
    if not isinstance(reward, ClassifierReward) or reward.tokenizer is not None:
        return
    size = getattr(reward.model.config, "vocab_size", None)
    if size is not None and vocabulary is not None and size < vocabulary:
        raise InvalidConfig(
            message("reward", f"a classifier of {size} ids", f"the policy writes {vocabulary}: they have other tokenizers",
                    "Give the reward model by folder or hub id, or pass ClassifierReward(model, tokenizer=its own)")
        )  # fmt: skip
    room = context(reward.model)
    if room is not None and longest > room:
        raise InvalidConfig(
            message("reward", f"a classifier whose context holds {room} tokens",
                    f"the longest prompt and completion have {longest}", "Shorten the prompts or lower max_new_tokens")
        )  # fmt: skip
