"""Make safe.json again from a checkout of the release, whose licence is not stated and whose code is therefore not here.

    git clone https://github.com/ryyzn9/SAFE safe_release
    python tests/data/released/make_safe.py safe_release

It feeds the kl, entropy and reward columns of safe.json to the release's `EntropyAwarePredictiveController` with its
defaults and prints the largest differences of penalty and threshold, and whether all phases agree.
"""

from __future__ import annotations

import json
import pathlib
import sys


def main(checkout: str) -> None:
    """Compare every step."""
    sys.path.insert(0, checkout)
    from safe.controllers.entropy_aware import EntropyAwarePredictiveController

    figures = json.loads((pathlib.Path(__file__).parent / "safe.json").read_text())["steps"]
    controller = EntropyAwarePredictiveController()
    penalty = threshold = 0.0
    same = True
    for step in figures:
        out = controller.compute_penalty(step["kl"], entropy=step["entropy"], reward=step["reward"])
        penalty = max(penalty, abs(out["penalty"] - step["penalty"]))
        threshold = max(threshold, abs(out["threshold"] - step["threshold"]))
        same = same and out["phase"] == step["phase"]
    print(f"{len(figures)} steps: penalty within {penalty:.1e}, threshold within {threshold:.1e}, phases equal: {same}")


if __name__ == "__main__":
    main(sys.argv[1])
