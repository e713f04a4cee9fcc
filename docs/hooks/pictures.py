"""Pictures of the environments, docs/assets/environments/*.svg: paths of hand-written policies. Run it after a change."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from bilevel_rl.control import drawing
from bilevel_rl.control.environments import LQG, Arm, Feed, Inventory, Maze, Pendulum
from bilevel_rl.control.problems import LQGShaping, experts

OUT = Path(__file__).parents[1] / "assets" / "environments"
SIZE, COLOUR = 180, "#0a84c6"
WAYPOINTS = ((1.0, 5.0), (2.0, 5.0), (3.0, 4.0), (3.0, 1.0), (5.0, 1.0), (5.0, 5.0))


def through(obs):
    """Maze: towards the next corner of the corridor, braking."""
    place, speed = 3 + 3 * obs[:2], obs[2:] / 2
    corners = jnp.asarray(WAYPOINTS)
    passed = jnp.array([1.0, 1.5, 2.5, 3.0, 4.5, 9.0])  # rows at which a corner is behind
    row = place[0] + 0.5 * ((place[0] < 1.5) & (place[1] > 4.6)) + 0.5 * ((place[0] > 2.5) & (place[1] < 1.5))
    target = corners[jnp.argmax(row < passed)]
    return jnp.clip(2 * (target - place) - 12 * speed, -1.0, 1.0).astype(jnp.float32)


def policies() -> dict:
    """Name -> environment, what acts there, steps."""
    gain = jnp.asarray(LQGShaping().answer(jnp.zeros(5), 0.1).K, jnp.float32)
    level = Inventory().level(0.9)
    return {
        "pendulum": (Pendulum(), experts.swing_up, 110),
        "lqg": (LQG(), lambda o: gain @ jnp.append(o, 1.0), 40),
        "inventory": (Inventory(), lambda o: jnp.clip(level - o, 0.0, 2.0), 40),
        "feed": (Feed(), lambda o: jnp.argmax(o[:4] * jnp.array([0.9, 0.6, 0.5, 0.4])).astype(jnp.int32), 60),
        "maze": (Maze(), through, 100),
        "arm": (Arm(), experts.reach, 30),
    }


def svg(frames: dict[str, np.ndarray]) -> str:
    """Lines pale first and dark last; tracks of points; bars over time."""
    if "bars" in frames:
        series = [np.c_[np.arange(len(v)), v] for v in frames["bars"][:, :, 1].T]
        lines = [(s, 0.35 + 0.15 * i, False) for i, s in enumerate(series)]
    elif "segments" in frames:
        values = frames["segments"]
        if values.shape[1] == 2 and np.ptp(values[:, 1, 0]) == 0:  # bars that only change their height: over time
            lines = [(np.c_[np.arange(len(values)), values[:, 1, 1]], 1.0, False)]
        else:
            chosen = np.unique(np.linspace(0, len(values) - 1, 24).astype(int))
            lines = [(values[t], 0.15 + 0.85 * k / (len(chosen) - 1), True) for k, t in enumerate(chosen)]
    else:
        order = [1, 0] if "walls" in frames else [0, 1]
        lines = [(frames["points"][:, 0, order] * ([1, -1] if "walls" in frames else [1, 1]), 1.0, True)]
    every = np.concatenate([line for line, _, _ in lines])
    if "walls" in frames:
        every = np.array([[-0.5, 0.5], [frames["walls"].shape[2] - 0.5, 0.5 - frames["walls"].shape[1]]])
    low, span = every.min(0), np.maximum(np.ptp(every, 0), 1e-6)
    span = np.full(2, span.max()) if lines[0][2] else span
    scale = lambda v: 10 + (SIZE - 20) * ((v - low) / span * [1, -1] + [0, 1])  # noqa: E731
    body = []
    if "walls" in frames:
        cell = (SIZE - 20) / span[0]
        for i, j in np.argwhere(frames["walls"][0]):
            x, y = scale(np.array([j - 0.5, 0.5 - i]))
            body.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{cell:.1f}" height="{cell:.1f}" fill="#8a8f98"/>')
    for line, shade, _ in lines:
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in scale(line))
        style = f'fill="none" stroke="{COLOUR}" stroke-opacity="{shade:.2f}" stroke-width="2"'
        body.append(f'<polyline points="{points}" {style}/>')
    if "goals" in frames:
        x, y = scale(frames["goals"][-1][0])
        body.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="#d4582a"/>')
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {SIZE} {SIZE}" width="{SIZE}">{"".join(body)}</svg>\n'


def main() -> None:
    """Write them all."""
    OUT.mkdir(parents=True, exist_ok=True)
    for name, (environment, act, steps) in policies().items():
        frames = jax.jit(lambda key, e=environment, a=act, s=steps: drawing.path(e, a, key, s))(jax.random.key(4))
        (OUT / f"{name}.svg").write_text(svg({k: np.asarray(v) for k, v in frames.items()}))


if __name__ == "__main__":
    main()
