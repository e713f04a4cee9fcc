"""`bilevel-rl llm happy-tweets`: the paper's experiment, whole and offline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from bilevel_rl.commands.llm import screen
from bilevel_rl.errors import BilevelError
from bilevel_rl.experiments import happy_tweets as experiment
from bilevel_rl.launch import options
from bilevel_rl.records import read_json


def main(argv: Sequence[str]) -> int:
    """`happy-tweets [--data FOLDER]`."""
    settings = options.parse("llm happy-tweets", experiment.Settings, argv)
    folder = experiment.run(settings, screen.bar, progress=True)
    show(folder)
    _report(folder)
    return 0


def show(folder: Path) -> None:
    """The experiment's table, and samples before and after, from its results file."""
    results, console = read_json(folder / "results.json"), screen.console()
    console.print(_gold(results["models"]), highlight=False)
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
    screen.show_samples(
        [
            {"prompt": b["prompt"], "before": b["completion"], f"after {run['method']}": a["completion"], "gold": a["gold"]}
            for b, a in zip(run["before"]["examples"][:6], run["after"]["examples"][:6], strict=True)
        ],
        "held-out prompts",
    )  # fmt: skip


def _gold(models: Mapping[str, Any]) -> str:
    if "gold" not in models:
        return "gold score: VADER's compound sentiment of the whole tweet, from -1 to 1; it is the judge too"
    gold = models["gold"]
    return (
        f"gold classifier: {gold['accuracy']:.1%} of {gold['held_out']} held-out tweets right "
        f"(the most frequent label alone: {gold['majority']:.1%})"
    )


def _interval(values: Sequence[float], runs: int) -> str:
    value, low, high = values
    return f"{value:.3f} [{low:.3f}, {high:.3f}]" if runs > 1 else f"{value:.3f}"


def _report(folder: Path) -> None:
    """The HTML report, where the extra is installed."""
    try:
        from bilevel_rl import report

        path = report.build([folder], folder / "report.html")
        screen.console().print(f"report: {path}", highlight=False, soft_wrap=True)
    except (BilevelError, ImportError) as error:
        print(f"no report: {error}")
