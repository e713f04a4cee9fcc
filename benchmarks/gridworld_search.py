"""The search behind the paper's GridWorld experiment: every method the same number of random settings, then fresh seeds.

    python benchmarks/gridworld_search.py [--problems position ...] [--methods "as published" ...] [--until 3e6]

For every problem and every method: 153 settings drawn from the method's own ranges (below; all of its constants), 5 tuning
seeds each, graded by the plain mean of the unregularised objective after 300,000 transitions; the best sixth of them again
from the start to 1,000,000 transitions, whose plain mean chooses. (Two stages, the same for all: what is not among the
best sixth at 300,000 cannot be chosen.) The ranges are those of an earlier search with 102 settings, widened for every
method wherever a choice of any had been at an edge. Where a choice still is at one, `--searches 2` widens the range there
and does the whole search again (`--again`: so where it is at none; on the subsidy, where a search has 51 settings, every row
has two). The chosen setting then runs on 30 fresh seeds, recorded at 20 fixed log-spaced budgets
from 100,000 to 10,000,000 transitions as far as `--until` says, and graded with and without regularisation.

Everything is written to `results/gridworld_search.json` as it comes: ranges, settings, scores, choices, curves. A second
call goes on where the first was stopped, and two calls may fill the same file at once. One to two minutes of processor time
a row, about 60 in all.
"""

from __future__ import annotations

import os

from bilevel_rl.loop import use_64_bit

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")

import argparse
import dataclasses
import fcntl
import json
import tempfile
import time
import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from bilevel_rl import records
from bilevel_rl.experiments.gridworld import CHOSEN, TAU, problems
from bilevel_rl.finite import oracles
from bilevel_rl.finite.solver import Solver
from bilevel_rl.finite.solvers import (
    CoupledPenalty,
    FiniteDifference,
    NestedPenalty,
    PartialSGD,
    PenaltyActorCritic,
)
from bilevel_rl.finite.tuning import samples_per_iteration, with_options
from bilevel_rl.loop import noise as numbers
from bilevel_rl.loop.stepping import FIRST as FIRST_STATE
from bilevel_rl.loop.stepping import run_keys, stack
from bilevel_rl.schedules import PowerDecay, TimeScales

use_64_bit()

RESULTS = Path(__file__).parent / "results" / "gridworld_search.json"
LOCK = Path(tempfile.gettempdir()) / "bilevel_rl_gridworld_search.lock"
SETTINGS, TUNING_RUNS, RUNS = 153, 5, 30
FEWER = {"subsidy": 51}  # settings a method where nine rows differ in tau alone
FIRST, KEPT, SECOND = 300_000, 6, 1_000_000  # of the two stages: transitions, and one setting in so many is kept
BUDGETS = np.geomspace(1e5, 1e7, 20).round().astype(int)
TUNING_SEED, SEED = 1000, 2026
CHUNK, AGAIN = 13, 6  # settings that one compiled program runs side by side, in the first stage and the second
EDGE = 0.06  # a choice within this share of a range's length from its end lies at the edge
WIDEN = 4.0  # the factor by which the range then grows there
LISTS = ("chains", "inner", "hold", "momentum", "average")  # ranges that are lists of numbers with ends

# -- ranges -----------------------------------------------------------------------------------------------------------
# (low, high): log-uniform; [..]: one of these. `hold` is in transitions, so that chains and inner steps do not change it.

AIDS = {
    "hold": [0, 5_000, 20_000, 50_000, 100_000], "momentum": [0.0, 0.5, 0.9, 0.97, 0.99], "average": [0.0, 0.0, 1.0, 4.0],
}  # fmt: skip
LOWER = {"alpha": (0.005, 3.0), "beta": (0.05, 1.9), "tau": (0.003, 1.0)}
PENALTY = LOWER | {"w": (0.3, 100.0)}
ZETA = {
    "position": (0.03, 250.0),
    "distribution": (1.0, 3000.0),
    "subsidy": (0.03, 100.0),
}  # of the steps of single loops
LOOPS = {"position": (0.01, 5.0), "distribution": (0.3, 300.0), "subsidy": (0.01, 10.0)}  # of loops with inner solves
POWERS = {"zeta.power": [1 / 3, 0.5, 0.7, 0.9], "alpha.power": [0.0, 0.25, 0.5], "beta.power": [0.0, 0.25, 0.5],
          "w.power": [0.0, 0.15], "tau.power": [0.0, 0.05, 0.2]}  # fmt: skip
SHAPES = {"chains": [16, 64, 256]}


@dataclasses.dataclass(frozen=True)
class Method:
    """A row: a solver, the ranges of its constants, and the options that change the program (tried in equal numbers)."""

    solver: Solver
    ranges: dict[str, Any]
    shapes: dict[str, list[Any]]
    zeta: dict[str, tuple[float, float]] = dataclasses.field(default_factory=lambda: ZETA)


PUBLISHED = PenaltyActorCritic(scales=TimeScales.attenuating())
COMMON = PenaltyActorCritic(scales=TimeScales.attenuating(), common_noise=True)
CONSTANT = PenaltyActorCritic(scales=TimeScales.constant_entropy(), common_noise=True)
# exponents of steady critics and actors; the constants are searched
STEADY = PenaltyActorCritic(scales=TimeScales.steady_critics(0.95), common_noise=True)
STEADY_W = with_options(STEADY, {"scales.w.power": 0.0})
NESTED, DIFFERENCE = NestedPenalty(chains=32), FiniteDifference(chains=16)
INNER = {"inner": [30, 120, 480]}

# the paper's condition on alpha / beta, kept by drawing the ratio: at most 1 - gamma, which is .05 here
KEPT_RATIO = {name: span for name, span in PENALTY.items() if name != "alpha"} | {"ratio": (0.005, 0.05)}
DIFFERENCES = LOWER | AIDS | {"radius": (0.03, 0.5)}
POWERS_NO_W = {name: powers for name, powers in POWERS.items() if name != "w.power"}

METHODS = {
    "as published": Method(PUBLISHED, PENALTY, SHAPES),
    "as published, conditions kept": Method(PUBLISHED, KEPT_RATIO, SHAPES),
    "+ common random numbers, conditions kept": Method(COMMON, KEPT_RATIO, SHAPES),
    "as published, one chain": Method(PUBLISHED, PENALTY, {"chains": [1]}),
    "+ common random numbers": Method(COMMON, PENALTY, SHAPES),
    "+ hold": Method(COMMON, PENALTY | {"hold": AIDS["hold"]}, SHAPES),
    "+ momentum": Method(COMMON, PENALTY | {"momentum": AIDS["momentum"]}, SHAPES),
    "+ averaging": Method(COMMON, PENALTY | {"average": AIDS["average"]}, SHAPES),
    "+ hold, momentum, averaging": Method(COMMON, PENALTY | AIDS, SHAPES),
    "+ steady followers": Method(STEADY, PENALTY | AIDS, SHAPES),
    "+ steady followers and w": Method(STEADY_W, PENALTY | AIDS, SHAPES),
    "+ its exponents": Method(COMMON, PENALTY | AIDS | POWERS, SHAPES),
    "constant entropy": Method(CONSTANT, PENALTY | AIDS, SHAPES),
    "partial_sgd": Method(PartialSGD(), LOWER | AIDS, SHAPES),
    "finite_difference": Method(DIFFERENCE, DIFFERENCES, {}, LOOPS),
    "finite_difference, + its exponents": Method(DIFFERENCE, DIFFERENCES | POWERS_NO_W, {}, LOOPS),
    "finite_difference, independent numbers": Method(
        dataclasses.replace(DIFFERENCE, common_noise=False), DIFFERENCES, {}, LOOPS
    ),
    "nested_penalty, as published": Method(dataclasses.replace(NESTED, common_noise=False), PENALTY, INNER, LOOPS),
    "nested_penalty": Method(NESTED, PENALTY | AIDS, INNER, LOOPS),
    "nested_penalty, + its exponents": Method(NESTED, PENALTY | AIDS | POWERS, INNER, LOOPS),
    "coupled_penalty": Method(CoupledPenalty(), {}, {}),  # as shipped: nothing is searched
}
# On the subsidy: a constant temperature, one that starts there and fades as in the paper, and one that fades faster (ours)
TEMPERATURES = (0.5, 0.2, 0.1)
FADES = {"constant": 0.0, "fading": 1 / 20, "steeper": 1 / 4}
LOW_W = {"w": (0.05, 40.0)}  # there the penalty's own bias is large
OTHER_POWERS = {name: powers for name, powers in POWERS.items() if name != "tau.power"}
ON_SUBSIDY = {
    f"{word} from {tau:g}": Method(
        with_options(COMMON, {"scales.tau": PowerDecay(tau, power)}),
        {"alpha": LOWER["alpha"], "beta": LOWER["beta"]} | LOW_W | AIDS | OTHER_POWERS,
        SHAPES,
    )
    for tau in TEMPERATURES
    for word, power in FADES.items()
}
ALL = METHODS | ON_SUBSIDY


def methods_on(problem: str) -> list[str]:
    """The rows of a problem."""
    return list(ON_SUBSIDY if problem == "subsidy" else METHODS)


RADIUS = {"distribution": (0.3, 10.0)}  # of finite differences, where x are logits


def shapes_of(method: Method, problem: str, ranges: dict[str, Any]) -> list[dict[str, Any]]:
    """The combinations of options that change the program."""
    if isinstance(method.solver, FiniteDifference):
        pairs = [("simultaneous", 100), ("simultaneous", 400), ("two_sided", 200), ("one_sided", 200)]
        if problem == "distribution":  # coordinates one by one are out of reach in 100 dimensions
            pairs = [("simultaneous", 100), ("simultaneous", 400)]
        return [{"perturbation": p, "inner": inner} for p, inner in pairs]
    combined: list[dict[str, Any]] = [{}]
    for name in method.shapes:
        combined = [old | {name: value} for old in combined for value in ranges[name]]
    return combined


def ranges_of(method: Method, problem: str) -> dict[str, Any]:
    """All constants of a method on a problem."""
    if not method.ranges:
        return {}
    ranges = method.shapes | {"zeta": method.zeta[problem]} | method.ranges
    return ranges | {"radius": RADIUS[problem]} if "radius" in ranges and problem in RADIUS else ranges


def draw(ranges: dict[str, Any], shapes: list[dict[str, Any]], seed: int, count: int = SETTINGS) -> list[dict[str, Any]]:
    """Random settings, equally many of each shape."""
    random = np.random.default_rng(seed)
    made = []
    for i in range(count):
        setting = dict(shapes[i * len(shapes) // count])
        for name, span in ranges.items():
            if name in setting:
                continue
            if isinstance(span, tuple):
                setting[name] = float(f"{np.exp(random.uniform(*np.log(span))):.4g}")
            else:
                setting[name] = span[random.integers(len(span))]
        made.append(setting)
    return made


def made(method: Method, problem: Any, setting: dict[str, Any]) -> Solver:
    """The solver of a setting."""
    shape = {k: v for k, v in setting.items() if k in ("chains", "inner", "perturbation")}
    solver = dataclasses.replace(method.solver, **shape)
    each = samples_per_iteration(problem, solver)
    options: dict[str, Any] = {}
    for name, value in setting.items():
        if name in shape:
            continue
        if name == "ratio":
            name, value = "alpha", value * setting["beta"]
        if name == "hold":
            options["hold"] = float(round(value / each))
        elif name in ("momentum", "average"):
            options[name] = value
        elif name == "radius":
            options["radius.initial"] = value
        elif name.endswith(".power"):
            options[f"scales.{name}"] = value
        else:
            options[f"scales.{name}.initial"] = value
    return with_options(solver, options)


# -- running ----------------------------------------------------------------------------------------------------------


def block_of(solver: Solver) -> int:
    """Iterations whose random numbers are made at once: one where an iteration has an inner loop."""
    return 1 if hasattr(solver, "inner") else 128 if solver.chains == 1 else 16


@eqx.filter_jit
def begin(problem, stacked, keys):
    """States [settings, seeds]: those of `solve` for the same keys."""
    return jax.vmap(
        lambda s: jax.vmap(lambda key: s.init(problem, problem.x0, jax.random.fold_in(key, FIRST_STATE)))(keys)
    )(stacked)


@eqx.filter_jit
def advance(problem, stacked, states, keys, first, last, block: int):
    """Iterations `first` to `last`; settings share the random numbers of a seed."""
    draws = stacked_draws(stacked, problem)
    n = numbers.size(draws)

    def some(carry):
        states, k = carry
        ks = k + jnp.arange(block)
        noise = jax.vmap(lambda k: jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, k), (n,)))(keys))(ks)

        def one(states, z):
            k, u = z
            return jax.vmap(
                lambda s, of: jax.vmap(lambda state, u: s.step(problem, state, k, numbers.fill(draws, u)))(of, u)
            )(stacked, states), None

        return jax.lax.scan(one, states, (ks, noise))[0], k + block

    return jax.lax.while_loop(lambda c: c[1] < last, some, (states, first))[0]


def stacked_draws(stacked, problem) -> numbers.Draws:
    """Random numbers of an iteration; every setting of a group uses as many."""
    return jax.tree.map(lambda v: v[0], stacked).draws(problem)


def run(problem: Any, solvers: Sequence[Solver], seed: int, runs: int, budgets: Sequence[int]) -> np.ndarray:
    """x at each budget: [settings, runs, budgets, d]. A run that is no longer finite keeps NaN."""
    each, block = samples_per_iteration(problem, solvers[0]), block_of(solvers[0])
    keys = run_keys(seed, runs)
    stacked = stack(list(solvers), 1)
    states, k, out = begin(problem, stacked, keys), 0, []
    for budget in budgets:
        last = int(budget // each) // block * block
        if last > k:
            states = advance(problem, stacked, states, keys, jnp.array(k), jnp.array(last), block)
            k = last
        out.append(np.asarray(states.x))
    return np.stack(out, 2)


@partial(jax.jit, static_argnames="tau")
def _graded(problem, x, tau):
    return jax.lax.map(lambda x: oracles.hyper_objective(problem, x, tau), x)


def grade(problem: Any, x: np.ndarray, tau: float = 0, size: int = 64) -> np.ndarray:
    """The objective at each x [..., d], by the oracle; infinite where x is not finite."""
    flat = x.reshape(-1, x.shape[-1])
    good = np.isfinite(flat).all(1)
    flat = np.where(good[:, None], flat, np.asarray(problem.x0))
    values = []
    for at in range(0, len(flat), size):
        some = flat[at : at + size]
        full = jnp.asarray(np.resize(some, (size, flat.shape[1])))  # one program for any number of points
        values.append(np.asarray(_graded(problem, full, tau))[: len(some)])
    return np.where(good, np.concatenate(values), np.inf).reshape(x.shape[:-1])


def scores(problem: Any, method: Method, settings: list[dict[str, Any]], budget: int, chunk: int) -> list[float]:
    """The plain mean over the tuning seeds of the unregularised objective, one number a setting."""
    solvers = [made(method, problem, setting) for setting in settings]
    groups: dict[Any, list[int]] = {}
    for i, solver in enumerate(solvers):
        groups.setdefault(jax.tree.structure(solver), []).append(i)
    found = np.full(len(settings), np.inf)
    for indices in groups.values():
        for at in range(0, len(indices), chunk):
            some = indices[at : at + chunk]
            full = [solvers[i] for i in some] + [solvers[some[0]]] * (chunk - len(some))  # one program for every chunk
            x = run(problem, full, TUNING_SEED, TUNING_RUNS, [budget])[: len(some), :, 0]
            found[some] = grade(problem, x).mean(1)
            print(
                f"  {budget:,}: {len(some)} settings, best {found[some].min():.4f}, {time.process_time():.0f} s",
                flush=True,
            )
    return [float(f"{v:.5g}") if np.isfinite(v) else None for v in found]


def search(problem: Any, name: str, label: str, ranges: dict[str, Any], number: int) -> dict[str, Any]:
    """One search: both stages, the choice, and the constants that it found at an edge."""
    method = ALL[label]
    seed = zlib.crc32(f"{name} {label} {number}".encode())
    settings = draw(ranges, shapes_of(method, name, ranges), seed, FEWER.get(name, SETTINGS))
    began = time.process_time()
    first = scores(problem, method, settings, FIRST, CHUNK)
    order = np.argsort([np.inf if v is None else v for v in first], kind="stable")[: len(first) // KEPT]
    second = scores(problem, method, [settings[i] for i in order], SECOND, AGAIN)
    best = int(order[int(np.argmin([np.inf if v is None else v for v in second]))])
    return {
        "ranges": {k: list(v) if isinstance(v, tuple) else {"one of": v} for k, v in ranges.items()},
        "columns": list(settings[0]), "settings": [list(s.values()) for s in settings], "first": first,
        "second": {str(i): v for i, v in zip(order, second, strict=True)}, "chosen": settings[best],
        "score": min(v for v in second if v is not None), "edges": edges(ranges, settings[best]),
        "seconds": round(time.process_time() - began, 1),
    }  # fmt: skip


def edges(ranges: dict[str, Any], setting: dict[str, Any]) -> dict[str, str]:
    """Which constants lie at the lower or the upper end of their range; exponents and switches have no ends."""
    found = {}
    for name, span in ranges.items():
        if name in LISTS:
            ends = {max(span): "high"} | ({min(span): "low"} if name in ("chains", "inner") else {})
            if len(span) > 1 and setting[name] in ends:
                found[name] = ends[setting[name]]
        elif isinstance(span, tuple):
            low, high = np.log(span)
            place = (np.log(setting[name]) - low) / (high - low)
            if place < EDGE or place > 1 - EDGE:
                found[name] = "low" if place < EDGE else "high"
    return found


def widened(ranges: dict[str, Any], found: dict[str, str]) -> dict[str, Any]:
    """The ranges, wider where a choice was at the edge. A critic's step stays below 2, where it is stable."""
    wider = dict(ranges)
    for name, end in found.items():
        if name in LISTS:
            wider[name] = [*ranges[name], further(name, end, ranges[name])]
            continue
        low, high = ranges[name]
        low, high = (low / WIDEN, high) if end == "low" else (low, high * WIDEN)
        wider[name] = (low, min(high, 1.9) if name == "beta" else high)
    return wider


def further(name: str, end: str, values: list[Any]) -> Any:
    """The next value of a list beyond one of its ends."""
    if name == "momentum":
        return 1 - (1 - max(values)) / WIDEN
    kind = type(values[0])
    return kind(min(values) / WIDEN) if end == "low" else kind(max(values) * WIDEN)


def final(problem: Any, method: Method, setting: dict[str, Any], until: float) -> dict[str, Any]:
    """30 fresh seeds of the chosen setting, both grades at every budget."""
    began = time.process_time()
    budgets = [int(b) for b in BUDGETS if b <= until]
    x = run(problem, [made(method, problem, setting)], SEED, RUNS, budgets)[0]  # [runs, budgets, d]
    seconds = time.process_time() - began
    hard, soft = grade(problem, x), grade(problem, x, TAU)
    return {
        "budgets": budgets, "unregularised": hard.round(5).tolist(), "regularised": soft.round(5).tolist(),
        "x": x[:, -1].round(4).tolist() if x.shape[-1] <= 3 else None, "seconds": round(seconds, 1),
    }  # fmt: skip


def main() -> None:
    """Fill what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", nargs="*", default=list(problems()), choices=list(problems()))
    parser.add_argument("--methods", nargs="*", default=None, choices=list(ALL))
    parser.add_argument("--searches", type=int, default=1, help="at most so many: 2 widens ranges at edges")
    parser.add_argument("--again", action="store_true", help="with --searches 2: rows whose choice is at no edge too")
    parser.add_argument("--until", type=float, default=3e6, help="transitions of the final runs")
    parser.add_argument("--stage", choices=("search", "final", "both", "settings"), default="both")
    options = parser.parse_args()
    if options.stage == "settings":
        write_settings()
        return
    for name in options.problems:
        problem = jax.tree.map(jnp.asarray, problems()[name])
        for label in options.methods or methods_on(name):
            key, method = f"{name} | {label}", ALL[label]
            cell = stored().get(key, {"searches": []})
            ranges = ranges_of(method, name)
            while ranges and options.stage != "final" and len(cell["searches"]) < options.searches:
                if cell["searches"]:
                    if not cell["searches"][0]["edges"] and not options.again:
                        break
                    ranges = widened(ranges, cell["searches"][0]["edges"])
                cell["searches"].append(search(problem, name, label, ranges, len(cell["searches"])))
                cell.pop("final", None)
                store(key, cell)
                last = cell["searches"][-1]
                print(
                    f"{key:55s} {last['score']:.4f} {last['chosen']} edges {last['edges']} {last['seconds']} s",
                    flush=True,
                )
            if options.stage == "search" or (ranges and not cell["searches"]):
                continue
            have = cell.get("final", {}).get("budgets", [0])[-1]
            if max(b for b in BUDGETS if b <= options.until) > have:
                chosen = min(cell["searches"][: options.searches], key=lambda s: s["score"])["chosen"] if ranges else {}
                cell["final"] = final(problem, method, chosen, options.until) | {"setting": chosen}
                store(key, cell)
                values = np.array(cell["final"]["unregularised"])
                print(
                    f"{key:55s} final {np.median(values, 0).round(3).tolist()} {cell['final']['seconds']} s", flush=True
                )
    write_settings()


def write_settings() -> None:
    """`gridworld_settings.json` of the experiment: the chosen settings as options of the library's solvers."""
    optima = json.loads((RESULTS.parent / "gridworld_optima.json").read_text())["optima"]
    names = {"position": "goal_placement", "distribution": "goal_distribution"}
    cells, written = stored(), {}
    for name, registered in names.items():
        methods = {}
        for label in METHODS:
            cell = cells.get(f"{name} | {label}")
            if cell is None or "final" not in cell:
                continue
            problem = jax.tree.map(jnp.asarray, problems()[name])
            solver = made(METHODS[label], problem, cell["final"]["setting"])
            methods[label] = {
                "solver": solver.name,
                "options": plain_options(solver) if cell["final"]["setting"] else {},
            }
        best = {key: optima[name][key] for key in ("x", "value")}
        options = {"rows": 10, "columns": 10}
        written[name] = {"problem": registered, "options": options, "optimum": best, "methods": methods}
    records.write_json(CHOSEN, {"source": "python benchmarks/gridworld_search.py", "problems": written})


def plain_options(node: Any) -> Any:
    """A solver's fields, nested, as plain values."""
    if dataclasses.is_dataclass(node):
        return {f.name: plain_options(getattr(node, f.name)) for f in dataclasses.fields(node)}
    return node


def stored() -> dict[str, Any]:
    """Cells that are there."""
    return json.loads(RESULTS.read_text())["cells"] if RESULTS.exists() else {}


def store(key: str, cell: dict[str, Any]) -> None:
    """Write one cell: each on a line of its own, so that ten thousand numbers stay small."""
    head = {
        "hardware": records.hardware(),
        "protocol": {
            "settings": SETTINGS, "tuning runs": TUNING_RUNS, "runs": RUNS, "first": FIRST,
            "kept": f"1 in {KEPT}", "second": SECOND, "tuning seed": TUNING_SEED, "seed": SEED, "fewer settings": FEWER,
        },
        "provenance": records.provenance("python benchmarks/gridworld_search.py"),
    }  # fmt: skip
    with LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another call may be filling the same file
        lines = [
            f"{json.dumps(k)}: {json.dumps(v, separators=(',', ':'), allow_nan=False)}"
            for k, v in (stored() | {key: cell}).items()
        ]
        text = json.dumps(head, indent=1)[:-2] + ',\n "cells": {\n' + ",\n".join(lines) + "\n }\n}\n"
        records.write_bytes(RESULTS, text.encode())


if __name__ == "__main__":
    main()
