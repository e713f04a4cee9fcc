"""A text grid world with a key and a door: multi-turn, verified by replay, with states that recur.

Each turn the agent reads one line, such as `at 1,2 key 0,3 door 3,3 have no walls 1,1`, and writes one move: u, d, l or r.
The line says everything, so the game is a Markov chain in it, and the same line comes back in other episodes (and in the
same one): that is what turn-level and state-key credit compares. Episodes end at the door with the key (reward 1), or at
the limit. A wrong word costs a turn and leaves the agent where it is.

A state is an immutable value and a move a pure function, so any state can be returned to: vine and tree rollouts need
nothing more.
"""

from __future__ import annotations

import dataclasses
import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from bilevel_rl.errors import InvalidConfig, InvalidProblem, message
from bilevel_rl.policy_gradient.batch import Batch

MOVES = {"u": (0, -1), "d": (0, 1), "l": (-1, 0), "r": (1, 0)}
Place = tuple[int, int]


class Position(NamedTuple):
    """The state: where the agent is, and whether it has the key."""

    at: Place
    key: bool


@dataclasses.dataclass(frozen=True)
class Grid:
    """One game.

    Attributes:
        size: cells a side.
        start, key, door: cells.
        walls: cells that can't be entered.
        limit: turns an episode.
        step_cost: reward lost a turn; small against the 1 for the door.
    """

    size: int
    start: Place
    key: Place
    door: Place
    walls: frozenset[Place] = frozenset()
    limit: int = 20
    step_cost: float = 0.01

    def __post_init__(self) -> None:
        cells = {"start": self.start, "key": self.key, "door": self.door}
        for name, (x, y) in cells.items():
            inside = 0 <= x < self.size and 0 <= y < self.size
            if not inside or (x, y) in self.walls:
                raise InvalidProblem(
                    message(
                        f"Grid.{name}",
                        (x, y),
                        f"it must be a free cell of {self.size} x {self.size}",
                        "Move it",
                    )
                )
        if self.limit < 1:
            raise InvalidProblem(message("Grid.limit", self.limit, "it must be at least 1", "Raise it"))

    def begin(self) -> Position:
        """The first state."""
        return Position(self.start, self.start == self.key)

    def observe(self, state: Position) -> str:
        """The line that the agent reads: everything that matters for what follows."""
        walls = " ".join(f"{x},{y}" for x, y in sorted(self.walls)) or "none"
        return (
            f"at {state.at[0]},{state.at[1]} key {self.key[0]},{self.key[1]} door {self.door[0]},{self.door[1]} "
            f"have {'yes' if state.key else 'no'} walls {walls}"
        )

    def state_key(self, state: Position) -> int:
        """An integer that two states of a game share exactly when their lines are equal."""
        return (state.at[1] * self.size + state.at[0]) * 2 + int(state.key)

    def step(self, state: Position, action: str) -> tuple[Position, float, bool]:
        """The state after a move, its reward, and whether the episode ends by itself."""
        dx, dy = MOVES.get(action.strip(), (0, 0))
        x, y = state.at[0] + dx, state.at[1] + dy
        free = 0 <= x < self.size and 0 <= y < self.size and (x, y) not in self.walls
        at = (x, y) if free else state.at
        after = Position(at, state.key or at == self.key)
        done = after.key and at == self.door
        return after, (1.0 if done else 0.0) - self.step_cost, done

    def distance(self) -> int | None:
        """Fewest turns to the door with the key; None when it can't be reached."""
        first = self.begin()
        seen, queue = {first: 0}, deque([first])
        while queue:
            state = queue.popleft()
            for move in MOVES:
                after, _, done = self.step(state, move)
                if done:
                    return seen[state] + 1
                if after not in seen:
                    seen[after] = seen[state] + 1
                    queue.append(after)
        return None


@dataclasses.dataclass(frozen=True)
class GridEpisode:
    """What happened: states before each turn, words, rewards, and how it ended."""

    grid: Grid
    states: tuple[Position, ...]
    actions: tuple[str, ...]
    rewards: tuple[float, ...]
    done: bool

    @property
    def score(self) -> float:
        """Sum of the rewards."""
        return sum(self.rewards)


def replay(grid: Grid, actions: Sequence[str]) -> GridEpisode:
    """Play a list of words from the start: the verifier, which trusts nothing but the words.

    Words after the end of the episode, or beyond the limit, aren't played.
    """
    state, states, played, rewards, done = grid.begin(), [], [], [], False
    for action in actions[: grid.limit]:
        states.append(state)
        state, reward, done = grid.step(state, action)
        played.append(action)
        rewards.append(reward)
        if done:
            break
    return GridEpisode(grid, tuple(states), tuple(played), tuple(rewards), done)


def play(
    grid: Grid, policy: Callable[[str], str], state: Position | None = None, turns: int | None = None
) -> GridEpisode:
    """An episode of a policy that maps the line to a word, from the start or from any state.

    Args:
        grid: the game.
        policy: line -> word.
        state: where to begin (vine rollouts).
        turns: at most this many (the game's limit when missing).
    """
    state, states, actions, rewards, done = state or grid.begin(), [], [], [], False
    for _ in range(grid.limit if turns is None else turns):
        states.append(state)
        action = policy(grid.observe(state))
        state, reward, done = grid.step(state, action)
        actions.append(action)
        rewards.append(reward)
        if done:
            break
    return GridEpisode(grid, tuple(states), tuple(actions), tuple(rewards), done)


def generate(number: int, seed: int, level: int = 1, step_cost: float = 0.01) -> list[Grid]:
    """Solvable games: a side of level + 2 cells, level - 1 walls, a limit of three times the shortest way.

    Args:
        number: how many; they are distinct while the level has enough.
        seed: of the draw.
        level: 1 to 6.
        step_cost: of each game.

    Raises:
        InvalidConfig: a level outside 1 to 6.
    """
    if not 1 <= level <= 6:
        raise InvalidConfig(message("text_grid.level", level, "levels are 1 to 6", "Choose one of these"))
    rng, size = random.Random(seed), level + 2
    cells = [(x, y) for y in range(size) for x in range(size)]
    found: dict[Grid, None] = {}
    tries = 0
    while len(found) < number:
        tries += 1
        start, key, door, *walls = rng.sample(cells, 3 + (level - 1))
        grid = Grid(size, start, key, door, frozenset(walls), limit=10_000, step_cost=step_cost)
        distance = grid.distance()
        if distance is None:
            continue
        grid = dataclasses.replace(grid, limit=3 * distance)
        if grid not in found or tries > 50 * number:
            found[grid] = None
            if tries > 100 * number:
                break
    return list(found)


def to_batch(episodes: Sequence[GridEpisode], group: Sequence[int] | None = None, **fields: object) -> Batch:
    """A batch with one token a turn: rewards, turns, keys of states and actions; 64 bit.

    Args:
        episodes: N of them, padded to the longest.
        group: [N]; episodes of the same game share one when missing.
        **fields: more fields of `Batch`, [N, T].

    Returns:
        a batch whose action keys are 0 to 3 for the moves and 4 for any other word.
    """
    width = max((len(e.actions) for e in episodes), default=0)
    games: dict[Grid, int] = {}
    own = [games.setdefault(e.grid, len(games)) for e in episodes]
    mask = torch.zeros(len(episodes), width, dtype=torch.bool)
    reward = torch.zeros(len(episodes), width, dtype=torch.float64)
    state, action = (torch.zeros(len(episodes), width, dtype=torch.long) for _ in range(2))
    order = {move: k for k, move in enumerate(MOVES)}
    for i, e in enumerate(episodes):
        n = len(e.actions)
        mask[i, :n] = True
        reward[i, :n] = torch.tensor(e.rewards, dtype=torch.float64)
        state[i, :n] = torch.tensor([e.grid.state_key(s) for s in e.states])
        action[i, :n] = torch.tensor([order.get(a.strip(), len(order)) for a in e.actions])
    turn = torch.arange(width).expand(len(episodes), width)
    return Batch.make(
        mask=mask, reward=reward, group=own if group is None else list(group), turn=turn, state_key=state,
        action_key=action, done=[e.done for e in episodes], **fields,
    )  # fmt: skip
