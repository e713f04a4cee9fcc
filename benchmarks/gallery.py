"""The gallery: each problem run by an exact method and drawn as it ends; docs/learn/gallery.md shows them.

    python benchmarks/gallery.py [NAME ...]                 # seven minutes of processor time in all
    python benchmarks/gallery.py --language runs/happy_tweets   # the picture of language models, from a finished run

A grid is drawn with the follower's reward (shade), where its optimal policy goes (dots), what it does there (arrows) and the
leader's marker; a small table as a network, roads as wide as what goes along them; what has neither, as the leader's
objective along the run. All at the x that the exact method finds from the problem's own start.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from bilevel_rl.control import problems as control_problems
from bilevel_rl.finite import problems, solve
from bilevel_rl.finite.problems.probes import Probe
from bilevel_rl.finite.solvers import ExactDescent, ExactQuasiNewton
from bilevel_rl.report import layered
from bilevel_rl.report.scenes import _by_cell

plt.switch_backend("svg")
plt.rcParams["svg.hashsalt"] = "gallery"  # the same picture is the same file
ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs/assets/gallery"
FACTS = ROOT / "benchmarks/results/gallery.json"
BLUE, ORANGE, GREY = "#0a84c6", "#d4572a", "#d8d8d8"
NETWORK = 8  # ours: states of a table that is drawn as a network
ENVIRONMENTS = {  # drawn by docs/hooks/pictures.py
    "pendulum_shaping": "pendulum", "lqg_shaping": "lqg", "inventory_contract": "inventory", "feed_incentive": "feed",
    "maze_curriculum": "maze", "arm_imitation": "arm",
}  # fmt: skip
HEAD = """# Gallery

Every problem of the library, with the command that runs it. Written by `benchmarks/gallery.py` from runs of the exact
method, each drawn at the x that it finds from the problem's own start. On maps, shade is the follower's reward, dots are
where its optimal policy goes, arrows what it does there, and the cross is what the leader placed. In networks, roads are as
wide as what goes along them. What has neither map nor network is drawn as the leader's objective along the run.
"""
NEURAL = """## Environments

Followers are networks here. The pictures are paths of hand-written policies; `bilevel-rl report` draws those that a run has
learnt.
"""
LANGUAGE = """## Language models

<div class="gallery" markdown>
<div markdown>

### Happy tweets

A reward model is trained so that the policy which is optimal for it writes what a judge prefers. Own reward against the
score that no method sees: where a line turns right without rising, the reward is being hacked.

![Gold score against own reward of each method](../assets/gallery/happy_tweets.svg)

`bilevel-rl llm happy-tweets` · [what came out](../results/happy-tweets.md), [your own model](../llm/using.md)

</div>
</div>
"""


def entry(name: str, about: str, picture: str, alternative: str, end: str) -> str:
    """One problem on the page."""
    return (
        f"<div markdown>\n\n### {name.replace('_', ' ').capitalize()}\n\n{about}\n\n![{alternative}]({picture})\n\n"
        f"`bilevel-rl run {name} --samples 100000`{end}\n\n</div>\n"
    )


def first_sentence(kind: type) -> str:
    """What a problem's docstring begins with."""
    return " ".join((kind.__doc__ or "").split("\n\n")[0].split())


def draw(kind: type) -> tuple[float, float]:
    """Solve one problem and draw it; the leader's objective at the start and at the end."""
    problem = kind()
    solver = ExactDescent() if problem.mean_field else ExactQuasiNewton()  # crowds have first derivatives alone
    trace = solve(problem, solver, iterations=40, record_every=1 if kind not in SLOW else 40)
    scene = {key: np.asarray(value[-1]) for key, value in trace.scene.items()}
    layout = problem.layout() if hasattr(problem, "layout") else None
    if hasattr(layout, "cells"):
        figure, alternative = on_a_map(problem, layout, scene), "map of rewards, visits and moves"
    elif "flow" in scene and len(scene["flow"]) <= NETWORK:
        names = tuple(getattr(problem, "state_names", None) or map(str, range(len(scene["flow"]))))
        backdrop = {key: np.asarray(value) for key, value in problem.backdrop().items()}
        figure, alternative = as_a_network(scene, backdrop, names), "network of states and what goes between them"
    else:
        figure, alternative = as_a_curve(trace), "objective along the run"
    FOLDER.mkdir(parents=True, exist_ok=True)
    figure.savefig(FOLDER / f"{problem.name}.svg", metadata={"Date": None})
    plt.close(figure)
    values = trace["objective"][0]
    remember(problem.name, {"first": float(values[0]), "last": float(values[-1]), "drawn": alternative})
    return float(values[0]), float(values[-1])


def on_a_map(problem, layout, scene):
    """Reward, visits and moves by cell; states that share a cell are drawn as one."""
    states = len(scene["policy"]) if len(layout.cells) == len(scene["policy"]) else len(layout.cells)
    cells = np.asarray(layout.cells, int)
    met = scene["visitation"] * ~np.asarray(problem.backdrop().get("ends", np.zeros(1, bool)), bool)  # over: nowhere
    policy, visits, places = _by_cell(scene["policy"][None, :states], met[None, :states], cells)
    reward = np.asarray(_by_cell(scene["policy"][None, :states], scene["reward"][None, :states], cells)[1][0])
    rows, columns = places.T
    figure, axis = plt.subplots(figsize=(2.6, 2.6 * layout.rows / layout.columns), layout="constrained")
    board = np.full((layout.rows, layout.columns), np.nan)
    board[rows, columns] = reward
    axis.set_facecolor(GREY)
    axis.imshow(board, cmap="Blues", aspect="equal")
    letters = [str(row) for row in np.atleast_1d(problem.backdrop().get("letters", np.zeros(0, str)))]
    for i, j in ((i, j) for i, row in enumerate(letters) for j in range(len(row)) if row[j].strip()):
        axis.text(j - 0.4, i - 0.4, letters[i][j], fontsize=6, color="#555555", va="top")
    axis.scatter(columns, rows, s=60 * visits[0] / visits[0].max(), color=ORANGE, linewidths=0)
    arrows = np.asarray(layout.arrows, float)
    steps = policy[0][:, : len(arrows)] @ arrows  # [C, 2] mean step; a taxi's other actions do not move it
    axis.quiver(columns, rows, steps[:, 1], steps[:, 0], angles="xy", scale_units="xy", scale=2.2, width=0.006,
                color="#444444", headwidth=3)  # fmt: skip
    if np.isfinite(scene["marker"]).all():
        axis.plot(scene["marker"][1], scene["marker"][0], "x", color="black", markersize=9, markeredgewidth=2)
    axis.set(xticks=[], yticks=[])
    return figure


def as_a_network(scene, backdrop, names):
    """States as circles, as large as they are visited; what flows between them as lines."""
    flow, met = np.asarray(scene["flow"], float), np.asarray(scene["visitation"], float)
    used = (flow > 1e-6) & ~np.eye(len(flow), dtype=bool)
    given = backdrop.get("places")
    places = layered.places(used, backdrop["start"]) if given is None else layered.unit(given)
    figure, axis = plt.subplots(figsize=(2.6, 1.9), layout="constrained")
    for i, j in np.argwhere(used):
        wide = 0.4 + 5 * flow[i, j] / flow[used].max()
        arrow = {"arrowstyle": "-|>", "color": BLUE, "lw": wide, "shrinkA": 6, "shrinkB": 6}
        arrow |= {"connectionstyle": "arc3,rad=.12"}
        axis.annotate("", places[j], places[i], arrowprops=arrow)
    axis.scatter(*places.T, s=12 + 120 * met / met.max(), color=ORANGE, zorder=3, linewidths=0)
    for name, place in zip(names, places, strict=True):
        paper = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.6}
        axis.annotate(name, place, (0, 9), textcoords="offset points", ha="center", fontsize=7, bbox=paper, zorder=4)
    axis.set(xlim=(-0.12, 1.12), ylim=(-0.18, 1.22))
    axis.axis("off")
    return figure


def as_a_curve(trace):
    """The leader's objective, record by record."""
    figure, axis = plt.subplots(figsize=(2.6, 1.9), layout="constrained")
    axis.plot(trace["iteration"][0], trace["objective"][0], color=BLUE)
    axis.set_xlabel("iteration", fontsize=8)
    axis.set_ylabel("objective", fontsize=8)
    axis.tick_params(labelsize=7)
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def language(folder: str) -> None:
    """Gold score against own reward, from the run folders of `bilevel-rl llm happy-tweets`."""
    from bilevel_rl.report import collect
    from bilevel_rl.report.curves import mean, smooth

    figure, axis = plt.subplots(figsize=(3.4, 2.4), layout="constrained")
    for section in collect.sections([folder]):
        for method in section.methods:
            if {"gold", "learned_reward"} <= method.trace.keys():
                x, y = (smooth(mean(method.trace[key], axis=0)) for key in ("learned_reward", "gold"))
                axis.plot(x, y, label=method.label)
    axis.set_xlabel("own reward", fontsize=8)
    axis.set_ylabel("gold score", fontsize=8)
    axis.tick_params(labelsize=7)
    axis.legend(fontsize=6)
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(FOLDER / "happy_tweets.svg", metadata={"Date": None})


def remember(name: str, facts: dict) -> None:
    """What a picture's sentence says, kept beside the other results."""
    kept = json.loads(FACTS.read_text()) if FACTS.exists() else {"command": "python benchmarks/gallery.py", "problems": {}}
    from bilevel_rl import records

    kept |= {"hardware": records.provenance("python benchmarks/gallery.py")["hardware"]}
    kept["problems"][name] = facts
    records.write_json(FACTS, kept)


SHOWN = tuple(kind for kind in problems.ALL if not issubclass(kind, Probe))
SLOW = (problems.Taxi, problems.TaxiShaping)


def page() -> str:
    """docs/learn/gallery.md, from what was drawn."""
    facts = json.loads(FACTS.read_text())["problems"]
    parts = [HEAD, '## Tables\n\n<div class="gallery" markdown>\n']
    for kind in SHOWN:
        seen = facts[kind.name]
        ends = f" · the leader's objective falls from {seen['first']:.3g} to {seen['last']:.3g}"
        picture = f"../assets/gallery/{kind.name}.svg"
        parts.append(entry(kind.name, first_sentence(kind), picture, f"{kind.name}: {seen['drawn']}", ends))
    parts += ["</div>\n", NEURAL, '<div class="gallery" markdown>\n']
    for kind in control_problems.ALL:
        if kind.name in ENVIRONMENTS:
            picture = f"../assets/environments/{ENVIRONMENTS[kind.name]}.svg"
            parts.append(entry(kind.name, first_sentence(kind), picture, f"a path in the environment of {kind.name}", ""))
    return "\n".join([*parts, "</div>\n", LANGUAGE])


def main(words: list[str]) -> None:
    """Draw the problems named, or all, and write the page."""
    if words[:1] == ["--language"]:
        return language(words[1])
    for kind in SHOWN:
        if words and kind.name not in words:
            continue
        print(kind.name, *draw(kind), flush=True)
    (ROOT / "docs/learn/gallery.md").write_text(page())
    return None


if __name__ == "__main__":
    main(sys.argv[1:])
