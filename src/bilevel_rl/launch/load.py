"""Names to objects: problems and solvers of the library, of a user's file, or of a run folder."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import bilevel_rl.control.problems as control_problems
from bilevel_rl import control, judged, launch, names
from bilevel_rl.control import solvers as control_solvers
from bilevel_rl.errors import InvalidConfig, InvalidProblem, RunNotFound, did_you_mean, message
from bilevel_rl.finite import problems, solvers
from bilevel_rl.launch import options
from bilevel_rl.launch.plain import unicode
from bilevel_rl.loop import Problem, Solver

WANTED = {"problem": "BilevelProblem", "solver": "Solver"}  # what most subclass: a table's base class


def problem_classes() -> dict[str, Any]:
    """Name -> class of every problem of the library, of either engine."""
    return {kind.name: kind for kind in (*problems.ALL, *control_problems.ALL, *judged.ALL)}


def solver_classes(problem: Target | None = None) -> dict[str, Any]:
    """Name -> class of the library's solvers for a problem; without one, of all, those for tables first.

    Methods have one name in both engines: which class it is depends on what follows.
    """
    tables, neural = ({kind.name: kind for kind in found} for found in (solvers.ALL, control_solvers.ALL))
    if problem is None:
        return neural | tables
    return neural if problem.kind == control.ControlProblem.kind else tables


def recommended(problem: Target) -> str:
    """The solver of a problem for which none is named."""
    return launch.RECOMMENDED_NEURAL if problem.kind == control.ControlProblem.kind else launch.RECOMMENDED


@dataclasses.dataclass(frozen=True)
class Target:
    """Something that makes a problem or a solver.

    Attributes:
        name: as the user typed it: `goal_placement` or `my_problem.py:problem`.
        make: a class or factory; None when `made` is there already.
        made: an object that takes no options.
        source: the file it came from, when it is the user's.
    """

    name: str
    make: Any = None
    made: Any = None
    source: Path | None = None

    @property
    def options(self) -> tuple[options.Option, ...]:
        """What can be set on the command line."""
        return () if self.make is None else options.options_of(self.make)

    def build(self, given: Mapping[str, Any]) -> Any:
        """The object, under these options.

        Raises:
            InvalidConfig: its constructor refuses them.
            InvalidProblem: a factory of the user's returns something else.
        """
        if self.make is None:
            return self.made
        made = options.build(self.make, given)
        if not isinstance(made, (Problem, Solver)):
            raise InvalidProblem(
                message(self.name, f"a function that returns {type(made).__name__}", "it must return a problem or a solver",
                        "Return the object it makes")
            )  # fmt: skip
        return made

    @property
    def kind(self) -> str:
        """Which engine's it is; of a user's function, what it makes by default."""
        if self.make is None or isinstance(self.make, type):
            return str(getattr(self.make or self.made, "kind", ""))
        try:
            return str(getattr(self.make(), "kind", ""))
        except Exception:  # it needs options: tables, as most do
            return ""

    @property
    def summary(self) -> str:
        """First sentence of its docstring."""
        text = inspect.getdoc(self.make or type(self.made)) or ""
        return unicode(text.split("\n\n")[0].replace("\n", " "))


def find_problem(name: str) -> Target:
    """A problem by name, or `file.py:attribute` for one's own.

    Raises:
        InvalidConfig: unknown name.
        InvalidProblem: the file or its attribute is not a problem.
    """
    return _find(name, problem_classes(), Problem, "problem")


def find_solver(name: str, problem: Target | None = None) -> Target:
    """A solver by name, or `file.py:attribute` for one's own.

    Args:
        problem: which it is to solve; without one a name that two engines share is that for tables.
    """
    return _find(name, solver_classes(problem), Solver, "solver")


def _find(name: str, known: dict[str, Any], base: type, word: str) -> Target:
    if ":" in name or name.endswith(".py"):
        return _from_file(name, base, word)
    if name not in known:
        raise InvalidConfig(
            message(
                f"bilevel-rl {word}",
                f"the unknown {word} {name!r}",
                did_you_mean(name, known),
                f"`bilevel-rl list` describes each; your own is FILE.py:{word}",
            )
        )
    return Target(name, make=known[name])


def _from_file(name: str, base: type, word: str) -> Target:
    file, _, attribute = name.rpartition(":") if ":" in name else (name, ":", word)
    path = Path(file)
    try:
        there = path.is_file()
    except (OSError, ValueError):  # a name that is too long, or has a NUL in it
        there, name, file = False, name[:60], file[:60]
    if not there:
        raise InvalidProblem(
            message(name, f"no file {file!r}", f"a {word} of your own is FILE.py:NAME", "Check the path")
        )
    module = names.load_file(path, name)
    own = _own(module, base) if ":" not in name and not hasattr(module, attribute) else []
    if len(own) == 1:
        (attribute,) = own
        name = f"{file}:{attribute}"
    elif own:
        raise InvalidProblem(
            message(name, f"several of which each is a {word}: {', '.join(own)}", f"one of them, or one called {word!r}",
                    f"Say which, {file}:{own[0]}")
        )  # fmt: skip
    if not hasattr(module, attribute):
        public = [key for key in vars(module) if not key.startswith("_")]
        raise InvalidProblem(
            message(
                name,
                f"no attribute {attribute!r} in {file}",
                did_you_mean(attribute, public),
                "Name one of these",
            )
        )
    value = getattr(module, attribute)
    if isinstance(value, base):
        return Target(name, made=value, source=path)
    if callable(value) and (not isinstance(value, type) or issubclass(value, base)):
        return Target(name, make=value, source=path)
    raise InvalidProblem(
        message(
            name,
            f"{attribute} = {type(value).__name__}",
            f"it must be a {WANTED[word]}, its class, or a function that returns one",
            f"Subclass bilevel_rl.finite.{WANTED[word]}",
        )
    )


def _own(module: Any, base: type) -> list[str]:
    """What a file makes, or else defines, of a kind: names of objects; where there is none, of classes of its own."""
    made = [key for key, value in vars(module).items() if isinstance(value, base) and not key.startswith("_")]
    defined = [
        key for key, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, base) and value.__module__ == module.__name__
        and not key.startswith("_") and not inspect.isabstract(value)
    ]  # fmt: skip
    return made or defined


# -- run folders ----------------------------------------------------------------------------------------------------


def from_config(folder: Path, config: Mapping[str, Any]) -> tuple[Target, Any, Target, Any]:
    """Problem and solver of a run folder, rebuilt: (problem target, problem, solver target, solver).

    Raises:
        RunNotFound: the configuration does not say enough (a run started from Python without `config`).
    """
    needed = {"problem", "problem_options", "solver", "solver_options", "iterations", "runs", "seed"}
    missing = sorted(needed - set(config))
    if missing:
        raise RunNotFound(
            message(
                str(folder / "run.json"),
                f"a configuration without {', '.join(missing)}",
                "only runs started with `bilevel-rl` or a full `config` can be rebuilt",
                "Start it again from the Python code that made it, with solve(..., resume=True)",
            )
        )
    problem = find_problem(_stored(folder, config["problem"], config.get("problem_source")))
    solver = find_solver(_stored(folder, config["solver"], config.get("solver_source")), problem)
    return (
        problem,
        problem.build(config["problem_options"]),
        solver,
        solver.build(config["solver_options"]),
    )


def _stored(folder: Path, name: str, source: str | None) -> str:
    """A user's file is copied into the run folder: that copy is what the run was started with.

    Raises:
        RunNotFound: the folder names a file elsewhere. A run folder's own `problem.py` is code that runs; others are not.
    """
    if source is None:
        return name
    path = folder / str(source)
    if not isinstance(source, str) or Path(source).name != source or path.is_symlink() or not path.is_file():
        raise RunNotFound(
            message(str(folder / "run.json"), f"the source {source!r}",
                    "a run folder holds the files that it runs, by plain names",
                    "Run only folders that you trust; start the run again with `bilevel-rl run`")
        )  # fmt: skip
    return f"{path}:{name.rpartition(':')[2]}" if ":" in name else str(path)
