"""The problems of other work: do they give the figures that were given, and what do their exact oracles cost?

    python benchmarks/peers.py [--quick]

Each definition's figure beside ours; milliseconds of one compiled value and gradient of the hyper-objective, 64 bit, the
least of thirty; and the peak resident memory of a process that does so at up to 10^5 states. The bound for four rooms is
4 ms on a quiet core. Writes `results/peers.json`.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from rich.console import Console
from rich.table import Table

from bilevel_rl import records
from bilevel_rl.finite import oracles
from bilevel_rl.finite.problems import (
    FourRooms,
    LeaderToy,
    LinearLeader,
    OneGoalFourRooms,
    RandomMDP,
    Synthetic,
    TaxDesign,
    ThermalControl,
)
from bilevel_rl.loop import use_64_bit

use_64_bit()

RESULTS = Path(__file__).parent / "results" / "peers.json"
SIZES = (10, 1000, 10_000, 100_000)
KINDS = (FourRooms, OneGoalFourRooms, LeaderToy, Synthetic, ThermalControl, LinearLeader, TaxDesign)


def graded(problem) -> Callable:
    """x -> value and gradient of the hyper-objective, compiled."""
    tau, it = problem.temperature(), jax.tree.map(jnp.asarray, problem)
    call = jax.jit(lambda it, x: jax.value_and_grad(lambda x: oracles.hyper_objective(it, x, tau))(x))
    return lambda x: call(it, jnp.asarray(x, float))


def at(problem, x) -> float:
    """The study's value at x, whose sign is turned."""
    return -float(graded(problem)(x)[0])


def climbed(problem, x) -> float:
    """Where exact quasi-Newton ascent from x ends."""
    value = graded(problem)
    return -scipy.optimize.minimize(
        lambda x: tuple(np.asarray(v, float) for v in value(x)), np.asarray(x), jac=True, method="L-BFGS-B",
        options={"maxiter": 400},
    ).fun  # fmt: skip


def tax() -> float:
    """Both kinds of household at the temperature .1, rates .3."""
    it = TaxDesign()
    return -float(jnp.mean(jnp.stack([it.of_kind(it.x0, 0.1, taste) for taste in it.tastes])))


def from_doorway(price: float, logit: float) -> float:
    """Four rooms from most of the budget on the cell before the northern doorway."""
    it = FourRooms(price=price)
    return climbed(it, it.start_at((3, 5), logit=logit))


def logit(p: float) -> list[float]:
    return [float(np.log(p / (1 - p)))]


# what is given -> (the figure as it is given, what gives ours)
GIVEN: dict[str, tuple[str, Callable[[], float]]] = {
    "four rooms, tau .001, price 1: reachable": ("1.168", lambda: from_doorway(1.0, 2.0)),
    "four rooms, tau .001, price 3: reachable": ("0.940", lambda: from_doorway(3.0, 4.0)),
    "four rooms, tau .001, price 5: reachable": ("0.743", lambda: from_doorway(5.0, 2.0)),
    "tax design at (.3, .3)": ("32.56", tax),
    "thermal control, .5 everywhere": ("-261.96", lambda: at(ThermalControl(), [0.5] * 8)),
    "linear leader at (-9.683, -10.25)": ("3.40", lambda: at(LinearLeader(), [-9.683, -10.25])),
    "leader toy, R = 1, at .158": ("27.26", lambda: at(LeaderToy(), logit(0.158))),
    "leader toy, R = 2, undiscounted, at .491": (
        "59.48", lambda: at(LeaderToy(gain=2.0, leader_discount=1.0), logit(0.491))),
    "synthetic at 0": ("1.0", lambda: -at(Synthetic(), np.zeros(100))),
}  # fmt: skip


def definitions() -> dict[str, dict]:
    """Each figure that is given, ours, and whether it is the same to the digits given (or better, where one climbs)."""
    found = {}
    for label, (figure, ours) in GIVEN.items():
        value, digits = ours(), len(figure.partition(".")[2])
        agrees = round(value, digits) == float(figure) or ("reachable" in label and value >= float(figure))
        found[label] = {"given": figure, "ours": value, "agrees": agrees}
    return found


def milliseconds(problem, repeats: int = 30) -> float:
    """The least time of one value and gradient, after compilation."""
    value = graded(problem)
    jax.block_until_ready(value(problem.x0))
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(value(problem.x0))
        times.append(time.perf_counter() - began)
    return 1e3 * min(times)


def memory(states: int) -> dict:
    """The same of a random MDP in a process of its own, whose peak starts at what its parent had: run it first."""
    called = subprocess.run(
        [sys.executable, __file__, "--states", str(states)], check=True, capture_output=True, text=True
    )
    return json.loads(called.stdout)


def main() -> None:
    """Measure, print, and write unless `--quick`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="up to 1,000 states, written nowhere")
    parser.add_argument(
        "--states", type=int, help="one random MDP: its cost and this process's peak, as JSON"
    )
    options = parser.parse_args()
    if options.states:
        cost = milliseconds(RandomMDP(states=options.states), repeats=1)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(json.dumps({"states": options.states, "milliseconds": cost, "peak_gib": peak}))
        return
    out: dict = {"random MDP": [memory(states) for states in (SIZES[:2] if options.quick else SIZES)]}
    out["milliseconds"] = {kind.name: milliseconds(kind(), 5 if kind is TaxDesign else 30) for kind in KINDS}
    out["definitions"] = definitions()
    table = Table("problem", "given", "ours", "the same")
    for label, row in out["definitions"].items():
        table.add_row(label, row["given"], f"{row['ours']:.5g}", "yes" if row["agrees"] else "no")
    cost = Table("problem", "ms a value and gradient", "peak GiB")
    for name, each in out["milliseconds"].items():
        cost.add_row(name, f"{each:.2f}", "")
    for row in out["random MDP"]:
        cost.add_row(
            f"random_mdp, {row['states']:,} states", f"{row['milliseconds']:.1f}", f"{row['peak_gib']:.2f}"
        )
    Console(width=120).print(table, cost)
    if not options.quick:
        out["hardware"], out["provenance"] = (
            records.hardware(),
            records.provenance("python benchmarks/peers.py"),
        )
        records.write_json(RESULTS, out)


if __name__ == "__main__":
    main()
