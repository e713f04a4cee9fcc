"""Hopper with a follower that plans too short, and a leader who prices what it observes: MuJoCo at the budget of two cores.

    python benchmarks/control_hopper.py [--seeds 3] [--cells 99]

x weighs the eleven observations in the follower's reward, from 0 on. One loop of 100,000 transitions finds it, at the step
that `bilevel-rl plan` proposes after a pilot of 10,000; then followers that know nothing learn from 100,000 under the final
x, and are scored by Hopper's own return, greedily, 10 episodes of at most 1,000 steps. Beside them followers that learn
Hopper's own reward, planning as short, and planning far. Eight copies, four updates for their eight steps. Nothing was
searched. A second call skips what is there.
"""

from __future__ import annotations

import time

import _control as shared
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from bilevel_rl.control import planning
from bilevel_rl.control.followers import SAC, Usual
from bilevel_rl.control.leader import Leader
from bilevel_rl.control.problems import GymnasiumShaping
from bilevel_rl.control.solvers import Covariance, PartialSGD
from bilevel_rl.loop import precision, solve
from bilevel_rl.schedules import PowerDecay

TRANSITIONS, PILOT, COPIES, UPDATES, TAU, EPISODES, STEPS = 100_000, 10_000, 8, 4, 0.05, 10, 1000
SHORT, FAR, SCALE, REACH = 0.8, 0.99, 3.0, 2.0
FOLLOWER = Usual(sac=SAC(critics=1, unit=1.0))  # as it was measured; SAC chooses others
LOOP = {"chains": COPIES, "updates": UPDATES, "tau": TAU, "follower": FOLLOWER}
HEADS = ["Follower's gamma", "Reward", "Own return, median [each seed]", "Steps until it falls", "Transitions: x + fresh"]


def problem(gamma: float) -> GymnasiumShaping:
    """Hopper; the leader plans far whatever the follower does."""
    return GymnasiumShaping("Hopper-v5", gamma=gamma, gamma_upper=FAR, scale=SCALE, reach=REACH)


def found(seeds: int) -> tuple[np.ndarray, dict]:
    """[seeds, 11] where the leader ended, and how."""
    made, iterations = problem(SHORT), TRANSITIONS // COPIES
    planned = planning.plan(made, Covariance(**LOOP), iterations=iterations, pilot=PILOT // COPIES, seed=5)
    solver = Covariance(leader=Leader(zeta=PowerDecay(planned.zeta, 0.5)), **LOOP)
    trace = solve(made, solver, iterations=iterations, runs=seeds, seed=1000, record_every=iterations // 20)
    along = {key: trace[key].round(3).tolist() for key in ("restarts", "outcome", "gate")}
    return trace.x[:, -1], {"zeta": planned.zeta, "slope": planned.slope, "noise": planned.noise, **along}


@precision.double
def fresh(gamma: float, x: np.ndarray) -> tuple[list[float], list[float]]:
    """Hopper's return and the steps of an episode, for a fresh follower under each row of x."""
    made, iterations = problem(gamma), TRANSITIONS // COPIES
    solver = PartialSGD(leader=Leader(hold=1e18, evidence=0.0), **LOOP).on(made)
    trace = solve(made, solver, iterations=iterations, runs=len(x), seed=2000, x0=x, record_every=iterations)

    @eqx.filter_jit
    def greedy(F, obs):
        here = solver.here(made, jnp.asarray(x[0], float), F)
        return jax.vmap(lambda o: here.follower.mode(here.environment, F, o))(obs)

    returns, lengths = [], []
    for i in range(len(x)):
        F, host = jax.tree.map(lambda v, i=i: v[i], trace.state.follower), made.environment.host(EPISODES, 77)
        total, steps, alive = np.zeros(EPISODES), np.zeros(EPISODES), np.ones(EPISODES, bool)
        while alive.any() and steps.max() < STEPS:
            went = host.step(np.asarray(greedy(F, jnp.asarray(host.observation))))
            total, steps = total + alive * went.reward, steps + alive
            alive &= ~(went.terminated | went.truncated)
        host.close()
        returns.append(float(total.mean()))
        lengths.append(float(steps.mean()))
    return returns, lengths


def main() -> None:
    """Fill in what is missing, then write rows."""
    ask = shared.parser(__doc__, 3).parse_args()
    facts, zero = shared.read("control_hopper"), np.zeros((ask.seeds, 11))
    work = {
        shared.named(f"{SHORT:g}", "its own (no shaping)"): lambda: (SHORT, zero, {}),
        shared.named(f"{SHORT:g}", "bi-level, covariance"): lambda: (SHORT, *found(ask.seeds)),
        shared.named(f"{FAR:g}", "its own, a follower that plans far"): lambda: (FAR, zero, {}),
    }
    for key in shared.missing(facts, work, ask.cells):
        began = time.process_time()
        gamma, x, said = work[key]()
        returns, lengths = fresh(gamma, x)
        facts["cells"][key] = {
            "returns": returns, "steps": lengths, "x": np.round(x, 3).tolist(), **said,
            "cpu_seconds": round(time.process_time() - began, 1),
        }  # fmt: skip
        print(key, facts["cells"][key], flush=True)
        write(facts, ask.seeds)
    write(facts, ask.seeds)


def write(facts: dict, seeds: int) -> None:
    """Rows, provenance, the file."""
    rows = []
    for gamma, label, cell in shared.filled(facts):
        each, before = cell["returns"], TRANSITIONS + PILOT if "zeta" in cell else 0
        said = f"{np.median(each):.0f} [{', '.join(f'{v:.0f}' for v in sorted(each))}]"
        rows.append([gamma, label, said, f"{np.median(cell['steps']):.0f}", f"{before:,} + {TRANSITIONS:,}"])
    setting = {"copies": COPIES, "updates": UPDATES, "tau": TAU, "scale": SCALE, "reach": REACH, "seeds": seeds}
    note = (
        f"Hopper-v5, a follower whose discount is {SHORT:g}, a leader with {FAR:g} who adds a price on each of eleven "
        "observations to the follower's reward, from 0 on, at the step that `bilevel-rl plan` proposes. Hopper's own return "
        f"of *fresh* followers, greedy, {EPISODES} episodes of at most {STEPS:,} steps; {seeds} seeds; nothing searched."
    )
    shared.write("control_hopper", facts, note, HEADS, rows, setting)


if __name__ == "__main__":
    main()
