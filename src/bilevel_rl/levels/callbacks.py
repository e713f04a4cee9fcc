"""The bridge to transformers' callbacks: TensorBoard, W&B, trackio and a user's own attach unchanged."""

from __future__ import annotations

import shutil
import tempfile
import warnings
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

from bilevel_rl.errors import require


class Callbacks:
    """Calls transformers `TrainerCallback`s at the usual events.

    Args:
        callbacks: instances or classes.
        config: the run's configuration.
        model, tokenizer, optimizer: what callbacks receive by keyword.
        main: whether this process logs.
    """

    def __init__(
        self, callbacks: Sequence[Any], config: Any, model: Any, tokenizer: Any, optimizer: Any, main: bool
    ) -> None:
        self.handler: Any = None
        if not callbacks:
            return
        require("transformers", "llm")
        from transformers import TrainerControl, TrainerState, TrainingArguments
        from transformers.trainer_callback import CallbackHandler, DefaultFlowCallback

        folder = config.out
        if not folder:  # callbacks want one, for as long as they are called
            folder = tempfile.mkdtemp(prefix="bilevel-rl-callbacks-")
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.args = TrainingArguments(
                output_dir=folder, report_to=[], max_steps=config.steps, logging_steps=1, use_cpu=True,
                seed=config.seed, save_strategy="no",
            )  # fmt: skip
        self.state = TrainerState(
            max_steps=config.steps, is_world_process_zero=main, is_local_process_zero=main
        )
        self.control = TrainerControl()
        self.handler = CallbackHandler([DefaultFlowCallback, *callbacks], model, tokenizer, optimizer, None)
        self.control = self.handler.on_init_end(self.args, self.state, self.control)

    def event(self, name: str, step: int | None = None) -> None:
        """`on_train_begin`, `on_step_begin`, `on_step_end`, `on_save`, `on_train_end`."""
        if self.handler is None:
            return
        if step is not None:
            self.state.global_step = step
        self.control = getattr(self.handler, f"on_{name}")(self.args, self.state, self.control)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """`on_log` with this step's metrics."""
        if self.handler is None:
            return
        self.state.global_step = step
        self.state.log_history.append({**values, "step": step})
        self.control = self.handler.on_log(self.args, self.state, self.control, dict(values))

    @property
    def stop(self) -> bool:
        """Whether a callback asked the training to stop."""
        return self.handler is not None and bool(self.control.should_training_stop)

    @property
    def save(self) -> bool:
        """Whether a callback asked for a checkpoint (reading it clears it)."""
        if self.handler is None or not self.control.should_save:
            return False
        self.control.should_save = False
        return True
