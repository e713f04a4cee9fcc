"""From what the user hands over to checked objects: policy, tokenizer, stop ids, roles, stored preferences."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bilevel_rl import names
from bilevel_rl.errors import InvalidConfig, InvalidProblem, message, require
from bilevel_rl.levels.digests import seeded
from bilevel_rl.levels.engine import POLICIES, REWARD
from bilevel_rl.llm.config import REWARDS, Config
from bilevel_rl.llm.data import preferences
from bilevel_rl.llm.data.preferences import Pair, answer_ids
from bilevel_rl.llm.data.prompts import Prompt
from bilevel_rl.llm.forward import context
from bilevel_rl.llm.judges.by_name import make_gold
from bilevel_rl.llm.judges.endpoint import is_endpoint
from bilevel_rl.llm.loading import explain
from bilevel_rl.llm.rewards.loading import check_reward, load_reward
from bilevel_rl.llm.rewards.models import ClassifierReward, LinearReward, WeightedRewards
from bilevel_rl.llm.roles.adapters import is_adapter, load_merged, merged
from bilevel_rl.llm.roles.backend import FullRoles, LoraRoles, Roles, checkpoint_activations, trainable

DTYPES = {"float32": torch.float32, "bfloat16": torch.float32, "float64": torch.float64}  # autocast has 32-bit weights


def weights_of(config: Config) -> torch.dtype:
    """In which precision models are held."""
    return torch.bfloat16 if config.weights == "bfloat16" else DTYPES[config.dtype]

INITIAL, LOADED = 0x26, 0x27  # random streams, beside those of `trainer`, `leader` and `differences`
FUNCTIONS = "function:"  # of a reward that is Python functions


def load_policy(config: Config, policy: Any) -> nn.Module:
    """A model object as it is, or one loaded from a hub id or folder (safetensors only, no remote code).

    Adapters, as an object or in a folder, are merged into their base: see `roles.adapters`.

    Raises:
        InvalidConfig: neither a model nor a name, or a name that can't be loaded.
    """
    policy = policy if policy is not None else config.policy
    if isinstance(policy, nn.Module):
        for key in ("quantised", "attention"):
            if getattr(config, key):
                raise InvalidConfig(
                    message(f"config.{key}", f"{getattr(config, key)!r} with a model object",
                            "it is decided when a model is loaded", f"Give the policy by name, or leave {key} out")
                )  # fmt: skip
        return merged(policy)
    if not policy:
        raise InvalidConfig(
            message("BilevelTrainer.policy", "nothing", "a causal language model, or its hub id or folder",
                    "Pass policy=, or set config.policy")
        )  # fmt: skip
    transformers = require("transformers", "llm")
    if is_adapter(str(policy)):
        return load_merged(str(policy))
    options: dict[str, Any] = {"attn_implementation": config.attention} if config.attention else {}
    if config.quantised:
        options |= {"quantization_config": quantisation(config.quantised), "dtype": torch.bfloat16}
    with seeded(config.seed, LOADED):  # weights that the folder lacks are drawn
        return _loaded("config.policy", str(policy), transformers.AutoModelForCausalLM, **options)


def quantisation(kind: str) -> Any:
    """How transformers is to read a base in few bits: NF4 with double quantisation for 4, LLM.int8 for 8.

    Raises:
        MissingDependency: without the extra `quantised` (bitsandbytes).

    References:
        Dettmers et al., "QLoRA", NeurIPS 2023.
    """
    require("bitsandbytes", "quantised")
    options = require("transformers", "llm").BitsAndBytesConfig
    if kind == "8bit":
        return options(load_in_8bit=True)
    return options(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.bfloat16
    )


def load_tokenizer(config: Config, policy: Any, tokenizer: Any) -> Any:
    """The tokenizer given, or the one in the policy's folder, or None."""
    name = (
        policy
        if isinstance(policy, (str, Path)) and str(policy)
        else (config.policy if policy is None else "")
    )
    if tokenizer is not None or not name:
        return tokenizer
    transformers = require("transformers", "llm")
    try:
        return transformers.AutoTokenizer.from_pretrained(str(name), trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise InvalidConfig(
            message("config.policy", f"{name!r} without a readable tokenizer ({explain(error)})",
                    "text needs a tokenizer", "Pass tokenizer=, or save one in the policy's folder")
        ) from error  # fmt: skip


def _loaded(where: str, name: str, kind: Any, **options: Any) -> nn.Module:
    try:
        return kind.from_pretrained(name, trust_remote_code=False, use_safetensors=True, **options)
    except (OSError, ValueError, ImportError) as error:
        raise InvalidConfig(
            message(where, f"{name!r}, which can't be loaded ({explain(error)})",
                    "a hub id or a folder with config.json and safetensors weights", "Check the name and the network")
        ) from error  # fmt: skip


def stop_ids(config: Config, policy: nn.Module, tokenizer: Any) -> tuple[int, ...]:
    """Ids that end a completion: the configured ones, else every EOS of the tokenizer and of the model.

    Raises:
        InvalidConfig: a tokenizer without EOS and nothing configured, or an id outside the vocabulary.
    """
    if config.stop_ids:
        found = list(config.stop_ids)
    elif tokenizer is None:
        return ()
    else:
        if tokenizer.eos_token_id is None:
            raise InvalidConfig(
                message("tokenizer", "a tokenizer without an EOS token", "a completion ends at a stop id",
                        "Set tokenizer.eos_token, or config.stop_ids")
            )  # fmt: skip
        found = [tokenizer.eos_token_id]
        generation = getattr(policy, "generation_config", None)
        more = getattr(generation, "eos_token_id", None)
        size = vocabulary(policy)
        more = more if isinstance(more, list) else [] if more is None else [more]
        found += [i for i in more if size is None or i < size]
    size = vocabulary(policy)
    if size is not None and max(found) >= size:
        raise InvalidConfig(
            message(
                "config.stop_ids", max(found), f"the policy's vocabulary has {size} ids", "Correct the id"
            )
        )
    return tuple(dict.fromkeys(found))  # the tokenizer's own first: it ends what is given without an end


def vocabulary(policy: nn.Module) -> int | None:
    """Size of the policy's vocabulary, where its configuration says so."""
    config = getattr(policy, "config", None)
    return getattr(config, "vocab_size", None) if config is not None else None


def check_vocabulary(policy: nn.Module, tokenizer: Any) -> None:
    """Raise `InvalidConfig` when the tokenizer has ids that the policy does not know."""
    size = vocabulary(policy)
    if tokenizer is not None and size is not None and len(tokenizer) > size:
        raise InvalidConfig(
            message("tokenizer", f"{len(tokenizer)} tokens", f"the policy's vocabulary has {size} ids",
                    "Use the tokenizer that belongs to the policy, or resize the policy's embeddings")
        )  # fmt: skip


def unheld(policy: nn.Module, tokenizer: Any) -> torch.Tensor | None:
    """[V] True for ids that no text can hold: rows by which an embedding is padded, gaps in the tokenizer's numbers.

    They are outside every law: never drawn, and no part of KL or entropy. None where there are no such ids.
    """
    size = vocabulary(policy)
    known = tokenizer.get_vocab().values() if tokenizer is not None and hasattr(tokenizer, "get_vocab") else ()
    if size is None or not known or len(set(known)) >= size:
        return None
    barred = torch.ones(size, dtype=torch.bool)
    barred[[i for i in known if i < size]] = False
    return barred


def check_context(config: Config, policy: nn.Module, prompts: Sequence[Prompt]) -> None:
    """Raise `InvalidProblem` when the longest prompt and completion do not fit the model's context."""
    limit = context(policy)
    longest = max(len(p.ids) for p in prompts)
    if limit is not None and longest + config.max_new_tokens > limit:
        raise InvalidProblem(
            message("prompts", f"a prompt of {longest} tokens with max_new_tokens={config.max_new_tokens}",
                    f"the policy's context holds {limit} tokens", "Shorten the prompts or lower max_new_tokens")
        )  # fmt: skip


def make_roles(
    config: Config,
    policy: nn.Module,
    reward: Any,
    reference: nn.Module | None,
    device: Any,
    critics: bool = False,
    tokenizer: Any = None,
    prompts: Sequence[Prompt] = (),
    referred: bool = True,
) -> Roles:
    """The roles of a run on its device, with their reward model.

    Args:
        referred: whether anything reads the reference; False: none is held.

    What is drawn (adapters, new heads) follows `config.seed`, whatever was drawn before.
    """
    with seeded(config.seed, INITIAL):
        roles = _make_roles(config, policy, reward, reference, device, critics, tokenizer, referred)
    roles.unheld = unheld(policy, tokenizer)
    roles.has_reference = referred
    longest = max((len(p.ids) for p in prompts), default=0) + config.max_new_tokens
    check_reward(roles.reward, vocabulary(policy) if tokenizer is None else len(tokenizer), longest)
    return roles


def _make_roles(
    config: Config, policy: nn.Module, reward: Any, reference: nn.Module | None, device: Any, critics: bool,
    tokenizer: Any, referred: bool,
) -> Roles:  # fmt: skip
    dtype = weights_of(config)
    reference = _apart(reference, policy)
    reward = _apart(reward, policy) if isinstance(reward, nn.Module) else reward
    came = {POLICIES[0]: policy}
    if isinstance(reward, nn.Module) or str(reward or config.reward) in REWARDS:
        came[REWARD] = reward if isinstance(reward, nn.Module) else policy
    types = {role: next((p.dtype for p in module.parameters()), dtype) for role, module in came.items()}
    for module in (policy, reward, reference):
        if isinstance(module, nn.Module) and not getattr(module, "is_quantized", False):  # those are where they belong
            module.to(device=device, dtype=dtype)
    reward = _reward(config, reward, device, dtype, tokenizer)
    common: dict[str, Any] = {
        "reward": reward, "penalised": config.uses_penalised, "critics": critics,
        "temperature": config.temperature,
    }  # fmt: skip
    if config.backend == "lora":
        if reference is not None:
            raise InvalidConfig(
                message("BilevelTrainer.reference", "a model, with backend=lora",
                        "the reference is the base with its adapters off", "Leave reference out, or use backend=full")
            )  # fmt: skip
        adapted = LoraRoles(
            policy, rank=config.lora_rank, scale=config.lora_scale, targets=config.lora_targets, **common
        )
        roles: Roles = adapted
        modules = [adapted.base]
    else:
        roles = full = FullRoles(policy, reference=reference, train=config.train, referred=referred, **common)
        modules = list(full.modules.values())
    roles.reward.to(device=device, dtype=dtype)
    if not roles.parameters("reward") and config.algorithm.asks:
        raise InvalidConfig(
            message("BilevelTrainer.reward", "a module without trained parameters", "x is what the upper level moves",
                    "Leave requires_grad on for at least one parameter")
        )  # fmt: skip
    roles.came = {role: kind for role, kind in types.items() if kind in (torch.bfloat16, torch.float16)}
    if config.gradient_checkpointing:
        checkpoint_activations(modules[0])
        for module in modules[1:]:
            if any(getattr(m, "supports_gradient_checkpointing", False) for m in module.modules()):
                checkpoint_activations(module)
    return roles


def _apart(other: nn.Module | None, policy: nn.Module) -> nn.Module | None:
    """A reference (or reward model) on weights of its own: it must not move when the policy learns."""
    if other is None:
        return None
    shared = {id(p) for p in policy.parameters()} & {id(p) for p in other.parameters()}
    return copy.deepcopy(other) if shared else other


def _reward(config: Config, reward: Any, device: Any, dtype: torch.dtype, tokenizer: Any) -> Any:
    reward = reward if reward is not None else config.reward
    if isinstance(reward, str) and (reward.startswith(FUNCTIONS) or _is_function(reward)):
        reward = reward_functions(reward)
    if not isinstance(reward, (str, Path, nn.Module)):
        functions = list(reward) if isinstance(reward, (list, tuple)) else [reward]
        if functions and all(callable(f) for f in functions):
            return WeightedRewards(functions, [1.0] * len(functions)).to(device=device, dtype=dtype)
    if isinstance(reward, (str, Path)):
        if str(reward) in ("classifier", "linear"):
            if not config.algorithm.asks:
                raise InvalidConfig(
                    message("BilevelTrainer.reward", f"{str(reward)!r} with method=plain",
                            "nothing would train it: plain fine-tuning needs a reward that is there",
                            "Pass reward functions, a module, or a folder or hub id of a classifier")
                )  # fmt: skip
            return str(reward)
        reward = trainable(load_reward(reward, tokenizer)).to(device=device, dtype=dtype)
    if not isinstance(reward, nn.Module):
        raise InvalidConfig(
            message("BilevelTrainer.reward", type(reward).__name__,
                    "a module, reward functions, a folder or hub id, 'classifier' or 'linear'", "Pass one of these")
        )  # fmt: skip
    if hasattr(reward, "config") and hasattr(reward, "num_labels"):  # a transformers classifier
        return trainable(ClassifierReward(reward))
    return reward


def _is_function(text: str) -> bool:
    first = text.split(",")[0].strip()
    return names.is_name(first) or is_endpoint(first)


def reward_functions(text: str) -> list[Any]:
    """The functions that `MODULE:NAME, FILE.py:NAME, https://HOST/v1@MODEL, ...` names; `function:MODULE.NAME` works too.

    Raises:
        InvalidConfig: a module, file or name that is not there.

    Example:
        >>> [f.__name__ for f in reward_functions("bilevel_rl.llm.tasks.arithmetic:reward")]
        ['reward']
    """
    found = []
    for part in text.removeprefix(FUNCTIONS).split(","):
        path = part.strip()
        if text.startswith(FUNCTIONS) and ":" not in path:
            path = ":".join(path.rsplit(".", 1))
        found.append(make_gold(path, "config.reward"))
    return found


def as_pairs(
    rows: Iterable[Any] | None, tokenizer: Any, config: Config, size: int | None, eos: Sequence[int]
) -> list[Pair]:
    """Stored preferences as token ids, within the configuration's limits: see `data.preferences`."""
    return preferences.as_pairs(rows, tokenizer, config.max_prompt_tokens, config.max_new_tokens, size, eos)


__all__ = [
    "LinearReward",
    "Pair",
    "answer_ids",
    "as_pairs",
    "load_policy",
    "make_roles",
]
