"""The command line: one verb, one file in `bilevel_rl.commands`. Dispatch only."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import TextIO

from bilevel_rl import __version__, compiled, signals
from bilevel_rl.commands import VERBS, heads
from bilevel_rl.errors import BilevelError, message

FROM_FILE = ("check", "plan", "run", "compare", "sweep", "search", "diagnose")  # a YAML file may say what they are asked
TRACEBACK = "BILEVEL_RL_TRACEBACK"  # set: errors that nobody foresaw keep their traceback


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code: 0 done, 1 the answer is no, 2 wrong input, 75 try again later,
    128 + signal stopped.

    Example:
        >>> main(["--version"])
        bilevel-rl 0.2.0
        0
    """
    if argv is None:  # a program of its own, not a call from Python, where warnings belong to the caller
        warnings.showwarning = noted
    argv = list(sys.argv[1:] if argv is None else argv)
    return answered(lambda: _dispatch(argv))


def noted(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: TextIO | None = None,
    line: str | None = None,
) -> None:  # fmt: skip
    """A warning as a note on standard error; those that are about code, not about what was asked, with their place."""
    place = "" if issubclass(category, UserWarning) else f" ({category.__name__}, {filename}:{lineno})"
    print(f"note: {message}{place}", file=file or sys.stderr)


def answered(work: Callable[[], int]) -> int:
    """Do some work as a verb is done: errors and signals become a sentence on standard error and an exit code."""
    try:
        with signals.raised():
            return work()
    except BilevelError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt as error:
        said, code = signals.farewell(error)
        print(said, file=sys.stderr)
        return code
    except BrokenPipeError:  # the reader of a pipe has gone, as with `bilevel-rl list | head`
        sys.stderr.close()
        return 0
    except Exception as error:
        if os.environ.get(TRACEBACK):
            raise
        said, code = unforeseen(error)
        print(said, file=sys.stderr)
        return code


def unforeseen(error: Exception) -> tuple[str, int]:
    """(sentence, exit code) of an error that nobody raised on purpose: 2 where a user's own file did, else 70."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    what = f"{type(error).__name__}: {lines[0][:200] if lines else ''}".strip(" :")
    own = [frame for frame, _ in traceback.walk_tb(error.__traceback__)
           if str(frame.f_globals.get("__name__", "")).startswith("bilevel_rl_user_")]  # fmt: skip
    more = f"{TRACEBACK}=1 shows the whole traceback"
    if own:
        line = dict(traceback.walk_tb(error.__traceback__))[own[-1]]
        where = f"{own[-1].f_code.co_filename}, line {line}, in {own[-1].f_code.co_name}"
        return "error: " + message(where, what, "it must be a function of arrays that JAX can trace", f"Mend it; {more}"), 2
    return "error: " + message("bilevel-rl", what, "this is a fault of the library", f"Report it; {more}"), 70


def _dispatch(argv: list[str]) -> int:
    if argv and argv[0] in ("-V", "--version", "version"):
        print(f"bilevel-rl {__version__}")
        return 0
    asked = heads.verb("bilevel-rl", argv, VERBS, overview, "`bilevel-rl --help` explains each")
    if asked is None:
        return 0
    verb, rest = asked
    if verb in FROM_FILE and rest[:1] == ["--from"] and rest[1:2] and rest[1].endswith((".yaml", ".yml", ".json")):
        from bilevel_rl.launch import options_file

        rest = [*options_file.words(rest[1], verb), *rest[2:]]
    if any("://" in word for word in rest):
        from bilevel_rl.machines import store

        with store.carried([verb, *rest]) as words:
            return _call(words[0], words[1:])
    return _call(verb, rest)


def _call(verb: str, rest: list[str]) -> int:
    compiled.keep()
    # a program of its own computes in 64 bits throughout; JAX reads this when it is imported
    os.environ.setdefault("JAX_ENABLE_X64", "1")
    if "jax" not in sys.modules:
        return int(importlib.import_module(VERBS[verb][0]).main(rest) or 0)
    from bilevel_rl.loop import precision

    return int(precision.double(importlib.import_module(VERBS[verb][0]).main)(rest) or 0)


def overview() -> str:
    """The text of `bilevel-rl --help`."""
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {verb:<{width}}  {text}" for verb, (_, text) in VERBS.items())
    return (
        f"bilevel-rl {__version__}: bi-level reinforcement learning\n\n"
        f"usage: bilevel-rl VERB ...\n\n{verbs}\n\n"
        "Start with:  bilevel-rl run goal_placement --samples 400000 --runs 10\n"
        "Each verb has its own --help; options of a problem and a solver are listed by\n"
        "  bilevel-rl run PROBLEM SOLVER --help"
    )
