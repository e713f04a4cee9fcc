"""`bilevel-rl diagnose PROBLEM [SOLVER]`: do the theory's assumptions hold here, and how fast is it really?"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from bilevel_rl import records, statistics
from bilevel_rl.commands import screen, words
from bilevel_rl.errors import InvalidConfig, MissingDependency, message

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
    asked = words.read("diagnose", Settings, argv, USAGE)
    if asked is None:
        return 0
    import jax.numpy as jnp

    from bilevel_rl.finite.diagnose import diagnose

    s = asked.settings
    x = jnp.asarray(s.x) if s.x else None
    problem, solver = asked.make_problem(), asked.make_solver()
    problem.check(thorough=False)
    if s.x and len(s.x) != problem.x0.shape[0]:
        raise InvalidConfig(
            message("bilevel-rl diagnose --x", f"{len(s.x)} numbers", f"x has {problem.x0.shape[0]}", "Give one for each")
        )
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
    screen.say(verdict(found, asked))
    return 0


def verdict(found, asked: words.Read) -> str:
    """One sentence on what was found, and a command."""
    good = found.dominance > 0 and statistics.readable(found.w_slope) and abs(found.w_slope.value - 1) < 0.25
    said = "the penalty's assumptions hold here" if good else "the penalty's assumptions are in doubt here"
    said += f": dominance {found.dominance:.2g}, bias slope in w {statistics.slope_text(found.w_slope)}"
    if asked.solver is None:
        return f"verdict: {said}. Measure a solver's rate: {asked.again('diagnose', 'penalty_actor_critic')}"
    assert found.rate is not None
    if not statistics.readable(found.rate):
        rate = "no rate can be read from runs this noisy; take more or longer ones"
        return f"verdict: {said}; {rate}: {asked.again('diagnose', '--runs', 80, '--iterations', 8000)}"
    fast = "at least as fast as" if found.rate.value <= found.theory_rate else "slower than"
    command = asked.again("run", "--samples", 200000)
    return f"verdict: {said}; {asked.solver.name} is {fast} the theory proves. Run it: {command}"
