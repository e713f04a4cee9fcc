"""Things by name: `builtin:NAME`, `MODULE:NAME` or `FILE.py:NAME`, read here and nowhere else.

The current folder is searched too, and a file's own folder while it is loaded, so that a user's module may import its
neighbours.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from bilevel_rl.errors import InvalidConfig, InvalidProblem, did_you_mean, message

BUILTIN = "builtin:"
PATTERN = re.compile(r"(?P<module>.+\.py|[A-Za-z_][\w.]*):(?P<name>[A-Za-z_][\w.]*)")


def is_name(text: str) -> bool:
    """Whether a text names something: `builtin:NAME`, `MODULE:NAME` or `FILE.py:NAME`.

    Example:
        >>> [is_name(t) for t in ("builtin:vader", "mine.py:judge", "package.module:judge", "folder/model", "queue:./here")]
        [True, True, True, False, False]
    """
    return PATTERN.fullmatch(text) is not None


def find(text: str, known: Mapping[str, Any], where: str) -> Any:
    """The object that a text names.

    Args:
        text: `builtin:NAME`, `MODULE:NAME` or `FILE.py:NAME`; a bare NAME of `known` too.
        known: what `builtin:` offers, by name.
        where: for errors, e.g. "config.judge".

    Raises:
        InvalidConfig: no such thing, or a text that names nothing.
        InvalidProblem: a module or file that raises when it is imported.

    Example:
        >>> find("math:pi", {}, "config.number")
        3.141592653589793
        >>> find("builtin:two", {"two": 2}, "config.number")
        2
    """
    bare = text.removeprefix(BUILTIN)
    if text.startswith(BUILTIN) or text in known:
        if bare not in known:
            raise InvalidConfig(
                message(where, repr(text), did_you_mean(bare, known), f"Choose among these, or write {OWN}")
            )
        return known[bare]
    found = PATTERN.fullmatch(text)
    if found is None:
        raise InvalidConfig(
            message(where, repr(text), f"a thing by name is builtin:NAME, {OWN}", "Correct the name")
        )
    module, name = found["module"], found["name"]
    return _attribute(
        load_file(module, where) if module.endswith(".py") else load_module(module, where), name, where
    )


OWN = "MODULE:NAME or FILE.py:NAME"


def find_word(word: str, known: Mapping[str, Any], command: str, what: str) -> Any:
    """The object that a word of a command names: one of `known` by its bare name, or the user's own.

    Args:
        command: for errors, as it is typed.
        what: what the word stands for, "task".

    Raises:
        InvalidConfig: neither.
        InvalidProblem: a module or file that raises when it is imported.

    Example:
        >>> find_word("two", {"two": 2}, "bilevel-rl flows", "task")
        2
    """
    if word not in known and not is_name(word):
        advice = "Name one of these, or your own as FILE.py:NAME"
        raise InvalidConfig(message(command, f"the unknown {what} {word!r}", did_you_mean(word, known), advice))
    return find(word, known, what)


def load_module(name: str, where: str) -> ModuleType:
    """An importable module, of the current folder too.

    Raises:
        InvalidConfig: there is none.
        InvalidProblem: it raises when it is imported.
    """
    try:
        with _searched(os.getcwd()):
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise broken(name, error) from error
        raise InvalidConfig(
            message(where, f"no module named {error.name!r}", "an importable module, installed or in the current folder",
                    "Check the name and the folder, or give the file: FILE.py:NAME")
        ) from error  # fmt: skip
    except (Exception, SystemExit) as error:
        raise broken(name, error) from error


def load_file(file: str | Path, where: str) -> ModuleType:
    """The module in a Python file.

    Raises:
        InvalidConfig: no such file.
        InvalidProblem: it raises when it is loaded.
    """
    path = Path(file).expanduser()
    if not path.is_file():
        raise InvalidConfig(
            message(where, f"no file {str(file)!r}", "a thing of your own is FILE.py:NAME", "Check the path")
        )
    label = f"bilevel_rl_user_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(label, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[label] = module
    try:
        with _searched(str(path.resolve().parent)):
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # whatever the user's file raises, and a script's exit
        raise broken(str(path), error, "file") from error
    return module


@contextlib.contextmanager
def _searched(folder: str) -> Iterator[None]:
    """Imports look in a folder too, first."""
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # whatever was imported may have put it in order itself
            sys.path.remove(folder)


def broken(name: str, error: BaseException, what: str = "module") -> InvalidProblem:
    """The error of a module or file that raises when it is imported."""
    return InvalidProblem(
        message(name, f"{type(error).__name__}: {error}", f"the {what} must import without errors", f"Mend the {what}")
    )


def _attribute(module: ModuleType, name: str, where: str) -> Any:
    value: Any = module
    for part in name.split("."):
        if not hasattr(value, part):
            public = [key for key in vars(module) if not key.startswith("_")]
            raise InvalidConfig(
                message(
                    where,
                    f"no {name!r} in {module.__name__}",
                    did_you_mean(part, public),
                    "Name one of these",
                )
            )
        value = getattr(value, part)
    return value
