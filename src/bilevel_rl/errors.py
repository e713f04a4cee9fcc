"""The error family, and the sentence every error is made of: where, what was got, what is allowed, what to do."""

from __future__ import annotations

import difflib
import importlib
import shlex
from collections.abc import Iterable
from types import ModuleType


class BilevelError(Exception):
    """Base of every error that this library raises on purpose.

    Attributes:
        code: the exit code of a program that ends by it.
    """

    code = 2


class InvalidProblem(BilevelError, ValueError):
    """A problem (MDP, reward, objective, data) is not well posed."""


class InvalidConfig(BilevelError, ValueError):
    """An option, hyper-parameter or schedule has a value that is not allowed."""


class MissingDependency(BilevelError, ImportError):
    """An optional package is needed; the message names the command that installs it."""


class RunNotFound(BilevelError, LookupError):
    """A run folder is missing, half-written, or of another version."""


class StorageFailed(BilevelError, OSError):
    """A run folder can't be written (full disk, read-only folder, another process); the last good state stays."""


class NonFiniteState(BilevelError, ArithmeticError):
    """A run produced NaN or infinity; the message names the quantity and the iteration."""


class NoFiniteValue(NonFiniteState):
    """The follower's problem has no finite value under an x: more is always better there."""


class Unsolved(BilevelError, ArithmeticError):
    """An exact answer was not found to its tolerance; the message says by how much it misses."""


def message(where: str, got: object, allowed: str, fix: str) -> str:
    """Compose an error text.

    Example:
        >>> message("FiniteMDP.P[3, 1]", "a row that sums to 0.97", "each row must sum to 1", "Normalise the row")
        'FiniteMDP.P[3, 1]: got a row that sums to 0.97; each row must sum to 1. Normalise the row.'
    """
    return f"{where}: got {got}; {allowed}. {fix.rstrip('.')}."


def typed(*words: object) -> str:
    """A command of the library, as it can be pasted into a shell, whatever is in its paths.

    Example:
        >>> typed("resume", "my runs/a")
        "bilevel-rl resume 'my runs/a'"
    """
    return shlex.join(["bilevel-rl", *map(str, words)])


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A sentence that lists what is known, the nearest name first.

    Example:
        >>> did_you_mean("hgpd", ["hpgd", "amd"])
        "Did you mean 'hpgd'? Known: amd, hpgd"
    """
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return (f"Did you mean {near[0]!r}? " if near else "") + "Known: " + ", ".join(known)


def require(module: str, extra: str) -> ModuleType:
    """Import an optional module, or say which extra brings it.

    Raises:
        MissingDependency: when the module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependency(
            message(
                f"import {module}",
                f"{type(error).__name__} ({error})",
                f"this feature needs the extra '{extra}'",
                f"Run, in a clone of bilevel-rl: pip install '.[{extra}]'",
            )
        ) from error
