"""Held-out evaluation while a run trains: on prompts of its own, with a scorer of its own; the best checkpoint; patience."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.json_lines import append_line
from bilevel_rl.levels import run_folder
from bilevel_rl.llm.config import Config
from bilevel_rl.llm.evaluation import evaluate
from bilevel_rl.records import write_bytes

log = logging.getLogger(__name__)
FILE, BEST = "held_out.jsonl", "best"


class HeldOut:
    """What a run looks at besides its own rows. Nothing here moves a weight, draws from the run's numbers or costs a label.

    Args:
        config: `eval_every`, `eval_count`, `eval_metric`, `patience`, `keep_best`, `out`.
        prompts: that no step sees, as the trainer takes them.
        gold: their scorer, or None.

    Attributes:
        lines: figures of every evaluation so far, with `iteration`.

    Raises:
        InvalidConfig: evaluations without prompts, or a best by gold without a scorer.
    """

    def __init__(self, config: Config, prompts: Sequence[Any], gold: Callable[..., Any] | None) -> None:
        self.config, self.gold = config, gold
        self.prompts = list(prompts)[: config.eval_count]
        self.lines: list[dict[str, float]] = []
        if config.eval_every and not self.prompts:
            raise InvalidConfig(
                message("config.eval_every", config.eval_every, "an evaluation needs prompts that no step sees",
                        "Set held_out.prompts, or pass held_out=")
            )  # fmt: skip
        if config.eval_every and gold is None and config.eval_metric == "gold" and (config.patience or config.keep_best):
            log.info("held-out evaluation without a gold scorer: no best checkpoint is kept; set held_out.metric to reward")

    @property
    def path(self) -> Path | None:
        """Where the lines are written."""
        return Path(self.config.out) / FILE if self.config.out else None

    def due(self, step: int) -> bool:
        """Whether an evaluation belongs after this iteration."""
        return bool(self.config.eval_every) and step % self.config.eval_every == 0

    def look(self, trainer: Any) -> dict[str, float]:
        """Evaluate theta; keep the best checkpoint, and say when patience is at its end.

        Returns:
            The figures, `eval_` before each key, for callbacks.
        """
        figures, _ = evaluate(
            trainer.roles, self.prompts, trainer.generator, trainer.tokenizer, self.gold,
            max_new_tokens=self.config.max_new_tokens, seed=self.config.seed, longest=self.config.max_prompt_tokens,
        )  # fmt: skip
        line = {"iteration": trainer.step, **figures}
        self.lines.append(line)
        if trainer.processes.main and self.path is not None:
            append_line(self.path, line, sealed=True)
        best = self.best()
        if best is not None and best["iteration"] == trainer.step:
            self._keep(trainer)
        if best is not None and self.config.patience and self._waited(best) >= self.config.patience:
            trainer.enough = (
                f"no better {self.config.eval_metric} in {self.config.patience} held-out evaluations: best "
                f"{best[self.config.eval_metric]:.4g} at iteration {best['iteration']:.0f}"
            )
            log.info("iteration %d: %s", trainer.step, trainer.enough)
        return {f"eval_{key}": value for key, value in figures.items()}

    def best(self) -> dict[str, float] | None:
        """The first of the best lines; None where none has the figure."""
        key = self.config.eval_metric
        known = [line for line in self.lines if math.isfinite(line.get(key, math.nan))]
        return max(known, key=lambda line: line[key]) if known else None

    def _waited(self, best: dict[str, float]) -> int:
        return sum(line["iteration"] > best["iteration"] for line in self.lines)

    def _keep(self, trainer: Any) -> None:
        if self.config.keep_best and self.config.out:
            run_folder.save(trainer, Path(self.config.out) / BEST)

    def begin(self) -> None:
        """A new run: nothing has been looked at."""
        self.lines = []
        if self.path is not None and self.path.exists():
            write_bytes(self.path, b"")

    def resume(self, step: int, write: bool) -> None:
        """Lines up to an iteration; later ones are cut off."""
        if self.path is not None and self.path.exists():
            self.lines = run_folder.cut(self.path, step, write)
