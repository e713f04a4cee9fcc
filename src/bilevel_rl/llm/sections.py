"""How a configuration file is laid out: a few keys at the top, the others in sections; flat keys of before are read too.

    method: bilevel
    sampling: {prompts_per_step: 8, group: 4, max_new_tokens: 64}
    tau: {initial: 0.05, power: 0.05}          # or one number
    labels: {budget: 2000}

In Python every key has its own name: `Config(prompts_per_step=8, tau=0.05, tau_power=0.05)`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from bilevel_rl.errors import InvalidConfig, did_you_mean, message

log = logging.getLogger(__name__)


def _same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


# section -> {key in the section: the configuration's own name for it}
SECTIONS: dict[str, dict[str, str]] = {
    "keeping": _same("save_every", "samples_every", "resume", "keep_last", "keep_best", "loggers"),
    "held_out": {"prompts": "eval_prompts", "every": "eval_every", "count": "eval_count", "gold": "eval_gold",
                 "metric": "eval_metric", "patience": "patience"},
    "memory": _same("gradient_checkpointing", "weights", "quantised", "attention", "train"),
    "lora": {"rank": "lora_rank", "scale": "lora_scale", "targets": "lora_targets"},
    "task": {"name": "task", "fields": "fields"},
    "sampling": _same("prompts_per_step", "group", "max_new_tokens", "max_prompt_tokens", "long_prompts", "temperature",
                      "stop_ids", "micro_batch", "generator", "generator_folder", "off_policy_clip"),
    "regularizer": {"kind": "regularizer", "estimator": "kl_estimator", "target": "target_kl", "rate": "kl_rate"},
    "risk": {"tail": "tail", "cost": "cost", "bound": "cost_bound"},
    "answer": _same("fisher_steps", "fisher_damping", "curvature", "common_numbers", "coupling"),
    "schedule": {"shape": "schedule", "warmup": "warmup", "end": "schedule_end"},
    "labels": {"pairs_per_step": "pairs_per_step", "budget": "label_budget", "replay": "replay_pairs"},
    "ratio": {"kind": "ratio", "clip": "ratio_clip"},
    "clipping": {"policies": "clip_norm", "x": "x_clip_norm"},
    "baselines": _same("inner_steps", "reward_steps", "difference"),
    **{name: {"initial": name, "power": f"{name}_power"} for name in ("zeta", "alpha", "beta", "w", "tau")},
}  # fmt: skip
PLACES = {own: (section, key) for section, keys in SECTIONS.items() for key, own in keys.items()}


def top_level(keys: Iterable[str]) -> list[str]:
    """What stands at the top of a file, in the order of the configuration's own keys.

    Example:
        >>> top_level(["method", "group", "temperature", "tau", "tau_power"])
        ['method', 'sampling', 'tau']
    """
    return list(dict.fromkeys(PLACES[key][0] if key in PLACES else key for key in keys))


def written(key: str) -> str:
    """How a key is written, in a file and on a command line.

    Example:
        >>> [written(key) for key in ("steps", "group", "label_budget", "tau", "tau_power")]
        ['steps', 'sampling.group', 'labels.budget', 'tau', 'tau.power']
    """
    section, name = PLACES.get(key, ("", key))
    return name if not section else section if key == section else f"{section}.{name}"


def flattened(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Every key by the configuration's own name, sections and dotted keys resolved.

    Raises:
        InvalidConfig: a key that its section does not have, or one that is given twice.

    Example:
        >>> flattened({"steps": 3, "sampling": {"group": 2}, "labels.budget": 9, "tau": {"power": 0.1}}, "config")
        {'steps': 3, 'group': 2, 'label_budget': 9, 'tau_power': 0.1}
    """
    found: dict[str, Any] = {}
    for name, value in values.items():
        section, dot, key = str(name).partition(".")
        parts = {key: value} if dot else value
        if section in SECTIONS and isinstance(parts, Mapping):
            pairs = [(_own(section, str(inner), where), part) for inner, part in parts.items()]
        else:
            pairs = [(str(name), value)]
        for own, part in pairs:
            if own in found:
                raise InvalidConfig(
                    message(where, f"{own} and {written(own)}", "they are one key", f"Write {written(own)} alone")
                )
            found[own] = part
    return found


def _own(section: str, key: str, where: str) -> str:
    keys = SECTIONS[section]
    if key not in keys:
        raise InvalidConfig(
            message(f"{where}.{section}", f"the unknown key {key!r}", did_you_mean(key, keys), "Correct or remove the key")
        )
    return keys[key]


def warn_of_flat(values: Mapping[str, Any], where: str) -> None:
    """Say which keys of a file stand at the top as they did before, and where they belong."""
    flat = [name for name in values if name in PLACES and written(name) != name]
    if flat:
        log.warning("%s: keys that moved into sections are read for one more release: write %s", where,
                    ", ".join(f"{written(name)} for {name}" for name in flat))  # fmt: skip
