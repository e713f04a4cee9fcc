"""Where metrics go besides the run folder, by name: transformers' own callbacks, in their offline modes too."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bilevel_rl.errors import InvalidConfig, did_you_mean, message, require


def tensorboard() -> Any:
    """TensorBoard's event files, in `runs/` of the run folder (or TENSORBOARD_LOGGING_DIR)."""
    require("tensorboard", "tensorboard")
    from transformers.integrations import TensorBoardCallback

    return TensorBoardCallback()


def wandb() -> Any:
    """Weights & Biases; without a network with WANDB_MODE=offline, and `wandb sync` later."""
    require("wandb", "wandb")
    from transformers.integrations import WandbCallback

    return WandbCallback()


def trackio() -> Any:
    """Trackio: a local dashboard, no account."""
    require("trackio", "trackio")
    from transformers.integrations import TrackioCallback

    return TrackioCallback()


ALL: Mapping[str, Callable[[], Any]] = {"tensorboard": tensorboard, "wandb": wandb, "trackio": trackio}


def named(names: Sequence[str]) -> list[Any]:
    """A callback for each name.

    Raises:
        InvalidConfig: an unknown name.
        MissingDependency: a logger whose package is not installed, with the extra that brings it.
    """
    for name in names:
        if name not in ALL:
            raise InvalidConfig(
                message("config.loggers", repr(name), did_you_mean(name, ALL), "Choose among these, or pass callbacks=")
            )
    return [ALL[name]() for name in names]
