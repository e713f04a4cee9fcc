"""What a transition costs where x moves the kernel, from 100 to a million states: local successors and random ones.

    python benchmarks/moving.py [--kinds queue "queue from one state" grid random "whole table, queue" ...]

`coupled_penalty` as shipped on one problem in three shapes: a queue (next states s - 1, s, s + 1, s + 2), a square grid
(four neighbours) and random successors, four a pair. x tilts every row. A tenth of all steps restart, in a state drawn
from the whole table, or, `from one state`, always in the first. Kernels are drawn row by row (`transitions_at`); `whole
table` leaves that out, so that `transitions(x)` is made at every step. A process a shape compiles a program for every size;
the sizes are then timed in turns, so that a busy machine slows all of them alike. Processor time of the compiled loop,
one run, per transition: the least of eight turns, and the median over turns of its ratio to that at 100 states.

Three yardsticks run in the same turns. `memory` reads and writes the rows of as many tables as an iteration does, at as
many pairs, taken from what the run remembers and as many first states as it draws, and does nothing else: the part of
a transition that the table's size may cost whatever the method. `rest` is a transition less that. `copy_microseconds` is a
copy of the run's state, which a record costs. Results go to `results/moving.json`; a second call runs what is missing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from _stepping import Going

from bilevel_rl import records
from bilevel_rl.finite import FiniteMDP
from bilevel_rl.finite.model import small
from bilevel_rl.finite.problems import RandomMDP
from bilevel_rl.finite.tables import TableProblem
from bilevel_rl.loop import stepping, use_64_bit

use_64_bit()

RESULTS = Path(__file__).parent / "results" / "moving.json"
SIZES = (100, 1_024, 10_000, 102_400, 1_000_000)
LARGEST_WHOLE = 102_400  # a whole table of a million states takes minutes
ONE = " from one state"
KINDS = ("queue", "grid", "queue" + ONE, "grid" + ONE, "random", "whole table, queue")
INTERVAL, TURNS = 4_000, 8  # 128,000 transitions a turn
INTERVAL_WHOLE = 250  # a whole table at every step
COPIES = 20  # of which one is timed: a clock of processor time may tick in milliseconds
NEW, REPLAYED, RESTART = 32, 256, 0.1  # rows of an iteration: new ones, past ones; how many of the new ones restart


class WholeTable(RandomMDP):
    """The same without its rows: every step makes the table."""

    transitions_at = TableProblem.transitions_at


def shaped(kind: str, states: int) -> RandomMDP:
    """The problem of a shape and size; all but the successors of random ones is the same."""
    make = WholeTable if kind == "whole table, queue" else RandomMDP
    problem = make(states, actions=2, branching=4, features=2, moving=True)
    if kind == "random":
        return problem
    side = round(states**0.5)
    offsets = (-1, 1, -side, side) if kind.startswith("grid") else (-1, 0, 1, 2)
    successors = np.clip(np.arange(states)[:, None, None] + np.array(offsets), 0, states - 1)
    start = np.eye(1, states)[0] if kind.endswith(ONE) else None
    mdp = FiniteMDP.from_sparse(
        np.broadcast_to(successors, (states, 2, 4)), np.asarray(problem.mdp.probabilities), start, 0.9
    )
    return eqx.tree_at(lambda p: p.mdp, problem, mdp)


class Touching:
    """The memory that a run's iterations read and write, and nothing else: called, it says what that takes a transition.

    Args:
        problem: whose tables are read.
        run: whose memory of transitions says where, and whose critics have these sizes.
    """

    def __init__(self, problem: RandomMDP, run: Going) -> None:
        rng, mdp = np.random.default_rng(0), problem.mdp
        S, A = mdp.n_states, mdp.n_actions
        past = np.asarray(run.state.replay.table[0])
        s, a, s_next = past[:, rng.integers(0, past.shape[1], (INTERVAL, NEW + REPLAYED))]
        begins = rng.uniform(size=s.shape) < RESTART
        begins[:, NEW:] = False
        s = np.where(begins, rng.choice(S, s.shape, p=np.asarray(mdp.start)), s)
        flat = lambda table: table.reshape(S * A, -1)  # noqa: E731
        by_pair = flat(mdp.probabilities), flat(mdp.successors), flat(problem.base)
        by_state = problem.features, problem.objective.utility
        self._read = by_pair, by_state, jnp.asarray(np.stack([s, a, s_next], 1), jnp.int32)
        self._written = jnp.zeros((S, A)), jnp.zeros((S, A)), jnp.zeros(S)
        self._go = jax.jit(touched, donate_argnums=0, compiler_options=stepping.ONE_THREAD)
        self()

    def __call__(self) -> float:
        """Processor seconds of a transition."""
        began = time.process_time()
        self._written, _ = jax.block_until_ready(self._go(self._written, self._read))
        return (time.process_time() - began) / (INTERVAL * NEW)


def touched(written, read):
    """Rows of Q, D and C before and after every transition, of what is known of its pair and its state; then written."""
    by_pair, by_state, places = read
    A = written[0].shape[1]

    def iteration(carry, place):
        (Q, D, C), total = carry
        s, a, s_next = place
        pair = s * A + a
        for table in by_pair:
            total += jnp.sum(small.rows(table, pair))
        for table in (*by_state, Q, D, C):
            total += jnp.sum(small.rows(table, s))
        for table in (Q, D, C):
            total += jnp.sum(small.rows(table, s_next))
        change = jnp.full(s.shape, 1e-9 * total)
        Q, D = (small.add_rows(table.ravel(), pair, change).reshape(table.shape) for table in (Q, D))
        return ((Q, D, small.add_rows(C, s_next[:NEW], change[:NEW])), 0.0 * total), None

    return jax.lax.scan(iteration, (written, 0.0), places)[0]


def copied(state) -> float:
    """Processor seconds of a copy of a run's state."""
    began = time.process_time()
    for _ in range(COPIES):
        jax.block_until_ready(jax.tree.map(jnp.copy, state))
    return (time.process_time() - began) / COPIES


def measured(kind: str) -> dict[str, dict[str, float]]:
    """By number of states: nanoseconds of a processor a transition, how many times as much as at the fewest, yardsticks."""
    whole = kind.startswith("whole")
    sizes = [S for S in SIZES if not whole or S <= LARGEST_WHOLE]
    problems = [shaped(kind, states) for states in sizes]
    steps = [Going(problem, INTERVAL_WHOLE if whole else INTERVAL) for problem in problems]
    yards = [Touching(problem, step) for problem, step in zip(problems, steps, strict=True)]
    turns = [[(step(), yard(), copied(step.state)) for step, yard in zip(steps, yards, strict=True)] for _ in range(TURNS)]
    spent, memory, copies = np.moveaxis(np.array(turns), 2, 0)
    least, ratios = spent.min(0), np.median(spent / spent[:, :1], 0)
    rest = np.median(spent - memory, 0)
    return {
        str(states): {
            "nanoseconds": round(float(least[i]) * 1e9, 1), "ratio": round(float(ratios[i]), 3),
            "memory": round(float(memory.min(0)[i]) * 1e9, 1), "rest": round(float(rest[i]) * 1e9, 1),
            "copy_microseconds": round(float(copies.min(0)[i]) * 1e6, 1),
        }
        for i, states in enumerate(sizes)
    }  # fmt: skip


def main() -> None:
    """Measure what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=KINDS)
    parser.add_argument("--kind", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.kind:
        print(json.dumps(measured(options.kind)))
        return
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"kinds": {}}
    for kind in options.kinds:
        if kind in results["kinds"]:
            continue
        said = subprocess.run([sys.executable, __file__, "--kind", kind], capture_output=True, text=True, check=True).stdout
        results["kinds"][kind] = json.loads(said.splitlines()[-1])
        results["hardware"] = records.hardware()
        results["provenance"] = records.provenance("python benchmarks/moving.py")
        records.write_json(RESULTS, results)
        print(kind, results["kinds"][kind], flush=True)


if __name__ == "__main__":
    main()
