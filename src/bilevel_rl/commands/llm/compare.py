"""`bilevel-rl llm compare A B`: two checkpoints on the same prompts, side by side."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from bilevel_rl.commands.llm import screen, talk
from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.launch import options
from bilevel_rl.llm.data.rows import load_prompts
from bilevel_rl.llm.data.wording import as_text
from bilevel_rl.records import write_json

arg = tyro.conf.arg
FIGURES = ("gold", "kl", "reward", "length", "truncated", "distinct")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Two runs on the same prompts with the same random numbers: what they write, judge, gold score, KL, length."""

    first: Annotated[tyro.conf.Positional[str], arg(help="folder of a run, with @best or @ITERATION for a checkpoint")]
    second: Annotated[tyro.conf.Positional[str], arg(help="another, or the same run at another checkpoint")]
    prompts: Annotated[str, arg(help="hub id, file or folder; by default the first run's held-out prompts, or its own")] = ""
    prompt: Annotated[tuple[str, ...], arg(help="prompts as texts, instead")] = ()
    judge: Annotated[str, arg(help="who says which is better, named as in a configuration; by default the first run's")] = ""
    gold: Annotated[str, arg(help="scorer, likewise")] = ""
    count: Annotated[int, arg(help="prompts at most")] = 64
    show: Annotated[int, arg(help="rows of the table")] = 8
    seed: Annotated[int, arg(help="of the samples")] = 0
    out: Annotated[Path | None, arg(help="file for the figures and completions, as JSON")] = None


def main(argv: Sequence[str]) -> int:
    """`compare A B [--judge NAME]`."""
    given = options.parse("llm compare", Settings, argv)
    found = compared(given)
    names = found["names"]
    screen.show_samples(
        [
            {"prompt": row["prompt"], "A": row["a"], "B": row["b"]}
            | {key: row[key] for key in ("gold A", "gold B", "better") if key in row}
            for row in found["rows"][: given.show]
        ],
        f"A: {names[0]}    B: {names[1]}",
    )  # fmt: skip
    lines = [
        {"figure": key, "A": found["figures"][0][key], "B": found["figures"][1][key],
         "B - A": found["figures"][1][key] - found["figures"][0][key]}
        for key in FIGURES if all(key in f for f in found["figures"])
    ]  # fmt: skip
    screen.show_samples(lines, f"{len(found['rows'])} prompts")
    if "wins" in found:
        w = found["wins"]
        screen.console().print(
            f"judge: B better in {w['b']}, A in {w['a']}, {w['ties']} ties; B's share of decided pairs "
            f"{w['share']:.3f} [{w['low']:.3f}, {w['high']:.3f}]", highlight=False,
        )  # fmt: skip
    if given.out is not None:
        write_json(given.out, found)
    return 0


def compared(given: Settings) -> dict[str, Any]:
    """Figures and completions of both; verdicts where there is a judge.

    Raises:
        InvalidConfig: no prompts, or runs with other tokenizers' prompts.
    """
    from bilevel_rl.llm.evaluation import evaluate
    from bilevel_rl.llm.export import restore
    from bilevel_rl.llm.judges.builtin import CheckedJudge
    from bilevel_rl.llm.judges.by_name import make_gold, make_judge

    places = [place(text) for text in (given.first, given.second)]
    trainers = [restore(folder, checkpoint=checkpoint) for folder, checkpoint in places]
    config = trainers[0].config
    judge, scorer = make_judge(given.judge or ("" if config.judge.startswith("queue:") else config.judge), config.seed)
    gold = make_gold(given.gold or config.eval_gold or config.gold) or scorer
    figures, tables = [], []
    for trainer in trainers:
        figure, table = evaluate(
            trainer.roles, _prompts(given, config, trainer.tokenizer), trainer.generator, trainer.tokenizer, gold,
            max_new_tokens=trainer.config.max_new_tokens, seed=given.seed, longest=trainer.config.max_prompt_tokens,
        )  # fmt: skip
        figures.append(figure)
        tables.append(table)
    rows: list[dict[str, Any]] = [
        {"prompt": a["prompt"], "a": a["completion"], "b": b["completion"]}
        | ({"gold A": a["gold"], "gold B": b["gold"]} if gold is not None else {})
        for a, b in zip(*tables, strict=True)
    ]
    found: dict[str, Any] = {
        "names": [f"{folder}, iteration {t.step}" for (folder, _), t in zip(places, trainers, strict=True)],
        "figures": figures, "rows": rows,
    }  # fmt: skip
    if judge is not None:
        verdicts = CheckedJudge(judge)(
            [row["prompt"] for row in rows], [[as_text(row["a"]), as_text(row["b"])] for row in rows]
        )
        for row, verdict in zip(rows, verdicts, strict=True):
            row["better"] = {0: "A", 1: "B"}.get(verdict, "tie")
        found["wins"] = wins(verdicts)
    return found


def place(text: str) -> tuple[Path, str]:
    """`FOLDER@CHECKPOINT` in its parts; without one it is the last.

    Example:
        >>> place("runs/a@best")[1], place("runs/a")[1]
        ('best', 'last')
    """
    folder, sign, checkpoint = text.rpartition("@")
    if not sign or Path(text).exists():
        return Path(text), "last"
    return Path(folder), checkpoint


def wins(verdicts: Sequence[int]) -> dict[str, float]:
    """How often each is better, and the second's share of decided pairs with Wilson's 95 % interval.

    Example:
        >>> found = wins([0, 1, 1, 1, -1])
        >>> found["share"], round(found["low"], 2), round(found["high"], 2)
        (0.75, 0.3, 0.95)

    References:
        Wilson, "Probable inference, the law of succession, and statistical inference", 1927.
    """
    a, b = (sum(v == side for v in verdicts) for side in (0, 1))
    n, z = a + b, 1.959964
    if not n:
        return {"a": 0, "b": 0, "ties": len(verdicts), "share": 0.5, "low": 0.0, "high": 1.0}
    p = b / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return {"a": a, "b": b, "ties": len(verdicts) - n, "share": p, "low": middle - half, "high": middle + half}


def _prompts(given: Settings, config: Any, tokenizer: Any) -> list[Any]:
    if given.prompt:
        return [talk.as_turn(text, tokenizer) for text in given.prompt]
    name = given.prompts or config.eval_prompts or config.prompts
    if not name:
        raise InvalidConfig(
            message("bilevel-rl llm compare", "no prompts", "runs that were started from Python name none",
                    "Give --prompts NAME or --prompt TEXT")
        )  # fmt: skip
    rows: list[Any] = load_prompts(name, duplicates="drop")
    return rows[: given.count]


