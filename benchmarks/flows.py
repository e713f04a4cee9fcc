"""Flows: matching against ways, flow followers against SAC, x as a weight or a strength against a grid of it.

    python benchmarks/flows.py matching    # Torch: gradients on a Gaussian, learning curves on the spots
    python benchmarks/flows.py followers   # JAX: AC-Flow and CTRL beside SAC on Pendulum
    python benchmarks/flows.py weights     # JAX: composition weight and guidance strength

Each writes its part of benchmarks/results/flows.json; parts that are there are kept unless --again is given.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from bilevel_rl import records

RESULTS = Path(__file__).parent / "results" / "flows.json"


# -- Torch ------------------------------------------------------------------------------------------------------------


def matching(seeds: int) -> dict[str, Any]:
    """Gradients of the estimators on one flow, and what each learns from equal samples."""
    return {"gradients": gradients(), "curves": curves(seeds)}


def gradients(batches: int = 400, batch: int = 64) -> dict[str, Any]:
    """On the line: data N(.5, .3^2), its exact velocity with mean and deviation to learn, reward -(x - 1)^2.

    Each estimator's mean over batches of 64 samples, its cosine with the policy gradient of the stochastic way, which is
    exact for that way's law, and the trace of its covariance over the squared length of its mean.
    """
    import torch

    from bilevel_rl.flows import Matching, PathLikelihood

    class Line(torch.nn.Module):
        """The velocity of matching on N(m, s^2)."""

        def __init__(self):
            super().__init__()
            self.m, self.s = (torch.nn.Parameter(torch.tensor(v, dtype=torch.float64)) for v in (0.5, 0.3))

        def forward(self, x, t, condition=None):
            t = t[:, None]
            variance = ((1 - t) * self.s) ** 2 + t**2
            return -self.m + (t - (1 - t) * self.s**2) / variance * (x - (1 - t) * self.m)

    estimators = {
        "matching": Matching(weighting="uniform", steps=10),
        "matching, ghuber": Matching(steps=10),
        "ways, eta .7 (Flow-GRPO)": PathLikelihood(eta=0.7),
        "ways, eta 1 (DDPO)": PathLikelihood(eta=1.0),
    }
    found, means = {}, {}
    for name, likelihood in estimators.items():
        each = []
        for k in range(batches):
            v, generator = Line(), torch.Generator().manual_seed(k)
            noise = torch.randn(batch, 1, generator=generator, dtype=torch.float64)
            rows = likelihood.draw(v, noise, None, generator)
            reward = -((rows.point[:, 0] - 1) ** 2)
            advantage = (reward - reward.mean()) / reward.std()
            loss = (advantage[:, None] * likelihood.say(v, rows, None).logp).mean()
            each.append(torch.stack(torch.autograd.grad(loss, [v.m, v.s])).numpy())
        each = np.array(each)
        means[name] = each.mean(0)
        scatter = float(each.var(0, ddof=1).sum() / (each.mean(0) ** 2).sum())
        found[name] = {"mean": each.mean(0).tolist(), "scatter": scatter,
                       "error": (each.std(0, ddof=1) / batches**0.5).tolist()}  # fmt: skip
    exact = means["ways, eta .7 (Flow-GRPO)"]
    for name, mean in means.items():
        found[name]["cosine"] = float(mean @ exact / np.linalg.norm(mean) / np.linalg.norm(exact))
    return found


CURVES = {"awm": 3e-3, "flow_grpo": 3e-3, "ddpo": 3e-3, "grpo": 3e-3, "gspo": 3e-3, "rloo": 3e-3}


def curves(seeds: int, steps: int = 300) -> dict[str, Any]:
    """The spots: rewards of what was drawn while it learnt, and of 2,000 samples of the flow itself in the end."""
    import torch

    from bilevel_rl.flows import train
    from bilevel_rl.flows.spots import Spots

    torch.set_num_threads(1)
    task, found = Spots(), {}
    first = [task.pretrained(seed) for seed in range(seeds)]
    for name, rate in CURVES.items():
        began, lines, ends, near = time.process_time(), [], [], []
        for seed, velocity in enumerate(first):
            loop = train(copy.deepcopy(velocity), task.reward, (2,), method=name, conditions=task.conditions, steps=steps,
                         rate=rate, seed=seed)  # fmt: skip
            seen = np.array([line["learned_reward"] for line in loop.history])
            lines.append(seen.reshape(-1, 50).mean(1).tolist())
            point, group = loop.engine.look(2000)
            ends.append(float(task.reward(point, group).mean()))
            near.append(float(((point - task.wanted[group]).square().sum(-1) < 0.3**2).double().mean()))
        found[name] = {"rate": rate, "rewards": lines, "end": ends, "near": near, "samples": 64 * steps,
                       "cpu_seconds": round(time.process_time() - began, 1)}  # fmt: skip
    return found


# -- JAX --------------------------------------------------------------------------------------------------------------


def followers(seeds: int) -> dict[str, Any]:
    """Pendulum, the follower's own reward, gamma .98: sums over 200 steps of fresh followers at growing budgets."""
    from bilevel_rl.control import evaluate
    from bilevel_rl.control.followers import CTRL, SAC, ACFlow
    from bilevel_rl.control.problems import PendulumShaping

    problem, found = PendulumShaping(gamma=0.98), {}
    loop = {"chains": 8, "updates": 4, "batch": 64}
    for follower in (SAC(width=48), CTRL(width=48, steps=4), ACFlow(width=48, candidates=8)):
        began, rows = time.process_time(), {}
        for transitions in (4_000, 8_000):
            scored = evaluate.fresh(problem, follower=follower, transitions=transitions, seeds=seeds, seed=5, tau=0.05,
                                    **loop)  # fmt: skip
            rows[str(transitions)] = {"greedy": (8 * scored.utility_greedy).tolist(),
                                      "sampled": (8 * scored.utility).tolist()}  # fmt: skip
        found[follower.name] = {"returns": rows, "cpu_seconds": round(time.process_time() - began, 1)}
    return found | {"loop": loop, "width": 48, "tau": 0.05}


GRID = 11  # points of the published search: w = 0, .1, ..., 1


def weights(seeds: int) -> dict[str, Any]:
    """True values on a fine grid; what a grid search of rollouts finds; what solvers reach, by the transitions they took.

    Values are the leader's own, -Phi: discounted means of its utility, less the cost of x.
    """
    import jax
    import jax.numpy as jnp

    from bilevel_rl.control import problems, solvers
    from bilevel_rl.control.leader import Leader
    from bilevel_rl.loop import solve
    from bilevel_rl.schedules import PowerDecay

    # a second speed of x for composition: the first one overshoots, and x wanders afterwards
    found = stored().get("weights", {})
    for kind, speeds in ((problems.PendulumComposition, (1.0, 0.3)), (problems.PendulumGuidance, (4.0,))):
        began, problem = time.process_time(), kind()
        values = valued(problem)
        low, high = (float(b[0]) for b in problem.box())
        grid, fine = np.linspace(low, high, GRID), np.linspace(low, high, 2 * GRID - 1)
        part = found.get(problem.name) or {
            "x": fine.tolist(), "truth": values(fine, jax.random.key(99), 256).tolist(),
            "x0": float(jnp.asarray(problem.x0)[0]), "methods": {}, "cpu_seconds": 0,
        }  # fmt: skip
        rows, truth = part["methods"], np.array(part["truth"])
        for episodes in (1, 4, 16):
            name = f"grid, {episodes} episodes a point"
            if name not in rows:
                chosen = [int(np.argmax(values(grid, jax.random.key(s), episodes))) for s in range(seeds)]
                rows[name] = {
                    "transitions": GRID * episodes * LENGTH, "x": grid[chosen].tolist(),
                    "value": np.interp(grid[chosen], fine, truth).tolist(),
                }  # fmt: skip
        for zeta, method in itertools.product(speeds, (solvers.Covariance, solvers.TiltedPair)):
            name = method.name if zeta == speeds[0] else f"{method.name}, speed {zeta:g}"
            if name in rows:
                continue
            leader = Leader(zeta=PowerDecay(zeta, 0.5), hold=100.0, drift=0.0)
            solver = method(leader=leader, w=0.1, updates=2)
            trace = solve(problem, solver, iterations=1600, runs=seeds, record_every=100)
            x = np.asarray(trace.x)[:, :, 0]
            rows[name] = {"transitions": [100 * solver.chains * k for k in range(x.shape[1])], "x": x.tolist(),
                          "value": np.interp(x, fine, truth).tolist()}  # fmt: skip
        spent = part["cpu_seconds"] + time.process_time() - began
        found[problem.name] = part | {"best": float(truth.max()), "zeta": speeds[0], "cpu_seconds": round(spent, 1)}
    return found


LENGTH = 200  # steps of an episode


def valued(problem):
    """(points [n], key, episodes) -> [n] the leader's value at each, by episodes of LENGTH steps."""
    import jax
    import jax.numpy as jnp

    from bilevel_rl.control import nets, walk

    p, gamma = nets.narrow(jax.tree.map(jnp.asarray, problem)), float(problem.discount_upper())
    weight = (1 - gamma) * gamma ** jnp.arange(LENGTH, dtype=jnp.float32)

    def one(x, key, episodes):
        follower = p.follower_at(x, None, None)[0]

        def step(chains, key):
            act = lambda obs, key: follower.act(p.environment, (), obs, key)  # noqa: E731
            chains, seen = walk.step(p.environment, chains, act, key, 0.0)
            return chains, jnp.mean(jax.vmap(lambda t: p.utility(x, t))(seen.t))

        first = walk.begin(p.environment, episodes, jax.random.fold_in(key, 1))
        gained = jax.lax.scan(step, first, jax.random.split(key, LENGTH))[1]
        return weight @ gained - jnp.asarray(p.cost(x), jnp.float32)

    run = jax.jit(jax.vmap(one, (0, None, None)), static_argnums=2)
    return lambda xs, key, episodes: np.asarray(run(jnp.asarray(xs, jnp.float32)[:, None], key, episodes), float)


PARTS = {"matching": (matching, 3), "followers": (followers, 2), "weights": (weights, 5)}


def stored() -> dict[str, Any]:
    """What is there."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def main() -> None:
    """Make one part, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=sorted(PARTS))
    parser.add_argument("--seeds", type=int, default=0, help="0: the part's own number")
    parser.add_argument("--again", action="store_true", help="also where the part is there")
    ask = parser.parse_args()
    if ask.part in stored() and not ask.again:
        return
    made, seeds = PARTS[ask.part]
    part = made(ask.seeds or seeds)
    facts = stored() | {ask.part: part}  # what another process has written meanwhile stays
    facts["hardware"], facts["provenance"] = records.hardware(), records.provenance()
    RESULTS.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
