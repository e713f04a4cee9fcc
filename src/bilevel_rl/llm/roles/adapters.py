"""A policy that comes as adapters on a base: merged before a run starts, so that the run starts where the adapters ended.

Roles put their own adapters on the policy. On a base that already has some, "the base with its adapters off" would be
the bare base and not the policy that was handed over; merged, policy and reference are the adapted model.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from torch import nn

from bilevel_rl.errors import InvalidConfig, message, require
from bilevel_rl.llm.loading import explain

log = logging.getLogger(__name__)


def is_adapter(name: str | Path) -> bool:
    """Whether a folder or hub id holds PEFT adapters and no whole model."""
    if Path(name).is_dir():
        return (Path(name) / "adapter_config.json").exists()
    utils = require("transformers", "llm").utils
    try:
        return utils.find_adapter_config_file(str(name)) is not None
    except (OSError, ValueError):
        return False  # not there, or not to be reached: the loading of a whole model says so


def load_merged(name: str | Path) -> nn.Module:
    """The causal language model that adapters and their base make together.

    Raises:
        InvalidConfig: the adapters, or the base that they name, can't be read.
    """
    peft = require("peft", "llm")
    try:
        model = peft.AutoPeftModelForCausalLM.from_pretrained(str(name))
    except (OSError, ValueError, TypeError) as error:
        base = _base(peft, name)
        raise InvalidConfig(
            message("config.policy", f"adapters in {str(name)!r} on the base {base!r}, which can't be loaded "
                    f"({explain(error)})", "adapters need the base that they were trained on",
                    "Correct base_model_name_or_path in adapter_config.json, or merge the adapters first")
        ) from error  # fmt: skip
    return merged(model)


def merged(policy: nn.Module) -> nn.Module:
    """The plain model of a policy with adapters, merged in place; any other policy as it is.

    Raises:
        InvalidConfig: adapters that can't be merged (prompt tuning), or that transformers loaded without PEFT's wrapper.
    """
    if getattr(policy, "_hf_peft_config_loaded", False):
        raise InvalidConfig(
            message("policy", "a model into which transformers loaded adapters", "a run starts from one set of weights",
                    "Merge first: peft.AutoPeftModelForCausalLM.from_pretrained(FOLDER).merge_and_unload(), or give the "
                    "adapters' folder")
        )  # fmt: skip
    if not hasattr(policy, "peft_config"):
        return policy
    if not hasattr(policy, "merge_and_unload"):
        kinds = ", ".join(sorted({str(getattr(c, "peft_type", "?")) for c in policy.peft_config.values()}))
        raise InvalidConfig(
            message("policy", f"adapters that can't be merged ({kinds})", "a run starts from one set of weights",
                    "Start from LoRA adapters, or from a whole model")
        )  # fmt: skip
    names = list(policy.peft_config)
    log.info("the policy's adapters (%s) are merged into its base before the run starts", ", ".join(names))
    whole: Any = policy.merge_and_unload()
    if hasattr(whole, "config"):
        whole.name_or_path = whole.config.name_or_path = ""  # what it was loaded from is no longer what it is
    return whole.eval()


def _base(peft: Any, name: str | Path) -> str:
    try:
        return str(peft.PeftConfig.from_pretrained(str(name)).base_model_name_or_path)
    except (OSError, ValueError, TypeError):
        return "?"
