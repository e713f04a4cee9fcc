"""The gallery: each problem that has a map, run by the exact method and drawn as it ends; docs/learn/gallery.md shows them.

    python benchmarks/gallery.py [NAME ...]

A picture takes some seconds of processor time. What is drawn: the follower's reward (shade), where its optimal policy goes
(dots), what it does there (lines), and the leader's marker, at the x that `exact_quasi_newton` finds from the problem's own
start.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from bilevel_rl.finite import problems, solve
from bilevel_rl.finite.solvers import ExactQuasiNewton

plt.switch_backend("svg")
plt.rcParams["svg.hashsalt"] = "gallery"  # the same picture is the same file
ROOT = Path(__file__).parents[1]
SHOWN = (
    problems.GoalPlacement, problems.WalledGoalPlacement, problems.GoalDistribution, problems.FrozenLake,
    problems.FrozenLake8x8, problems.CliffWalking, problems.LakeShaping, problems.InverseRL, problems.OneGoalFourRooms,
    problems.FourRooms, problems.Subsidy,
)  # fmt: skip
HEAD = """# Gallery

Written by `benchmarks/gallery.py`. Shade: the follower's reward. Dots: where its optimal policy goes. Lines: what it does
there. Cross: what the leader placed. Each picture shows the x that the exact method finds from the problem's own start.
"""


def picture(kind: type) -> str:
    """Solve one problem, draw it, and return its entry on the page."""
    problem = kind()
    trace = solve(problem, ExactQuasiNewton(), iterations=40, record_every=40)
    scene = {key: np.asarray(value[-1]) for key, value in trace.scene.items()}
    layout = problem.layout()
    states = len(layout.cells)  # of the first context, where there are several
    figure, axis = plt.subplots(figsize=(2.6, 2.6 * layout.rows / layout.columns), layout="constrained")
    board = np.full((layout.rows, layout.columns), np.nan)
    rows, columns = np.asarray(layout.cells).T
    board[rows, columns] = scene["reward"][:states]
    axis.set_facecolor("#d8d8d8")
    axis.imshow(board, cmap="Blues", aspect="equal")
    visits = scene["visitation"][:states]
    axis.scatter(columns, rows, s=60 * visits / visits.max(), color="#d4572a", linewidths=0)
    steps = scene["policy"][:states] @ np.asarray(layout.arrows, float)  # [S, 2] mean step
    axis.quiver(columns, rows, steps[:, 1], steps[:, 0], angles="xy", scale_units="xy", scale=2.2, width=0.006,
                color="#444444", headwidth=3)  # fmt: skip
    if np.isfinite(scene["marker"]).all():
        axis.plot(scene["marker"][1], scene["marker"][0], "x", color="black", markersize=9, markeredgewidth=2)
    axis.set(xticks=[], yticks=[])
    target = ROOT / f"docs/assets/gallery/{problem.name}.svg"
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, metadata={"Date": None})
    plt.close(figure)
    about = " ".join((kind.__doc__ or "").split("\n\n")[0].split())
    first, last = trace["objective"][0, 0], trace["objective"][0, -1]
    return (
        f"## {problem.name.replace('_', ' ').capitalize()}\n\n{about}\n\n"
        f"![{problem.name}: map of rewards, visits and moves](../assets/gallery/{problem.name}.svg)\n\n"
        f"`bilevel-rl run {problem.name} --samples 100000` · the leader's objective falls from {first:.3g} to {last:.3g}\n"
    )


def main(names: list[str]) -> None:
    """Draw the problems named, or all; the page is written when all are drawn."""
    chosen = [kind for kind in SHOWN if not names or kind.name in names]
    entries = []
    for kind in chosen:
        entries.append(picture(kind))
        print(kind.name, flush=True)
    if not names:
        (ROOT / "docs/learn/gallery.md").write_text("\n".join([HEAD, *entries]))


if __name__ == "__main__":
    main(sys.argv[1:])
