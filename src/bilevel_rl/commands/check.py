"""`bilevel-rl check PROBLEM`: is it well posed?"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from bilevel_rl.commands import heads, screen
from bilevel_rl.commands import words as words_
from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.launch import options

USAGE = (
    "usage: bilevel-rl check PROBLEM [SOLVER] [--problem.* --solver.*]    PROBLEM: a name, or FILE.py:NAME"
)


def main(argv: Sequence[str]) -> int:
    """Check a problem thoroughly, and a solver's settings on it; the error says what is wrong."""
    words, rest = heads.split_words(argv)
    if not words:
        if set(rest) & heads.HELP:
            print(USAGE)
            return 0
        raise InvalidConfig(message("bilevel-rl check", "no problem", "PROBLEM comes first", USAGE))
    from bilevel_rl.finite.checks import built
    if len(words) > 2:
        got = f"the words {' '.join(words)!r}"
        raise InvalidConfig(message("bilevel-rl check", got, "PROBLEM and at most one SOLVER come first", USAGE))
    from bilevel_rl.launch import load
    from bilevel_rl.loop.settings import temperature_note
    from bilevel_rl.loop.solver import check_fits

    target = load.find_problem(words[0])
    solver = load.find_solver(words[1], target) if len(words) > 1 else None
    groups = words_.groups(target, solver, rest)
    kind = dataclasses.make_dataclass("Options", groups, frozen=True, kw_only=True)
    kind.__doc__ = target.summary
    given = options.parse(f"check {' '.join(words)}", kind, rest, target.summary)
    problem = built(words[0], lambda: target.build(options.values(given.problem) if target.options else {}))
    problem.check(thorough=True)
    facts, checked = problem.described()
    print(f"{words[0]}: well posed. {facts}")
    print(f"checked: {checked}")
    if solver is not None:
        made = solver.build(options.values(given.solver) if solver.options else {})
        check_fits(made, problem)
        made = made.on(problem)
        note = temperature_note(made, problem.temperature())
        if note is not None:
            print(f"warning: {words[1]}: {note}")
        for sentence in screen.broken_order(problem, made):
            print(f"warning: {words[1]}: {sentence}")
        print(f"{words[1]}: can be run on it")
    return 0

