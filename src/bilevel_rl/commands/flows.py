"""`bilevel-rl flows VERB ...`: velocity networks in Torch, trained on a reward of their samples, on one level or two."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.table import Table

from bilevel_rl import names, signals
from bilevel_rl.commands import heads, screen
from bilevel_rl.errors import InvalidConfig, message, require
from bilevel_rl.launch import options

arg = tyro.conf.arg
USAGE = """usage: bilevel-rl flows VERB TASK ...

  train TASK       a flow on the task's own reward, by a recipe (--method awm, flow_grpo, ddpo or any recipe's name)
  levels TASK      a reward beside the flow: x is what it pays, the task's own reward judges where the flow ends

TASK is spots, or FILE.py:NAME: an object with pretrained(seed) -> velocity network, reward(points, prompts), shape,
conditions (or None) and, for levels, prices() -> a reward with parameters. Each verb has its own --help."""
NEEDED = ("pretrained", "reward", "shape", "conditions")


def main(argv: Sequence[str]) -> int:
    """Run one verb and return its exit code.

    Raises:
        InvalidConfig: an unknown verb, task, method or option.
    """
    asked = heads.verb("bilevel-rl flows", argv, VERBS, lambda: USAGE)
    if asked is None:
        return 0
    verb, rest = asked
    settings, run = VERBS[verb]
    read = heads.words(f"bilevel-rl flows {verb}", rest, ("TASK",), settings)
    if read is None:
        return 0
    (task,), rest = read
    given = options.parse(f"flows {verb} {task}", settings, rest, settings.__doc__ or "")
    require("torch", "llm")
    again = shlex.join(["bilevel-rl", "flows", *argv])
    with (
        signals.hinted(again)
        if given.out is not None and given.resume == "auto"
        else contextlib.nullcontext()
    ):
        return run(_task(task, verb), given)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Common:
    """What both verbs take."""

    steps: Annotated[int, arg(help="iterations")] = 200
    batch: Annotated[int, arg(help="samples of an iteration")] = 64
    group: Annotated[int, arg(help="samples of one prompt in an iteration")] = 16
    rate: Annotated[float, arg(help="step size of Adam, of the flow")] = 3e-3
    reference_decay: Annotated[
        float, arg(help="of the reference, an average of the flow's weights; 1: it stays")
    ] = 1.0
    seed: Annotated[int, arg(help="the one integer from which all randomness follows")] = 0
    out: Annotated[Path | None, arg(help="folder of the run: metrics, checkpoint, velocity.safetensors")] = (
        None
    )
    save_every: Annotated[int, arg(help="iterations between checkpoints; 0: one at the end")] = 50
    resume: Annotated[
        Literal["auto", "never", "replace"],
        arg(help="a folder that holds this run: gone on with, refused, written anew"),
    ] = "auto"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train(Common):
    """A flow on the task's own reward."""

    method: Annotated[str, arg(help="awm, flow_grpo, ddpo, or any recipe by its name or its parts")] = "awm"
    tau: Annotated[float, arg(help="weight of the divergence from the flow as it was given")] = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Levels(Common):
    """A reward beside the flow: what it should pay, so that the optimal flow does well at the task."""

    method: Annotated[str, arg(help="bilevel or nested: how x moves")] = "bilevel"
    estimator: Annotated[str, arg(help="tilted, shared or paired")] = "tilted"
    tau: Annotated[float, arg(help="weight of the divergence from the flow as it was given")] = 0.1
    x_rate: Annotated[float, arg(help="step size of Adam, of x")] = 0.05


def _train(task: Any, given: Train) -> int:
    from bilevel_rl.flows import train

    velocity = task.pretrained(given.seed)
    loop = train(
        velocity,
        task.reward,
        task.shape,
        method=given.method,
        conditions=task.conditions,
        tau=given.tau,
        **_common(given),
    )
    return _told(task, velocity, loop, given)


def _levels(task: Any, given: Levels) -> int:
    from bilevel_rl.flows import two_levels

    velocity, prices = task.pretrained(given.seed), task.prices()
    loop = two_levels(
        velocity, prices, task.reward, task.shape, method=given.method, estimator=given.estimator,
        conditions=task.conditions, tau=given.tau, x_rate=given.x_rate, **_common(given),
    )  # fmt: skip
    for name, x in prices.named_parameters():
        table = Table(title=f"{name}, what is paid", title_justify="left", show_header=False)
        for row in x.detach().reshape(-1, x.shape[-1]).tolist():
            table.add_row(*(f"{v:.2f}" for v in row))
        screen.console().print(table)
    return _told(task, velocity, loop, given)


def _common(given: Common) -> dict[str, Any]:
    return {f.name: getattr(given, f.name) for f in dataclasses.fields(Common) if f.name != "out"} | {
        "out": str(given.out or "")
    }


def _told(task: Any, velocity: Any, loop: Any, given: Common) -> int:
    """How the task's reward stands before and after, by samples of the flow itself."""
    count = 2000
    table = Table("flow", "reward of its samples", title=f"{loop.engine.samples:,} samples in {loop.step} iterations",
                  title_justify="left")  # fmt: skip
    for name, reference in (("as it was given", True), ("trained", False)):
        if reference and given.reference_decay < 1:
            name = "the reference, which followed"
        table.add_row(name, f"{float(task.reward(*loop.engine.look(count, reference=reference)).mean()):.3f}")
    screen.console().print(table)
    if given.out is not None:
        from safetensors.torch import save_file

        save_file(velocity.state_dict(), given.out / "velocity.safetensors")
        print(f"run: {given.out}")
    return 0


def _task(word: str, verb: str) -> Any:
    from bilevel_rl.flows.spots import Spots

    found = names.find_word(word, {"spots": Spots}, "bilevel-rl flows", "task")
    task = found() if isinstance(found, type) else found
    missing = [
        name for name in (*NEEDED, *(("prices",) if verb == "levels" else ())) if not hasattr(task, name)
    ]
    if missing:
        raise InvalidConfig(
            message(f"task {word}", f"{type(task).__name__} without {', '.join(missing)}",
                    "a task has pretrained, reward, shape and conditions, and for levels prices", "Write them, see Spots")
        )  # fmt: skip
    return task


VERBS: dict[str, tuple[type, Callable[[Any, Any], int]]] = {
    "train": (Train, _train),
    "levels": (Levels, _levels),
}
