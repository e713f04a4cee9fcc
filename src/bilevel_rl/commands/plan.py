"""`bilevel-rl plan PROBLEM [SOLVER]`: constants of the five sequences from measured gradients and noise."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated

import tyro

from bilevel_rl.commands import screen, words
from bilevel_rl.finite import tuning
from bilevel_rl.launch import load

USAGE = "usage: bilevel-rl plan PROBLEM [SOLVER] [--iterations N] [--problem.* --solver.*]"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Propose the five sequences from a short pilot at fixed x."""

    iterations: Annotated[int, tyro.conf.arg(help="length of the run being planned")] = 2000
    pilot: Annotated[int, tyro.conf.arg(help="iterations of the pilot; its second half is measured")] = 2000
    seed: Annotated[int, tyro.conf.arg(help="of the pilot")] = 0


def main(argv: Sequence[str]) -> int:
    """Print the proposal, what it rests on, and the command that runs it."""
    asked = words.read("plan", Settings, argv, USAGE, load.RECOMMENDED)
    if asked is None:
        return 0
    s = asked.settings
    found = tuning.plan(
        asked.make_problem(), asked.make_solver(), iterations=s.iterations, pilot=s.pilot, seed=s.seed
    )
    screen.show_rows(f"plan for {asked.problem.name}", ("quantity", "proposal", "meaning"), found.rows())
    for sentence in found.broken:
        print(f"note: {sentence}")
    print(f"the pilot used {found.samples:,} transitions at x0")
    assert asked.solver is not None
    flags = " ".join(
        f"--solver.scales.{name}.initial {getattr(found.scales, name).initial:.4g}"
        for name in ("zeta", "alpha", "beta", "w", "tau")
    )
    print(
        f"run it: bilevel-rl run {asked.problem.name} {asked.solver.name} --iterations {s.iterations} {flags}"
    )
    return 0
