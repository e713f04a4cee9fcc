"""`bilevel-rl llm ...`: train, happy-tweets, resume, sample, export, judge. Options become values here and
nowhere else.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from bilevel_rl.errors import BilevelError, InvalidConfig, MissingDependency, did_you_mean, message
from bilevel_rl.launch import options
from bilevel_rl.llm.config import Config, parse_overrides
from bilevel_rl.llm.data import sources as data
from bilevel_rl.records import read_json

arg = tyro.conf.arg

USAGE = """usage: bilevel-rl llm VERB ...

  happy-tweets            the paper's experiment, whole and offline: models, every method, a table, samples
  train CONFIG.yaml       a run of your own; any key of the file as --key value (--recipe grpo)
  resume RUN              go on with a run that was stopped, to the same bits
  sample RUN              what the trained policy writes
  export RUN              policy, reward, tokenizer and model cards, for transformers, PEFT, TRL and vLLM
  judge QUEUE             label the pairs that a run has put in a queue folder

Each verb has its own --help; `bilevel-rl llm train --help` explains every key of a configuration."""


def main(argv: Sequence[str]) -> int:
    """Run one verb and return its exit code.

    Raises:
        InvalidConfig: an unknown verb or option.
    """
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0
    verb, *rest = argv
    if verb not in VERBS:
        raise InvalidConfig(
            message(
                "bilevel-rl llm",
                f"the verb {verb!r}",
                did_you_mean(verb, VERBS),
                "`bilevel-rl llm --help` explains each",
            )
        )
    _quiet()
    return VERBS[verb](rest)


# -- train and resume ----------------------------------------------------------------------------------------


def train(argv: Sequence[str]) -> int:
    """`train [CONFIG.yaml] --key value ... key=value ...`."""
    if not argv or argv[0] in ("-h", "--help"):
        print(
            "usage: bilevel-rl llm train [CONFIG.yaml] [--key value | key=value ...]\n\nkeys of CONFIG.yaml:"
        )
        defaults = Config()
        width = max(map(len, Config.keys()))
        for name, meaning in Config.keys().items():
            print(f"  {name:<{width}}  {meaning} [{getattr(defaults, name)!r}]")
        return 0
    path, *rest = argv
    if path.startswith("-") or "=" in path:  # no file: every key on the command line
        config = Config.from_dict(parse_overrides(overrides(argv)), where="bilevel-rl llm train")
    else:
        config = Config.load(path, overrides(rest))
    return _train(config, resume=False)


def overrides(words: Sequence[str]) -> list[str]:
    """`--key value`, `--key=value` and `key=value` as the `key=value` texts that `Config.load` takes.

    Raises:
        InvalidConfig: a word that is no option, or an option without its value.

    Example:
        >>> overrides(["--steps", "3", "--estimator=paired", "recipe=grpo"])
        ['steps=3', 'estimator=paired', 'recipe=grpo']
    """
    found, i = [], 0
    while i < len(words):
        word = words[i]
        if word.partition("=")[0].isidentifier() and "=" in word:
            found.append(word)
            i += 1
            continue
        if not word.startswith("--"):
            raise InvalidConfig(
                message("bilevel-rl llm train", f"the word {word!r}", "after CONFIG.yaml come options --key value",
                        "Write --key value")
            )  # fmt: skip
        if "=" in word:
            found.append(word[2:])
            i += 1
        elif i + 1 < len(words) and not words[i + 1].startswith("--"):
            found.append(f"{word[2:]}={words[i + 1]}")
            i += 2
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


def resume(argv: Sequence[str]) -> int:
    """`resume RUN [--steps N]`."""
    words, settings = _parse("resume", _Resume, argv, ["RUN"])
    folder = Path(words[0])
    if (folder.parent / "experiment.json").exists():
        return _resume_experiment(folder.parent)
    header = read_json(folder / "run.json")
    values = {**header["config"], "out": str(folder)}
    if settings.steps:
        values["steps"] = settings.steps
    return _train(Config.from_dict(values, where=str(folder / "run.json")), resume=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Resume:
    """Go on with a run from its last checkpoint, to the same bits as if it had never stopped."""

    steps: Annotated[int, arg(help="new last iteration; 0 keeps the run's own")] = 0


def _resume_experiment(folder: Path) -> int:
    experiment = importlib.import_module("bilevel_rl.experiments.happy_tweets")
    saved = read_json(folder / "experiment.json")
    values = {**saved["settings"], "out": folder, "data": Path(saved["data"]) if saved["data"] else None}
    values["cache"], values["methods"] = Path(values["cache"]), tuple(values["methods"])
    experiment.run(experiment.Settings(**values), bar)
    show_results(folder)
    return 0


def _train(config: Config, resume: bool) -> int:
    from bilevel_rl.llm.trainer import BilevelTrainer

    if not config.prompts:
        raise InvalidConfig(
            message("config.prompts", "nothing", "a run from the command line reads its prompts from somewhere",
                    "Set prompts: to a hub id, file or folder")
        )  # fmt: skip
    prompts = data.load_prompts(config.prompts, duplicates="drop")
    preferences = data.preference_rows(config.preferences) if config.preferences else None
    judge, gold = make_judge(config.judge, config.seed)
    console = _console()
    with bar(f"{config.method}", config.steps) as advance:
        trainer = BilevelTrainer(
            config, prompts=prompts, judge=judge, gold=gold, preferences=preferences,
            callbacks=[_ticker(advance)], resume=resume, problem=Path(config.prompts).stem or "prompts",
        )  # fmt: skip
        if not resume:
            console.print(f"memory: {trainer.memory}", highlight=False)
        trainer.train()
    show_samples(trainer.table(), "last completions")
    if trainer.step < config.steps:
        console.print(f"[yellow]stopped at iteration {trainer.step} of {config.steps}[/]: labels are pending."
                      if config.judge.startswith("queue:") else f"stopped at iteration {trainer.step}")  # fmt: skip
        if config.judge.startswith("queue:"):
            queue = config.judge.removeprefix("queue:")
            console.print(
                f"label them:  bilevel-rl llm judge {queue}\nthen:        bilevel-rl llm resume {config.out}"
            )
    elif trainer.history:
        last = trainer.history[-1]
        console.print(
            "  ".join(
                f"{key} {last[key]:.4g}"
                for key in ("gold", "learned_reward", "kl", "labels", "samples")
                if key in last
            )
        )
        if config.out:
            console.print(f"run folder: {config.out}", highlight=False, soft_wrap=True)
    return 0


def make_judge(source: str, seed: int = 0) -> tuple[Any, Any]:
    """The judge and, for a classifier, the gold scorer that a configuration's `judge` names.

    Args:
        source: `queue:FOLDER` for labels by hand; else a classifier's folder or hub id, with `@LABEL` for the
            label whose probability counts (by default the last) and `~SHARPNESS` for labels drawn from a
            Bradley-Terry law.
        seed: of drawn labels.

    Returns:
        (judge, gold): (None, None) for an empty source.

    Raises:
        InvalidConfig: no such classifier or label, or a sharpness that is no number.
    """
    from bilevel_rl.llm.judges.builtin import ClassifierScore, HumanQueue, ScoreJudge

    if not source:
        return None, None
    if source.startswith("queue:"):
        return HumanQueue(source.removeprefix("queue:"), wait_seconds=0), None
    name, _, slope = source.partition("~")
    name, _, label = name.partition("@")
    try:
        sharpness = float(slope) if slope else math.inf
    except ValueError:
        raise InvalidConfig(
            message("config.judge", repr(slope), "after ~ comes a number", "Write FOLDER@LABEL~8")
        ) from None
    gold = ClassifierScore(name, label=label or -1)
    return ScoreJudge(gold, sharpness, seed), gold


# -- the experiment ------------------------------------------------------------------------------------------


def happy_tweets(argv: Sequence[str]) -> int:
    """`happy-tweets [--data FOLDER]`."""
    experiment = importlib.import_module("bilevel_rl.experiments.happy_tweets")
    _, settings = _parse("happy-tweets", experiment.Settings, argv, [])
    folder = experiment.run(settings, bar, progress=True)
    show_results(folder)
    _report(folder)
    return 0


def show_results(folder: Path) -> None:
    """The experiment's table, and samples before and after, from its results file."""
    results, console = read_json(folder / "results.json"), _console()
    gold = results["models"]["gold"]
    console.print(
        f"gold classifier: {gold['accuracy']:.1%} of {gold['held_out']} held-out tweets right "
        f"(the most frequent label alone: {gold['majority']:.1%})", highlight=False,
    )  # fmt: skip
    runs = max(line["runs"] for line in results["summary"])
    spread = (
        f"interquartile mean [95 % interval] of {runs} seeds" if runs > 1 else "one seed: a look, no evidence"
    )
    table = Table(
        title=f"happy tweets, {results['task']}", caption=spread, title_justify="left", caption_justify="left"
    )
    for i, head in enumerate(
        ("method", "labels", "tokens", "gold score", "KL (nats)", "share happy", "distinct")
    ):
        table.add_column(head, justify="right" if i else "left")
    first = results["summary"][0]
    table.add_row("before", "0", "0", f"{first['gold_before']:.3f}", "0", "", "")
    for line in results["summary"]:
        cells = [_interval(line[key], runs) for key in ("gold", "kl", "happy", "distinct")]
        table.add_row(line["method"], f"{line['labels']:.0f}", f"{line['tokens']:,.0f}", *cells)
    console.print(table)
    run = results["runs"][0]
    show_samples(
        [
            {"prompt": b["prompt"], "before": b["completion"], f"after {run['method']}": a["completion"], "gold": a["gold"]}
            for b, a in zip(run["before"]["examples"][:6], run["after"]["examples"][:6], strict=True)
        ],
        "held-out prompts",
    )  # fmt: skip


def _interval(values: Sequence[float], runs: int) -> str:
    value, low, high = values
    return f"{value:.3f} [{low:.3f}, {high:.3f}]" if runs > 1 else f"{value:.3f}"


def _report(folder: Path) -> None:
    """The HTML report, where the extra is installed (imported by name: the engines know no plotting)."""
    try:
        path = importlib.import_module("bilevel_rl.report").build([folder], folder / "report.html")
        _console().print(f"report: {path}", highlight=False, soft_wrap=True)
    except (MissingDependency, ImportError, AttributeError) as error:
        print(f"no report: {error}")
    except BilevelError as error:
        print(f"no report: {error}")


# -- looking at a run ----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Sample:
    """What the policy of a run writes at its last checkpoint."""

    prompt: Annotated[
        tuple[str, ...], arg(help="prompts; by default the first ones that the run trained on")
    ] = ()
    count: Annotated[int, arg(help="how many of the run's own prompts")] = 8
    role: Annotated[str, arg(help="policy, policy_l (the penalised one) or reference")] = "policy"
    seed: Annotated[int, arg(help="of the samples")] = 0


def sample(argv: Sequence[str]) -> int:
    """`sample RUN [--prompt TEXT ...]`."""
    from bilevel_rl.llm.evaluation import evaluate
    from bilevel_rl.llm.export import restore

    words, settings = _parse("sample", _Sample, argv, ["RUN"])
    roles = ("policy", "policy_l", "reference")
    if settings.role not in roles:
        raise InvalidConfig(
            message(
                "bilevel-rl llm sample --role",
                repr(settings.role),
                did_you_mean(settings.role, roles),
                "Choose one",
            )
        )
    trainer = restore(words[0])
    if settings.role == "policy_l" and not trainer.config.uses_penalised:
        raise InvalidConfig(
            message("bilevel-rl llm sample --role", "'policy_l'", f"this run ({trainer.config.method}, estimator "
                    f"{trainer.config.estimator}) has no penalised policy", "Choose policy or reference")
        )  # fmt: skip
    prompts: list[Any] = list(settings.prompt) or _prompts_of(Path(words[0]), trainer.config, settings.count)
    figures, table = evaluate(
        trainer.roles, prompts, trainer.generator, trainer.tokenizer, role=settings.role,
        max_new_tokens=trainer.config.max_new_tokens, seed=settings.seed, longest=trainer.config.max_prompt_tokens,
    )  # fmt: skip
    show_samples(table, f"{settings.role}, iteration {trainer.step}")
    _console().print(f"KL {figures['kl']:.3g} nats, {figures['length']:.3g} tokens", highlight=False)
    return 0


def _prompts_of(folder: Path, config: Config, count: int) -> list[Any]:
    """Prompts that a run has used: from its sample table, else from where its configuration says."""
    rows = folder / "samples.jsonl"
    if rows.exists() and rows.stat().st_size:
        texts = [row["prompt"] for row in data.load_rows(rows)]
        unique = list({str(text): text for text in texts}.values())
        return unique[:count]
    if config.prompts:
        return data.load_prompts(config.prompts, duplicates="drop")[:count]
    raise InvalidConfig(
        message(
            str(folder),
            "no prompts",
            "a run without a sample table knows none",
            "Give some with --prompt TEXT",
        )
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Export:
    """Policy, reward, tokenizer and model cards of a run at its last checkpoint."""

    out: Annotated[Path | None, arg(help="folder to write; by default RUN/export")] = None


def export(argv: Sequence[str]) -> int:
    """`export RUN [--out FOLDER]`."""
    from bilevel_rl.llm import export as exporting

    words, settings = _parse("export", _Export, argv, ["RUN"])
    trainer = exporting.restore(words[0])
    written = exporting.export(trainer, settings.out or Path(words[0]) / "export")
    for part, path in written.items():
        _console().print(f"{part}: {path}", highlight=False, soft_wrap=True)
    return 0


# -- labels by hand ------------------------------------------------------------------------------------------


def judge(argv: Sequence[str]) -> int:
    """`judge QUEUE`: shows each open pair and reads 1, 2, t (tie) or q (quit)."""
    from bilevel_rl.llm.data.sources import as_text
    from bilevel_rl.llm.judges.builtin import HumanQueue

    words, _ = _parse("judge", _Judge, argv, ["QUEUE"])
    folder = Path(words[0])
    if not folder.is_dir():
        raise InvalidConfig(
            message(
                str(folder),
                "no such folder",
                "a queue is the folder after `queue:` in a run's judge",
                "Check the path",
            )
        )
    queue, console = HumanQueue(folder), _console()
    open_pairs = list(queue.pending())
    if not open_pairs:
        console.print("no pairs wait for a label")
        return 0
    console.print("which is better?  1, 2, t: tie, q: quit (labels given so far are kept)")
    for i, row in enumerate(open_pairs):
        console.print(f"\n[bold]{i + 1} of {len(open_pairs)}[/]  {escape(as_text(row['prompt']))}")
        for number, text in enumerate(row["completions"], start=1):
            console.print(f"  {number}: {escape(as_text(text))}")
        answer = _ask()
        if answer is None:
            console.print(f"{len(open_pairs) - i} pairs still wait")
            return 0
        queue.answer(row["id"], answer)
    console.print("all labelled; go on with: bilevel-rl llm resume RUN")
    return 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Judge:
    """Label the pairs that a run has put in a queue folder."""


def _ask() -> int | None:
    """A label from the terminal, or None to quit."""
    while True:
        try:
            text = input("> ").strip().lower()
        except EOFError:
            return None
        if text in ("q", "quit"):
            return None
        if text in ("1", "2", "t"):
            return {"1": 0, "2": 1, "t": -1}[text]
        print("answer 1, 2, t or q")


# -- the screen ----------------------------------------------------------------------------------------------


def _parse(verb: str, kind: type, argv: Sequence[str], names: Sequence[str]) -> tuple[list[str], Any]:
    """The verb's leading words, exactly those named, and its options."""
    first = next((i for i, word in enumerate(argv) if word.startswith("-")), len(argv))
    words, rest = list(argv[:first]), list(argv[first:])
    asked_for_help = bool({"-h", "--help"} & set(rest))
    if len(words) != len(names) and not asked_for_help:
        raise InvalidConfig(
            message(f"bilevel-rl llm {verb}", f"{len(words)} words before the options",
                    f"it takes {' '.join(names) or 'none'}", f"`bilevel-rl llm {verb} --help` explains it")
        )  # fmt: skip
    return words, options.parse(f"llm {verb}" + "".join(f" {name}" for name in names), kind, rest)


def _console() -> Console:
    plain = Console()
    return plain if plain.is_terminal else Console(width=140)


@contextmanager
def bar(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar; yields a function of the work done."""
    columns = (
        TextColumn("[bold]{task.description}"), BarColumn(bar_width=32), MofNCompleteColumn(), TimeElapsedColumn(),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=_console()) as progress:
        task = progress.add_task(label, total=total)
        yield lambda done: progress.update(task, completed=done)


def show_samples(rows: Sequence[dict[str, Any]], title: str) -> None:
    """A table of completions; numbers to three digits."""
    if not rows:
        return
    table = Table(title=title, title_justify="left")
    for key in rows[0]:
        table.add_column(key, overflow="fold")
    for row in rows:
        table.add_row(
            *(
                f"{v:.3g}" if isinstance(v, float) else escape(data.as_text(v)) if v is not None else ""
                for v in row.values()
            )
        )
    _console().print(table)


def _ticker(advance: Callable[[int], None]) -> Any:
    from transformers import TrainerCallback

    class Ticker(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            advance(state.global_step)

    return Ticker()


def _quiet() -> None:
    """Transformers' own progress bars and notes stay off: ours say what happens."""
    try:
        from transformers.utils import logging
    except ImportError as error:
        raise MissingDependency(
            message(
                "bilevel-rl llm",
                str(error),
                "language models need the extra 'llm'",
                "Run: pip install 'bilevel-rl[llm]'",
            )
        ) from error
    logging.set_verbosity_error()
    logging.disable_progress_bar()


VERBS: dict[str, Callable[[Sequence[str]], int]] = {
    "happy-tweets": happy_tweets, "train": train, "resume": resume, "sample": sample, "export": export, "judge": judge,
}  # fmt: skip

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
