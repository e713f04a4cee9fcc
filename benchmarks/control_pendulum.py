"""A follower that plans too short and a leader who shapes its reward: Pendulum, judged by fresh followers' true return.

    python benchmarks/control_pendulum.py [--seeds 10] [--gammas 0.8 0.6] [--cells 99]

x weighs four features that are added to Pendulum's own reward, from 0 on. The leader gets ITERATIONS iterations of 16
transitions, both levels in one loop; then a follower that knows nothing learns under the final x for as many transitions and
is scored by Pendulum's own reward, greedily, 16 episodes of 200 steps. Random, hand-chosen and potential-based shaping are
scored the same way. `as planned` takes the step that `plan` proposes from a pilot with x at rest, and its run is as much
shorter. Seeds are fresh: settings were chosen with seed 0, reports use 1000. A second call skips what is there.
"""

from __future__ import annotations

import time

import _control as shared
import jax
import jax.numpy as jnp
import numpy as np

from bilevel_rl.control import evaluate, planning
from bilevel_rl.control.followers import SAC, Usual
from bilevel_rl.control.leader import Leader
from bilevel_rl.control.problems import PendulumShaping
from bilevel_rl.control.problems.pendulum_shaping import SCALE
from bilevel_rl.control.solvers import LIRPG, SPSA, Covariance
from bilevel_rl.loop import solve
from bilevel_rl.schedules import PowerDecay

ITERATIONS, CHAINS, INNER, FAR = 4000, 16, 100, 0.98
TAU = 0.05
SETTING = Leader(zeta=PowerDecay(3.0, 0.5))
FASTER = Leader(zeta=PowerDecay(10.0, 0.5))  # one lead at .6, where x was on its way still; tried with seed 5, twice
PILOT = 1000  # iterations, of which `plan` uses 896
HAND = (4.0, 0.0, 0.0, 0.0)
FRESH = Usual(sac=SAC(critics=1, unit=1.0))  # as it was measured; SAC chooses others
HEADS = ["Follower's gamma", "Reward", "True return, median", "Worst seed", "Best seed", "Transitions: x + fresh"]


class Potential(PendulumShaping):
    """The follower's own reward and a potential, gamma Phi(s') - Phi(s) with Phi = 8 cos(angle): no x."""

    name = "pendulum_potential"

    def features(self, t):
        return jnp.append(super().features(t)[:1], SCALE * (self.gamma * t.next_obs[0] - t.obs[0]))

    def reward(self, x, features):
        return jnp.sum(features) / SCALE


def learnt(gamma: float, seeds: int, solver: str) -> np.ndarray:
    """[seeds, d] where the leader ended, at equal transitions."""
    if solver == "planned":
        found = planning.plan(PendulumShaping(gamma=gamma), Covariance(tau=TAU), iterations=ITERATIONS, pilot=PILOT, seed=5)
        made = Covariance(leader=Leader(zeta=PowerDecay(found.zeta, 0.5)), tau=TAU)
        iterations = ITERATIONS - found.pilot // CHAINS
    elif solver != "spsa":
        kind, leader = LIRPG if solver == "lirpg" else Covariance, FASTER if solver == "faster" else SETTING
        made, iterations = kind(leader=leader, tau=TAU), ITERATIONS
    else:
        made, iterations = SPSA(tau=TAU, inner=INNER, zeta=PowerDecay(2.0, 0.602), radius=PowerDecay(1.0, 0.101)), None
        iterations = ITERATIONS // (2 * INNER)
    trace = solve(PendulumShaping(gamma=gamma), made, iterations=iterations, runs=seeds, seed=1000, record_every=iterations)
    assert int(trace["samples"].max()) <= ITERATIONS * CHAINS
    return trace.x[:, -1]


def scored(problem: PendulumShaping, x: np.ndarray) -> list[float]:
    """True return of a fresh follower for each row of x."""
    found = evaluate.fresh(problem, x, follower=FRESH, transitions=ITERATIONS * CHAINS, seed=2000, tau=TAU)
    return (SCALE * found.utility_greedy).tolist()


def cells(gamma: float, seeds: int) -> dict:
    """What is measured at one gamma: label -> a function that returns x [n, d] or None, its problem, and transitions."""
    problem, zero = PendulumShaping(gamma=gamma), np.zeros((seeds, 4))
    random = np.asarray(jax.random.uniform(jax.random.key(3), (seeds, 4), float, -4.0, 4.0))
    own = ITERATIONS * CHAINS
    return {
        "its own (no shaping)": (problem, lambda: zero, 0),
        "bi-level, covariance": (problem, lambda: learnt(gamma, seeds, "covariance"), own),
        "hand-chosen, (4, 0, 0, 0)": (problem, lambda: zero + np.array(HAND), 0),
        "random x in [-4, 4]^4": (problem, lambda: random, 0),
        "bi-level, SPSA": (problem, lambda: learnt(gamma, seeds, "spsa"), own),
        "bi-level, covariance, as planned": (problem, lambda: learnt(gamma, seeds, "planned"), own),
        "bi-level, covariance, faster": (problem, lambda: learnt(gamma, seeds, "faster"), own),
        "LIRPG": (problem, lambda: learnt(gamma, seeds, "lirpg"), own),
        "potential, 8 cos": (Potential(gamma=gamma), lambda: zero, 0),
    }


def main() -> None:
    """Fill in what is missing, then write rows."""
    parser = shared.parser(__doc__)
    parser.add_argument("--gammas", type=float, nargs="+", default=[0.8, 0.6])
    ask = parser.parse_args()
    facts = shared.read("control_pendulum")
    work = {(gamma, label): cell for gamma in ask.gammas for label, cell in cells(gamma, ask.seeds).items()}
    work[FAR, "its own, a follower that plans far"] = (PendulumShaping(gamma=FAR), lambda: np.zeros((ask.seeds, 4)), 0)
    labels = [label for _, label in work]
    work = dict(sorted(work.items(), key=lambda cell: labels.index(cell[0][1])))  # what matters most comes first
    named = {shared.named(f"{gamma:g}", label): cell for (gamma, label), cell in work.items()}
    chosen = [(key, named[key]) for key in shared.missing(facts, named, ask.cells)]
    for kind, gamma in dict.fromkeys((type(p), p.gamma) for _, (p, _, _) in chosen):  # one compiled program for their rows
        group = [(key, *cell) for key, cell in chosen if (type(cell[0]), cell[0].gamma) == (kind, gamma)]
        began, xs = time.process_time(), [points() for _, _, points, _ in group]
        returns = np.split(np.array(scored(group[0][1], np.concatenate(xs))), len(group))
        for (key, _, _, before), x, found in zip(group, xs, returns, strict=True):
            facts["cells"][key] = {
                "returns": found.tolist(), "x": np.round(x, 3).tolist(), "transitions_before": before,
                "transitions_fresh": ITERATIONS * CHAINS,
            }  # fmt: skip
            print(key, round(float(np.median(found)), 1), flush=True)
        print(round(time.process_time() - began, 1), "s", flush=True)
        write(facts, ask.seeds)
    write(facts, ask.seeds)


def write(facts: dict, seeds: int) -> None:
    """Rows, provenance, the file."""
    rows = []
    for gamma, label, cell in shared.filled(facts):
        found = cell["returns"]
        rows.append([gamma, label, f"{np.median(found):.0f}", f"{min(found):.0f}", f"{max(found):.0f}",
                     f"{cell['transitions_before']:,} + {cell['transitions_fresh']:,}"])  # fmt: skip
    setting = shared.settings(SETTING, seeds, iterations=ITERATIONS, chains=CHAINS, tau=TAU)
    note = (
        "A follower that plans too short and a leader who adds four weighed features to its reward, from 0 on; Pendulum's "
        f"own return of a *fresh* follower under the final x, greedy, mean of 16 episodes of 200 steps; {seeds} seeds. Last "
        "column: transitions in which x was found, and from which the fresh follower learnt. Rows that the script knows "
        "and the table lacks have not been measured."
    )
    shared.write("control_pendulum", facts, note, HEADS, rows, setting)


if __name__ == "__main__":
    main()
