"""Learners from data: eleven of them under one protocol, what they cost, and two levels on stored data.

    python benchmarks/offline.py [--cells 99] [--only pendulum speed] [--data runs/offline-data]

Data are made once by the library's own followers and kept below `--data`. A cell is a learner on a data set, a comparison
of two levels, or the measurement of speed; each is written when it is done, and a second call skips what is there. The
whole takes about three quarters of an hour of one core.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bilevel_rl import records, statistics
from bilevel_rl.control import nets
from bilevel_rl.control.environments import Arm, Maze, Pendulum
from bilevel_rl.control.offline import learners as L
from bilevel_rl.control.offline import making, minari_folder, protocol
from bilevel_rl.control.offline.bank import Bank, draw, reward_unit
from bilevel_rl.control.offline.data import mixed
from bilevel_rl.control.offline.evaluation import Features, evaluated
from bilevel_rl.control.offline.learner import learn
from bilevel_rl.control.offline.parts import encoded
from bilevel_rl.control.offline.two_levels import JudgedPolicy
from bilevel_rl.control.problems import PendulumMixture, PendulumOfflineImitation, PendulumOfflinePreferences
from bilevel_rl.control.solvers import OfflineBC, OfflineIQL
from bilevel_rl.loop import precision, solve
from bilevel_rl.schedules import PowerDecay

RESULTS = Path(__file__).parent / "results" / "offline.json"
# the maze's episodes begin everywhere in its corridor, for data as for scores
ENVIRONMENTS = {"pendulum": (Pendulum(), 0.98), "arm": (Arm(joints=2), 0.95), "maze": (Maze(starts=(0.25,) * 4), 0.97)}
SETTING = {"updates": 2000, "batch": 128, "seeds": 5, "episodes": 10, "records": 4}
MIXTURE = {"medium": 0.5, "expert": 0.1, "random": 0.4}
CANDIDATES = {kind.name: kind() for kind in L.ALL} | {
    # fewer actions and steps than published, as a processor pays for all of them at every update
    "decoupled_chunking": L.DecoupledChunking(samples=16, flow_steps=5),
    "pa_rl": L.PARL(samples=4, best=1, steps=2, warm=500.0),
    "decision_mamba": L.DecisionMamba(width=16, states=4, context=10, ramp=2000.0),
}
WINDOWS = 8  # a sequence model draws so many times fewer rows, each with the steps that follow it
HEADS = ["Data", "Learner", "After 500 updates", "1,000", "1,500", "2,000 [95 %]", "CPU seconds"]


def main() -> None:
    """Fill in what is missing, then write rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=99, help="new ones at most in this call")
    parser.add_argument("--only", nargs="*", default=[""], help="cells whose names begin so")
    parser.add_argument("--data", type=Path, default=Path("runs/offline-data"))
    ask = parser.parse_args()
    facts = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"cells": {}}
    cells = {f"{env}/{name}": (learner_cell, env, name) for env in ENVIRONMENTS for name in CANDIDATES}
    cells |= {"speed": (speed_cell,), "levels/mixture": (mixture_cell,)}
    cells |= {"levels/imitation": (imitation_cell,)} | {
        f"levels/preferences/{seed}": (preference_cell, seed) for seed in DRAWS
    }
    cells |= {"why/mixture": (why_mixture_cell,), "why/imitation": (why_imitation_cell,)}
    left = [key for key in cells if key not in facts["cells"] and key.startswith(tuple(ask.only))]
    for key in left[: ask.cells]:
        began = time.process_time()
        kind, *words = cells[key]
        found = kind(*words, ask.data) if kind in (learner_cell, speed_cell) else kind(*words)
        if RESULTS.exists():  # another call may have written meanwhile
            facts["cells"] |= json.loads(RESULTS.read_text())["cells"]
        facts["cells"][key] = found | {"cpu_seconds": round(time.process_time() - began, 1)}
        write(facts)
        print(key, {k: v for k, v in facts["cells"][key].items() if k != "returns"}, flush=True)
    write(facts)


# -- learners on data ------------------------------------------------------------------------------------------------


@functools.cache
def stored(name: str, folder: Path):
    """The mixture of an environment, made once."""
    environment, gamma = ENVIRONMENTS[name]
    if not (folder / name).exists():
        whole = making.make(environment, making.Making(gamma=gamma))
        mine = minari_folder.save(mixed(whole, MIXTURE, 10_000), environment, folder / f"{name}-{os.getpid()}")
        with contextlib.suppress(OSError):  # a call beside this one was faster
            mine.rename(folder / name)
    return minari_folder.load(folder / name, environment)


def learner_cell(env: str, name: str, folder: Path) -> dict:
    """A learner on the mixture of an environment."""
    data, (environment, gamma) = stored(env, folder), ENVIRONMENTS[env]
    learner = CANDIDATES[name]
    batch = SETTING["batch"] // (WINDOWS if learner.window > 5 else 1)
    found = protocol.run(learner, data, environment, protocol.Setting(**(SETTING | {"batch": batch, "gamma": gamma})))
    return {"returns": found.returns.tolist(), "at": found.at.tolist(), "low": data.low, "high": data.high,
            "behaviour": float(data.returns().mean())}  # fmt: skip


# -- two levels ------------------------------------------------------------------------------------------------------


def returns_at(problem, learner, x, seeds: int = 5, updates: int = 2000) -> list[float]:
    """Pendulum's own return of fresh learners at an x, one a seed."""
    p, env = nets.narrow(problem), nets.narrow(problem.environment)
    bank, gamma = p.bank_at(jnp.asarray(x, jnp.float32)), jnp.float32(problem.discount_lower())

    def one(key):
        k_init, k_learn, k_play = jax.random.split(key, 3)
        F = learn(learner, env, bank, learner.init(env, bank.facts, k_init), updates, 128, gamma, k_learn)
        return jnp.mean(protocol.play(learner, env, F, 16, k_play))

    found = precision.double(lambda keys: jax.jit(jax.vmap(one))(keys))(jax.random.split(jax.random.key(99), seeds))
    return np.asarray(found, float).round(1).tolist()


def mixture_cell() -> dict:
    """Shares of sources: by two levels, uniform, by rows, each source alone, the two useful ones alike."""
    problem, learner = PendulumMixture(), nets.narrow(L.BC())
    solver = OfflineBC(zeta=PowerDecay(20.0, 0.602), radius=PowerDecay(1.0, 0.101))  # x are logits
    trace = solve(problem, solver, iterations=40, runs=2, seed=1, record_every=40)
    x = np.asarray(trace.x[:, -1]).mean(0)
    rows = np.bincount(np.asarray(problem.bank.source))
    choices = {"two levels": x, "uniform": np.zeros(3), "all rows alike": np.log(rows / rows.max())}
    choices |= {f"{name} alone": np.where(np.arange(3) == i, 0.0, -40.0) for i, name in enumerate(problem.x_names)}
    choices |= {"pump and hold alike": np.array([0.0, 0.0, -40.0])}
    found = {name: returns_at(problem, learner, at) for name, at in choices.items()}
    return {"returns": found, "x": np.asarray(trace.x[:, -1]).round(2).tolist()}


IQL = OfflineIQL().learner  # for fresh learners too
DRAWS = (24, 25, 26)  # of preferences


def preference_cell(seed: int) -> dict:
    """Rewards from one draw of 20 preferences: in two stages, and with the policy's own say."""
    problem = PendulumOfflinePreferences(seed=seed)
    trace = solve(problem, OfflineIQL(first=2.0), iterations=20, runs=1, seed=1, record_every=20)
    xs = {"two levels": np.asarray(trace.x[0, -1]), "two stages": np.asarray(explained(problem))}
    found = {name: returns_at(problem, nets.narrow(IQL), x) for name, x in xs.items()}
    return {"returns": found, "x": {name: x.round(2).tolist() for name, x in xs.items()}}


@precision.double
def explained(problem) -> jax.Array:
    """The reward that explains the preferences best by itself."""
    step = lambda x, _: (problem.project(x - 0.1 * jax.grad(problem.cost)(x)), None)  # noqa: E731
    return jax.jit(lambda x: jax.lax.scan(step, x, length=3000)[0])(jnp.zeros(4))


def imitation_cell() -> dict:
    """Rewards from 4 demonstrations among other data, beside no reward and cloning."""
    problem, learner = PendulumOfflineImitation(), nets.narrow(IQL)
    solver = OfflineIQL(radius=PowerDecay(0.3, 0.101), first=2.0)
    trace = solve(problem, solver, iterations=20, runs=2, seed=1, record_every=20)
    x = np.asarray(trace.x[:, -1]).mean(0)
    found = {"two levels": returns_at(problem, learner, x), "no reward (x = 0)": returns_at(problem, learner, np.zeros(4)),
             "all data cloned": returns_at(problem, nets.narrow(L.BC()), np.zeros(4))}  # fmt: skip
    return {"returns": found, "x": np.asarray(trace.x[:, -1]).round(2).tolist()}


# -- why a leader sees what it sees ------------------------------------------------------------------------------------


def why_mixture_cell() -> dict:
    """What the leader's value from held-out rows says of shares, and what fresh learners return there, two seeds each."""
    problem, learner = nets.narrow(PendulumMixture()), nets.narrow(L.BC())
    env, gamma = problem.environment, jnp.float32(problem.discount_lower())
    shares = {"uniform": (1, 1, 1), "pump": (1, 0, 0), "hold": (0, 1, 0), "random": (0, 0, 1), "pump and hold": (1, 1, 0)}
    xs = jnp.log(jnp.maximum(jnp.array(list(shares.values()), jnp.float32), 1e-6))

    def one(x, key):
        k_init, k_learn, k_play = jax.random.split(key, 3)
        bank = problem.bank_at(x)
        F = learn(learner, env, bank, learner.init(env, bank.facts, k_init), 2000, 128, gamma, k_learn)
        acts = lambda obs: encoded(env.action, jax.vmap(lambda o: learner.act(env, F, (), o, None)[0])(obs))  # noqa: E731
        V = evaluated(Features(env, 256), problem.held, acts, gamma)
        judged = JudgedPolicy(None, V)
        return problem.outcome(x, judged), jnp.mean(protocol.play(learner, env, F, 16, k_play))

    return dict(zip(shares, _twice(one, xs), strict=True))


def why_imitation_cell() -> dict:
    """How unlikely demonstrations are under fresh learners at four rewards, after few updates and many, two seeds each."""
    problem, learner = nets.narrow(PendulumOfflineImitation()), nets.narrow(L.IQL())
    env, gamma, t = problem.environment, jnp.float32(problem.discount_lower()), problem.held.t
    xs = {"none": (0, 0, 0, 0), "Pendulum's own, nearly": (1, 0.1, 0, 0), "its negative": (-1, -0.1, 0, 0),
          "what 40 short loops found": (-0.4, -0.84, 0.18, -0.16)}  # fmt: skip

    def at(updates):
        def one(x, key):
            k_init, k_learn, k_play = jax.random.split(key, 3)
            bank = problem.bank_at(x)
            F = learn(learner, env, bank, learner.init(env, bank.facts, k_init), updates, 128, gamma, k_learn)
            f = -jnp.mean(learner.log_prob(env, F, t.obs, t.action))
            return f, jnp.mean(protocol.play(learner, env, F, 16, k_play))

        return dict(zip(xs, _twice(one, jnp.array(list(xs.values()), jnp.float32)), strict=True))

    return {f"{updates} updates": at(updates) for updates in (200, 2000)}


@precision.double
def _twice(one, xs):
    """What `one` says of each x with two keys: [[f, f], [return, return]]."""
    f, returns = jax.jit(jax.vmap(jax.vmap(one, (None, 0)), (0, None)))(xs, jax.random.split(jax.random.key(5), 2))
    pairs = zip(np.asarray(f, float).round(3), np.asarray(returns, float).round(0), strict=True)
    return [[a.tolist(), b.tolist()] for a, b in pairs]


# -- speed -----------------------------------------------------------------------------------------------------------


def speed_cell(folder: Path, updates: int = 1000, times: int = 5) -> dict:
    """Updates a second of TD3+BC in turns: ours, a loop that was written for nothing else, and ours on one batch alone.

    The last says what the drawing of rows costs, all of which lie on the device.
    """
    stored("pendulum", folder)
    began = time.process_time()
    data = minari_folder.load(folder / "pendulum", Pendulum())
    bank = jax.block_until_ready(Bank.of(data, reward_unit(data)))
    loaded = time.process_time() - began
    env, learner, gamma = nets.narrow(Pendulum()), nets.narrow(L.TD3BC(delay=1)), jnp.float32(0.98)

    def ours(key):
        F = learner.init(env, bank.facts, key)
        return learn(learner, env, bank, F, updates, 128, gamma, key).actor.params

    def again(key):
        rows = draw(bank, 128, 1, key)
        step = lambda F, k: (learner.update(env, F, rows, gamma, k, jax.random.fold_in(key, k)), None)  # noqa: E731
        return jax.lax.scan(step, learner.init(env, bank.facts, key), jnp.arange(updates))[0].actor.params

    kinds = {"ours": ours, "by hand": by_hand(data, updates), "ours, one batch": again}
    found: dict = {name: [] for name in kinds}
    keys = jax.random.split(jax.random.key(0), 5)
    runs = {name: jax.jit(jax.vmap(kind)) for name, kind in kinds.items()}
    for run in runs.values():
        jax.block_until_ready(run(keys))
    for _ in range(times):
        for name, run in runs.items():
            began = time.process_time()
            jax.block_until_ready(run(keys))
            found[name].append(5 * updates / (time.process_time() - began))
    rates = {name: float(np.median(v)) for name, v in found.items()}
    return {"rates": rates, "slower": rates["by hand"] / rates["ours"], "rows": len(data), "load_seconds": round(loaded, 2)}


def by_hand(data, updates: int):
    """TD3+BC for Pendulum in one piece: same sizes, same arithmetic, no room for anything else."""
    half, scale = 2.0, np.array([1.0, 1.0, 8.0], np.float32)
    obs, after = (jnp.asarray(v / scale) for v in (data.obs, data.next_obs))
    act, r = jnp.asarray(data.action / half), jnp.asarray(data.reward / np.float32(reward_unit(data)))
    adam, n = optax.adam(1e-3), len(data)

    def mlp(P, v):
        for W, b in P[:-1]:
            v = jax.nn.relu(v @ W + b)
        return v @ P[-1][0] + P[-1][1]

    def made(key, sizes):
        keys = jax.random.split(key, len(sizes) - 1)
        return [(jax.random.normal(k, (a, b), jnp.float32) / a**0.5, jnp.zeros(b, jnp.float32))
                for k, a, b in zip(keys, sizes[:-1], sizes[1:], strict=True)]  # fmt: skip

    def twice(Q, s, a):
        return jax.vmap(lambda q: mlp(q, jnp.concatenate([s, a], 1))[:, 0])(Q)

    def step(carry, key):
        pi, Q, slow_pi, slow_Q, m_pi, m_Q = carry
        k_rows, k_noise = jax.random.split(key)
        i = jax.random.randint(k_rows, (128,), 0, n)
        s, a, s2 = obs[i], act[i], after[i]
        noise = jnp.clip(0.2 * jax.random.normal(k_noise, (128, 1), jnp.float32), -0.5, 0.5)
        y = r[i] + 0.98 * jnp.min(twice(slow_Q, s2, jnp.clip(jnp.tanh(mlp(slow_pi, s2)) + noise, -1, 1)), 0)
        step_Q, m_Q = adam.update(jax.grad(lambda Q: jnp.sum(jnp.mean((twice(Q, s, a) - y) ** 2, 1)))(Q), m_Q)
        Q = optax.apply_updates(Q, step_Q)

        def loss(pi):
            mine = jnp.tanh(mlp(pi, s))
            q = twice(Q, s, mine)[0]
            return -2.5 / jnp.mean(jnp.abs(jax.lax.stop_gradient(q))) * jnp.mean(q) + jnp.mean((mine - a) ** 2)

        step_pi, m_pi = adam.update(jax.grad(loss)(pi), m_pi)
        pi = optax.apply_updates(pi, step_pi)
        near = lambda slow, fast: jax.tree.map(lambda u, v: u + 0.01 * (v - u), slow, fast)  # noqa: E731
        return (pi, Q, near(slow_pi, pi), near(slow_Q, Q), m_pi, m_Q), None

    def whole(key):
        k_pi, k_Q, k_steps = jax.random.split(key, 3)
        pi, Q = made(k_pi, (3, 64, 64, 1)), jax.vmap(lambda k: made(k, (4, 64, 64, 1)))(jax.random.split(k_Q, 2))
        first = pi, Q, pi, Q, adam.init(pi), adam.init(Q)
        return jax.lax.scan(step, first, jax.random.split(k_steps, updates))[0][0]

    return whole


# -- results ---------------------------------------------------------------------------------------------------------


def ranked(key: str) -> int:
    """Where a cell stands: environments in their order, then two levels and speed."""
    order = [*(f"{env}/{one}" for env in ENVIRONMENTS for one in CANDIDATES), "levels/mixture", "levels/imitation",
             *(f"levels/preferences/{seed}" for seed in DRAWS), "why/mixture", "why/imitation", "speed"]  # fmt: skip
    return order.index(key)


def write(facts: dict) -> None:
    """Rows, provenance, the file."""
    rows: list[list[str]] = []
    levels: dict[tuple[str, str], list[float]] = {}
    for key, c in sorted(facts["cells"].items(), key=lambda cell: ranked(cell[0])):
        place, _, name = key.partition("/")
        if place in ENVIRONMENTS:
            scores = protocol.normalised(c["returns"], c["low"], c["high"])
            curve = [f"{float(statistics.interquartile_mean(some)):.0f}" for some in scores[:-1]]
            rows.append([place, f"`{name}`", *curve, str(statistics.bootstrap(scores[-1])), f"{c['cpu_seconds']:.0f}"])
        elif place == "levels":
            name = name.partition("/")[0]  # draws of one question are taken together
            for choice, returns in c["returns"].items():
                levels.setdefault((name, choice), []).extend(returns)
    facts["note"] = (
        f"Data: {', '.join(f'{100 * v:.0f} % {k}' for k, v in MIXTURE.items())} of 10,000 transitions of the library's "
        f"own followers. {SETTING['seeds']} seeds, {SETTING['updates']} updates of networks of 64 units (the sequence "
        "model: 16), the last networks; 0 is random actions, 100 the best snapshot of the follower. Interquartile means "
        f"over seeds of {SETTING['episodes']} episodes each."
    )
    facts |= {"heads": HEADS, "rows": rows, "levels": {"heads": ["Pendulum", "x", "Return [95 %]"],
              "rows": [[*who, str(statistics.bootstrap(returns))] for who, returns in levels.items()]},
              "setting": SETTING, "hardware": records.hardware(), "command": "python benchmarks/offline.py"}  # fmt: skip
    RESULTS.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
