"""The task of happy tweets in the folder of a run: its models and texts, for a machine that has neither cache nor data.

    task/model, task/classifier    the folders of the models, copied
    task/task.json                 everything else; written last, so that a task is there whole or not at all
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

from bilevel_rl import records

PLACE = "task"
FILE = "task.json"
MODELS = ("model", "classifier")


def pack(task: Any, folder: Path) -> None:
    """Copy a task into the folder of a run, unless it is there.

    Args:
        task: a `HappyTweets`.
        folder: of the run.

    Raises:
        StorageFailed: it can't be written.
    """
    place = folder / PLACE
    if (place / FILE).exists():
        return
    for name in MODELS:
        source = getattr(task, name)
        for path in sorted(source.rglob("*")) if source is not None else ():
            if path.is_file() and not path.name.startswith("."):
                copy = place / name / path.relative_to(source)
                records.make_folder(copy.parent)
                records.write_bytes(copy, path.read_bytes())
    records.make_folder(place)
    facts = {field.name: getattr(task, field.name) for field in dataclasses.fields(task) if field.name not in MODELS}
    records.write_json(place / FILE, facts)


def unpack(folder: Path) -> Any:
    """The task of a run's folder.

    Returns:
        a `HappyTweets`.
    """
    from bilevel_rl.llm.tasks.happy_tweets import HappyTweets

    place = folder / PLACE
    facts = records.read_json(place / FILE)
    models = {name: place / name if (place / name).is_dir() else None for name in MODELS}
    return HappyTweets(**facts | models | {"made": tuple(facts["made"])})


def remove(folder: Path) -> None:
    """Take the task away again: a run that is over does not need it."""
    shutil.rmtree(folder / PLACE, ignore_errors=True)
