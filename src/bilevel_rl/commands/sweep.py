"""`bilevel-rl sweep PROBLEM [SOLVER] --grid FIELD=V,V ...`: tune under an equal sample budget, in one compiled program."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from bilevel_rl import records, signals
from bilevel_rl.commands import heads, screen, unfinished, words
from bilevel_rl.errors import InvalidConfig, message, typed
from bilevel_rl.launch import RECOMMENDED, options
from bilevel_rl.machines import where
from bilevel_rl.machines.job import FOLDER, Job, carried_out

arg = tyro.conf.arg
ASK = "ask.json"  # in the folder of a program that is done elsewhere: what it is
USAGE = "usage: bilevel-rl sweep PROBLEM [SOLVER] --grid FIELD=V,V FIELD=V,V --samples N --runs R"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(where.Where):
    """Try every combination of a grid under an equal sample budget; numbers are batched, choices compiled apart."""

    grid: Annotated[tuple[str, ...], arg(help="FIELD=V,V,V each; a field inside another is dotted")] = (
        "scales.zeta.initial=0.05,0.1,0.2,0.4",
    )
    samples: Annotated[int, arg(help="transitions of every run")] = 100_000
    iterations: Annotated[int, arg(help="iterations of solvers that use the model and no samples")] = 300
    runs: Annotated[int, arg(help="seeds of every setting")] = 10
    seed: Annotated[int, arg(help="other than that of the final comparison")] = 1000
    out: Annotated[
        Path | None, arg(help="folder for what is done, so that it can go on, and sweep-result.json; or a JSON file")
    ] = None
    resume: Annotated[
        Literal["auto", "never"], arg(help="a folder that holds this very sweep: gone on with, or refused")
    ] = "auto"


def main(argv: Sequence[str]) -> int:
    """Print every setting by score, the best first, and a verdict."""
    asked = words.read("sweep", Settings, argv, USAGE, RECOMMENDED)
    if asked is None:
        return 0
    from bilevel_rl.finite import tuning
    from bilevel_rl.loop.solver import check_fits

    s, solver, problem = asked.settings, asked.make_solver(), asked.make_problem()
    where.check("sweep", s)
    problem.check(thorough=False)
    check_fits(solver, problem)
    axes = grid(s.grid)
    assert asked.solver is not None
    for name, values in axes.items():
        for value in values:  # a name or a type that the solver does not have is said here
            options.set_dotted(asked.solver.make or type(solver), f"{name}={value}", "sweep --grid")
    folder = s.out if s.out is not None and s.out.suffix != ".json" else None
    if folder is not None:
        hidden = {"out", "resume", *where.OPTIONS}
        facts = {key: value for key, value in dataclasses.asdict(s).items() if key not in hidden}
        facts |= {"problem": asked.given_problem, "solver": [solver.name, asked.given_solver]}
        unfinished.begin("sweep", folder, unfinished.without_out(argv), asked.problem.source, facts, s.resume)
    elif s.elsewhere:
        raise InvalidConfig(
            message("bilevel-rl sweep --out", s.out, "what is done elsewhere comes home to a folder", "Name one")
        )
    with signals.hinted(typed("resume", folder) if folder is not None else ""):
        if folder is not None and s.elsewhere:
            _elsewhere(asked, axes, folder, argv)
        found = tuning.sweep(
            problem, solver, axes, samples=s.samples, runs=s.runs, seed=s.seed, iterations=s.iterations, folder=folder,
        )  # fmt: skip
    order = sorted(range(len(found.scores)), key=lambda i: found.scores[i])
    shown = [
        (_words(found.settings[i]), f"{found.scores[i]:.5g}", "chosen" if i == found.best else "")
        for i in order
    ]
    length = f"{s.iterations:,} iterations" if found.budget is None else f"{s.samples:,} samples"
    screen.show_rows(
        f"{solver.name} on {asked.problem.name}: {s.runs} runs of {length} a setting",
        ("setting", "final objective (mean)", ""), shown,
    )  # fmt: skip
    place = s.out if folder is None else folder / "sweep-result.json"
    if place is not None:
        records.make_folder(place.parent)
        records.write_json(place, found.to_json() | {"problem": asked.problem.name, "seed": s.seed,
                                                     "provenance": records.provenance()})  # fmt: skip
        print(f"written: {place}")
    screen.say(verdict(found, asked, axes, s))
    return int(not np.isfinite(found.scores[found.best]))


def _elsewhere(asked: words.Read, axes: dict[str, list[Any]], folder: Path, argv: Sequence[str]) -> None:
    """Have each compiled program done on the machines that are asked for; folders are filled as if it had been here."""
    from bilevel_rl.launch import sources, work
    from bilevel_rl.loop import tuning

    jobs = []
    _, _, groups = tuning.programs(asked.make_solver(), axes)
    for number in range(len(groups)):
        place = records.make_folder(tuning.place(folder, number))
        own = {word: sources.keep(source, place, word) for word, source in
               (("problem", asked.problem.source), ("solver", asked.solver and asked.solver.source)) if source}  # fmt: skip
        if not (place / ASK).exists():
            records.write_json(place / ASK, {"argv": unfinished.without_out(argv), "own": own, "program": number})
        jobs.append(Job(place, ("bilevel_rl.commands.sweep", FOLDER), work.over, f"{folder.name}, program {number}"))
    where.do(asked.settings, jobs, say=screen.say)
    where.done(jobs, typed("resume", folder))


def fill(folder: Path) -> None:
    """Do the program of a sweep that a folder asks for, or go on with it."""
    from bilevel_rl.loop import tuning

    ask = records.read_json(folder / ASK)
    named, rest = heads.split_words(ask["argv"])
    for i, word in enumerate(("problem", "solver")):
        if word in ask["own"]:
            named[i] = f"{folder / ask['own'][word]}:{named[i].rpartition(':')[2]}"
    asked = words.read("sweep", Settings, [*named, *rest], USAGE, RECOMMENDED)
    assert asked is not None
    s = asked.settings
    settings, solvers, groups = tuning.programs(asked.make_solver(), grid(s.grid))
    indices = groups[ask["program"]]
    tuning.program(
        asked.make_problem(), [solvers[i] for i in indices], [settings[i] for i in indices], samples=s.samples, runs=s.runs,
        seed=s.seed, iterations=s.iterations, folder=folder,
    )  # fmt: skip


def verdict(found, asked: words.Read, axes: dict[str, list[Any]], s: Settings) -> str:
    """One sentence on the choice, and a command: wider where the choice lies at an edge of its grid."""
    chosen = found.settings[found.best]
    if not np.isfinite(found.scores[found.best]):
        smaller = {name: [v / 10 if _number(v) else v for v in values] for name, values in axes.items()}
        again = f"{asked.again('sweep')} {_flags(smaller)}"
        return f"verdict: no setting kept its runs finite. Take smaller steps: {again}"
    if len(axes) and len(found.scores) > 1 and len(set(found.scores)) == 1:
        return (
            "verdict: every setting scores the same to the last digit: x has not moved yet, which a solver holds until its "
            f"followers have caught up, or the grid does not matter. Take more samples: {_longer(asked, axes, s, found)}"
        )
    wider = {name: beyond for name, values in axes.items() if (beyond := edge(values, chosen[name])) is not None}
    if wider:
        where = " and ".join(f"{name}={chosen[name]}" for name in wider)
        axes = {name: wider.get(name, [chosen[name]]) for name in axes}
        return (
            f"verdict: the choice lies at the edge of its grid ({where}), so a better one may lie beyond. Widen it: "
            f"{asked.again('sweep')} {_flags(axes)}"
        )
    length = ("--iterations", s.iterations) if found.budget is None else ("--samples", s.samples)
    flags = [word for name, value in chosen.items() for word in (f"--solver.{name.replace('_', '-')}", value)]
    command = asked.again("run", *length, *flags, but=[f"solver.{name}" for name in chosen])
    return f"verdict: {_words(chosen)} is the best, inside its grid. Run it: {command}"


def _longer(asked: words.Read, axes: dict[str, list[Any]], s: Settings, found: Any) -> str:
    """The sweep again, ten times as long."""
    length = ("--iterations", 10 * s.iterations) if found.budget is None else ("--samples", 10 * s.samples)
    return f"{asked.again('sweep', *length)} {_flags(axes)}"


def edge(values: list[Any], chosen: Any) -> list[float] | None:
    """Values to try where a number was chosen at an end of its axis, else None; an axis of one value has no ends.

    Example:
        >>> edge([0.1, 0.2, 0.4], 0.4), edge([0.1, 0.2, 0.4], 0.2)
        ([0.4, 0.8, 1.6], None)
    """
    if len(set(values)) < 2 or not all(_number(v) and v > 0 for v in values):
        return None
    order = sorted(set(values))
    if chosen == order[-1]:
        ratio = order[-1] / order[-2]
    elif chosen == order[0]:
        ratio = order[0] / order[1]
    else:
        return None
    found = [float(f"{chosen * ratio**i:.4g}") for i in range(3)]
    if all(isinstance(v, int) for v in values):
        found = list(dict.fromkeys(max(1, round(v)) for v in found))
    return found if len(found) > 1 else None


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _flags(axes: dict[str, list[Any]]) -> str:
    return "--grid " + " ".join(f"{name}={','.join(map(str, values))}" for name, values in axes.items())


def grid(parts: Sequence[str]) -> dict[str, list[Any]]:
    """`FIELD=V,V` words as a grid.

    Raises:
        InvalidConfig: a word without values.

    Example:
        >>> grid(["chains=8,32", "momentum=0.0,0.9"])
        {'chains': [8, 32], 'momentum': [0.0, 0.9]}
    """
    found: dict[str, list[Any]] = {}
    for part in parts:
        name, equals, values = part.partition("=")
        if not equals or not values:
            raise InvalidConfig(
                message("bilevel-rl sweep --grid", repr(part), "FIELD=V,V,V is expected", USAGE)
            )
        found[name.replace("-", "_")] = [_value(value) for value in values.split(",")]
        if not all(np.isfinite(v) for v in found[name.replace("-", "_")] if _number(v)):
            raise InvalidConfig(message("bilevel-rl sweep --grid", repr(part), "its numbers must be finite", USAGE))
    return found


def _value(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"True": True, "False": False}.get(text, text)


def _words(setting: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in setting.items())


if __name__ == "__main__":
    sys.exit(carried_out(sys.argv[1:], fill))
