"""`bilevel-rl plan PROBLEM [SOLVER]`: constants of the five sequences from measured gradients and noise."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any

import tyro

from bilevel_rl.commands import screen, words
from bilevel_rl.launch import RECOMMENDED

USAGE = "usage: bilevel-rl plan PROBLEM [SOLVER] [--iterations N] [--problem.* --solver.*]"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Propose the five sequences from a short pilot at fixed x."""

    iterations: Annotated[int, tyro.conf.arg(help="length of the run being planned")] = 2000
    pilot: Annotated[int, tyro.conf.arg(help="iterations of the pilot; its second half is measured")] = 2000
    seed: Annotated[int, tyro.conf.arg(help="of the pilot")] = 0


def main(argv: Sequence[str]) -> int:
    """Print the proposal, what it rests on, and the command that runs it."""
    asked = words.read("plan", Settings, argv, USAGE, RECOMMENDED)
    if asked is None:
        return 0
    from bilevel_rl.finite import tuning
    from bilevel_rl.loop.solver import check_fits

    s, problem, solver = asked.settings, asked.make_problem(), asked.make_solver()
    problem.check(thorough=False)
    if problem.kind == "control":
        return _neural(asked, problem, solver)
    check_fits(solver, problem)
    found = tuning.plan(
        problem, solver, iterations=s.iterations, pilot=s.pilot, seed=s.seed
    )
    screen.show_rows(f"plan for {asked.problem.name}", ("quantity", "proposal", "meaning"), found.rows())
    for sentence in found.broken:
        print(f"note: {sentence}")
    print(f"the pilot used {found.samples:,} transitions at x0")
    assert asked.solver is not None
    names = [f"solver.scales.{name}.initial" for name in ("zeta", "alpha", "beta", "w", "tau")]
    scales = getattr(found, "scales", None)
    ordered = "its sequences are in the order that the theory asks for" if not found.broken else (
        f"its sequences break {len(found.broken)} of the theory's conditions (the notes above)")  # fmt: skip
    reach = {
        "travel": "x can cross its set twice at the pilot's gradient",
        "noise": "noise, not the gradient, limits the step of x: more chains allow a larger one",
        "step": "single steps of x are as large as allowed: x will arrive early",
    }[found.bound_by]
    assert scales is not None
    flags = [word for name in names for word in (f"--{name}", f"{getattr(scales, name.split('.')[2]).initial:.4g}")]
    screen.say(f"verdict: {reach}; {ordered}. Run it: {asked.again('run', '--iterations', s.iterations, *flags, but=names)}")
    return 0


def _neural(asked: words.Read, problem: Any, solver: Any) -> int:
    """The plan of a run with a neural follower: from its own estimates at x0, and the gate on its lag."""
    from bilevel_rl.control import planning

    s = asked.settings
    assert asked.solver is not None
    found = planning.plan(problem, solver, iterations=s.iterations, pilot=s.pilot, seed=s.seed)
    screen.show_rows(f"plan for {asked.problem.name}", ("quantity", "value", "meaning"), found.rows())
    print(f"the pilot used {found.pilot:,} transitions at x0")
    unclear = "the slope can't be told from its noise: more chains (--solver.chains), or a longer pilot (--pilot)"
    verdict = "the slope is clear of its noise" if found.clear else unclear
    if found.reach == 0:
        print(f"note: x is held for {float(solver.leader.hold):,.0f} iterations, as many as this run has: plan a longer one")
    step = "solver.leader.zeta.initial"
    again = asked.again("run", "--iterations", s.iterations, f"--{step}", f"{found.zeta:.3g}", but=(step,))
    screen.say(f"verdict: {verdict}. Run it: {again}")
    return 0
