"""`bilevel-rl diagnose PROBLEM [SOLVER]`: do the theory's assumptions hold here, and how fast is it really?"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import jax.numpy as jnp
import tyro

from bilevel_rl import records
from bilevel_rl.commands import screen, words
from bilevel_rl.errors import MissingDependency

arg = tyro.conf.arg
USAGE = "usage: bilevel-rl diagnose PROBLEM [SOLVER] [--x X X] [--out FOLDER] [--problem.* --solver.*]"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Gradient dominance, curvature at the optimum, biases in w and tau; with a SOLVER also its measured rate."""

    x: Annotated[tuple[float, ...], arg(help="where to look; x0 when absent")] = ()
    iterations: Annotated[int, arg(help="length of the solver's runs")] = 2000
    runs: Annotated[int, arg(help="seeds of the solver's runs")] = 20
    seed: Annotated[int, arg(help="of the solver's runs")] = 0
    out: Annotated[Path | None, arg(help="folder for diagnosis.json and its page")] = None


def main(argv: Sequence[str]) -> int:
    """Print what was found beside what the theory asks."""
    from bilevel_rl.finite.diagnose import diagnose

    asked = words.read("diagnose", Settings, argv, USAGE)
    if asked is None:
        return 0
    s = asked.settings
    x = jnp.asarray(s.x) if s.x else None
    problem, solver = asked.make_problem(), asked.make_solver()
    found = diagnose(problem, solver, x=x, iterations=s.iterations, runs=s.runs, seed=s.seed)
    screen.show_rows(f"diagnosis of {asked.problem.name}", ("quantity", "measured", "theory"), found.rows())
    if s.out is not None:
        folder = records.make_folder(s.out)
        facts = found.to_json() | {"problem": asked.problem.name, "settings": dataclasses.asdict(s),
                                   "solver": None if asked.solver is None else asked.solver.name,
                                   "provenance": records.provenance()}  # fmt: skip
        records.write_json(folder / "diagnosis.json", facts)
        try:
            from bilevel_rl.report import diagnosis

            print(f"report: {diagnosis.build(folder / 'diagnosis.json', folder / 'diagnosis.html')}")
        except MissingDependency as error:
            print(f"no report: {error}")
    return 0
