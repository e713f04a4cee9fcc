"""Best known values of four problems by `exact_quasi_newton`: what one start, many starts and their best reach.

    python benchmarks/exact_search.py [--only NAME ...] [--out runs/exact_search] [--quick]

Four rooms with two goals (nine cells of temperature and price) and one goal (three cells), tax design, thermal control, the
linear leader; and a thousand seeds of four rooms in one process. Every value is that of the exact oracle at the x found. A
cell is a file below `--out`: a second call fills what is missing. Ways to start, side by side:

random       x ~ N(0, I), every start kept: best and mean
structured   x0 and the problem's own structured starts, every start kept: best and mean
halved       the same starts, the poor ones given up: what the command named in the table does
cooled       the same starts at four times the temperature first, which then falls
carried      the best of every other cell of the problem, and the cell's own best once more
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bilevel_rl import records
from bilevel_rl.commands import screen
from bilevel_rl.finite import multistart, oracles, solve
from bilevel_rl.finite.problems import FourRooms, LinearLeader, OneGoalFourRooms, TaxDesign, ThermalControl
from bilevel_rl.finite.solvers import ExactQuasiNewton
from bilevel_rl.loop import use_64_bit

use_64_bit()

RESULTS = Path(__file__).parent / "results" / "exact_search.json"
STEP = 10.0  # ours: logits move by the gradient, which is of the order .1, times this in a first trial
SEEDS = "thousand seeds"
# the studies' figures, read off as text or from plots (two digits), and what was known to be reachable
PUBLISHED = {
    ("four_rooms", 0.001, 1): ({"HPGD": 0.91, "AMD": 0.58, "zero-order": 0.59}, "1.168"),
    ("four_rooms", 0.001, 3): ({"HPGD": 0.51, "AMD": 0.51, "zero-order": 0.50}, ".940"),
    ("four_rooms", 0.001, 5): ({"HPGD": 0.46, "AMD": 0.46, "zero-order": 0.46}, ".743"),
    ("four_rooms", 0.003, 1): ({"HPGD": 0.95, "AMD": 1.00, "zero-order": 0.91}, "above .95"),
    ("four_rooms", 0.003, 3): ({"HPGD": 0.73, "AMD": 0.39, "zero-order": 0.40}, "above .73"),
    ("four_rooms", 0.003, 5): ({"HPGD": 0.29, "AMD": 0.32, "zero-order": 0.32}, "above .32"),
    ("four_rooms", 0.005, 1): ({"HPGD": 1.17, "AMD": 1.28, "zero-order": 1.15}, "1.472"),
    ("four_rooms", 0.005, 3): ({"HPGD": 1.01, "AMD": 1.13, "zero-order": 1.02}, "1.352"),
    ("four_rooms", 0.005, 5): ({"HPGD": 0.87, "AMD": 0.97, "zero-order": 0.79}, "1.234"),
    ("one_goal_four_rooms", 0.001, 5): ({"BC-HG": 0.67}, ""),
    ("one_goal_four_rooms", 0.003, 5): ({"BC-HG": 0.54}, ""),
    ("one_goal_four_rooms", 0.005, 5): ({"BC-HG": 1.33}, ""),
}


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is done: iterations a start, unless they say otherwise."""

    random: int = 12
    iterations: int = 120
    together: int = 6000
    carried: int = 400
    seeds: int = 1000
    grid: int = 41


QUICK = Size(random=2, iterations=3, together=300, carried=3, seeds=4, grid=3)


# -- one way to start ---------------------------------------------------------------------------------------------------


def all_kept(problem, starts, step: float, iterations: int) -> dict[str, Any]:
    """Every start to its end; values are those that the studies maximise, the objective's sign turned."""
    began = time.perf_counter()
    solver = ExactQuasiNewton(step, problem.temperature())
    trace = solve(problem, solver, iterations=iterations, runs=len(starts), record_every=iterations, x0=starts)
    return facts(trace["objective"][:, -1], trace.x[:, -1], began, iterations=iterations)


def searched(problem, step: float, starts: int, iterations: int, **options) -> dict[str, Any]:
    """`bilevel-rl search`, from Python."""
    began = time.perf_counter()
    solver = ExactQuasiNewton(step, problem.temperature())
    found = multistart.search(problem, solver, starts=starts, iterations=iterations, **options)
    return facts(found.values, found.xs[:, -1], began, iterations_together=iterations)


def facts(objective, x, began: float, **more) -> dict[str, Any]:
    """Best and mean of some starts."""
    values = -np.asarray(objective)
    finite = np.where(np.isfinite(values), values, -np.inf)
    best = int(np.argmax(finite))
    return {
        "starts": len(values), "best": float(values[best]), "mean": float(np.mean(values)),
        "standard_deviation": float(np.std(values)), "values": values.round(6).tolist(), "chosen": best,
        "x": np.asarray(x)[best].tolist(), "seconds": round(time.perf_counter() - began, 1), **more,
    }  # fmt: skip


# -- the cells ----------------------------------------------------------------------------------------------------------


def rooms(name: str, tau: float, price: int, size: Size) -> dict[str, Any]:
    """A cell of four rooms, but for what other cells lend it."""
    problem = make_rooms(name, tau, price)
    own = 1 + len(problem.structured_starts())
    random = jax.random.normal(jax.random.key(0), (size.random, len(problem.x0)))
    structured = multistart.starting_points(problem, own)
    cooling = {"eta": 1, "stages": 3, "continuation": 4.0}
    ways = {
        "random": all_kept(problem, random, STEP, size.iterations),
        "structured": all_kept(problem, structured, STEP, size.iterations),
        "halved": searched(problem, STEP, own, size.together),
        "cooled": searched(problem, STEP, own, own * size.iterations, **cooling),
    }
    columns, known = PUBLISHED[name, tau, price]
    words = command(name, own, size.together, STEP, tau, "--problem.price", str(price))
    return {"temperature": tau, "price": price, "published": columns, "known": known, "ways": ways, "command": words}


def command(name: str, starts: int, iterations: int, step: float, tau: float, *more: str) -> str:
    """What to type for the same search."""
    words = ["bilevel-rl", "search", name, "exact_quasi_newton", "--starts", str(starts), "--iterations", str(iterations)]
    words += ["--solver.step-size", f"{step:g}", "--solver.tau", f"{tau:g}", "--problem.temperature", f"{tau:g}", *more]
    return shlex.join(words)


def make_rooms(name: str, tau: float, price: int):
    return {"four_rooms": FourRooms, "one_goal_four_rooms": OneGoalFourRooms}[name](price=float(price), temperature=tau)


def carried(cell: dict[str, Any], others: list[dict[str, Any]], name: str, size: Size) -> dict[str, Any]:
    """From the best of the other cells, and once more from the cell's own."""
    problem = make_rooms(name, cell["temperature"], cell["price"])
    starts = jnp.array([best_of(cell)["x"], *(best_of(other)["x"] for other in others)])
    return all_kept(problem, starts, STEP, size.carried)


def best_of(cell: dict[str, Any]) -> dict[str, Any]:
    """The way that led highest, with its name."""
    way = max(cell["ways"], key=lambda way: cell["ways"][way]["best"])
    return cell["ways"][way] | {"way": way}


def tax(tau: float, size: Size) -> dict[str, Any]:
    """Tax design: a coarse grid over both rates finds the basins, the published grid of assets refines its best points."""
    began = time.perf_counter()
    fine, coarse = TaxDesign(temperature=tau), TaxDesign(points=101, temperature=tau)
    axis = jnp.linspace(0, 2, size.grid)
    rates = jnp.stack(jnp.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    over = jax.jit(lambda it, x: jax.lax.map(lambda x: oracles.hyper_objective(it, x, tau), x))
    seen = -np.asarray(over(coarse, rates))
    scan = round(time.perf_counter() - began, 1)
    first = rates[np.argsort(-seen)[:4]]
    found = all_kept(fine, jnp.concatenate([fine.x0[None], first]), 1e-3, min(25, size.iterations))
    kinds = [-float(fine.of_kind(jnp.array(found["x"]), tau, taste)) for taste in fine.tastes]
    ridge = seen.reshape(size.grid, size.grid).max(1)
    published, known = ({"at (.3, .3)": 32.56}, "above 54") if tau == 0.1 else ({}, "")
    return {
        "temperature": tau, "published": published, "known": known, "ways": {"grid, then refined": found}, "of_kinds": kinds,
        "command": command(fine.name, 1, 40, 1e-3, tau),
        "scan": {"assets": 101, "rates": size.grid, "seconds": scan, "best": float(seen.max()),
                 "best_over_vat_by_income_tax": dict(zip(np.asarray(axis).round(4).tolist(), ridge.round(3).tolist(),
                                                         strict=True))},
    }  # fmt: skip


def closed(kind, published: dict[str, float], known: str, size: Size) -> dict[str, Any]:
    """Thermal control or the linear leader: x0 and random starts in the box, all kept."""
    problem = kind()
    count = 2 if size is QUICK else 16
    iterations = min(60, size.iterations)
    found = searched(problem, 1e-3, count, count * iterations, eta=1)
    tau = problem.temperature()
    words = command(problem.name, count, count * iterations, 1e-3, tau, "--eta", "1")
    return {"temperature": tau, "published": published, "known": known, "ways": {"random": found}, "command": words}


def thousand(size: Size) -> dict[str, Any]:
    """Many random starts of four rooms in one process, nothing graded on the way; time and peak memory."""
    problem, iterations = FourRooms(), 30
    starts = jax.random.normal(jax.random.key(1), (size.seeds, len(problem.x0)))
    began = time.perf_counter()
    trace = solve(problem, ExactQuasiNewton(STEP, problem.temperature()), iterations=iterations, runs=size.seeds,
                  record_every=iterations, x0=starts, evaluate=False)  # fmt: skip
    values = -np.asarray(trace.state.f)  # the exact hyper-objective at the last x, which the solver carries
    return {
        "problem": problem.name, "states": problem.mdp.n_states, "runs": size.seeds, "iterations": iterations,
        "seconds": round(time.perf_counter() - began, 1),
        "milliseconds_a_run_iteration": 1e3 * trace.seconds / size.seeds / iterations,
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "best": float(values.max()), "mean": float(values.mean()), "median": float(np.median(values)),
        "share_above_1": float(np.mean(values > 1)), "share_below_.6": float(np.mean(values < 0.6)),
    }  # fmt: skip


def cells(size: Size) -> dict[str, Callable[[], dict[str, Any]]]:
    """Name -> how to fill it."""
    found: dict[str, Callable[[], dict[str, Any]]] = {
        "thermal_control": lambda: closed(ThermalControl, {"BC-HG": -196.0}, "", size),
        "linear_leader": lambda: closed(LinearLeader, {"published gain": 3.40}, "", size),
    }
    for tau in (0.1, 0.2, 0.3):
        found[f"tax_design, {tau:g}"] = lambda tau=tau: tax(tau, size)
    for name, tau, price in PUBLISHED:
        found[f"{name}, {tau:g}, {price}"] = lambda at=(name, tau, price): rooms(*at, size)
    return found


# -- files and the screen -----------------------------------------------------------------------------------------------


def fill(out: Path, only: list[str], quick: bool) -> dict[str, Any]:
    """Every cell, from its file where it has one."""
    size, done = QUICK if quick else Size(), {}
    place = lambda name: out / (name.replace(", ", "-") + ".json")  # noqa: E731
    for name, make in cells(size).items():
        if only and not any(name.startswith(word) for word in only):
            continue
        if not place(name).exists():
            records.write_json(place(name), make() | {"provenance": records.provenance()})
        done[name] = records.read_json(place(name))
        print(f"{name}: {best_of(done[name])['best']:.6g} ({best_of(done[name])['way']})", flush=True)
    for name, cell in done.items():
        kind = name.split(",")[0]
        others = [other for key, other in done.items() if key != name and key.startswith(f"{kind},")]
        if kind.endswith("rooms") and len(others) == sum(key[0] == kind for key in PUBLISHED) - 1:
            lent = place(f"{name}, carried")
            if not lent.exists():
                records.write_json(lent, carried(cell, others, kind, size))
            done[name] = cell | {"ways": cell["ways"] | {"carried": records.read_json(lent)}}
            print(f"{name}: {best_of(done[name])['best']:.6g} ({best_of(done[name])['way']})", flush=True)
    if not only or SEEDS in only:
        file = place(SEEDS)
        if not file.exists():  # in a process of its own, for its peak memory
            words = [sys.executable, __file__, "--seeds-only", str(file)] + ["--quick"] * quick
            subprocess.run(words, check=True)
        done[SEEDS] = records.read_json(file)
    return done


def compact(cell: dict[str, Any]) -> dict[str, Any]:
    """A cell for the results file: the x of its best way alone."""
    ways = {name: {k: v for k, v in way.items() if k not in ("x", "provenance")} for name, way in cell["ways"].items()}
    return {k: v for k, v in cell.items() if k != "provenance"} | {"ways": ways, "x": best_of(cell)["x"]}


def show(done: dict[str, Any]) -> None:
    """The table."""
    rows = []
    for name, cell in done.items():
        if name == SEEDS:
            continue
        means = [f"{way} {facts['mean']:.4g} / {facts['best']:.4g}" for way, facts in cell["ways"].items()]
        theirs = ", ".join(f"{who} {value:g}" for who, value in cell["published"].items())
        rows.append((name, f"{best_of(cell)['best']:.6g}", best_of(cell)["way"], theirs, cell["known"], "; ".join(means)))
    screen.show_rows("Best values, by exact oracles (higher is better)",
                     ("cell", "best", "way", "published", "known", "mean / best of each way"), rows)  # fmt: skip
    if SEEDS in done:
        print(json.dumps(done[SEEDS], indent=2))


def main() -> None:
    """Fill, print, and write unless `--quick` or `--only`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[], help="cells whose names start so; writes no results file")
    parser.add_argument("--out", type=Path, default=Path("runs/exact_search"), help="folder of the cells")
    parser.add_argument("--quick", action="store_true", help="a few starts and iterations; writes no results file")
    parser.add_argument("--seeds-only", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.seeds_only:
        records.write_json(asked.seeds_only, thousand(QUICK if asked.quick else Size()))
        return
    out = asked.out.with_name(asked.out.name + "_quick") if asked.quick else asked.out
    records.make_folder(out)
    done = fill(out, asked.only, asked.quick)
    show(done)
    if not asked.quick and not asked.only:
        seeds, said = done.pop(SEEDS), records.provenance("python benchmarks/exact_search.py")
        kept = {name: compact(cell) for name, cell in done.items()}
        records.write_json(RESULTS, {"cells": kept, SEEDS: seeds, "hardware": records.hardware(), "provenance": said})


if __name__ == "__main__":
    main()
