"""Which credit learns a multi-turn game whose states recur: the text grid world, a table of logits, equal turns.

    python benchmarks/policy_gradient_turns.py [--seeds 10] [--turns 30000]

Five games of level 2 (4 x 4, one wall, a key and a door), one policy table for each, eight episodes a game and iteration
until the turns are spent. Adam; each credit rule chooses its learning rate from the same two on a seed that doesn't count.
Rules with a critic have a table of values, moved a tenth of the way to their targets. Score: share of episodes solved over
the whole run (how fast it learned) and over its last tenth.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bilevel_rl.llm.tasks.text_grid import MOVES, Grid, generate, play, to_batch
from bilevel_rl.policy_gradient import credit
from bilevel_rl.policy_gradient.credit.gae import value_targets
from bilevel_rl.policy_gradient.recipe import Recipe
from bilevel_rl.records import hardware
from bilevel_rl.statistics import bootstrap

RULES: dict[str, Any] = {
    "return": credit.Return(), "rloo": credit.LeaveOneOut(), "group_norm": credit.GroupNorm(),
    "batch_norm": credit.BatchNorm(), "reward_to_go": credit.RewardToGo(),
    "gae": credit.GAE(gamma=0.95, lam=0.95), "step_level": credit.StepLevel(gamma=0.95, lam=0.95),
    "gigpo": credit.Episode() + credit.StepGroups(), "step_groups": credit.StepGroups(),
    "step_groups_scaled": credit.StepGroups(scale=True),
    "hgpo": credit.HierarchyOfGroups(depth=2), "hgpo_with_base": credit.HierarchyOfGroups(base=credit.Episode(scale=True)),
    "salt": credit.TrajectoryGraph(), "empg": credit.EMPG(),
}  # fmt: skip
RATES = (0.05, 0.2)


def learn(rule: Any, games: list[Grid], rate: float, seed: int, turns: int) -> tuple[float, float]:
    """Share of solved episodes: over the run, and over its last tenth."""
    rng, moves = random.Random(seed), list(MOVES)
    states = 2 * games[0].size ** 2
    theta = torch.zeros(len(games), states, len(moves), dtype=torch.float64, requires_grad=True)
    value = torch.zeros(len(games), states, dtype=torch.float64)
    lines = [{g.observe(s): g.state_key(s) for s in _states(g)} for g in games]
    optimiser, recipe = torch.optim.Adam([theta], lr=rate), Recipe(credit=rule)
    solved, spent = [], 0
    while spent < turns:
        p = theta.detach().softmax(-1).tolist()
        episodes = [
            play(game, lambda line, q=p[k], at=lines[k]: rng.choices(moves, q[at[line]])[0])
            for k, game in enumerate(games)
            for _ in range(8)
        ]
        batch = to_batch(episodes)
        row = batch.group[:, None].expand_as(batch.state_key)
        law = theta.log_softmax(-1)[row, batch.state_key]
        entropy = -(law.exp() * law).sum(-1).detach()
        batch = batch.replace(value=value[row, batch.state_key], entropy=entropy)
        ready = recipe.prepare(batch)
        logp = law.gather(-1, batch.get("action_key")[..., None].clamp(max=3))[..., 0]
        loss, _ = recipe.objective(ready.replace(logp=logp))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if "value" in rule.card.needs:
            target = value_targets(ready)
            flat = (row * states + batch.state_key)[batch.mask]
            total = torch.zeros(value.numel(), dtype=torch.float64).index_add(0, flat, target[batch.mask])
            count = torch.bincount(flat, minlength=value.numel())
            seen = count > 0
            mean = total[seen] / count[seen]
            value.view(-1)[seen] += 0.1 * (mean - value.view(-1)[seen])
        spent += int(batch.mask.sum())
        solved.append(float(np.mean([e.done for e in episodes])))
    return float(np.mean(solved)), float(np.mean(solved[-max(len(solved) // 10, 1) :]))


def _states(game: Grid) -> list[Any]:
    position = type(game.begin())
    cells = [(x, y) for x in range(game.size) for y in range(game.size)]
    return [position(c, k) for c in cells for k in (False, True)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--turns", type=int, default=30_000)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/policy_gradient_turns.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    games = generate(5, seed=0, level=2)
    result: dict[str, Any] = {
        "games": 5, "level": 2, "turns": args.turns, "rates": RATES, "rules": {}, "hardware": hardware(),
    }  # fmt: skip
    for name, rule in RULES.items():
        tuning = {rate: learn(rule, games, rate, 1000, args.turns)[0] for rate in RATES}
        rate = max(tuning, key=lambda r: tuning[r])
        runs = [learn(rule, games, rate, seed, args.turns) for seed in range(args.seeds)]
        speed, end = (bootstrap(np.array(column), statistic=np.mean) for column in zip(*runs, strict=True))
        result["rules"][name] = {
            "rate": rate, "solved": tuple(speed), "solved_at_the_end": tuple(end), "runs": runs,
        }  # fmt: skip
        print(f"{name:16s} solved {speed}   at the end {end}   rate {rate}", flush=True)
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
