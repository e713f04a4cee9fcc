"""Speed of the competing methods on their own problems, beside their formulae written plainly in NumPy.

    python benchmarks/peers_speed.py [--quick]

The yardsticks form what the methods as published form: $\\partial_x Q$ of every visited pair, one number a dimension of x
(HPGD), and the table $\\varphi$ [S, d] with dense transitions (M-SoBiRL). Both give the directions that ours give.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import speed

from bilevel_rl import records
from bilevel_rl.finite import solve
from bilevel_rl.finite.learn import rollouts
from bilevel_rl.finite.model import planning
from bilevel_rl.finite.problems import FourRooms, WalledGoalPlacement
from bilevel_rl.finite.problems.synthetic import Synthetic
from bilevel_rl.finite.solvers import AMD, HPGD, BoltzmannCovariance, ExactDescent, ImplicitCG, SoBiRL
from bilevel_rl.loop import noise, use_64_bit

use_64_bit()

RESULTS = Path(__file__).parent / "results" / "peers_speed.json"


def best_of(call, repeats: int = 5) -> float:
    """Seconds of the fastest call."""
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def hpgd_yardstick(problem, seen: rollouts.Rollouts, u: np.ndarray, slope: np.ndarray, tau: float) -> np.ndarray:
    """The response of HPGD by tables of d_x Q: returns to go of [d] vectors, bin by bin; [d]."""
    s, a = np.asarray(seen.s), np.asarray(seen.a)
    (N, T), (S, A, d), gamma = s.shape, slope.shape, float(problem.mdp.discount)
    values = np.concatenate([u.reshape(N, T, 1), slope[s, a]], axis=2)
    for t in range(T - 2, -1, -1):
        values[:, t] += gamma * values[:, t + 1]
    total, count = np.zeros((S * A, 1 + d)), np.zeros((S * A, 1))
    pair = (s * A + a).ravel()
    np.add.at(total, pair, values.reshape(N * T, -1))
    np.add.at(count, pair, 1.0)
    total, count = total.reshape(S, A, -1), count.reshape(S, A, 1)
    V = total.sum(1, keepdims=True) / np.maximum(count.sum(1, keepdims=True), 1)
    advantage = np.where(count > 0, total / np.maximum(count, 1) - V, 0)
    weight = np.zeros(S * A)
    np.add.at(weight, pair, np.tile((1 - gamma) * gamma ** np.arange(T) / N, N))
    return -np.einsum("sa,sa,sad->d", weight.reshape(S, A), advantage[..., 0], advantage[..., 1:]) / tau


def sobirl_yardstick(problem, x, Q, w, solver: SoBiRL, P, slope):
    """One iteration of M-SoBiRL with dense transitions P [S, A, S] and slopes of the reward [S, A, d]."""
    gamma, tau = float(problem.mdp.discount), solver.tau
    r = np.asarray(problem.reward(jnp.asarray(x)))
    for _ in range(solver.sweeps):
        V = tau * np.log(np.exp((Q - Q.max(1, keepdims=True)) / tau).sum(1)) + Q.max(1)
        Q = r + gamma * P @ V
    pi = np.exp((Q - Q.max(1, keepdims=True)) / tau)
    pi /= pi.sum(1, keepdims=True)
    G = pi - (pi * pi).sum(1, keepdims=True)  # of |pi|^2/2, less its mean
    A = np.eye(len(w)) - gamma * np.einsum("sa,sat->ts", pi, P)
    weighed = pi * G
    b = weighed.sum(1) - gamma * np.einsum("sa,sat->t", weighed, P)
    rate = solver.rate / ((1 + gamma) * (1 + gamma * np.einsum("sa,sat->t", pi, P).max()))
    for _ in range(solver.inner):
        w = w - rate * A.T @ (A @ w - b)
    phi = np.einsum("sa,sad->sd", pi, slope)
    g = x + (np.einsum("sa,sad->d", weighed, slope) - phi.T @ w) / tau
    return x - solver.step_size * g, Q, w


def measure(quick: bool) -> dict:
    """Every figure."""
    repeats = 2 if quick else 5
    out: dict = {}
    rooms = FourRooms()
    batch = {"trajectories": 50, "horizon": 200, "explore": "none"}
    cases = {
        "hpgd, soft VI follower": HPGD(follower="soft_vi", **batch),
        "hpgd, Q-learning follower": HPGD(**batch),
        "hpgd, 5 x 2,000": HPGD(follower="soft_vi", trajectories=5, horizon=2000),
        "boltzmann_covariance": BoltzmannCovariance(follower="soft_vi", **batch),
        "amd": AMD(), "implicit_cg": ImplicitCG(), "exact_descent": ExactDescent(),
    }  # fmt: skip
    S, d = rooms.mdp.n_states, len(rooms.x0)
    out["four rooms"] = {"states": S, "actions": rooms.mdp.n_actions, "d": d, "samples": 10_000, "milliseconds": {}}
    for label, solver in cases.items():
        _, seconds = speed.time_engine(rooms, solver, 1, 20, repeats)
        out["four rooms"]["milliseconds"][label] = 1e3 * seconds / 20
    x, tau = rooms.x0, 0.05  # any will do: the work is the same
    pi = planning.soft_optimal(rooms.mdp, rooms.reward(x), tau).pi
    drawn = noise.uniforms(rollouts.draws(50, 200), jax.random.key(0))
    seen = rollouts.draw(rooms.transitions(x), pi, drawn)
    slope = np.asarray(jax.jacrev(rooms.reward)(x))
    u = np.asarray(rooms.objective.bonus_at(x, seen.s.ravel(), seen.a.ravel()))
    plain = best_of(lambda: hpgd_yardstick(rooms, seen, u, slope, tau), 2)
    out["four rooms"]["milliseconds"]["yardstick: HPGD's estimator alone, NumPy"] = 1e3 * plain

    out["synthetic"] = {}
    for states in (10, 50, 100):
        problem = Synthetic(states=states)
        solver = SoBiRL(step_size=8e-3, tau=1.0)
        _, ours = speed.time_engine(problem, solver, 1, 50, repeats)
        P, slope = np.asarray(problem.mdp.dense()), np.asarray(jax.jacrev(problem.reward)(problem.x0))
        start = (np.asarray(problem.x0), np.zeros(P.shape[:2]), np.zeros(states))
        plain = best_of(lambda: sobirl_yardstick(problem, *start, solver, P, slope), 3)  # noqa: B023
        out["synthetic"][str(states)] = {"milliseconds": 1e3 * ours / 50, "yardstick": 1e3 * plain}

    runs = 100 if quick else 1000
    began, problem = time.perf_counter(), WalledGoalPlacement()
    trace = solve(problem, ExactDescent(), iterations=20, runs=runs, record_every=20)
    out["seeds in one process"] = {
        "problem": problem.name, "states": problem.mdp.n_states, "runs": runs, "iterations": 20, "seconds": trace.seconds,
        "seconds_with_grading": time.perf_counter() - began,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }  # fmt: skip
    return out


def main() -> None:
    """Measure, print, and write unless `--quick`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repeats and seeds, written nowhere")
    quick = parser.parse_args().quick
    found = measure(quick)
    print(json.dumps(found, indent=2))
    if not quick:
        found["hardware"], found["provenance"] = records.hardware(), records.provenance("python benchmarks/peers_speed.py")
        records.write_json(RESULTS, found)


if __name__ == "__main__":
    main()
