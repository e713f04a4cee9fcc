"""The bi-level trainer: one loop over two policies, two critics, the reward model and a frozen reference."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from bilevel_rl.llm.config import Config


class BilevelTrainer:
    """Fine-tune a language model with a reward model that answers for what its optimal policy writes.

    Args:
        config: every option; see `Config`.
        policy: a causal language model (any module with the calling convention of transformers' causal models), or
            a hub id or folder; empty: `config.policy`.
        reward: a module that maps a `Rollout` to [N] rewards, an `AutoModelForSequenceClassification`, a folder or
            hub id, or "classifier"/"linear" for a head on a copy of the policy's body; None: `config.reward`.
        prompts: strings, token ids, conversations, or rows with the key `prompt`.
        tokenizer: tokenizer of the policy; None only when prompts are token ids.
        judge: pairwise judge: an object with TRL's `judge(prompts, completions, shuffle_order=...)`, or such a
            callable: for each prompt the index (0 or 1) of the preferred completion, -1 for no answer.
        gold: gold scorer with TRL's reward-function signature.
        preferences: stored preferences: rows with `prompt`, `chosen`, `rejected`.
        objective: a user's own upper objective; None: `config.objective`.
        reference: the frozen reference; None: a copy of the policy as it is now.
        generator: samples completions; None: our own sampler.
        callbacks: transformers `TrainerCallback`s.
        resume: continue from `config.out`'s checkpoint.

    Raises:
        InvalidConfig, InvalidProblem: anything wrong with the inputs, before training starts.

    Attributes:
        roles: the weights: `trainer.roles.policy` is theta's module (or the PEFT model with its adapter active).
        reward: the reward module.
        step: iterations done.
        history: one dict of metrics an iteration.
    """

    def __init__(
        self,
        config: Config,
        policy: Any = None,
        reward: Any = None,
        prompts: Iterable[Any] = (),
        *,
        tokenizer: Any = None,
        judge: Any = None,
        gold: Callable[..., Sequence[float]] | None = None,
        preferences: Iterable[Any] | None = None,
        objective: Any = None,
        reference: Any = None,
        generator: Any = None,
        callbacks: Sequence[Any] = (),
        resume: bool = False,
    ) -> None:
        raise NotImplementedError

    def train(self) -> list[dict[str, float]]:
        """Run to `config.steps`; returns the history. Checkpoints, logs, samples and callbacks happen on the way."""
        raise NotImplementedError

    def save(self, folder: str | Path) -> None:
        """Write a checkpoint folder now."""
        raise NotImplementedError

    def export_policy(self, folder: str | Path) -> None:
        """Write theta as a transformers model (full) or a PEFT adapter (lora), with the tokenizer."""
        raise NotImplementedError

    def export_reward(self, folder: str | Path) -> None:
        """Write x as an `AutoModelForSequenceClassification`."""
        raise NotImplementedError
