"""`bilevel-rl cite NAME ...`: BibTeX of what a result stands on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bilevel_rl import records, references
from bilevel_rl.control.offline import learners
from bilevel_rl.errors import InvalidConfig, did_you_mean, message
from bilevel_rl.launch import load

USAGE = "usage: bilevel-rl cite [PROBLEM | SOLVER | OFFLINE LEARNER | RUN FOLDER | KEY ...]    without arguments: the paper"


def main(argv: Sequence[str]) -> int:
    """Print BibTeX entries."""
    if set(argv) & {"-h", "--help"}:
        print(USAGE)
        return 0
    keys: list[str] = []
    for word in argv or ["zeng2026hessianfree"]:
        found = keys_of(word)
        if not found:
            print(f"% {word}: no published source; cite this library (CITATION.cff)")
        keys += found
    if keys:
        print(references.bibtex(*keys))
    return 0


def keys_of(word: str) -> list[str]:
    """Reference keys of a problem, solver, learner from data, run folder or key.

    Raises:
        InvalidConfig: none of these.
    """
    named = load.problem_classes() | load.solver_classes() | {kind.name: kind for kind in learners.ALL}
    if word in named:
        return _of(named[word])
    if word in references.BIBTEX:
        return [word]
    if (Path(word) / "run.json").exists():
        header = records.read_header(word)
        keys = [*header.get("references", ())]
        for name in (header["problem"], header["name"], header["config"].get("solver", "")):
            keys += _of(named[name]) if name in named else []
        return list(dict.fromkeys(keys))
    known = [*named, *references.BIBTEX]
    raise InvalidConfig(
        message(
            "bilevel-rl cite", repr(word), did_you_mean(word, known), "Name one of these, or a run folder"
        )
    )


def _of(kind: Any) -> list[str]:
    """A class's keys; those of its defaults, where they are its parts'."""
    return list(kind.references if isinstance(kind.references, tuple) else kind().references)
