"""On-policy systems of the list in environments of Gymnasium, beside the plain policy gradient and PPO at equal transitions.

    python benchmarks/control_on_policy.py [--cells 99]

* CartPole-v1, episodes of at most 200 steps: MDPO (#26), Poly-PPO's sets of fresh episodes (#8; what episodes of a set
  should not share is the side on which they end), the plain policy gradient, and Stable-Baselines3's PPO as shipped.
* MountainCar-v0: SubPO (#18), paid for each of 12 x 8 cells of place and speed that an episode meets for the first time,
  beside the plain gradient of the environment's own reward, which says -1 whatever is done.

16 episodes a batch, one step of Adam at .01 a batch, 3 seeds, nothing searched. A second call skips what is there.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

import _control as shared
import numpy as np

from bilevel_rl.policy_gradient.credit import Polychromic, RewardToGo, ToGoLeaveOneOut
from bilevel_rl.policy_gradient.environments import Episodes
from bilevel_rl.policy_gradient.losses import Clipped, MirrorDescent
from bilevel_rl.policy_gradient.optimiser import PolicyOptimiser
from bilevel_rl.policy_gradient.recipe import Recipe
from bilevel_rl.policy_gradient.reward import Coverage
from bilevel_rl.policy_gradient.steps.plain import Adam
from bilevel_rl.schedules import PowerDecay

TRANSITIONS, SEEDS, ROWS, STEPS, RATE = 40_000, 3, 16, 200, 0.01
CELLS, LOW, HIGH = (12, 8), np.array([-1.2, -0.07]), np.array([0.6, 0.07])
TENTHS = (1, 2, 3, 5, 10)
HEADS = ["Environment", "System", "Measured", "After 10, 20, 30, 50, 100 %", "Last tenth, each seed", "Transitions"]


def cell(obs: np.ndarray) -> int:
    """MountainCar's cell of place and speed."""
    i, j = np.clip(((obs - LOW) / (HIGH - LOW) * CELLS).astype(int), 0, np.array(CELLS) - 1)
    return int(i * CELLS[1] + j)


def curve(recipe: Recipe, environment: str, measured: str, seed: int) -> list[float]:
    """Means over the tenths of a run."""
    cover = {"cover": cell, "elements": CELLS[0] * CELLS[1]} if environment == "MountainCar-v0" else {}
    side = (lambda path: int(path[-1][0] > 0)) if environment == "CartPole-v1" else None
    episodes = Episodes(environment, rows=ROWS, steps=STEPS, seed=seed, answer=side, **cover)
    optimiser = PolicyOptimiser(recipe, episodes.rollout, episodes.evaluate, Adam(PowerDecay(RATE, 0.0)))
    state, at, values = optimiser.init(episodes.parameters()), [], []
    while state.samples < TRANSITIONS:
        state, batch = optimiser.step(state, episodes.reward, tau=0.0)
        at.append(state.samples)
        if measured == "cells met":
            values.append(float(Coverage()(batch)[..., 0].sum(1).mean()))
        else:
            values.append(float((episodes.reward(batch)[..., 0] * batch.mask).sum(1).mean()))
    episodes.close()
    return tenths(at, values)


def ppo(seed: int) -> list[float]:
    """Stable-Baselines3's, as shipped, with the same time limit."""
    import gymnasium
    import torch
    from stable_baselines3 import PPO
    from stable_baselines3.common.monitor import Monitor

    torch.set_num_threads(1)
    env = Monitor(gymnasium.wrappers.TimeLimit(gymnasium.make("CartPole-v1").unwrapped, STEPS))
    PPO("MlpPolicy", env, seed=seed, device="cpu").learn(TRANSITIONS)
    return tenths(np.cumsum(env.get_episode_lengths()).tolist(), env.get_episode_rewards())


def tenths(at: list[int], values: list[float]) -> list[float]:
    """Means of what was seen within each tenth of the transitions; the last value where a tenth saw nothing."""
    place, found = np.minimum(9, np.array(at) * 10 // TRANSITIONS), []
    for i in range(10):
        seen = [v for v, p in zip(values, place, strict=True) if p == i]
        found.append(float(np.mean(seen)) if seen else found[-1])
    return found


def work() -> dict[str, Callable[[int], list[float]]]:
    """What there is to measure, by name."""
    plain, pole, car = Recipe("plain", credit=ToGoLeaveOneOut()), "CartPole-v1", "MountainCar-v0"
    cells: dict[tuple[str, str, str], Callable[[int], list[float]]] = {
        (pole, "plain policy gradient", "return"): partial(curve, plain, pole, "return"),
        (pole, "MDPO", "return"): partial(
            curve, Recipe("mdpo", credit=ToGoLeaveOneOut(), loss=MirrorDescent()), pole, "return"
        ),
        (pole, "Poly-PPO, sets of 4", "return"): partial(
            curve, Recipe("sets", credit=Polychromic(size=4), loss=Clipped()), pole, "return"
        ),
        (pole, "Stable-Baselines3, PPO", "return"): ppo,
        (car, "plain policy gradient", "cells met"): partial(curve, plain, car, "cells met"),
        (car, "SubPO", "cells met"): partial(
            curve, Recipe("subpo", reward=(Coverage(),), credit=RewardToGo()), car, "cells met"
        ),
    }
    return {shared.named(*words): measure for words, measure in cells.items()}


def main() -> None:
    """Fill in what is missing, then write rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=99, help="new ones at most in this call")
    ask = parser.parse_args()
    facts, there = shared.read("control_on_policy"), work()
    for key in shared.missing(facts, there, ask.cells):
        began = time.process_time()
        curves = [there[key](1000 + i) for i in range(SEEDS)]
        facts["cells"][key] = {"tenths": curves, "cpu_seconds": round(time.process_time() - began, 1)}
        print(key, np.round(curves, 1).tolist(), facts["cells"][key]["cpu_seconds"], flush=True)
        write(facts)
    write(facts)


def write(facts: dict) -> None:
    """Rows, provenance, the file."""
    rows = []
    for environment, system, measured, c in shared.filled(facts):
        along = np.median(c["tenths"], 0)
        shown = ", ".join(f"{along[i - 1]:.0f}" for i in TENTHS)
        last = ", ".join(f"{v[-1]:.0f}" for v in c["tenths"])
        rows.append([environment, system, measured, shown, last, f"{TRANSITIONS:,}"])
    note = (
        f"Torch components through the same Gymnasium host, {ROWS} episodes of at most {STEPS} steps a batch, one step "
        f"of Adam at {RATE} a batch, {SEEDS} seeds, medians of tenths of the run; nothing searched. With one step a batch "
        "MDPO's gradient is the policy gradient's."
    )
    setting = {"rows": ROWS, "steps": STEPS, "rate": RATE, "seeds": SEEDS}
    shared.write("control_on_policy", facts, note, HEADS, rows, setting)


if __name__ == "__main__":
    main()
