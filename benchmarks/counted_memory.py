"""Memory of `certainty_equivalence` over S: what a run keeps, and what one compiled iteration needs at once.

    python benchmarks/counted_memory.py

The problem is a corridor of S states (next states s - 1, s, s + 1, two actions), `memory` 65,536 rows, 2,048 transitions an
iteration. Sizes are XLA's own account of the compiled program. Results go to `results/counted_memory.json` after every
size; a second call goes on. A minute.
"""

from __future__ import annotations

import json
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from bilevel_rl import records
from bilevel_rl.finite import FiniteMDP
from bilevel_rl.finite.problems import RandomMDP
from bilevel_rl.finite.solvers import CertaintyEquivalence
from bilevel_rl.loop import use_64_bit

use_64_bit()

RESULTS = Path(__file__).parent / "results" / "counted_memory.json"
SIZES = (2_000, 20_000, 200_000, 1_000_000)
SOLVER = CertaintyEquivalence(memory=65_536, descents=2, tau=0.05)


def measured(states: int) -> dict[str, str]:
    """MiB of the state, of its rows of counts and of one iteration's temporaries."""
    problem = RandomMDP(states, 2, 3, features=2)
    to = np.clip(np.arange(states)[:, None, None] + np.array([-1, 0, 1]), 0, states - 1)
    mdp = FiniteMDP.from_sparse(np.broadcast_to(to, (states, 2, 3)), np.full((states, 2, 3), 1 / 3), None, 0.9)
    problem = jax.tree.map(jnp.asarray, eqx.tree_at(lambda p: p.mdp, problem, mdp))
    state = jax.eval_shape(lambda key: SOLVER.init(problem, problem.x0, key), jax.random.key(0))

    def size(tree) -> float:
        return sum(v.size * v.dtype.itemsize for v in jax.tree.leaves(tree)) / 2**20

    draws = jax.ShapeDtypeStruct((SOLVER.draws(problem),), float)
    dynamic, static = eqx.partition(problem, eqx.is_array)

    def step(dynamic, state, u):
        return SOLVER.step(eqx.combine(dynamic, static), state, jnp.array(0), u)

    made = jax.jit(step).lower(dynamic, state, draws).compile().memory_analysis()
    return {"states": f"{states:,}", "state, MiB": f"{size(state):.1f}", "of it counts": f"{size(state.counts):.1f}",
            "temporaries, MiB": f"{made.temp_size_in_bytes / 2**20:.1f}",
            "dense S x A x S would be, MiB": f"{states**2 * 2 * 8 / 2**20:,.0f}"}  # fmt: skip


def main() -> None:
    """Measure what is missing, write, print."""
    facts = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": []}
    for states in SIZES[len(facts["rows"]) :]:
        row = measured(states)
        facts = {"heads": list(row), "rows": [*facts["rows"], list(row.values())], "hardware": records.hardware(),
                 "provenance": records.provenance("python benchmarks/counted_memory.py")}  # fmt: skip
        records.write_json(RESULTS, facts)
        print(row, flush=True)


if __name__ == "__main__":
    main()
