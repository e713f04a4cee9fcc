"""Speed and memory of this checkout against another one of this repository, pair by pair.

    git worktree add ../before 857dd8f
    python benchmarks/paired.py ../before [--pairs 9] [--only jax|torch] [--calls PART] [--out FILE]

A process for each checkout imports that checkout's own package and its own `benchmarks/speed.py` and `llm_speed.py`,
compiles, and then waits. The two are asked in turns, the first of a pair by turns too, and answer with their processor
time: the machine may be busy, since neighbours slow both of a pair alike. A figure is the median over pairs of this
checkout's time over the other's, with the 95 % interval of a median by order statistics; memory is the peak of each process.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from bilevel_rl import records

ROOT = Path(__file__).parents[1]


def of_tables() -> dict[str, Callable[[], Any]]:
    """Calls on tables: the rows of `speed.py`, shorter."""
    import speed

    from bilevel_rl.finite.problems import GoalPlacement
    from bilevel_rl.finite.solvers import CoupledPenalty, PenaltyActorCritic

    it = GoalPlacement(rows=10, columns=10)
    # the defaults of the recommended solver changed, not its cost: both explore alike here, with their critics' levels in
    fields = {name for name in ("explore", "centre") if hasattr(CoupledPenalty(), name)}
    coupled = CoupledPenalty(**{name: {"explore": "extra", "centre": False}[name] for name in fields})
    rows = {
        "one run, one chain": (PenaltyActorCritic(), 1, 20_000),
        "one run, 64 chains": (PenaltyActorCritic(chains=64), 1, 3000),
        "128 runs": (PenaltyActorCritic(), 128, 1000),
        "recommended solver, one run": (coupled, 1, 3000),
        "recommended solver, 30 runs": (coupled, 30, 300),
    }
    return {
        name: lambda one=one, runs=runs, count=count: speed.time_engine(it, one, runs, count, 1)
        for name, (one, runs, count) in rows.items()
    }


def of_texts() -> dict[str, Callable[[], Any]]:
    """Calls on language models: an iteration of three methods, as in `llm_speed.py`."""
    import llm_speed
    import torch

    torch.set_num_threads(1)
    # paired's default draws changed (a race of the whole vocabulary): as each ships it, and with the inverse law in both,
    # which is all that there was
    fields = {f.name for f in dataclasses.fields(llm_speed.Config)}
    same = {"common_numbers": "inverse"} if "common_numbers" in fields else {}
    rows = {
        "shared": {"estimator": "shared"}, "paired": {"estimator": "paired"},
        "paired, inverse law": {"estimator": "paired", **same}, "partial_sgd": {"method": "partial_sgd"},
    }  # fmt: skip
    return {name: llm_speed.our_step(**values) for name, values in rows.items()}


HEADS = ["Call", "Processor time, this over that [95 %]", "This, s", "That, s", "Pairs"]
NOTE = (
    "This checkout against an earlier one, pair by pair, in processor time of a single thread: medians over pairs, with the "
    "interval of a median by order statistics."
)
KINDS = {"jax": of_tables, "torch": of_texts}


def serve(kind: str) -> None:
    """The life of a process: every call once, then one a line of input, each answered with its processor time."""
    sys.path.remove(str(Path(__file__).parent))  # the benchmarks are those of PYTHONPATH, not this script's neighbours
    calls = KINDS[kind]()
    for call in calls.values():
        call()
    print(json.dumps(list(calls)), flush=True)
    for line in sys.stdin:
        began = time.process_time()
        calls[line.strip()]()
        spent = time.process_time() - began
        print(json.dumps([spent, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]), flush=True)


class Checkout:
    """The process of one checkout."""

    def __init__(self, folder: Path, kind: str) -> None:
        paths = os.pathsep.join(str(folder / name) for name in ("src", "benchmarks"))
        single = {"OMP_NUM_THREADS": "1", "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"}
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", __file__, "--serve", kind], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, env={**os.environ, "PYTHONPATH": paths, **single}, cwd=folder,
        )  # fmt: skip
        self.names = self.heard(list)

    def heard(self, kind: type) -> Any:
        """The next answer; lines that a benchmark prints by itself are passed over."""
        for line in self.process.stdout or ():
            if line.startswith("["):
                return kind(json.loads(line))
        raise RuntimeError(f"the process of {self.process.args} ended")

    def ask(self, name: str) -> tuple[float, float]:
        """Processor seconds of one call, and the process's peak in MiB so far."""
        assert self.process.stdin is not None
        self.process.stdin.write(name + "\n")
        self.process.stdin.flush()
        return self.heard(tuple)

    def end(self) -> None:
        """Let the process go."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def median(ratios: np.ndarray) -> tuple[float, float, float]:
    """The median and its 95 % interval by order statistics."""
    n = len(ratios)
    rank = int(stats.binom.ppf(0.025, n, 0.5))
    ordered = np.sort(ratios)
    return float(np.median(ordered)), float(ordered[max(rank - 1, 0)]), float(ordered[min(n - rank, n - 1)])


def compared(here: Path, there: Path, kind: str, pairs: int, part: str = "") -> dict[str, Any]:
    """Ratios of every call, this checkout over the other."""
    both = [Checkout(here, kind), Checkout(there, kind)]
    names = [name for name in both[0].names if part in name]
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    peaks = [0.0, 0.0]
    for pair in range(pairs):
        for name in times:
            found = [0.0, 0.0]
            for i in (0, 1) if pair % 2 == 0 else (1, 0):
                found[i], peaks[i] = both[i].ask(name)
            times[name].append((found[0], found[1]))
    for one in both:
        one.end()
    rows = {}
    for name, values in times.items():
        middle, low, high = median(np.array([a / b for a, b in values]))
        rows[name] = {"ratio": middle, "low": low, "high": high, "seconds": values}
        print(f"{name:32s} {middle:.3f} [{low:.3f}, {high:.3f}]", flush=True)
    print(f"peak of the {kind} process: {peaks[0]:.0f} MiB, before {peaks[1]:.0f} MiB", flush=True)
    return {"rows": rows, "peak_mib": peaks[0], "peak_mib_before": peaks[1]}


def rows_of(found: dict[str, Any]) -> list[list[str]]:
    """A row a call: the ratio with its interval, and the median seconds of both checkouts."""
    rows = []
    for kind in found.values():
        for name, row in kind["rows"].items():
            here, before = np.median(np.array(row["seconds"]), axis=0)
            said = f"{row['ratio']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
            rows.append([name, said, f"{here:.2f}", f"{before:.2f}", str(len(row["seconds"]))])
    return rows


def main() -> None:
    """Compare, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", nargs="?", type=Path, help="the other checkout")
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--only", default="", choices=["", *KINDS])
    parser.add_argument("--calls", default="", help="only calls with this in their name")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--serve", choices=[*KINDS], help=argparse.SUPPRESS)
    s = parser.parse_args()
    if s.serve:
        return serve(s.serve)
    if s.before is None:
        parser.error("the other checkout is needed")
    kinds = [s.only] if s.only else list(KINDS)
    found = {kind: compared(ROOT, s.before.resolve(), kind, s.pairs, s.calls) for kind in kinds}
    if s.out is not None:
        asked = " ".join(sys.argv[1:]).replace(str(s.before), "../before")
        facts = {"note": NOTE, "heads": HEADS, "rows": rows_of(found), "hardware": records.hardware(),
                 "command": f"python benchmarks/paired.py {asked}"}  # fmt: skip
        s.out.write_text(json.dumps(found | facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
