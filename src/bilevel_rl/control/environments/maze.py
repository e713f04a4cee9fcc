r"""A point in a maze, which has to reach a goal that pays only there."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bilevel_rl.control.environment import Box, Environment, Step

LAYOUT = ("#######", "#S....#", "####..#", "#.....#", "#..####", "#....G#", "#######")  # ours: an S-shaped corridor
REGIONS = 4  # ours: kinds of starts, from the far end (the real task) to next to the goal


class Maze(Environment):
    r"""Push a point with a force in $[-1, 1]^2$: $v' = .8\,v + .1\,a$, $p' = p + v'$, in units of a cell.

    A wall stops the coordinate that would enter it. 1 is paid, and the episode ends, within half a cell of G; nothing
    before. Observed are place and speed, each place scaled to [-1, 1]: [4]. A state is place, speed and
    whether its episode began at S, [5]; `info` says the last.

    Starts are a mixture: with probability `starts[i]` in region i, a part of the corridor; region 0 is S itself, the task.

    Args:
        steps: of an episode.
        starts: [4] weights of the regions, which sum to one.

    References:
        The point mazes of D4RL and Gymnasium-Robotics, with simpler dynamics.
    """

    steps: int = eqx.field(static=True, default=100)
    starts: Float[Array, " 4"] | tuple[float, ...] = (1.0, 0.0, 0.0, 0.0)

    name: ClassVar[str] = "maze"
    info_names: ClassVar[tuple[str, ...]] = ("from_start",)

    @property
    def observation(self):
        return Box((-1.0,) * 4, (1.0,) * 4)

    @property
    def action(self):
        return Box((-1.0, -1.0), (1.0, 1.0))

    @property
    def horizon(self):
        return self.steps

    def reset(self, key):
        k_region, k_cell, k_place = jax.random.split(key, 3)
        weights = jnp.asarray(self.starts, jnp.float32)
        region = jax.random.categorical(k_region, jnp.log(jnp.maximum(weights, 1e-12)))
        cells, counts = _regions()
        cell = jnp.asarray(cells, jnp.float32)[region, jax.random.randint(k_cell, (), 0, jnp.asarray(counts)[region])]
        place = cell + jax.random.uniform(k_place, (2,), jnp.float32, -0.2, 0.2)
        state = jnp.concatenate([place, jnp.zeros(2, jnp.float32), (region == 0).astype(jnp.float32)[None]])
        return state, observed(state)

    def step(self, state, action, key):
        place, speed = state[:2], 0.8 * state[2:4] + 0.1 * jnp.clip(action, -1.0, 1.0)
        for i in (0, 1):  # one coordinate after the other: the point slides along walls
            ahead = place.at[i].add(speed[i])
            stopped = _wall(ahead)
            place = jnp.where(stopped, place, ahead)
            speed = jnp.where(stopped, speed.at[i].set(0.0), speed)
        there = jnp.sum((place - jnp.asarray(_goal(), jnp.float32)) ** 2) < 0.25
        state = jnp.concatenate([place, speed, state[4:]])
        return Step(state, observed(state), there.astype(jnp.float32), there, jnp.zeros((), bool), state[4:])

    def frame(self, state):
        """The point [1, 2], and the walls [rows, columns]."""
        return {"points": state[None, :2], "walls": jnp.asarray(_walls())}


def observed(state):
    """[4] of a state: places in [-1, 1], speeds in units of half a cell a step, the fastest there is."""
    half = (len(LAYOUT) - 1) / 2
    return jnp.concatenate([(state[:2] - half) / half, 2 * state[2:4]])


def _walls() -> np.ndarray:
    return np.array([[c == "#" for c in row] for row in LAYOUT])


def _goal() -> np.ndarray:
    return np.argwhere(np.array([list(row) for row in LAYOUT]) == "G")[0].astype(float)


def _wall(place):
    i, j = jnp.round(place).astype(jnp.int32)
    return jnp.asarray(_walls())[i, j]


def _regions() -> tuple[np.ndarray, np.ndarray]:
    """Cells of each region [4, n, 2], by their steps to the goal, and how many there are [4]."""
    free, distance = ~_walls(), {tuple(_goal().astype(int)): 0}
    queue = list(distance)
    for i, j in queue:  # breadth first; the list grows while it is read
        for cell in ((i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)):
            if free[cell] and cell not in distance:
                distance[cell] = distance[i, j] + 1
                queue.append(cell)
    start = next((i, row.index("S")) for i, row in enumerate(LAYOUT) if "S" in row)
    far = distance[start]
    groups = [[start], *([c for c in queue if c != start and lo < distance[c] / far <= hi]
                         for lo, hi in ((0.66, 1.0), (0.33, 0.66), (0.0, 0.33)))]  # fmt: skip
    most = max(len(g) for g in groups)
    return np.array([(g * most)[:most] for g in groups], float), np.array([len(g) for g in groups])
