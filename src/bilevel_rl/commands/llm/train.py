"""`bilevel-rl llm train [CONFIG.yaml] --key value ...`: a run of your own."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bilevel_rl.commands.llm import screen
from bilevel_rl.errors import InvalidConfig, message, typed
from bilevel_rl.llm.config import Config, parse_overrides
from bilevel_rl.llm.data.rows import load_prompts, preference_rows
from bilevel_rl.llm.judges.by_name import QUEUE, make_gold, make_judge
from bilevel_rl.llm.sections import written

SHOWN = ("gold", "learned_reward", "kl", "labels", "samples")


def main(argv: Sequence[str]) -> int:
    """`train [CONFIG.yaml] --key value ... key=value ...`."""
    if not argv or {"-h", "--help"} & set(argv):
        print(help_text())
        return 0
    path, *rest = argv
    if path.startswith("-") or "=" in path:  # no file: every key on the command line
        config = Config.from_dict(parse_overrides(overrides(argv)), where="bilevel-rl llm train")
    else:
        config = Config.load(path, overrides(rest))
    return run(config, resume=False)


def help_text() -> str:
    """Every key of a configuration, with its meaning and default."""
    keys = Config.keys()
    defaults = Config()
    names = {key: written(key) for key in keys}
    width = max(map(len, names.values()))
    lines = [f"  {names[key]:<{width}}  {meaning} [{getattr(defaults, key)!r}]" for key, meaning in keys.items()]
    head = (
        "usage: bilevel-rl llm train [CONFIG.yaml] [--key value | key=value ...]\n\n"
        "keys of CONFIG.yaml (a.b is the key b of the section a: `a: {b: value}` in the file, --a.b value here):"
    )
    return "\n".join([head, *lines])


def overrides(words: Sequence[str]) -> list[str]:
    """`--key value`, `--key=value` and `key=value` as the `key=value` texts that `Config.load` takes.

    Raises:
        InvalidConfig: a word that is no option, or an option without its value.

    Example:
        >>> overrides(["--steps", "3", "--estimator=paired", "recipe=grpo"])
        ['steps=3', 'estimator=paired', 'recipe=grpo']
    """
    found, left = [], list(words)
    while left:
        word = left.pop(0)
        if "=" in word and (word.startswith("--") or word.partition("=")[0].replace(".", "_").isidentifier()):
            found.append(word.removeprefix("--"))
        elif not word.startswith("--"):
            raise InvalidConfig(
                message("bilevel-rl llm train", f"the word {word!r}", "after CONFIG.yaml come options --key value",
                        "Write --key value")
            )  # fmt: skip
        elif left and not left[0].startswith("--"):
            found.append(f"{word[2:]}={left.pop(0)}")
        else:
            raise InvalidConfig(
                message(
                    "bilevel-rl llm train",
                    f"{word} without a value",
                    "each option has one value",
                    f"Write {word} VALUE",
                )
            )
    return found


def run(config: Config, resume: bool) -> int:
    """Train as a configuration says, with a progress bar, and show what came out."""
    from bilevel_rl.llm.trainer import BilevelTrainer

    given: dict[str, Any] = {}
    if config.task:
        from bilevel_rl.llm.tasks import by_name

        config, given = by_name.prepared(config)
    if not config.prompts and "prompts" not in given:
        raise InvalidConfig(
            message("config.prompts", "nothing", "a run from the command line reads its prompts from somewhere",
                    "Set prompts: to a hub id, file or folder, or task: to a shipped task")
        )  # fmt: skip
    if config.prompts:
        given["prompts"] = load_prompts(config.prompts, duplicates="drop")
    preferences = preference_rows(config.preferences) if config.preferences else None
    held_out = load_prompts(config.eval_prompts, duplicates="drop") if config.eval_prompts else []
    judge, scorer = make_judge(config.judge, config.seed)
    console = screen.console()
    with _kept(config.out), screen.bar(f"{config.method}", config.steps) as advance:
        given["gold"] = make_gold(config.gold) or scorer or given.get("gold")
        trainer = BilevelTrainer(
            config, judge=judge, preferences=preferences, cost=make_gold(config.cost, "config.cost"), held_out=held_out,
            held_out_gold=make_gold(config.eval_gold, "config.eval_gold"), callbacks=[_ticker(advance)], resume=resume,
            problem=config.task or Path(config.prompts).stem or "prompts", **given,
        )  # fmt: skip
        if not resume:
            console.print(f"memory: {trainer.memory}", highlight=False)
        trainer.train()
    screen.show_samples(trainer.table(), "last completions")
    if trainer.enough:
        console.print(trainer.enough)
    if trainer.step < config.steps and not trainer.enough:
        _stopped(config, trainer.step)
    elif trainer.history:
        last = trainer.history[-1]
        console.print("  ".join(f"{key} {last[key]:.4g}" for key in SHOWN if key in last))
        if config.out:
            console.print(f"run folder: {config.out}", highlight=False, soft_wrap=True)
    return 0


@contextlib.contextmanager
def _kept(out: str) -> Iterator[None]:
    """Inside, an interruption says how to go on, where there is anything to go on from."""
    try:
        yield
    except KeyboardInterrupt as error:
        from bilevel_rl.levels.run_folder import has_checkpoint

        if out and has_checkpoint(out):
            error.hint = f"bilevel-rl llm resume {shlex.quote(out)}"  # type: ignore[attr-defined]
        raise


def _stopped(config: Config, step: int) -> None:
    console = screen.console()
    if not config.judge.startswith(QUEUE):
        console.print(f"stopped at iteration {step}")
        return
    console.print(f"[yellow]stopped at iteration {step} of {config.steps}[/]: labels are pending.")
    queue = config.judge.removeprefix(QUEUE)
    console.print(f"label them:  {typed('llm', 'judge', queue)}", markup=False, soft_wrap=True)
    console.print(f"then:        {typed('llm', 'resume', config.out)}", markup=False, soft_wrap=True)


def _ticker(advance: Callable[[int], None]) -> Any:
    from transformers import TrainerCallback

    class Ticker(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            advance(state.global_step)

    return Ticker()
