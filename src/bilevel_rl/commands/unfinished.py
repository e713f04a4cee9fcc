"""Verbs of many runs that can be stopped: their folder keeps the words they were asked with, and a second call goes on.

    compare.json, sweep.json    the verb's words, and the user's own problem file beside them
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bilevel_rl import records
from bilevel_rl.errors import InvalidConfig, RunNotFound, message, typed
from bilevel_rl.launch import sources

VERBS = ("compare", "sweep")


def kind(folder: Path) -> str | None:
    """Which of the verbs a folder belongs to."""
    return next((verb for verb in VERBS if (folder / f"{verb}.json").exists()), None)


def begin(
    verb: str, folder: Path, argv: Sequence[str], source: Path | None, facts: dict[str, Any], resume: str = "auto"
) -> None:
    """Keep the words of a verb in its folder, or find the same words there.

    Args:
        argv: the words without `--out`.
        source: the user's own problem file; its copy is what a resumed verb runs.
        facts: everything else on which the results depend.
        resume: `auto`, or `never`: what the folder holds is an error, whatever it is.

    Raises:
        InvalidConfig: the folder holds a run, or was asked something else.
    """
    if source is not None:
        facts = facts | {"own_problem": sources.digest(source)}
    path = folder / f"{verb}.json"
    asked = {"format": records.FORMAT, "argv": list(argv), "facts": facts}
    if path.exists():
        if resume == "never" or read(folder)["facts"] != records.plain(facts):
            what = "is there already" if resume == "never" else "was asked something else"
            raise InvalidConfig(
                message(str(folder), f"a {verb} that {what}", f"one folder holds one {verb}",
                        f"Choose another --out, or continue with `{typed('resume', folder)}`")
            )  # fmt: skip
        return
    for name in ("run.json", "search.json", *(f"{other}.json" for other in VERBS)):
        if (folder / name).exists():
            raise InvalidConfig(
                message(str(folder), "a folder that already holds a run", f"a {verb} needs a folder of its own",
                        "Choose another --out")
            )  # fmt: skip
    records.make_folder(folder)
    if source is not None:
        sources.keep(source, folder, "problem")
    records.write_json(path, asked | {"own_problem": source is not None, "provenance": records.provenance()})


def read(folder: Path) -> dict[str, Any]:
    """What `compare.json` or `sweep.json` holds.

    Raises:
        RunNotFound: damaged, or of another version.
    """
    path = folder / f"{kind(folder)}.json"
    found = records.read_json(path)
    words = found.get("argv") if isinstance(found, dict) else None
    if not isinstance(words, list) or not all(isinstance(w, str) for w in words) or found.get("format") != records.FORMAT:
        raise RunNotFound(
            message(str(path), "not the words of a verb of this version", f"this version reads format {records.FORMAT}",
                    "Start it again in another folder")
        )  # fmt: skip
    return found


def resume(folder: Path) -> int:
    """Call the verb again with its words; what is finished stays."""
    found, verb = read(folder), kind(folder)
    words = list(found["argv"])
    if found.get("own_problem"):
        name = words[0].rpartition(":")[2] if ":" in words[0] else "problem"
        words[0] = f"{folder / 'problem.py'}:{name}"
    module = importlib.import_module(f"bilevel_rl.commands.{verb}")
    return int(module.main([*words, "--out", str(folder)]) or 0)


def without_out(argv: Sequence[str]) -> list[str]:
    """The words without `--out FOLDER`.

    Example:
        >>> without_out(["goal", "--out", "runs/a", "--runs", "3"])
        ['goal', '--runs', '3']
    """
    words, skip = [], False
    for word in argv:
        if skip:
            skip = False
        elif word == "--out":
            skip = True
        elif not word.startswith("--out="):
            words.append(word)
    return words
