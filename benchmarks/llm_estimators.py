"""The estimators of the hyper-gradient on a neural policy whose every completion can be enumerated.

Vocabulary 8, length 5, GRU of width 48, tau .3, batch 128 (tests/llm/instances.py). First x is fixed: error of the mean
and spread of one step's estimate, relative to the exact hyper-gradient, over the last half of 1,500 steps. Then x moves:
gap of the exact hyper-objective against generated tokens, five seeds.

    python benchmarks/llm_estimators.py            writes benchmarks/results/llm_estimators.json (about 15 minutes)
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "llm"))

import llm_instances as tiny  # noqa: E402

from bilevel_rl.llm.config import Config  # noqa: E402
from bilevel_rl.llm.trainer import BilevelTrainer  # noqa: E402
from bilevel_rl.records import hardware  # noqa: E402

LOWER = {"kl_estimator": "k1", "recipe": "credit=to_go_leave_one_out(tokens=False), loss=clipped(aggregate=sum_of_tokens)"}


def make(config: dict, seed: int, lower: dict, zeta: float = 1e-3) -> tuple[tiny.BagInstance, BilevelTrainer]:
    """The instance and a trainer on it."""
    problem = tiny.BagInstance(0)
    options = Config(
        tau=tiny.TAU, alpha=2e-3, zeta=zeta, objective={"gold": 1.0}, x_penalty=tiny.LAMBDA, prompts_per_step=1,
        group=128, max_new_tokens=problem.length, clip_norm=0.0, seed=seed, **lower, **config,
    )  # fmt: skip
    reward = tiny.BagReward(problem.x0)
    return problem, BilevelTrainer(options, problem.policy, reward, [[problem.vocabulary]], gold=problem.gold)


def fixed_x(estimator: str, w: float, lower: dict, steps: int = 1500, seed: int = 0) -> dict[str, float]:
    """Mean and spread of the sampled hyper-gradient at x0."""
    problem, trainer = make({"estimator": estimator, "w": w, "steps": steps}, seed, lower)
    reference = problem.log_law(problem.policy)
    steps_of_x = []

    def record(hyper, zeta, k):
        steps_of_x.append(torch.cat([(a + b).flatten() for a, b in zip(*hyper, strict=True)]))
        return {}

    trainer.descend = record
    trainer.train()
    sampled = torch.stack(steps_of_x)[steps // 2 :].double()
    exact = problem.hyper_gradient(reference, problem.x0)
    penalty = problem.penalty_gradient(reference, problem.x0, w)
    size = float(exact.norm())
    return {
        "estimator": estimator, "w": w, **lower, "penalty_bias": float((penalty - exact).norm()) / size,
        "error_of_mean": float((sampled.mean(0) - exact).norm()) / size,
        "std_a_step": float(sampled.var(0).sum().sqrt()) / size,
    }  # fmt: skip


def optimum(problem: tiny.BagInstance, reference: torch.Tensor) -> float:
    """The best exact hyper-objective found by descent from x0."""
    x = problem.x0.double().clone()
    best = float(problem.phi(reference, x))
    optimizer_state = torch.zeros_like(x)
    for _ in range(4000):
        optimizer_state = 0.9 * optimizer_state + problem.hyper_gradient(reference, x)
        x = x - 0.02 * optimizer_state
        best = min(best, float(problem.phi(reference, x)))
    return best


def moving_x(estimator: str, seed: int, steps: int, zeta: float, w: float = 0.03) -> dict:
    """Gap of the exact hyper-objective along a run."""
    options = {"estimator": estimator, "w": w, "steps": steps, "hold_x": 200}
    problem, trainer = make(options, seed, LOWER, zeta)
    reference = problem.log_law(problem.policy)
    best, start = optimum(problem, reference), float(problem.phi(reference, problem.x0))
    tokens, gaps = [], []
    for _ in range(steps):
        line = trainer.iterate(trainer.step)
        trainer.step += 1
        if trainer.step % 50 == 0:
            x = trainer.roles.reward.x.detach()
            tokens.append(line["samples"])
            gaps.append((float(problem.phi(reference, x)) - best) / (start - best))
    return {"estimator": estimator, "seed": seed, "zeta": zeta, "tokens": tokens, "relative_gap": gaps, "best": best,
            "start": start}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--only", nargs="*", default=["tilted", "shared", "paired"], help="merged into the results")
    args = parser.parse_args()
    torch.set_num_threads(1)
    fixed = []
    for lower in (LOWER, {"kl_estimator": "exact", "recipe": "token_rloo"}):
        for w in (1.0, 0.3, 0.1, 0.03):
            for estimator in args.only:
                if estimator == "tilted" and w != 1.0:
                    continue  # it has no w
                fixed.append(fixed_x(estimator, w, lower))
                print(fixed[-1], flush=True)
    moving, chosen = [], {}
    for estimator in args.only:  # the step of x: the same grid for both, first seed
        grid = [moving_x(estimator, 0, args.steps, zeta) for zeta in (0.003, 0.01, 0.03)]
        final = [float(np.mean(run["relative_gap"][-5:])) for run in grid]
        chosen[estimator] = {"grid": [run["zeta"] for run in grid], "final": final}
        best = grid[int(np.argmin(final))]
        moving += [best] + [moving_x(estimator, s, args.steps, best["zeta"]) for s in range(1, args.seeds)]
        print(estimator, chosen[estimator], [round(m["relative_gap"][-1], 4) for m in moving[-args.seeds :]], flush=True)
    path = ROOT / "benchmarks" / "results" / "llm_estimators.json"
    old = json.loads(path.read_text()) if path.exists() else {"fixed_x": [], "moving_x": [], "grid": {}}
    fixed = [row for row in old["fixed_x"] if row["estimator"] not in args.only] + fixed
    moving = [row for row in old["moving_x"] if row["estimator"] not in args.only] + moving
    result = {"instance": __doc__, "fixed_x": fixed, "moving_x": moving, "grid": old["grid"] | chosen}
    path.write_text(json.dumps(result | {"hardware": hardware()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
