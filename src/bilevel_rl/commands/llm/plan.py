"""`bilevel-rl llm plan CONFIG.yaml --gpus N`: what a run would take of each GPU, before anything is rented."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from bilevel_rl.commands import screen
from bilevel_rl.errors import InvalidConfig, did_you_mean, message
from bilevel_rl.launch import options
from bilevel_rl.llm import plan
from bilevel_rl.llm.config import Config

arg = tyro.conf.arg
GPUS = (1, 2, 4, 8, 16, 32, 64)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Memory of each GPU by its parts, communication, time of writing and learning, labels: counted, nothing is loaded."""

    config: Annotated[tyro.conf.Positional[Path], arg(help="of the run, a YAML file")]
    overrides: Annotated[tyro.conf.Positional[tuple[str, ...]], arg(help="key=value of the configuration")] = ()
    gpus: Annotated[int, arg(help="how many, one process each")] = 1
    memory: Annotated[float, arg(help="GiB of each; 0: the card's")] = 0.0
    card: Annotated[str, arg(help=f"whose rates: {', '.join(plan.CARDS)}")] = "h100"
    size: Annotated[str, arg(help=f"Qwen2.5's architecture in place of the policy's: {', '.join(plan.SIZES)}")] = ""
    sharded: Annotated[bool, arg(help="weights in pieces (FSDP2): of the frozen base, or of all that trains")] = False
    table: Annotated[bool, arg(help="every size on 1 to 64 GPUs, as a Markdown table")] = False


def main(argv: Sequence[str]) -> int:
    """Print the plan; 1 when it does not fit."""
    given = options.parse("llm plan", Settings, argv)
    if given.card not in plan.CARDS:
        raise InvalidConfig(message("llm plan --card", repr(given.card), did_you_mean(given.card, plan.CARDS), "Choose one"))
    config, card = Config.load(given.config, list(given.overrides)), plan.CARDS[given.card]
    if given.table:
        print(table(config, card))
        return 0
    shape: Any = plan.known(given.size) if given.size else config.policy
    if not shape:
        raise InvalidConfig(
            message("llm plan", "no model", "the configuration names a policy, or --size a model", "Give one of them")
        )
    made = plan.foresee(config, shape, given.gpus, card, given.sharded)
    limit = given.memory or card.memory
    screen.show_rows(f"{given.size or config.policy} on {given.gpus} x {given.card}", ("", "", ""), made.rows())
    fits = made.fits(limit)
    words = "it fits" if fits else "it does not fit: " + less(config, given.sharded)
    screen.say(f"verdict: {made.total / plan.GIB:.1f} of {limit:g} GiB; {words}")
    return int(not fits)


def less(config: Config, sharded: bool) -> str:
    """What takes less memory than this configuration."""
    ways = [
        (config.backend != "lora", "backend=lora"), (config.weights != "bfloat16", "weights=bfloat16 dtype=bfloat16"),
        (not config.micro_batch, "micro_batch=4"), (not config.gradient_checkpointing, "gradient_checkpointing=true"),
        (not sharded, "--sharded on several GPUs"), (not config.quantised, "quantised=4bit"),
    ]  # fmt: skip
    return "try " + ", ".join(word for useful, word in ways if useful)


def table(config: Config, card: plan.Gpu) -> str:
    """Sizes by GPUs: GiB of each GPU, seconds of an iteration, and the shares of writing and of communication.

    A base that does not fit whole is in pieces where that helps; in brackets what does not fit.
    """
    lines = ["| | " + " | ".join(f"{n} GPU{'s' * (n > 1)}" for n in GPUS) + " |", "|---" * (len(GPUS) + 1) + "|"]
    for size in plan.SIZES:
        counts, cells = plan.count(config, plan.known(size)), []
        for gpus in GPUS:
            if config.prompts_per_step % gpus:
                cells.append("")
                continue
            ways = (False, True) if gpus > 1 else (False,)
            found = [plan.foresee(config, counts, gpus, card, sharded) for sharded in ways]
            good = [one for one in found if one.fits()]
            fastest = min(good, key=lambda one: sum(one.seconds.values()), default=None)
            cells.append(f"({found[-1].total / plan.GIB:.0f} GiB)" if fastest is None else _cell(fastest))
        lines.append(f"| {size} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(made: plan.Forecast) -> str:
    time = made.seconds
    whole = sum(time.values())
    pieces = ", pieces" if made.sharded else ""
    return (
        f"{made.total / plan.GIB:.0f} GiB{pieces}; {float(f'{whole:.2g}'):g} s "
        f"({time['writing'] / whole:.0%}, {time['communication'] / whole:.0%})"
    )
