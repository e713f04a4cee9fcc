"""Followers from the literature beside plain SAC at equal transitions, and x as a setting of the learner.

    python benchmarks/control_systems.py [--cells 99]

* `curve NAME`: Pendulum at a discount of .98, 16 chains, 4,000 iterations, one update each: what a step of sampled actions
  is paid on average in every tenth of the run, and at the end Pendulum's return by greedy actions. 5 seeds.
* `frequency NAME`: of those followers, returns when they look once in 1, 2, 4, 8 steps, and the score, 0 for a return of
  -1,600 and 1 for -150. A follower that does not plan repeats its action.
* `imitation NAME`: AILBoost, and DAC (eta = 0), on Pendulum's 4 demonstrations, scored by Pendulum's own reward.
* `elites NAME`: DCG-MAP-Elites and MAP-Elites on the arm: coverage and QD score at equal transitions, 3 seeds.
* `x NAME`: the problems whose x is a setting, SPSA or the covariance, 5 seeds.

Settings are the defaults; none was searched. A second call skips what is there.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

import _control as shared
import equinox as eqx
import jax
import numpy as np

from bilevel_rl.control import evaluate
from bilevel_rl.control.elites import BehaviourTask, MapElites
from bilevel_rl.control.environments import Arm, Pendulum
from bilevel_rl.control.followers import PMOE, SAC, SRL, STAC, AILBoost, Follower, Symphony, Usual
from bilevel_rl.control.frequency import frequency_averaged_score, returns_by_frequency
from bilevel_rl.control.leader import Leader
from bilevel_rl.control.problems import (
    ArchiveTarget,
    DecisionFrequency,
    PendulumImitation,
    PendulumShaping,
    PessimismChoice,
    TemperatureChoice,
)
from bilevel_rl.control.problems.pendulum_shaping import SCALE
from bilevel_rl.control.solvers import SPSA, Covariance, PartialSGD
from bilevel_rl.loop import precision, solve
from bilevel_rl.schedules import PowerDecay

NAME = "control_systems"
ITERATIONS, CHAINS, SEEDS, TAU, LENGTHS = 4000, 16, 5, 0.05, (1, 2, 4, 8)
LOW, HIGH = -1600.0, -150.0
HEADS = ["Measured", "Of", "Result, median [worst, best]", "Transitions"]
# one critic in units of 1, as it was measured; SAC takes two in units of the horizon where a follower plans so far
ONE = {"critics": 1, "unit": 1.0}
FOLLOWERS: dict[str, Follower] = {
    "SAC": SAC(**ONE), "SAC, two critics, tuned temperature": SAC(critics=2, unit=1.0, tuned=True), "STAC": STAC(),
    "Symphony": Symphony(), "SRL": SRL(**ONE), "PMOE": PMOE(**ONE), "STAC, dropout .01": STAC(dropout=0.01),
    "STAC, beta .1": STAC(beta=0.1),
}  # fmt: skip


class OwnReward(PendulumImitation):
    """Demonstrations as there, scored by Pendulum's own reward."""

    def utility(self, x, t):
        return t.reward / SCALE


def still(follower: Follower) -> PartialSGD:
    """A follower alone: x, on which nothing depends, does not move; outcomes are watched from the first block on."""
    leader = Leader(zeta=PowerDecay(1e-12, 0.5), hold=0.0, evidence=0.0, block=ITERATIONS // 80)
    return PartialSGD(follower=follower, leader=leader, tau=TAU, chains=CHAINS)


@precision.double
def trained(problem, follower: Follower):
    """A trace of seeds, and the greedy return of each at its end."""
    solver = still(follower)
    trace = solve(problem, solver, iterations=ITERATIONS, runs=SEEDS, seed=1000, record_every=ITERATIONS // 10)
    made = solver.on(problem)

    def played(F, key):
        return evaluate.episode_sums(problem, made, problem.x0, F, 16, 200, key, greedy=True)[0]

    keys = jax.random.split(jax.random.key(7), SEEDS)
    return trace, np.asarray(eqx.filter_jit(jax.vmap(played))(trace.state.follower, keys)) * SCALE


def curve(name: str) -> dict:
    """A learning curve, its end, and returns by frequency."""
    follower = FOLLOWERS[name]
    trace, returns = trained(PendulumShaping(gamma=0.98), follower)
    by_frequency = [
        returns_by_frequency(Pendulum(), follower, jax.tree.map(lambda v, i=i: v[i], trace.state.follower), LENGTHS).tolist()
        for i in range(SEEDS)
    ]
    return {
        "returns": returns.tolist(), "by_frequency": by_frequency, "transitions": int(trace["samples"].max()),
        "curve_of_outcomes": np.median(trace["outcome"] * SCALE, 0).round(3).tolist(),
    }  # fmt: skip


def imitation(eta: float) -> dict:
    """A follower that is paid by its judge alone."""
    trace, returns = trained(OwnReward(), AILBoost(eta=eta, every=500, rows=500 * CHAINS, **ONE))
    return {"returns": returns.tolist(), "transitions": int(trace["samples"].max()),
            "curve_of_outcomes": np.median(trace["outcome"] * SCALE, 0).round(3).tolist()}  # fmt: skip


def elites(all_ways: bool) -> dict:
    """Coverage and score; as many policies a generation in either case."""
    search = MapElites() if all_ways else MapElites(chance=64, climbed=0, injected=0)
    logs = [search.run(BehaviourTask(Arm(joints=4, steps=20)), 60, seed=i)[1] for i in range(3)]
    return {key: [log[key].tolist() for log in logs] for key in ("transitions", "coverage", "score", "best")}


def setting(problem, solver, iterations: int) -> dict:
    """Where x goes, and what it was to find."""
    trace = solve(problem, solver, iterations=iterations, runs=SEEDS, seed=1000, record_every=max(1, iterations // 10))
    best = problem.best() if hasattr(problem, "best") else None
    return {"x": trace.x.tolist(), "best": best, "outcome": trace["outcome"].tolist(),
            "transitions": int(trace["samples"].max())}  # fmt: skip


def work() -> dict[str, Callable[[], dict]]:
    """What there is to measure, by name."""
    cells: dict[tuple[str, str], Callable[[], dict]] = {("curve", name): partial(curve, name) for name in FOLLOWERS}
    cells["imitation", "AILBoost"] = partial(imitation, 0.05)
    cells["imitation", "DAC"] = partial(imitation, 0.0)
    cells["elites", "DCG-MAP-Elites"] = partial(elites, True)
    cells["elites", "MAP-Elites"] = partial(elites, False)
    # steps: a first move of a twentieth of x's box, by the slopes that runs at .5, .5 and 2 had shown
    warm = SPSA(zeta=PowerDecay(9.0, 0.602), inner=100)
    cells["x", "temperature_choice"] = partial(setting, TemperatureChoice(), warm, 60)
    pessimist = SPSA(follower=Usual(chosen="stac"), zeta=PowerDecay(0.7, 0.602), inner=100, tau=0.02)
    cells["x", "pessimism_choice"] = partial(setting, PessimismChoice(), pessimist, 60)
    cells["x", "archive_target"] = partial(setting, ArchiveTarget(), Covariance(), 4000)
    looks = SPSA(follower=Usual(srl=SRL(**ONE), chosen="srl"), zeta=PowerDecay(90.0, 0.602),
                 radius=PowerDecay(0.5, 0.101), inner=100)  # fmt: skip
    cells["x", "decision_frequency"] = partial(setting, DecisionFrequency(), looks, 40)
    return {shared.named(*words): measure for words, measure in cells.items()}


def said(values: list[float], digits: int = 0) -> str:
    """Median, worst and best."""
    return f"{np.median(values):.{digits}f} [{min(values):.{digits}f}, {max(values):.{digits}f}]"


def rows(facts: dict) -> list[list[str]]:
    """The table."""
    found = []
    for kind, name, c in shared.filled(facts):
        if kind in ("curve", "imitation"):
            found.append([f"greedy return, {'own reward' if kind == 'curve' else 'imitation'}", name, said(c["returns"]),
                          f"{c['transitions']:,}"])  # fmt: skip
            tenths = [c["curve_of_outcomes"][i] for i in (1, 2, 3, 5, 10)]
            if any(tenths):  # not watched in the first cells that were filled
                along = ", ".join(f"{v:.2f}" for v in tenths)
                found.append(["reward of a step after 10, 20, 30, 50, 100 %", name, along, f"{c['transitions']:,}"])
        if kind == "curve":
            scores = [frequency_averaged_score(each, LOW, HIGH) for each in c["by_frequency"]]
            found.append(["score of frequencies", name, said(scores, 2), f"{c['transitions']:,}"])
        if kind == "elites":
            score = [each[-1] for each in c["score"]]
            covered = 100 * np.median([each[-1] for each in c["coverage"]])
            found.append(["QD score", f"{name} (covers {covered:.0f} %)", said(score), f"{c['transitions'][0][-1]:,.0f}"])
        if kind == "x":
            x, outcome = np.array(c["x"])[:, -1], np.array(c["outcome"])
            what = f"`{name}`" + ("" if c["best"] is None else f", best {c['best']:.3f}")
            ends = ", ".join(said(x[:, i].tolist(), 3) for i in range(x.shape[1]))
            found.append(["x at the end", what, ends, f"{c['transitions']:,}"])
            gained = f"{np.median(outcome[:, 1]):.3f} to {np.median(outcome[:, -1]):.3f}"
            found.append(["what the leader gets, first to last tenth", f"`{name}`", gained, f"{c['transitions']:,}"])
    return found


def main() -> None:
    """Fill in what is missing, then write rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=99, help="new ones at most in this call")
    ask = parser.parse_args()
    facts, there = shared.read(NAME), work()
    for key in shared.missing(facts, there, ask.cells):
        began = time.process_time()
        facts["cells"][key] = there[key]() | {"cpu_seconds": round(time.process_time() - began, 1)}
        print(key, facts["cells"][key]["cpu_seconds"], "s", flush=True)
        finish(facts)
    finish(facts)


def finish(facts: dict) -> None:
    """The note, and the file."""
    note = (
        f"Defaults, nothing searched, {SEEDS} seeds (3 of the archives). Pendulum at a discount of .98, {CHAINS} chains, "
        f"one update an iteration, tau {TAU}; greedy returns: means of 16 episodes of 200 steps. The score of frequencies "
        f"is 0 at a return of {LOW:g} and 1 at {HIGH:g}, over looks once in 1, 2, 4, 8 steps; SRL plans, others repeat "
        "their action. Cells that the script knows and the table lacks have not been measured."
    )
    shared.write(NAME, facts, note, HEADS, rows(facts), {"iterations": ITERATIONS, "chains": CHAINS, "tau": TAU})


if __name__ == "__main__":
    main()
