"""`bilevel-rl bench [NAME ...]`: the benchmark scripts of a source checkout."""

from __future__ import annotations

import shlex
import signal
import subprocess
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
        return call([sys.executable, str(scripts[argv[0]]), *argv[1:]])


def call(argv: Sequence[str]) -> int:
    """Run a program and return its exit code; a signal to this process is passed on, and its end is waited for."""
    process = subprocess.Popen(argv)
    try:
        return process.wait()
    except KeyboardInterrupt as error:
        number = getattr(error, "number", signal.SIGINT)
        if number != signal.SIGINT:  # Ctrl-C reaches every process of the terminal by itself
            process.send_signal(number)
        process.wait()
        raise


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
