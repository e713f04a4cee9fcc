"""Neural followers where the answer is known: estimates at a fixed x, and whole runs, judged by exact values.

    python benchmarks/control_known.py fixed judged lqg.9     estimates against the exact hyper-gradient
    python benchmarks/control_known.py run judged             whole runs on tables seen one-hot and by coordinates
    python benchmarks/control_known.py run lqg.9 bounded      whole runs on linear systems
    python benchmarks/control_known.py run four_rooms         against what exact descent finds from the same start, too
    python benchmarks/control_known.py portion lqg.98x4:0     3 or 4 of ten seeds of their own; 0, 1, 2, side by side
    python benchmarks/control_known.py merge lqg.98x4         the whole run from its portions
    python benchmarks/control_known.py begun lqg.98x4         what its followers know of their first answer, x at rest
    python benchmarks/control_known.py paper bounded lqg.9    the paper's algorithm with neural followers
    python benchmarks/control_known.py search lqg.9           its settings searched, then the best one on the ten seeds
    python benchmarks/control_known.py why judged             what an estimate's miss is made of: policy, critics, samples

Every part is written to `results/control_known.json` when it ends; what is there already is not run again without
`--again`. Ten seeds that no setting was chosen on; both followers' transitions are counted. A run is within 5 % where its
gap is at most .05 of the larger of |best value| and the gap at x0. Minutes of one core each.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from bilevel_rl import records
from bilevel_rl.control import problems, replay, solvers
from bilevel_rl.control.estimators import Covariance, Pair, heads
from bilevel_rl.control.followers import SAC, SoftQ, Usual
from bilevel_rl.control.leader import Leader
from bilevel_rl.finite.model import planning
from bilevel_rl.finite.problems import FourRooms, FrozenLake
from bilevel_rl.finite.solvers import ExactQuasiNewton
from bilevel_rl.judged import Judged, NeuralGoalPlacement
from bilevel_rl.loop import Problem, Solver, solve, stepping, use_64_bit
from bilevel_rl.loop.problem import Optimum
from bilevel_rl.schedules import TEMPERATURE, PowerDecay, TimeScales

use_64_bit()

FILE = Path(__file__).parent / "results" / "control_known.json"
BEST_KNOWN = {"four_rooms": "four rooms"}  # labels of `best_known.json`, where brute force is out of reach
SEED, RUNS, RECORDS, OF_TEN = 2026, 10, 20, (4, 3, 3)
PORTIONS = SEED + 11  # three seeds of portions, on which no failure was looked at
HELD = Leader(hold=1e18, momentum=0.995, evidence=0.0)  # estimates are averaged over 200 moves, x stays

PROBLEMS: dict[str, tuple[Callable[[], Problem], int]] = {
    "judged": (NeuralGoalPlacement, 100_000),
    "coordinates": (lambda: NeuralGoalPlacement(observed="coordinates"), 100_000),
    "frozen_lake": (lambda: Judged(FrozenLake()), 100_000),
    "four_rooms": (lambda: Judged(FourRooms()), 100_000),
    "bounded": (problems.BoundedShaping, 64_000),
    "lqg.9": (problems.LQGShaping, 64_000),
    "lqg.98": (lambda: problems.LQGShaping(gamma=0.98), 128_000),
    "lqg.9x4": (lambda: problems.LQGShaping(size=4, actions=4), 64_000),
    "lqg.98x4": (lambda: problems.LQGShaping(size=4, actions=4, gamma=0.98), 128_000),
}

# what is searched for the paper's algorithm: x's step, the penalty, and actors at a constant step of Adam or one that falls
# with the paper's exponent; either kind of random numbers; two seeds that are none of the ten
ZETAS, WS, ALPHAS = (0.01, 0.03, 0.1), (0.3, 1.0), (PowerDecay(1e-3), PowerDecay(0.03, 2 / 3))
SEARCHED_WITH, SEARCH_RUNS = 7, 2

# of an estimate's miss: 4 seeds, SNAPSHOTS of the networks in the second half of the run
WHY = {
    "as shipped, 64,000 transitions": (solvers.Covariance(), 64_000),
    "as shipped, 256,000": (solvers.Covariance(), 256_000),
    "critic's Adam .001, 256,000": (solvers.Covariance(estimator=Covariance(rate=1e-3)), 256_000),
    "follower's Adam .001, 64,000": (solvers.Covariance(follower=SoftQ(rate=1e-3)), 64_000),
    "both Adam .001, 4 updates, 64,000": (
        solvers.Covariance(follower=SoftQ(rate=1e-3), estimator=Covariance(rate=1e-3), updates=4), 64_000
    ),
    "both Adam .0003, 4 updates of 256, 64,000": (
        solvers.Covariance(follower=SoftQ(rate=3e-4), estimator=Covariance(rate=3e-4), updates=4, batch=256), 64_000
    ),
}
SNAPSHOTS, WHY_RUNS = 16, 4

SLOWER, MEANS = "covariance, Adam .0003, 4 updates of 256", "covariance, means of its networks"
VARIED, BOTH = "covariance, control variate", "covariance, means and control variate"
ESTIMATORS: dict[str, Callable[..., Solver]] = {
    "covariance": solvers.Covariance, "trajectory": solvers.Trajectory, "backward": solvers.Backward,
    "coupled pair, w .03": solvers.CoupledPair, "hpgd": solvers.HPGD,
    "pair, w .1": lambda **o: solvers.CoupledPair(estimator=Pair(common=False), w=0.1, **o),
    SLOWER: lambda **o: solvers.Covariance(
        follower=Usual(SoftQ(rate=3e-4), SAC(rate=3e-4)), estimator=Covariance(rate=3e-4), updates=4, batch=256, **o),
    MEANS: lambda **o: solvers.Covariance(estimator=Covariance(memory=1.0), **o),
    VARIED: lambda **o: solvers.Covariance(estimator=Covariance(variate=True), **o),
    BOTH: lambda **o: solvers.Covariance(estimator=Covariance(memory=1.0, variate=True), **o),
}  # fmt: skip
# on linear systems: those that the solvers take by default, and kinds of the first
LINEAR = ("covariance", "trajectory", "backward", SLOWER, MEANS, VARIED, BOTH)


def main() -> None:
    """Run the parts named, each unless it is there."""
    again, (kind, *names) = "--again" in sys.argv, [word for word in sys.argv[1:] if not word.startswith("--")]
    for name in names:
        key = f"{kind} {name}"
        there = read()["parts"].get(key, {})
        made = PROBLEMS[name.partition(":")[0]][0]
        whole = {"why": WHY, "fixed": ESTIMATORS if hasattr(made(), "table") else LINEAR}.get(kind, ())
        if there and not again and set(whole) <= set(there.get("rows", ())):
            continue
        began = time.process_time()
        part = {"fixed": fixed, "run": run, "paper": paper, "search": search, "why": why, "portion": portion,
                "merge": merge, "begun": begun}[kind](name)  # fmt: skip
        part.setdefault("cpu seconds", round(time.process_time() - began))
        known = read()  # parts may be run side by side
        known["parts"][key if kind != "merge" else f"run {name}"] = part
        known |= {
            "hardware": records.hardware(),
            "provenance": records.provenance("python benchmarks/control_known.py PART PROBLEM ..."),
        }
        records.write_json(FILE, known)
        print(key, json.dumps(part, indent=1), flush=True)


def read() -> dict[str, Any]:
    """What has been measured so far."""
    return json.loads(FILE.read_text()) if FILE.exists() else {"parts": {}}


def fixed(name: str) -> dict[str, Any]:
    """Means of estimates at x0, over the last moves, against the exact hyper-gradient."""
    problem, transitions = PROBLEMS[name][0](), 64_000
    x0 = jnp.asarray(problem.x0, float)
    exact = np.asarray(jax.grad(lambda x: problem.truth(x, problem.temperature()) - problem.cost(x))(x0))
    there = {} if "--again" in sys.argv else read()["parts"].get(f"fixed {name}", {}).get("rows", {})
    rows = dict(there)
    for label in ESTIMATORS if hasattr(problem, "table") else LINEAR:
        if label in there:
            continue
        kind = ESTIMATORS[label]
        solver = kind(leader=HELD)
        iterations = transitions // solver.rows_each()
        trace = solve(problem, solver, iterations=iterations, runs=4, seed=SEED, record_every=iterations, evaluate=False)
        cost = np.asarray(jax.grad(lambda x: jnp.asarray(problem.cost(x), float))(x0))
        # the running mean began at 0; cost is no part of the estimate
        moves = iterations // HELD.every
        g = np.asarray(trace.state.motion.slope) / (1 - HELD.momentum**moves) - cost
        size = np.linalg.norm(exact)
        mean = g.mean(0)
        rows[label] = {
            "bias": float(np.linalg.norm(mean - exact) / size),
            "spread": float(np.sqrt(((g - mean) ** 2).sum(1).mean()) / size),
            "cosine": float(mean @ exact / np.linalg.norm(mean) / size),
        }
    return {"transitions": transitions, "seeds": 4, "dimensions": len(x0), "exact": exact.tolist(), "rows": rows}


def run(name: str) -> dict[str, Any]:
    """The recommended solver with its defaults."""
    make, transitions = PROBLEMS[name]
    problem = make()
    part = graded(problem, solvers.Covariance(), transitions)
    if name in BEST_KNOWN:  # a local method ends in the basin of its start
        exact = solve(problem.table, ExactQuasiNewton(), iterations=60, record_every=60)
        reached = float(exact["objective"][0, -1])
        allowed = 0.05 * max(abs(reached), part["gap at x0"] + part["best value"] - reached)
        gaps = np.array(part["gaps at the end"]) + part["best value"] - reached
        part |= {"exact descent from x0": reached, "within of exact descent": int((gaps <= allowed).sum())}
    return part


def paper(name: str) -> dict[str, Any]:
    """The paper's algorithm, independent and common numbers."""
    make = PROBLEMS[name][0]
    return {
        words: graded(make(), solvers.PenaltyActorCritic(common_noise=common), 300_000)
        for words, common in (("independent", False), ("common", True))
    }


def search(name: str) -> dict[str, Any]:
    """The paper's algorithm over a grid of settings; then the one with the smallest median gap, on the ten seeds."""
    problem, grid = PROBLEMS[name][0](), list(itertools.product(ZETAS, WS, ALPHAS))
    tried, best = {}, problem.best_known(problem.temperature())
    for common in (False, True):
        settings = [solvers.PenaltyActorCritic(common_noise=common, scales=_sequences(*one)) for one in grid]
        iterations = 300_000 // (2 * settings[0].chains)
        trace = solve(problem, settings, iterations=iterations, runs=SEARCH_RUNS, seed=SEARCHED_WITH, optimum=best,
                      record_every=iterations)  # fmt: skip
        gaps = np.nan_to_num(trace["gap"][:, -1].reshape(len(grid), SEARCH_RUNS), nan=np.inf)
        tried |= {(common, *one): found for one, found in zip(grid, gaps, strict=True)}
    common, zeta, w, alpha = chosen = min(tried, key=lambda one: float(np.median(tried[one])))
    solver = solvers.PenaltyActorCritic(common_noise=common, scales=_sequences(zeta, w, alpha))
    rows = [
        {"common numbers": c, "zeta": z, "w": v, "alpha": a.initial, "alpha's power": a.power, "gaps": found.tolist()}
        for (c, z, v, a), found in tried.items()
    ]
    words = f"{'common' if common else 'independent'} numbers, zeta {zeta:g}, w {w:g}, alpha {alpha.initial:g}"
    words += " falling" if alpha.power else ""
    return {"tried": rows, "chosen": list(tried).index(chosen), f"searched: {words}": graded(problem, solver, 300_000)}


def _sequences(zeta: float, w: float, alpha: PowerDecay) -> TimeScales:
    """Critics three times as fast as actors, as shipped."""
    beta = PowerDecay(3 * alpha.initial, alpha.power)
    return TimeScales(PowerDecay(zeta, 2 / 3), alpha, beta, PowerDecay(w, 1 / 6), PowerDecay(TEMPERATURE))


def why(name: str) -> dict[str, Any]:
    r"""The covariance on a table from four mixtures of exact and learnt parts: whose error is the miss?"""
    problem, rows = PROBLEMS[name][0](), read()["parts"].get(f"why {name}", {}).get("rows", {})
    x0, tau = jnp.asarray(problem.x0, float), problem.temperature()
    exact = -np.asarray(jax.grad(lambda x: problem.truth(x, tau) - problem.cost(x))(x0))
    for label, (solver, transitions) in WHY.items():
        if label in rows:
            continue
        held = dataclasses.replace(solver, leader=HELD).on(problem)
        parts = np.stack([_parts(problem, held, state) for state in snapshots(problem, held, transitions)])
        mean = parts.mean((0, 1))  # snapshots and seeds
        rows[label] = {
            what: {
                "miss": float(np.linalg.norm(mean[i] - exact) / np.linalg.norm(exact)),
                "spread": float(np.sqrt(((parts[:, :, i].mean(0) - mean[i]) ** 2).sum(-1).mean()) / np.linalg.norm(exact)),
            }
            for i, what in enumerate(("learnt policy, exact values", "optimal policy, learnt critic", "both learnt"))
        }
    return {"seeds": WHY_RUNS, "snapshots": SNAPSHOTS, "exact": exact.tolist(), "rows": rows}


def snapshots(problem: Any, solver: Any, transitions: int):
    """States of a run along its second half, one after the other."""
    every = transitions // solver.chains // (2 * SNAPSHOTS)
    stacked, keys = stepping.stack([solver], WHY_RUNS), stepping.run_keys(SEED, WHY_RUNS)
    with contextlib.closing(stepping.stepper(jax.tree.map(jnp.asarray, problem), stacked, keys)) as runner:
        states = runner.first(jnp.tile(jnp.asarray(problem.x0, float), (WHY_RUNS, 1)))
        for i in range(2 * SNAPSHOTS):
            states, _ = runner.advance(states, i * every, every)
            if i >= SNAPSHOTS:
                yield states


@eqx.filter_jit
def _parts(problem: Any, solver: Any, states: Any) -> Any:
    """[seeds, 3, d] the covariance of (learnt policy, exact values), (optimal policy, learnt critic), (both learnt)."""
    table, tau, x = problem.table, problem.temperature(), jnp.asarray(problem.x0, float)
    mdp, gamma = table.transitions(x), table.mdp.discount
    s, a = (v.ravel() for v in jnp.meshgrid(jnp.arange(mdp.n_states), jnp.arange(mdp.n_actions), indexing="ij"))
    paid = jax.jacfwd(table.reward)(x)  # [S, A, d]
    u = table.objective.bonus_at(x, s, a).reshape(mdp.n_states, mdp.n_actions)

    def values(pi: Any) -> Any:
        """[S, A, 1 + d] of the leader's utility and of the reward's derivatives, discounted sums."""
        q = lambda r: planning.action_value(mdp, r, planning.policy_value(mdp, r, pi))  # noqa: E731
        return jnp.concatenate([q(u)[..., None], jax.vmap(q, -1, -1)(paid)], -1)

    def covariance(pi: Any, q: Any) -> Any:
        q = q - jnp.einsum("sa,sah->sh", pi, q)[:, None]
        return jnp.einsum("s,sa,sa,sad->d", planning.visitation(mdp, pi), pi, q[..., 0], q[..., 1:]) / tau

    def one(state: Any) -> Any:
        seen = jnp.asarray(problem.environment.seen, jnp.float32)
        env, follower = problem.environment, solver.follower.on(problem.environment)
        pi = jax.nn.softmax(follower.out(env, state.follower, seen)).astype(float)
        everything = jnp.broadcast_to(jnp.eye(mdp.n_actions, dtype=jnp.float32), (mdp.n_states, *[mdp.n_actions] * 2))
        learnt = heads.of_pairs(env, state.estimator.heads.online.params, seen, everything).astype(float) / (1 - gamma)
        best = planning.soft_optimal(mdp, table.reward(x), tau).pi
        return jnp.stack([covariance(pi, values(pi)), covariance(best, learnt), covariance(pi, learnt)])

    return jax.vmap(one)(states)


def listed(problem: Problem) -> Optimum:
    """The best value on record; its x is not kept."""
    label = next(label for name, label in BEST_KNOWN.items() if problem.table.name == name)
    value = json.loads((FILE.parents[1] / "best_known.json").read_text())[label]["value"]
    return Optimum(np.full(problem.x0.shape, np.nan), value, value)


def portion(name: str) -> dict[str, Any]:
    """Some of ten seeds of a long run, by their number."""
    name, _, number = name.partition(":")
    make, transitions = PROBLEMS[name]
    return gone(make(), solvers.Covariance(), transitions, OF_TEN[int(number)], PORTIONS + int(number))


def merge(name: str) -> dict[str, Any]:
    """A whole run from its portions."""
    parts = [read()["parts"][f"portion {name}:{i}"] for i in range(len(OF_TEN))]
    one = {key: parts[0][key] for key in ("transitions", "best value", "best x")}
    one |= {"gaps": [gap for part in parts for gap in part["gaps"]], "stopped": [m for p in parts for m in p["stopped"]]}
    one |= {key: sum(part[key] for part in parts) for key in ("restarts", "cpu seconds")}
    return said(one)


def begun(name: str) -> dict[str, Any]:
    """The ten seeds of the portions with x at rest, looked at where a run begins to move x, and later."""
    problem, looks = PROBLEMS[name][0](), (500, 1000, 1500)
    solver = solvers.Covariance(leader=HELD).on(problem)
    keys = jnp.concatenate([stepping.run_keys(PORTIONS + i, n) for i, n in enumerate(OF_TEN)])
    there, found, k = read()["parts"], [], 0
    made, stacked = jax.tree.map(jnp.asarray, problem), stepping.stack([solver], RUNS)
    with contextlib.closing(stepping.stepper(made, stacked, keys)) as runner:
        states = runner.first(jnp.tile(jnp.asarray(problem.x0, float), (RUNS, 1)))
        for look in looks:
            states, _ = runner.advance(states, k, look - k)
            k = look
            found.append(np.asarray(_first_answers(problem, solver, states, jnp.asarray(k))))
    ends = [gaps[-1] for i in range(len(OF_TEN)) for gaps in there.get(f"portion {name}:{i}", {"gaps": []})["gaps"]]
    names = ("off", "size", "cosine", "times too large")
    return {"iterations": looks, "gaps of the whole runs": np.round(ends, 5).tolist()} | {
        label: [np.round(look[:, i], 3).tolist() for look in found] for i, label in enumerate(names)
    }


@eqx.filter_jit
def _first_answers(problem: Any, solver: Any, states: Any, k: Any) -> Any:
    """[seeds, 4] means' distance from the exact ones, the exact ones' size, the estimate's cosine and relative length."""
    x, tau = jnp.asarray(problem.x0, float), problem.temperature()
    law, exact = problem.answer(x, tau), jax.grad(lambda x: problem.truth(x, tau) - problem.cost(x))(x)

    def one(state: Any) -> Any:
        here = solver.here(problem, x, state.follower)
        newest = replay.newest(state.ring, k, 1024, solver.chains, solver.rows_each())
        recent, length = replay.Layout(here.problem).unpack(newest), lambda v: jnp.sqrt(jnp.mean(jnp.sum(v**2, 1)))
        out = here.follower.out(here.environment, state.follower, recent.t.obs)
        mean = jax.vmap(here.follower.law(here.environment).parts)(out)[0]
        right = jnp.concatenate([recent.t.obs.astype(float), jnp.ones((1024, 1))], 1) @ law.K.T
        g = -solver.estimator.estimate(here, state.estimator, state.follower, recent, jax.random.key(0))[1].g
        times = jnp.linalg.norm(g) / jnp.linalg.norm(exact)
        cosine = g @ exact / jnp.linalg.norm(exact) ** 2 / times
        return jnp.stack([length(mean - right), length(right), cosine, times])

    return jax.vmap(one)(states)


def graded(problem: Problem, solver: Solver, transitions: int) -> dict[str, Any]:
    """Seeds within 5 % at records of a run."""
    return said(gone(problem, solver, transitions, RUNS, SEED))


def gone(problem: Problem, solver: Solver, transitions: int, runs: int, seed: int) -> dict[str, Any]:
    """Gaps at records of a run, seed by seed."""
    each = solver.chains * (2 if isinstance(solver, solvers.PenaltyActorCritic) else 1)
    every = transitions // each // RECORDS
    best = problem.best_known(problem.temperature()) or listed(problem)
    trace = solve(problem, solver, iterations=every * RECORDS, runs=runs, seed=seed, record_every=every, optimum=best)
    return {
        "transitions": np.asarray(trace["samples"][0]).tolist(), "best value": best.value,
        "best x": best.x.tolist() if np.isfinite(best.x).all() else None, "gaps": trace["gap"].tolist(),
        "stopped": list(trace.messages),
        "restarts": int(trace["restarts"][:, -1].sum()) if "restarts" in trace.metrics else 0,
    }  # fmt: skip


def said(run: dict[str, Any]) -> dict[str, Any]:
    """How many of them are within 5 %, and when."""
    gap = np.array(run.pop("gaps"))
    near = gap <= 0.05 * max(abs(run["best value"]), gap[0, 0])
    return {
        **run, "runs": len(gap), "gap at x0": float(gap[0, 0]), "within": near.sum(0).tolist(),
        "within at the end": int(near[:, -1].sum()), "median gap": np.median(gap, 0).round(5).tolist(),
        "gaps at the end": np.sort(gap[:, -1]).round(5).tolist(),
    }  # fmt: skip


if __name__ == "__main__":
    main()
