"""The verbs that take PROBLEM, perhaps SOLVER, and options of both: read in one way."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from bilevel_rl.commands import heads
from bilevel_rl.errors import InvalidConfig, message, typed
from bilevel_rl.launch import limits, options

if TYPE_CHECKING:
    from bilevel_rl.launch import load


def group(word: str, target: load.Target, short: bool = False) -> list[tuple[str, Any, Any]]:
    """The options of a problem or a solver as one field of a dataclass, `--problem.*` or `--solver.*`.

    Args:
        short: hide a solver's options but for the common ones.
    """
    if not target.options:
        return []
    kind = options.as_dataclass(word, options.marked(target.options) if short else target.options, target.summary)
    try:
        default = kind()
    except TypeError:
        return [(word, kind, dataclasses.field())]  # an option without a default: the user must give it
    return [(word, kind, dataclasses.field(default_factory=lambda: default))]


def groups(problem: load.Target, solver: load.Target | None, argv: Sequence[str]) -> list[tuple[str, Any, Any]]:
    """The options of both; `--help` shows what is set most, and says that `--help-all` shows the rest."""
    short = bool(set(argv) & {"-h", "--help"})
    if short and solver is not None and (hidden := options.count(options.marked(solver.options), rare=True)):
        print(f"{hidden} more options of {solver.name}: --help-all")
    return [*group("problem", problem), *([] if solver is None else group("solver", solver, short))]


@dataclasses.dataclass(frozen=True)
class Read:
    """What was asked.

    Attributes:
        settings: the verb's own options.
        problem, solver: what was named; solver may be None.
        given_problem, given_solver: their options, nested plain values.
        argv: the words of the command after its verb.
    """

    settings: Any
    problem: load.Target
    solver: load.Target | None
    given_problem: dict[str, Any]
    given_solver: dict[str, Any]
    argv: tuple[str, ...] = ()

    def again(self, verb: str, *words: object, but: Sequence[str] = ()) -> str:
        """A command on the same problem and solver under the same options.

        Args:
            words: what follows.
            but: dotted names that these words give anew.
        """
        names = [self.problem.name, *([] if self.solver is None else [self.solver.name])]
        return typed(verb, *names, *options.kept(self.argv, but), *words)

    def make_problem(self) -> Any:
        """The problem under its options."""
        return self.problem.build(self.given_problem)

    def make_solver(self) -> Any:
        """The solver under its options."""
        return None if self.solver is None else self.solver.build(self.given_solver)


def read(verb: str, kind: type, argv: Sequence[str], usage: str, solver: str | None = None) -> Read | None:
    """Read `PROBLEM [SOLVER] options`.

    Args:
        kind: dataclass of the verb's own options.
        solver: anything but None: where none is named, the one that is recommended for the problem.

    Returns:
        What was asked, or None when it was help without a problem, which is printed.

    Raises:
        InvalidConfig, InvalidProblem: unknown words, options, or numbers out of range.
    """
    words, rest = heads.split_words(argv)
    if not words and set(rest) & heads.HELP:
        print(usage)
        print_settings(kind)
        return None
    if not 1 <= len(words) <= 2:
        got = "no problem" if not words else f"the words {' '.join(words)!r}"
        raise InvalidConfig(
            message(f"bilevel-rl {verb}", got, "PROBLEM and at most one SOLVER come first", usage)
        )
    from bilevel_rl.launch import load

    problem = load.find_problem(words[0])
    name = words[1] if len(words) == 2 else solver and load.recommended(problem)
    chosen = None if name is None else load.find_solver(name, problem)
    fields = [
        ("settings", Annotated[kind, tyro.conf.arg(name="")], dataclasses.field(default_factory=kind)),
        *groups(problem, chosen, rest),
    ]
    made = dataclasses.make_dataclass("Options", fields, frozen=True, kw_only=True)
    summary = "" if chosen is None else f"\n\n{chosen.summary}"
    made.__doc__ = f"{kind.__doc__}\n\n{problem.summary}{summary}"
    given = options.parse(f"{verb} {' '.join(words)}", made, rest, made.__doc__)
    limits.check(verb, given.settings)
    return Read(
        given.settings, problem, chosen,
        options.values(given.problem) if problem.options else {},
        options.values(given.solver) if chosen is not None and chosen.options else {},
        tuple(argv),
    )  # fmt: skip


def print_settings(kind: type) -> None:
    """The options of a verb by itself, each with its sentence."""
    from typing import get_type_hints

    own = vars(kind).get("__annotations__", {})  # the verb's before those that say where it is done
    for name, hint in sorted(get_type_hints(kind, include_extras=True).items(), key=lambda item: item[0] not in own):
        print(f"  --{name.replace('_', '-'):<12} {hint.__metadata__[0].help}")
