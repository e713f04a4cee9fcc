"""Happy tweets as the paper has them (`llm happy-tweets --paper`): methods, budgets and the settings that a search chose.

Budgets are counted in two ways. An iteration of `paired` writes a batch for each of its two policies, so at *equal policy
updates* the others write half as much, and at *equal completions* they make twice as many updates. Labels are equal in both.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bilevel_rl.llm.config import Config


BATCH = {"prompts_per_step": 4, "group": 4}  # ours: 16 completions, of which 8 pairs can be judged
MOST_PAIRS = BATCH["prompts_per_step"] * BATCH["group"] // 2
TAU = 0.5  # ours; the same for all: methods are compared at one price of the KL
SHARPNESS = math.inf  # as the paper's rules: the higher score wins, and what happens to ties is an option
# Shared by all methods.
COMMON: dict[str, Any] = {**BATCH, "replay_pairs": 8, "tau": TAU, "save_every": 0, "samples_every": 0}
METHODS: dict[str, dict[str, Any]] = {
    "paired": {"method": "bilevel", "estimator": "paired"},
    "shared": {"method": "bilevel", "estimator": "shared"},
    "tilted": {"method": "bilevel", "estimator": "tilted"},
    "partial_sgd": {"method": "partial_sgd"},
    "fixed_reward": {"method": "fixed_reward"},
}
UPDATES, LABELS = 40, 240  # of `paired`; 80 batches of completions for its two policies


@dataclasses.dataclass(frozen=True)
class Setting:
    """A method's own constants.

    Attributes:
        alpha: step of the policies.
        zeta: step of x.
        optimizer: `adam`, or `sgd_x`: x takes plain steps.
        w: penalty constant.
        win_rate: weight of the win rate in the upper objective.
        coupling: share of theta^L - theta taken away after each step.
        fit: steps of x on all labels before the policy moves (fixed_reward).
    """

    alpha: float
    zeta: float
    optimizer: str = "adam"
    w: float = 1.0
    win_rate: float = 1.0
    coupling: float = 0.5
    fit: int = 60


# The choices of the search on the grammar (benchmarks/paper_tweets.py; a test holds them to its results).
PAIRED = Setting(3.74e-3, 0.072, "sgd_x", w=0.811, win_rate=5.24, coupling=0.2619)
PARTIAL, PARTIAL_TWICE = Setting(6.93e-3, 7.91e-4), Setting(3.95e-3, 0.0799, "sgd_x")
SHARED = Setting(4.09e-3, 0.14, "sgd_x", w=1.1, win_rate=5.42, coupling=0.2422)
TILTED = Setting(6.49e-3, 0.0357, "sgd_x", win_rate=0.0544)
FIXED_REWARD = Setting(6.49e-3, 0.0357, "sgd_x", fit=54)
CHOSEN: dict[str, Setting] = {
    "paired": PAIRED, "partial_sgd": PARTIAL, "partial_sgd_twice": PARTIAL_TWICE, "shared": SHARED, "tilted": TILTED,
    "fixed_reward": FIXED_REWARD,
}  # fmt: skip
# What is compared -> its method. As `paired`, `partial_sgd` makes as many updates, `partial_sgd_twice` as many completions.
ENTRIES = {
    "paired": "paired", "partial_sgd": "partial_sgd", "partial_sgd_twice": "partial_sgd", "shared": "shared",
    "tilted": "tilted", "fixed_reward": "fixed_reward",
}  # fmt: skip


def updates_of(entry: str, updates: int = UPDATES, labels: int = LABELS) -> int:
    """Policy updates of an entry where `paired` makes `updates`.

    Example:
        >>> [updates_of(entry) for entry in ("paired", "partial_sgd", "partial_sgd_twice", "fixed_reward")]
        [40, 40, 80, 50]
    """
    if entry == "partial_sgd_twice":
        return 2 * updates
    if (
        entry == "fixed_reward"
    ):  # what is labelled is written by the reference first; the rest of the completions is left
        return 2 * updates - -(-labels // MOST_PAIRS)
    return updates


def configuration(
    label: str, setting: Setting, task: Any, seed: int, updates: int, labels: int, out: str = ""
) -> Config:
    """The trainer's configuration of one run.

    Args:
        label: a key of `METHODS`.
        setting: the method's constants.
        task: a `HappyTweets`.
        seed: of the run.
        updates: steps of the policy.
        labels: pairs that the judge labels; they last as long as the updates do.
        out: run folder.

    Returns:
        A `Config`.
    """
    from bilevel_rl.llm.config import Config

    method = METHODS[label]
    answers = method["method"] == "bilevel"
    values = {
        **COMMON, **method, "seed": seed, "policy": str(task.model), "max_new_tokens": task.longest, "out": out,
        "label_budget": labels, "alpha": setting.alpha, "zeta": setting.zeta, "optimizer": setting.optimizer,
        "objective": {"label_likelihood": 1.0} | ({"win_rate": setting.win_rate} if answers else {}),
        "steps": updates, "pairs_per_step": min(MOST_PAIRS, max(1, -(-labels // updates))),
    }  # fmt: skip
    if answers and label != "tilted":
        values |= {"w": setting.w, "coupling": setting.coupling}
    if label == "fixed_reward":
        asking = -(-labels // MOST_PAIRS)
        values |= {
            "pairs_per_step": MOST_PAIRS,
            "reward_steps": asking + setting.fit,
            "steps": asking + setting.fit + updates,
        }
    return Config(**values)
