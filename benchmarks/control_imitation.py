"""Inverse RL: does a reward recovered from demonstrations make a fresh follower as good as the expert?

    python benchmarks/control_imitation.py [--seeds 10] [--cells 99]

Maximum-entropy inverse RL as two levels, `partial_sgd` (its derivative is exact there), 64 demonstrations. Then a follower
that knows nothing learns under the recovered reward and is scored by the environment's own, as is the expert; 0 % is a
policy of random actions. It learns x/c at the temperature tau/c, where c is the mean of |x|: the same problem in units of
its own size, since under rewards thrice as large the arm's follower does not learn in time. A second call skips what is
there.
"""

from __future__ import annotations

import time

import _control as shared
import jax
import jax.numpy as jnp
import numpy as np

from bilevel_rl.control import evaluate
from bilevel_rl.control.followers import Usual
from bilevel_rl.control.leader import Leader
from bilevel_rl.control.problems import ArmImitation, PendulumImitation, experts
from bilevel_rl.control.solvers import PartialSGD
from bilevel_rl.loop import solve
from bilevel_rl.schedules import PowerDecay

ITERATIONS, CHAINS, TAU = 5000, 16, 0.05
SETTING = Leader(zeta=PowerDecay(1.0, 0.5))
FOLLOWER = Usual()
HEADS = ["Environment", "Random", "Expert", "Fresh follower, median [worst]", "Share of the expert", "Seeds at 90 %"]


def own_return(problem) -> type:
    """The same problem, whose utility is the environment's own reward: for scores alone."""
    return type("Scored", (type(problem),), {"utility": lambda self, x, t: t.reward, "__module__": __name__})


def main() -> None:
    """Fill in what is missing, then write rows."""
    ask = shared.parser(__doc__).parse_args()
    facts = shared.read("control_imitation")
    kinds = {kind.name: kind for kind in (PendulumImitation, ArmImitation)}
    for name in shared.missing(facts, kinds, ask.cells):
        began, problem = time.process_time(), kinds[name]()
        trace = solve(problem, PartialSGD(leader=SETTING, follower=FOLLOWER, tau=TAU), iterations=ITERATIONS, runs=ask.seeds,
                      seed=1000, record_every=ITERATIONS)  # fmt: skip
        x = trace.x[:, -1]
        size = float(np.linalg.norm(x, axis=1).mean())
        found = evaluate.fresh(
            own_return(problem)(), x / size, follower=FOLLOWER, transitions=ITERATIONS * CHAINS, seed=2000, tau=TAU / size
        )
        shown = problem.demonstrations(jax.random.key(5)).reward
        e, steps = problem.environment, problem.environment.horizon
        idle = experts.paths(e, lambda obs, m=e.action.size: jnp.zeros(m), 64, steps, 1.0, jax.random.key(6)).reward
        facts["cells"][name] = {
            "x": x.tolist(), "size": size, "returns": found.utility_greedy.tolist(), "expert": float(shown.sum(1).mean()),
            "random": float(idle.sum(1).mean()), "transitions": ITERATIONS * CHAINS,
            "cpu_seconds": round(time.process_time() - began, 1),
        }  # fmt: skip
        said = {k: v for k, v in facts["cells"][name].items() if k != "x"}
        print(name, said, np.round(x.mean(0), 2), flush=True)
        write(facts, ask.seeds)


def write(facts: dict, seeds: int) -> None:
    """Rows, provenance, the file."""
    rows = []
    for name, c in facts["cells"].items():
        returns, low, high = np.array(c["returns"]), c["random"], c["expert"]
        share = (returns - low) / (high - low)
        rows.append([f"`{name}`", f"{low:.0f}", f"{high:.0f}", f"{np.median(returns):.0f} [{returns.min():.0f}]",
                     f"{100 * np.median(share):.0f} %", f"{int(np.sum(share >= 0.9))} of {len(share)}"])  # fmt: skip
    setting = shared.settings(SETTING, seeds, iterations=ITERATIONS, chains=CHAINS, tau=TAU)
    note = (
        f"Rewards recovered from 64 demonstrations, {seeds} seeds; returns by the environment's own reward of a *fresh* "
        "follower that learnt under the recovered one, in units of its size, greedy; 0 % is random actions, 100 % the "
        "hand-written expert."
    )
    shared.write("control_imitation", facts, note, HEADS, rows, setting)


if __name__ == "__main__":
    main()
