"""Golden traces of the language-model trainer: what a few iterations of every method give, to the last bit.

    python benchmarks/golden_llm.py --write FILE        run every variant, write its metrics and the digest of its weights
    python benchmarks/golden_llm.py --compare FILE      run again and compare: bit for bit, and by relative difference

For a change that must not change numbers: write before it, compare after it, on one machine. `tests/llm/test_golden.py`
compares with the committed file to a tolerance, since another processor rounds otherwise.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "llm"))
from llm_models import trainer, untimed, weights  # noqa: E402

from bilevel_rl.levels.digests import of_tensors  # noqa: E402

COMMON = {"dtype": "float64", "steps": 3}
VARIANTS: dict[str, dict] = {
    "tilted": {"estimator": "tilted"},
    "tilted, default objective": {"estimator": "tilted", "objective": {"label_likelihood": 1.0, "win_rate": 0.1}},
    "shared": {"estimator": "shared"},
    "shared, ratios of tokens, coupled": {"estimator": "shared", "ratio": "token", "coupling": 0.2},
    "shared, sequence level": {"estimator": "shared", "level": "sequence", "objective": "gold"},
    "shared, critics": {"estimator": "shared", "credit": "gae", "replay_pairs": 3},
    "paired": {"estimator": "paired"},
    "paired, lora, parts, epochs": {"estimator": "paired", "backend": "lora", "micro_batch": 3, "epochs": 2},
    "nested": {"method": "nested", "estimator": "paired", "objective": "gold", "steps": 4},
    "partial sgd": {"method": "partial_sgd"},
    "fixed reward": {"method": "fixed_reward", "label_budget": 6, "steps": 4},
    "finite difference": {"method": "finite_difference", "objective": "gold", "steps": 4},
    "plain": {"method": "plain", "reward": "gold"},
    "plain, sampled k3, sgd": {"method": "plain", "reward": "gold", "kl_estimator": "k3", "optimizer": "sgd"},
    "entropy, k1": {"regularizer": "entropy", "kl_estimator": "k1", "estimator": "tilted", "group": 2, "objective": "gold"},
    "recipe grpo, shared": {"recipe": "grpo", "estimator": "shared", "epochs": 2},
    "recipe actor_critic, paired": {"recipe": "actor_critic", "estimator": "paired", "objective": "gold"},
    "recipe with selection, steps and a term": {
        "recipe": "select=d3s, credit=leave_one_out, loss=clipped, regular=0.1*entropy, step=n_pg_igt",
        "estimator": "tilted",
    },
}  # fmt: skip


def run(options: dict) -> dict:
    """The history of one variant without what the clock says, and the digest of its weights."""
    from llm_models import gold

    options = COMMON | options
    if options.get("reward") == "gold":
        options = options | {"reward": gold}
    torch.set_num_threads(1)
    made = trainer(**options)
    made.train()
    return {"history": untimed(made.history), "weights": of_tensors(weights(made))}


def difference(one: dict, two: dict) -> float:
    """The largest relative difference of two histories; infinity where their keys differ."""
    worst = 0.0
    for a, b in zip(one["history"], two["history"], strict=True):
        if a.keys() != b.keys():
            return float("inf")
        for key, value in a.items():
            worst = max(worst, abs(value - b[key]) / max(abs(value), abs(b[key]), 1e-6))
    return worst


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--compare", type=Path)
    parser.add_argument("--only", default="", help="variants whose name has this in it")
    given = parser.parse_args()
    names = [name for name in VARIANTS if given.only in name]
    found = {name: run(VARIANTS[name]) for name in names}
    if given.write:
        given.write.write_text(json.dumps(found, indent=1) + "\n")
    if given.compare:
        before = json.loads(given.compare.read_text())
        odd = 0
        for name in names:
            same = before[name] == found[name]
            odd += not same
            print(f"{'same bits' if same else f'differs by {difference(before[name], found[name]):.1e}':22} {name}")
        return int(odd > 0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
