"""The home page's animation, docs/assets/motion.svg: one run of the sampled solver on the grid, as a picture that moves.

    python benchmarks/motion.py      # ten seconds of processor time

Its rules stand in the picture, so it needs no script; where the reader has asked for less motion it shows the end.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bilevel_rl.finite import problems, solve
from bilevel_rl.finite.solvers import CoupledPenalty

OUT = Path(__file__).parents[1] / "docs/assets/motion.svg"
BLUE, ORANGE = "#0a84c6", "#d4572a"
CELL, SECONDS, FRAMES = 40, 9, 18  # pixels of a cell; length of the animation; records that it shows
WIDTH, TOP, HEIGHT = 300, 24, 150  # of the curve beside the grid
REST = 88  # per cent of the time in which things move; then the picture rests at the end


class Moving:
    """The style sheet of a picture: an animation for each shape that moves."""

    def __init__(self, frames: int):
        self.at = np.linspace(0, REST, frames)
        self.rules: list[str] = []

    def style(self, values: list[str]) -> str:
        """The attributes of a shape that takes these values, one a frame."""
        name = f"k{len(self.rules)}"
        stops = "".join(f"{t:.0f}%{{{v}}}" for t, v in zip(self.at, values, strict=True))
        self.rules.append(f"@keyframes {name}{{{stops}100%{{{values[-1]}}}}}")
        return f'style="{values[-1]};animation-name:{name}"'

    def sheet(self) -> str:
        """All rules."""
        return (
            f"text{{font-family:system-ui,sans-serif;fill:#444b55}}[style]{{animation-duration:{SECONDS}s;"
            "animation-iteration-count:infinite;animation-timing-function:linear}"
            "@media (prefers-reduced-motion:reduce){[style]{animation-name:none!important}}" + "".join(self.rules)
        )


def grid(moving: Moving, layout, scene) -> list[str]:
    """Cells as dark as they are visited, an arrow in each, and the goal."""
    met = scene["visitation"] / scene["visitation"].max(axis=1, keepdims=True)
    steps = scene["policy"] @ np.asarray(layout.arrows, float)  # [F, S, 2]
    angles = np.degrees(np.unwrap(np.arctan2(steps[..., 0], steps[..., 1]), axis=0))
    shapes, half = [], CELL / 2 - 1
    for s, (row, column) in enumerate(np.asarray(layout.cells)):
        x, y = CELL * column, CELL * row
        box = f'<rect x="{x}" y="{y}" width="{CELL - 2}" height="{CELL - 2}" rx="4"'
        shade = moving.style([f"opacity:{v:.2f}" for v in met[:, s]])
        turns = moving.style([f"transform:rotate({a:.0f}deg)" for a in angles[:, s]])
        arrow = f'<path d="M-9 0H7M2 -4L8 0L2 4" fill="none" stroke="#1d2229" stroke-width="1.6" {turns}/>'
        shapes += [f'{box} fill="#eef1f4"/>', f'{box} fill="{BLUE}" {shade}/>',
                   f'<g transform="translate({x + half} {y + half})">{arrow}</g>']  # fmt: skip
    places = CELL * scene["marker"] + half
    goal = moving.style([f"transform:translate({x:.1f}px,{y:.1f}px)" for y, x in places])
    cross = f'<path d="M-8 -8L8 8M-8 8L8 -8" stroke="{ORANGE}" stroke-width="5" stroke-linecap="round" {goal}/>'
    return [*shapes, cross]


def curve(moving: Moving, left: float, samples, objective) -> list[str]:
    """The leader's loss against transitions, a dot that runs along it, and what the picture shows in words."""
    low, high = float(objective.min()), float(objective.max())
    px, py = left + WIDTH * samples / samples[-1], TOP + HEIGHT * (high - objective) / (high - low)
    line = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(px, py, strict=True))
    dot = moving.style([f"transform:translate({a:.1f}px,{b:.1f}px)" for a, b in zip(px, py, strict=True)])
    words = (
        ("The leader's loss", left, TOP - 8, 15), (f"{samples[-1]:,.0f} transitions", left + 180, TOP + HEIGHT + 22, 13),
        ("Cross: the goal, which the leader moves.", left, TOP + HEIGHT + 42, 13),
        ("Arrows: how the agent answers.", left, TOP + HEIGHT + 60, 13),
        ("Shade: where it is.", left, TOP + HEIGHT + 78, 13),
    )  # fmt: skip
    return [
        f'<polyline points="{line}" fill="none" stroke="{BLUE}" stroke-width="2.5"/>',
        f'<circle r="6" fill="{ORANGE}" {dot}/>',
        *(f'<text x="{x}" y="{y}" font-size="{size}">{text}</text>' for text, x, y, size in words),
    ]  # fmt: skip


def main() -> None:
    """Run it and write the picture."""
    problem = problems.GoalPlacement()
    trace = solve(problem, CoupledPenalty(), iterations=900, record_every=900 // (FRAMES - 1), runs=1, seed=2)
    scene = {key: np.asarray(value) for key, value in trace.scene.items()}
    layout, moving = problem.layout(), Moving(len(scene["policy"]))
    left = CELL * layout.columns + 40
    shapes = grid(moving, layout, scene) + curve(moving, left, trace["samples"][0], trace["objective"][0])
    W, H = left + WIDTH + 30, CELL * layout.rows + 32
    OUT.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-10 -10 {W} {H}"><style>{moving.sheet()}</style>'
        f'<rect x="-10" y="-10" width="{W}" height="{H}" fill="#ffffff"/>{"".join(shapes)}</svg>\n'
    )


if __name__ == "__main__":
    main()
