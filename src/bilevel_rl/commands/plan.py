"""`bilevel-rl plan PROBLEM [SOLVER]`: constants of the five sequences from measured gradients and noise."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any

import tyro

from bilevel_rl.commands import screen, words
from bilevel_rl.errors import typed
from bilevel_rl.launch import RECOMMENDED, options

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
    if (note := counted_note(problem, asked, round(found.samples / s.pilot * s.iterations))) is not None:
        screen.say(f"note: {note}")
    given = {f"solver.scales.{name}.initial": getattr(found.scales, name) for name in ("zeta", "alpha", "beta", "w", "tau")}
    if not getattr(solver, "ordered", True):
        ordered = "the theory's order of the sequences is for estimators that divide by w, and is not asked of this one"
    elif found.broken:
        ordered = f"its sequences break {len(found.broken)} of the theory's conditions (the notes above)"
    else:
        ordered = "its sequences are in the order that the theory asks for"
    reach = {
        "travel": "x can cross its set twice at the pilot's gradient",
        "noise": "noise, not the gradient, limits the step of x: more chains allow a larger one",
        "step": "single steps of x are as large as allowed: x will arrive early",
    }[found.bound_by]
    flags = [word for name, decay in given.items() for word in (f"--{name}", f"{decay.initial:.4g}")]
    again = asked.again("run", "--iterations", s.iterations, *flags, but=tuple(given))
    screen.say(f"verdict: {reach}; {ordered}. Run it: {again}")
    return 0


def counted_note(problem: Any, asked: words.Read, samples: int) -> str | None:
    """A sentence where counting transitions does it in fewer samples: small tables whose transitions x does not move.

    Args:
        samples: transitions of the run that is planned.
    """
    from bilevel_rl.errors import BilevelError
    from bilevel_rl.finite.model.planning import DENSE_LIMIT
    from bilevel_rl.finite.solvers import CertaintyEquivalence
    from bilevel_rl.loop.solver import check_fits

    assert asked.solver is not None
    if (
        problem.mdp.n_states > DENSE_LIMIT or problem.moves_transitions or problem.moves_start
        or asked.solver.name == CertaintyEquivalence.name
    ):  # fmt: skip
        return None
    counting = CertaintyEquivalence()
    try:
        check_fits(counting, problem)
    except BilevelError:
        return None
    own = options.kept(asked.argv, of=("problem",))
    samples = max(samples, 10 * counting.chains * counting.length)  # ten plans at least
    again = typed("run", asked.problem.name, CertaintyEquivalence.name, *own, "--samples", samples)
    return (
        f"{problem.mdp.n_states} states whose transitions x does not move can be counted: {CertaintyEquivalence.name} needs "
        f"the fewest samples there, with --solver.starts 12 where basins decide: {again}"
    )


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
