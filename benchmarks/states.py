"""Memory and cost of the finite engine from ten thousand to ten million states.

    python benchmarks/states.py [--largest 1000000]     two minutes of a processor; 8 GiB at ten million states

The problem is a corridor whose successors are a rule (s - 1, s, s + 1; two actions), read block by block
(`FiniteMDP.from_blocks`); the reward is a function of the state, x has two numbers. No table of S x A x S is made, and
`coupled_penalty` makes none of rewards. In a process a size: seconds to make the MDP, what it and the state of
`coupled_penalty` hold, the peak of the process. In one process for all sizes, which take turns of 5,000 iterations: the
processor's nanoseconds of a transition, one run (the least of six turns), and how many times as much as at the fewest
states (the median). For `certainty_equivalence` (2,048 transitions an iteration, room for 65,536 of them) XLA's own
account of one compiled iteration. Results go to `results/states.json`; a second call runs what is missing.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from _stepping import Going

from bilevel_rl import records
from bilevel_rl.finite import BilevelProblem, FiniteMDP
from bilevel_rl.finite.objectives.visitation_utility import VisitationUtility
from bilevel_rl.finite.solvers import CertaintyEquivalence
from bilevel_rl.loop import use_64_bit

use_64_bit()

RESULTS = Path(__file__).parent / "results" / "states.json"
SIZES = (10_000, 100_000, 1_000_000, 10_000_000)
INTERVAL, TURNS = 5_000, 6
COUNTING = CertaintyEquivalence(memory=65_536, descents=2, tau=0.05)


class Corridor(BilevelProblem):
    """S states in a row; x pays for two waves along it."""

    def __init__(self, states: int):
        def rows(s):
            to = np.clip(s[:, None, None] + np.array([-1, 0, 1]), 0, states - 1)
            p = np.broadcast_to(np.array([[0.6, 0.3, 0.1], [0.1, 0.3, 0.6]]), (len(s), 2, 3))
            return np.broadcast_to(to, p.shape), p

        self.mdp = FiniteMDP.from_blocks(rows, states, discount=0.9)
        self.objective = VisitationUtility(np.sin(0.1 * np.arange(states)), weight=0.05)
        self.x0 = jnp.array([0.5, 0.5])

    def reward(self, x):
        return self.reward_at(x, jnp.arange(self.mdp.n_states)[:, None], jnp.zeros(2, int))

    def reward_at(self, x, s, a):
        return x[0] * jnp.cos(s * 0.05) + x[1] * jnp.sin(s * 0.02)

    def box(self):
        return -jnp.ones(2), jnp.ones(2)


def mib(tree: Any) -> float:
    """What the arrays of a tree hold."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)]
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves) / 2**20


def peak() -> float:
    """MiB that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def sampled(states: int) -> dict[str, float]:
    """What `coupled_penalty` holds."""
    idle, began = peak(), time.process_time()
    Corridor(states)
    making, making_peak = time.process_time() - began, peak() - idle
    problem = Corridor(states)
    run = Going(problem, INTERVAL)
    return {
        "mdp_mib": mib(problem.mdp), "seconds_to_make": making, "peak_to_make_mib": making_peak,
        "state_mib": mib(run.state), "peak_mib": peak(),
    }  # fmt: skip


def timed(largest: int) -> dict[str, list[float]]:
    """Nanoseconds of a transition and ratio to that at the fewest states, by size; sizes take turns."""
    sizes = [size for size in SIZES if size <= largest]
    steps = [Going(Corridor(states), INTERVAL) for states in sizes]
    spent = np.array([[step() for step in steps] for _ in range(TURNS)])
    least, ratios = spent.min(0) * 1e9, np.median(spent / spent[:, :1], 0)
    return {str(size): [float(t), float(r)] for size, t, r in zip(sizes, least, ratios, strict=True)}


def counted(states: int) -> dict[str, float]:
    """`certainty_equivalence`: what a run keeps, and the temporaries of an iteration."""
    problem = jax.tree.map(jnp.asarray, Corridor(states))
    state = jax.eval_shape(lambda key: COUNTING.init(problem, problem.x0, key), jax.random.key(0))
    draws = jax.ShapeDtypeStruct((COUNTING.draws(problem),), float)
    dynamic, static = eqx.partition(problem, eqx.is_array)

    def step(dynamic, state, u):
        return COUNTING.step(eqx.combine(dynamic, static), state, jnp.array(0), u)

    made = jax.jit(step).lower(dynamic, state, draws).compile().memory_analysis()
    return {"counted_state_mib": mib(state), "counted_temporaries_mib": made.temp_size_in_bytes / 2**20}


def main() -> None:
    """Measure what is missing, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--largest", type=int, default=SIZES[-1])
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        kind, states = options.one
        print(json.dumps({"sampled": sampled, "counted": counted, "timed": timed}[kind](int(states))))
        return
    facts = records.read_json(RESULTS) if RESULTS.exists() else {"sizes": {}}
    sizes = [size for size in SIZES if size <= options.largest]
    for states in sizes:
        row = facts["sizes"].setdefault(str(states), {})
        for kind, one in (("sampled", "peak_mib"), ("counted", "counted_state_mib")):
            if one not in row:
                row |= asked(kind, states)
                write(facts)
                print(states, row, flush=True)
    if not all("nanoseconds" in facts["sizes"][str(states)] for states in sizes):
        for size, (nanoseconds, ratio) in asked("timed", sizes[-1]).items():
            facts["sizes"][size] |= {"nanoseconds": nanoseconds, "ratio": ratio}
        write(facts)
        print({size: row["nanoseconds"] for size, row in facts["sizes"].items()})


def asked(kind: str, states: int) -> dict[str, Any]:
    """What a process of its own has measured."""
    words = [sys.executable, __file__, "--one", kind, str(states)]
    return json.loads(subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1])


def write(facts: dict[str, Any]) -> None:
    """Figures to two decimals, and their slopes."""
    for row in facts["sizes"].values():
        row |= {key: round(value, 2) for key, value in row.items()}
    facts |= {"slopes": slopes(facts["sizes"]), "hardware": records.hardware(),
              "provenance": records.provenance("python benchmarks/states.py")}  # fmt: skip
    records.write_json(RESULTS, facts)


def slopes(sizes: dict[str, dict[str, float]]) -> dict[str, float]:
    """Of the logarithm of each figure against the logarithm of S, between the two largest sizes."""
    if len(sizes) < 2:
        return {}
    (few, least), (many, most) = sorted(((int(size), row) for size, row in sizes.items()), key=lambda pair: pair[0])[-2:]
    across = np.log(many / few)
    both = [key for key in least.keys() & most.keys() if least[key] > 0 < most[key]]
    return {key: round(float(np.log(most[key] / least[key]) / across), 3) for key in sorted(both)}


if __name__ == "__main__":
    main()
