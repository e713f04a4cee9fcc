"""`bilevel-rl bench [NAME ...]`: the benchmark scripts of a source checkout."""

from __future__ import annotations

import runpy
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from bilevel_rl import signals
from bilevel_rl.errors import InvalidConfig, did_you_mean, message
from bilevel_rl.launch import docstring

USAGE = "usage: bilevel-rl bench [NAME [its options]]    without a name: lists the scripts of benchmarks/"


def main(argv: Sequence[str]) -> int:
    """List the benchmarks, or run one with the options that follow its name."""
    if set(argv[:1]) & {"-h", "--help"}:
        print(USAGE)
        return 0
    scripts = {path.stem: path for path in sorted(folder().glob("*.py")) if not path.stem.startswith("_")}
    if not argv:
        for name, path in scripts.items():
            print(f"{name:<16} {docstring.first_sentence(path)}")
        return 0
    if argv[0] not in scripts:
        raise InvalidConfig(
            message("bilevel-rl bench", repr(argv[0]), did_you_mean(argv[0], scripts), "Name one of these")
        )
    with signals.hinted(shlex.join(["bilevel-rl", "bench", *argv])):
        return call(scripts[argv[0]], argv[1:])


def call(script: Path, words: Sequence[str]) -> int:
    """Run a script in this very process, as `python SCRIPT WORDS` would, and return its exit code.

    A program of its own would be one process more to tell of every signal, and one more that a kill leaves behind.
    """
    before = sys.argv, list(sys.path)
    sys.argv = [str(script), *words]
    sys.path.insert(0, str(script.parent))
    try:
        runpy.run_path(str(script), run_name="__main__")
    except SystemExit as ends:
        if isinstance(ends.code, str):
            print(ends.code, file=sys.stderr)
        return ends.code if isinstance(ends.code, int) else int(ends.code is not None)
    finally:
        sys.argv, sys.path[:] = before
    return 0


def folder() -> Path:
    """`benchmarks/` here, or in the checkout this package was installed from.

    Raises:
        InvalidConfig: there is none (an installed wheel).
    """
    for parent in (Path.cwd(), Path(__file__).parents[3]):
        if (parent / "benchmarks").is_dir():
            return parent / "benchmarks"
    raise InvalidConfig(
        message(
            "bilevel-rl bench",
            "no folder benchmarks/",
            "the benchmarks come with the source, not with the package",
            "Clone the repository and run it there",
        )
    )
