"""Loggers of the JAX engines: TensorBoard, Weights & Biases, trackio, each a function of a run folder.

A logger returns `write(iteration, newest)`, which takes the newest record of every run and logs each metric's interquartile
mean over runs, against samples. Language-model runs have the same names under `loggers`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bilevel_rl import records
from bilevel_rl.errors import InvalidConfig, did_you_mean, message, require
from bilevel_rl.statistics import interquartile_mean

Write = Callable[[int, dict[str, np.ndarray]], None]


def writers(names: Sequence[str], folder: Path, config: dict[str, Any] | None = None) -> list[Write]:
    """The loggers of these names.

    Args:
        names: of `ALL`; a name that comes twice counts once.
        folder: the run folder; its name is the run's, and what is written offline lies in it.
        config: what the services show as the run's settings.

    Raises:
        InvalidConfig: no logger has this name.
        MissingDependency: names the extra that brings the package.
    """
    for name in names:
        if name not in ALL:
            raise InvalidConfig(message("loggers", repr(name), did_you_mean(name, ALL), "Name one of these"))
    return [ALL[name](folder, config or {}) for name in dict.fromkeys(names)]


def means(newest: dict[str, np.ndarray]) -> dict[str, float]:
    """Interquartile mean over runs of each metric.

    Example:
        >>> means({"gap": np.array([1.0, 2.0, 3.0, 100.0])})
        {'gap': 2.5}
    """
    return {key: float(interquartile_mean(np.atleast_1d(series))) for key, series in newest.items()}


def at(iteration: int, newest: dict[str, np.ndarray]) -> int:
    """Where on the axis a record lies: its mean samples, or the iteration of a solver that takes none."""
    return int(np.mean(newest["samples"])) or iteration


def tensorboard(folder: Path, config: dict[str, Any]) -> Write:
    """Event files in the run folder's `tensorboard`."""
    event_pb2 = require("tensorboard.compat.proto.event_pb2", "tensorboard")
    summary_pb2 = require("tensorboard.compat.proto.summary_pb2", "tensorboard")
    module = require("tensorboard.summary.writer.event_file_writer", "tensorboard")
    writer = module.EventFileWriter(str(records.make_folder(folder) / "tensorboard"))

    def write(iteration: int, newest: dict[str, np.ndarray]) -> None:
        values = [summary_pb2.Summary.Value(tag=key, simple_value=value) for key, value in means(newest).items()]
        event = event_pb2.Event(
            wall_time=time.time(), step=at(iteration, newest), summary=summary_pb2.Summary(value=values)
        )
        writer.add_event(event)
        writer.flush()

    return write


def wandb(folder: Path, config: dict[str, Any]) -> Write:
    """Weights & Biases, project `bilevel-rl` unless WANDB_PROJECT names another; WANDB_MODE=offline writes to the folder."""
    return _service(require("wandb", "wandb"), folder, config, dir=str(records.make_folder(folder)))


def trackio(folder: Path, config: dict[str, Any]) -> Write:
    """trackio, project `bilevel-rl`: a local dashboard."""
    return _service(require("trackio", "trackio"), folder, config)


def _service(module: Any, folder: Path, config: dict[str, Any], **options: Any) -> Write:
    """Both services speak the same `init` and `log`."""
    project = os.environ.get("WANDB_PROJECT", "bilevel-rl")
    run = module.init(project=project, name=folder.name, config=config, **options)

    def write(iteration: int, newest: dict[str, np.ndarray]) -> None:
        run.log(means(newest), step=at(iteration, newest))

    return write


ALL: dict[str, Callable[[Path, dict[str, Any]], Write]] = {"tensorboard": tensorboard, "wandb": wandb, "trackio": trackio}
