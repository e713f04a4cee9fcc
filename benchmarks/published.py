"""What other studies report of their methods, and what this library's implementations of them reach.

    python benchmarks/published.py [--only A B F G] [--cells PATTERN ...] [--keep FOLDER] [--seeds 10] [--tuning 1]

The published budgets, starts and learning rates, as near as they can be; everything is graded by the exact oracle of the
hyper-objective, as the mean over the last tenth of a run's records, as in the studies. Rates are chosen from the
published grid on starts that do not count. Every group of cells is a file in the folder; a second call skips what is there
and writes `results/published.json` anew.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from bilevel_rl import records, statistics
from bilevel_rl.finite import FiniteMDP, oracles, solve
from bilevel_rl.finite.learn import rollouts
from bilevel_rl.finite.model import planning
from bilevel_rl.finite.objectives import VisitationUtility
from bilevel_rl.finite.problems import FourRooms, LeaderToy, OneGoalFourRooms, Synthetic
from bilevel_rl.finite.solvers import AMD, HPGD, BoltzmannCovariance, PartialSGD, SoBiRL, ZeroOrder
from bilevel_rl.loop import use_64_bit
from bilevel_rl.schedules import PowerDecay, TimeScales

use_64_bit()

RESULTS = Path(__file__).parent / "results" / "published.json"
KEEP = Path("runs/published")
TAUS, PRICES = (0.001, 0.003, 0.005), (1.0, 3.0, 5.0)
RATES = (0.5, 0.1, 0.05, 0.01)  # the grid of both four-rooms studies
BETAS = (0.1, 0.5, 1.0)  # of the carried critic; theirs is .1, .3, .5, .7, .9, 1
START = 0.01
RECORDS = 20
FIGURE = 0.02  # relative error of a value that was read off a figure

# published values and standard errors: prices 1, 3, 5 by temperature
ROOMS = {
    "hpgd": {0.001: ((0.91, 0.088), (0.51, 0.006), (0.46, 0.006)), 0.003: ((0.95, 0.002), (0.73, 0.001), (0.29, 0.003)),
             0.005: ((1.17, 0.011), (1.01, 0.002), (0.87, 0.003))},
    "amd": {0.001: ((0.58, 0.0), (0.51, 0.0), (0.46, 0.003)), 0.003: ((1.00, 0.0), (0.39, 0.0), (0.32, 0.0)),
            0.005: ((1.28, 0.003), (1.13, 0.004), (0.97, 0.009))},
    "zero_order": {0.001: ((0.59, 0.059), (0.50, 0.005), (0.46, 0.007)),
                   0.003: ((0.91, 0.048), (0.40, 0.028), (0.32, 0.002)),
                   0.005: ((1.15, 0.026), (1.02, 0.027), (0.79, 0.027))},
}  # fmt: skip
ONE_GOAL = {"boltzmann_covariance": (0.67, 0.54, 1.33), "hpgd, carried critic": (0.0, 0.41, 0.83),
            "hpgd": (0.0, 0.10, 1.18), "oracle": (0.69, 0.53, 0.83)}  # fmt: skip


def scales(zeta: float, tau: float, beta: float = 0.5) -> TimeScales:
    """Constant sequences, as in the studies."""
    return TimeScales(*(PowerDecay(v) for v in (zeta, 1.0, beta, 1.0, tau)))


def starts(runs: int, dimension: int, seed: int) -> np.ndarray:
    """x0 of standard deviation .01: the default of the initialiser that the studies' code calls, described as N(0, I)."""
    return START * np.random.default_rng(seed).normal(size=(runs, dimension))


def values(problem, x: np.ndarray, taus: np.ndarray) -> np.ndarray:
    """-Phi of the exact follower, for x [runs, records, d] at each run's temperature: [runs, records]."""
    grade = jax.jit(lambda it, x, tau: jax.lax.map(lambda x: -oracles.hyper_objective(it, x, tau), x))
    it = jax.tree.map(jnp.asarray, problem)
    return np.stack([np.asarray(grade(it, jnp.asarray(row), tau)) for row, tau in zip(x, taus, strict=True)])


def reached(
    problem, solvers: list, taus: list[float], runs: int, iterations: int, seed: int, x0=None, graded=None
) -> np.ndarray:
    """[solvers, runs]: mean value over the last tenth of the records; minus infinity for a run that failed."""
    count = len(solvers)
    x0 = None if x0 is None else np.tile(x0, (count, 1))
    trace = solve(problem, solvers, iterations=iterations, record_every=max(1, iterations // RECORDS), runs=runs, seed=seed,
                  x0=x0, evaluate=False)  # fmt: skip
    tail = trace.x[:, -max(1, RECORDS // 10) :]
    found = values(problem if graded is None else graded, tail, np.repeat(taus, runs)).mean(1)
    return np.where(trace.status == 0, found, -np.inf).reshape(count, runs)


def group(problem, make: Callable[..., Any], grid: list[dict], taus: tuple[float, ...], iterations: int,
          seeds: int, tuning: int, random_starts: bool = True, graded=None) -> list[dict]:  # fmt: skip
    """One problem at several temperatures: each picks its setting on `tuning` starts, then runs on `seeds` others.

    All temperatures and settings go through one compiled program.
    """
    d, began, scores = problem.x0.shape[0], time.perf_counter(), np.zeros((len(taus), len(grid)))
    if len(grid) > 1:
        x0 = starts(tuning, d, 10**6) if random_starts else None
        each = [(tau, setting) for tau in taus for setting in grid]
        found = reached(problem, [make(tau=tau, **setting) for tau, setting in each], [tau for tau, _ in each], tuning,
                        iterations, 1000, x0, graded)  # fmt: skip
        scores = found.mean(1).reshape(len(taus), len(grid))
    chosen = scores.argmax(1)
    x0 = starts(seeds, d, 0) if random_starts else None
    final = reached(problem, [make(tau=tau, **grid[i]) for tau, i in zip(taus, chosen, strict=True)], list(taus), seeds,
                    iterations, 0, x0, graded)  # fmt: skip
    seconds = time.perf_counter() - began
    return [
        {"tau": tau, "iterations": iterations, "values": final[i].tolist(), "chosen": grid[chosen[i]],
         "tuning": [{**setting, "value": score} for setting, score in zip(grid, scores[i].tolist(), strict=True)],
         "seconds": round(seconds / len(taus), 1)}
        for i, tau in enumerate(taus)
    ]  # fmt: skip


# -- the study's simulator --------------------------------------------------------------------------------------------


class StudyRooms(FourRooms):
    """Four rooms as the studies play them: the intended move happens with .67 in the simulator, with .56 in the plan."""

    planned: FiniteMDP

    def __init__(self, goals=((1, 9), (11, 11)), price: float = 1.0):
        super().__init__(goals, price=price, slip=0.33)
        self.planned = FourRooms(goals).mdp


class Mistaken:
    """A follower that plans with `planned`, not with what it walks in."""

    def play(self, problem, mdp, x, Q, tau, noise):
        r, believed = problem.reward(x), problem.planned
        for _ in range(self.sweeps):
            Q = planning.action_value(believed, r, believed.ongoing(planning.soft_value(Q, tau)))
        pi = planning.soft_policy(Q, tau)
        drawn = rollouts.draw(mdp, pi, noise["trajectories"], self.episode)
        return Q, pi, drawn


class MistakenHPGD(Mistaken, HPGD):
    """HPGD with the study's simulator."""


class MistakenCovariance(Mistaken, BoltzmannCovariance):
    """BC-HG with the study's simulator."""


# -- the cells ------------------------------------------------------------------------------------------------------


def rates(**more) -> list[dict]:
    return [{"zeta": zeta, **more} for zeta in RATES]


def with_betas() -> list[dict]:
    return [{"zeta": zeta, "beta": beta} for zeta in RATES for beta in BETAS]


# a planner, whose first plan is finished before x moves, and the environment's own limit of an episode
STREAM = {"follower": "soft_vi", "sweeps": 20, "passes": 1, "hold": 50.0, "episode": 200}
BATCH = {**STREAM, "trajectories": 5, "horizon": 2000}


def four_rooms(method: str) -> dict[str, Callable]:
    """A group a price."""
    makers = {
        "hpgd": lambda tau, zeta: HPGD(scales(zeta, tau), **BATCH),
        "hpgd, the study's simulator": lambda tau, zeta: MistakenHPGD(scales(zeta, tau), **BATCH),
        "amd": lambda tau, zeta: AMD(zeta, tau, clip=1.0, hold=50.0),
        # one of the published c: u = c/t is tiny within a few iterations whatever it is
        "zero_order": lambda tau, zeta: ZeroOrder(
            PowerDecay(zeta), PowerDecay(0.1, 1.0), tau, clip=1.0, warm=True
        ),
    }
    simulated = "simulator" in method
    return {
        f"price {price:g}": lambda o, price=price: group(
            StudyRooms(price=price) if simulated else FourRooms(price=price), makers[method], rates(), TAUS, o.iterations,
            o.seeds, o.tuning, graded=FourRooms(price=price))
        for price in PRICES
    }  # fmt: skip


def one_goal(method: str) -> dict[str, Callable]:
    """A group an estimator and a number of samples."""
    walked = OneGoalFourRooms()

    def few(steps):
        return {**STREAM, "trajectories": 1, "horizon": steps}

    def run(make, grid, taus=TAUS, problem=walked):
        return lambda o: group(problem, make, grid, taus, o.iterations, o.seeds, o.tuning, graded=walked)

    def covariance(steps, order, kind=BoltzmannCovariance):
        return lambda tau, zeta, beta: kind(scales(zeta, tau, beta), order=order, **few(steps))

    return {
        "boltzmann_covariance": {
            "T = 100": run(covariance(100, "learn"), with_betas()),
            "T = 100, table used before it learns": run(covariance(100, "use"), with_betas()),
            "T = 100, the study's simulator": run(
                covariance(100, "learn", MistakenCovariance), with_betas(), problem=StudyRooms(((1, 9),), 5.0)),
            "T = 1,000": run(covariance(1000, "learn"), with_betas(), TAUS[:1]),
        },
        "hpgd, carried critic": {
            "T = 100": run(
                lambda tau, zeta, beta: HPGD(scales(zeta, tau, beta), critic="sarsa", **few(100)),
                with_betas(),
            )
        },
        "hpgd": {"T = 100": run(lambda tau, zeta: HPGD(scales(zeta, tau), **few(100)), rates())},
        "oracle": {"exact gradient": run(lambda tau, zeta: AMD(zeta, tau, clip=1.0, hold=50.0), rates())},
    }[method]  # fmt: skip


def toy(method: str) -> dict[str, Callable]:
    """225,000 transitions of the leader: 500 iterations of three episodes of 150, or half as many with a sample beside.

    The study's critic discounts by .99 for both gains; undiscounted returns grade the second. So does the objective here.
    """

    def learnt(gain):
        it = LeaderToy(gain=gain)
        u = it.objective.utility / (1 - it.mdp.discount)
        return eqx.tree_at(lambda it: it.objective, it, VisitationUtility(u))

    def covariance(tau, zeta):  # ours: a rate that falls, for their Adam
        falling = TimeScales(PowerDecay(zeta, 1 / 3), *(PowerDecay(v) for v in (1.0, 0.5, 1.0, tau)))
        return BoltzmannCovariance(
            falling, trajectories=3, horizon=150, follower="soft_vi", passes=300, hold=5.0, order="learn",
            baseline="visits")  # fmt: skip

    def naive(tau, zeta):
        constant = (PowerDecay(v) for v in (zeta, 0.3, 0.5, 1.0, tau))
        return PartialSGD(TimeScales(*constant), chains=450)

    make, grid, every = {
        "boltzmann_covariance": (covariance, (1.0, 0.3, 0.1, 0.03), 20), "partial_sgd": (naive, (0.1, 0.01, 0.001), 40),
    }[method]  # fmt: skip
    cells = {}
    for gain, discount in ((1, 0.99), (2, 1.0)):
        played = LeaderToy(gain=gain, leader_discount=discount, trajectories=3)
        problem = learnt(gain) if method == "boltzmann_covariance" else played
        cells[f"R = {gain}"] = lambda o, problem=problem, played=played: group(
            problem, make, [{"zeta": zeta} for zeta in grid], (0.05,), o.iterations // every, o.seeds, 5 * o.tuning,
            random_starts=False, graded=played)  # fmt: skip
    return cells


def synthetic(method: str) -> dict[str, Callable]:
    """Another instance each seed; nothing is tuned: the step is the published one."""

    def run(centre: bool, inner: int):
        def go(o):
            began, found = time.perf_counter(), []
            one = SoBiRL(8e-3, 1.0, centre=centre, inner=inner, sweeps=10)
            for seed in range(o.seeds):
                found += (
                    -reached(Synthetic(seed=seed), [one], [1.0], 1, o.iterations * 3 // 10, seed)[0]
                ).tolist()
            return [{"tau": 1.0, "iterations": o.iterations * 3 // 10, "values": found, "chosen": {"step_size": 8e-3},
                     "tuning": [], "seconds": round(time.perf_counter() - began, 1)}]  # fmt: skip

        return go

    return {"one step of w, as published": run(False, 1), "ten, centred (our default)": run(True, 10)}


def published(problem: str, method: str, label: str, tau: float) -> tuple[float, float] | None:
    """A published value and its error: a standard error, or what reading a figure costs."""
    if problem == "A":
        return ROOMS[method.partition(",")[0]][tau][[f"price {p:g}" for p in PRICES].index(label)]
    if problem == "B":
        value = 0.2 if label == "T = 1,000" else ONE_GOAL[method][TAUS.index(tau)]
        return value, max(FIGURE * value, 0.01)
    if problem == "F":
        value = {"boltzmann_covariance": (27.0, 58.5), "partial_sgd": (11.5, 32.0)}[method][label == "R = 2"]
        return value, FIGURE * value
    return 1.0, 0.0


CELLS = {
    "F": {m: toy(m) for m in ("boltzmann_covariance", "partial_sgd")},
    "G": {"sobirl": synthetic("sobirl")},
    "B": {m: one_goal(m) for m in ONE_GOAL},
    "A": {m: four_rooms(m) for m in (*ROOMS, "hpgd, the study's simulator")},
}
PROBLEMS = {"A": "four_rooms", "B": "one_goal_four_rooms", "F": "leader_toy", "G": "synthetic"}
HIGHER = {"A": True, "B": True, "F": True, "G": False}  # whether the study's figure is better up


def verdict(interval: statistics.Interval, known: tuple[float, float], higher: bool) -> str:
    """The rule, in words in `RULE`."""
    sign = 1 if higher else -1
    value, error = known
    if sign * (interval.value - value) >= 0:
        return "reaches"
    best = interval.high if higher else interval.low
    return "within error" if sign * (best - value) + 2 * error >= 0 else "below"


RULE = (
    "Reaches: the interquartile mean is at least as good as the published figure. Within error: its 95 % bootstrap "
    "interval, widened by two of the published standard errors (2 % of the value where it was read off a plot), includes "
    "it. Below: neither."
)


def summary(problem: str, method: str, label: str, row: dict) -> dict:
    """A cell as the results file has it."""
    known, found = published(problem, method, label, row["tau"]), np.array(row["values"], float)
    interval, up = statistics.bootstrap(found), HIGHER[problem]
    return {
        "problem": problem, "name": PROBLEMS[problem], "method": method, "label": label, **row, "runs": len(found),
        "iqm": interval.value, "low": interval.low, "high": interval.high, "mean": float(found.mean()),
        "median": float(np.median(found)), "best": float(found.max() if up else found.min()),
        "published": known[0], "published_error": known[1], "verdict": verdict(interval, known, up),
    }  # fmt: skip


def show(rows: list[dict]) -> None:
    """The table on the screen."""
    table = Table(
        "problem", "method", "cell", "tau", "runs", "published", "IQM [95 %]", "median", "best", "verdict"
    )
    for r in rows:
        table.add_row(r["problem"], r["method"], r["label"], f"{r['tau']:g}", str(r["runs"]), f"{r['published']:.3g}",
                      f"{r['iqm']:.3f} [{r['low']:.3f}, {r['high']:.3f}]", f"{r['median']:.3f}", f"{r['best']:.3f}",
                      r["verdict"])  # fmt: skip
    Console(width=150).print(table)


def main() -> None:
    """Run what is missing, show and write everything."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", default=list(CELLS), choices=list(CELLS))
    parser.add_argument("--cells", nargs="*", default=["*"], help="patterns of 'problem | method | cell'")
    parser.add_argument(
        "--keep", type=Path, default=KEEP, help="a file a group of cells; a killed call resumes here"
    )
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument(
        "--tuning", type=int, default=1, help="starts that choose a setting, and do not count"
    )
    parser.add_argument("--iterations", type=int, default=10_000, help="of four rooms; the published budget")
    options = parser.parse_args()
    options.keep.mkdir(parents=True, exist_ok=True)
    for problem in options.only:
        for method, groups in CELLS[problem].items():
            for label, go in groups.items():
                key = f"{problem} | {method} | {label}"
                file = options.keep / (
                    key.replace(" | ", "--").translate(str.maketrans(" ", "_", ",'()")) + ".json"
                )
                if file.exists() or not any(fnmatch.fnmatch(key, pattern) for pattern in options.cells):
                    continue
                rows = [summary(problem, method, label, row) for row in go(options)]
                records.write_json(file, {"rows": rows, "hardware": records.hardware()})
                show(rows)
    kept = [json.loads(file.read_text()) for file in sorted(options.keep.glob("*.json"))]
    rows = [row for cell in kept for row in cell["rows"]]
    show(rows)
    if rows and options.iterations == parser.get_default("iterations"):
        counts = {
            word: sum(r["verdict"] == word for r in rows) for word in ("reaches", "within error", "below")
        }
        command = "python benchmarks/published.py"
        records.write_json(RESULTS, {"rule": RULE, "counts": counts, "cells": rows, "hardware": kept[-1]["hardware"],
                                     "provenance": records.provenance(command)})  # fmt: skip


if __name__ == "__main__":
    main()
