"""Shortest paths in text: a map of places, a goal, and a row that interleaves moves with what the world answers.

The prompt names the place where one stands and the one to get to, `af:`; the policy writes a move, one of `^v<>`, and the
world answers with the place that one comes to. The map is not told: it has to be learnt. At the goal the episode ends.

    af:>b>cvf        from a, right to b, right to c, down to f

Places come back, in a row (a wall, a step back) and among the rows of a prompt: that is what credit by states compares.
Episodes take 2 to 6 turns. Reward: 1 at the goal, .1 less for every turn more than the shortest path takes; 0 elsewhere.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.llm.data.prompts import Prompt
from bilevel_rl.llm.sampling.rollout import Rollout
from bilevel_rl.llm.tasks.small import Row, SmallTask, symbols_tokenizer

MOVES = {"^": (0, -1), "v": (0, 1), "<": (-1, 0), ">": (1, 0)}
PLACES = "abcdefghijklmnopqrstuxyz"  # without v and w: v is a move
SIZES = {1: (3, 2), 2: (3, 3), 3: (4, 3), 4: (4, 4), 5: (5, 4), 6: (6, 4)}  # level -> columns, rows
LONGEST, SPARE = 4, 2  # turns of the longest shortest path, and turns beyond it


@dataclasses.dataclass(frozen=True)
class Map:
    """A grid of places with walls between some of them.

    Attributes:
        columns, rows: of the grid; places are named along its rows.
        walls: pairs of neighbouring places that one can't pass between, the smaller first.
    """

    columns: int
    rows: int
    walls: frozenset[tuple[str, str]] = frozenset()

    @property
    def places(self) -> str:
        """All names."""
        return PLACES[: self.columns * self.rows]

    def move(self, place: str, move: str) -> str:
        """Where a move leads; a wall, the edge and what is no move leave one where one is.

        Example:
            >>> Map(3, 2).move("a", ">"), Map(3, 2).move("a", "<"), Map(3, 2).move("a", "v")
            ('b', 'a', 'd')
        """
        dx, dy = MOVES.get(move, (0, 0))
        at = self.places.index(place)
        x, y = at % self.columns + dx, at // self.columns + dy
        if not (0 <= x < self.columns and 0 <= y < self.rows):
            return place
        to = self.places[y * self.columns + x]
        return place if (min(place, to), max(place, to)) in self.walls else to

    @functools.lru_cache(maxsize=4096)  # noqa: B019  maps are few and small
    def distances(self, goal: str) -> dict[str, int]:
        """Fewest turns to the goal from every place that it can be reached from."""
        found, queue = {goal: 0}, deque([goal])
        while queue:
            place = queue.popleft()
            for move in MOVES:  # passages go both ways
                other = self.move(place, move)
                if other not in found:
                    found[other] = found[place] + 1
                    queue.append(other)
        return found

    def path(self, start: str, goal: str) -> str:
        """A shortest row: moves, and the places between them."""
        distance, place, written = self.distances(goal), start, ""
        while place != goal:
            move = next(m for m in MOVES if distance[self.move(place, m)] < distance[place])
            place = self.move(place, move)
            written += move + (place if place != goal else "")
        return written


def make_map(level: int, seed: int = 0) -> Map:
    """A connected map with about a sixth of its passages walled up.

    Raises:
        InvalidConfig: a level outside 1 to 6.
    """
    if level not in SIZES:
        raise InvalidConfig(message("text_world.level", level, "levels are 1 to 6", "Choose one of these"))
    whole, random = Map(*SIZES[level]), np.random.default_rng([seed, level])
    passages = sorted({(min(p, q), max(p, q)) for p in whole.places for m in MOVES if (q := whole.move(p, m)) != p})
    walls: frozenset[tuple[str, str]] = frozenset()
    for i in random.permutation(len(passages)):
        tried = walls | {passages[i]}
        if len(tried) <= len(passages) // 6 and len(Map(*SIZES[level], tried).distances("a")) == len(whole.places):
            walls = tried
    return dataclasses.replace(whole, walls=walls)


@dataclasses.dataclass(frozen=True)
class Walk:
    """What happened in a row.

    Attributes:
        places: where each turn began.
        moves: of each turn.
        end: where the last one led.
        done: that was the goal.
    """

    places: tuple[str, ...]
    moves: tuple[str, ...]
    end: str
    done: bool


def walked(world: Map, prompt: str, written: str) -> Walk:
    """Walk a row again: moves stand at its even positions, and the world's own words are not trusted.

    Example:
        >>> walked(Map(3, 2), "ac:", ">b>").done
        True
    """
    place, goal = prompt[0], prompt[1]
    places: list[str] = []
    moves: list[str] = []
    for move in written[::2]:
        if place == goal or len(moves) == turns(world, prompt):
            break
        places.append(place)
        moves.append(move)
        place = world.move(place, move)
    return Walk(tuple(places), tuple(moves), place, place == goal)


def turns(world: Map, prompt: str) -> int:
    """Turns of an episode at most."""
    return world.distances(prompt[1])[prompt[0]] + SPARE


class Answering:
    """The world as a `World`: after each move the place, until the goal is reached or the turns are over."""

    def __init__(self, world: Map, tokenizer: Any) -> None:
        self.map = world
        self.ids = {s: tokenizer.convert_tokens_to_ids(s) for s in [*MOVES, *world.places]}
        self.words = {i: s for s, i in self.ids.items()}

    def text(self, ids: Sequence[int]) -> str:
        """One character a token; `?` for tokens that are neither place nor move."""
        return "".join(self.words.get(int(i), "?") for i in ids)

    def reply(self, prompts: Sequence[Prompt], written: Sequence[Sequence[int]]) -> list[Sequence[int] | None]:
        """See `World`."""
        return [self._one(p.text, self.text(ids)) for p, ids in zip(prompts, written, strict=True)]

    def _one(self, prompt: str, written: str) -> Sequence[int] | None:
        walk = walked(self.map, prompt, written)
        if walk.done or len(walk.moves) >= turns(self.map, prompt):
            return None
        return [self.ids[walk.end]] if len(written) % 2 else ()


def make_task(level: int = 2) -> SmallTask:
    """The task of a level: larger maps have more prompts and more places to know."""
    world = make_map(level)
    pairs = [(s, g) for g in world.places for s, d in sorted(world.distances(g).items()) if 2 <= d <= LONGEST]
    rows: list[Row] = [
        {"prompt": f"{s}{g}:", "demonstration": world.path(s, g), "answer": g} for s, g in pairs
    ]

    symbols = [*MOVES, *PLACES, ":"]
    answering = Answering(world, symbols_tokenizer(symbols))

    def reward(
        prompts: Sequence[str], completions: Sequence[str], completion_ids: Sequence[Sequence[int]] | None = None,
        **_: object,
    ) -> list[float]:  # fmt: skip
        # text leaves special tokens out, which would move what comes after them
        rows = completions if completion_ids is None else [answering.text(ids) for ids in completion_ids]
        return [paid(world, p, c) for p, c in zip(prompts, rows, strict=True)]

    def lines(number: int, random: np.random.Generator) -> list[tuple[str, str]]:
        """Walks that take a right move one time in four, and any move else."""
        found = []
        for i in random.integers(len(rows), size=number):
            prompt = rows[i]["prompt"]
            found.append((prompt, _stumble(world, prompt, random)))
        return found

    # the start policy knows how rows look, and walks half as well as what it imitates
    shown = lines(400, np.random.default_rng(0))
    enough = 0.5 * float(np.mean(reward([p for p, _ in shown], [c for _, c in shown])))
    return SmallTask(
        f"text_world@{level}", [r for i, r in enumerate(rows) if i % 5 != 2], rows[2::5], reward, symbols,
        2 * (LONGEST + SPARE) - 1, lines, enough, lambda tokenizer: fields(world, tokenizer),
        lambda tokenizer: Answering(world, tokenizer),
    )  # fmt: skip


def paid(world: Map, prompt: str, completion: str) -> float:
    """The reward of a row."""
    walk = walked(world, prompt, completion)
    return 1 - 0.1 * (len(walk.moves) - world.distances(prompt[1])[prompt[0]]) if walk.done else 0.0


def _stumble(world: Map, prompt: str, random: np.random.Generator, right: float = 0.25) -> str:
    place, goal, written = prompt[0], prompt[1], ""
    for _ in range(turns(world, prompt)):
        distance = world.distances(goal)
        good = [m for m in MOVES if distance[world.move(place, m)] < distance[place]]
        move = str(random.choice(good)) if random.random() < right else str(random.choice(list(MOVES)))
        place = world.move(place, move)
        written += move
        if place == goal:
            break
        written += place
    return written[:-1] if written[-1] in world.places else written


def fields(world: Map, tokenizer: Any) -> Mapping[str, Callable[[Rollout], Tensor]]:
    """What components read of rows: turns, states, moves, the place where a row ends, rooms, places seen, time.

    A room is a column of the map: `switch` marks turns that begin in another one than the turn before. A step up or down
    takes twice as long as one to the side.
    """
    answering, places = Answering(world, tokenizer), world.places

    def walks(rows: Rollout) -> list[Walk]:
        return [
            walked(world, p.text, answering.text(ids)) for p, ids in zip(rows.prompts, rows.completion_ids(), strict=True)
        ]

    def by_turn(value: Callable[[Rollout, int, Walk, int], int]) -> Callable[[Rollout], Tensor]:
        """[N, T] integers of each turn at its move, and at the place that answers it."""

        def field(rows: Rollout) -> Tensor:
            out = torch.zeros(rows.size, rows.horizon, dtype=torch.long, device=rows.ids.device)
            for i, walk in enumerate(walks(rows)):
                for u in range(len(walk.moves)):
                    out[i, 2 * u : 2 * u + 2] = value(rows, i, walk, u)
            return out

        return field

    def state(rows: Rollout, i: int, walk: Walk, u: int) -> int:
        return places.index(rows.prompts[i].text[1]) * len(places) + places.index(walk.places[u])

    def room(place: str) -> int:
        return places.index(place) % world.columns

    def cover(rows: Rollout) -> Tensor:
        out = torch.zeros(rows.size, rows.horizon, len(places), dtype=torch.bool, device=rows.ids.device)
        for i, walk in enumerate(walks(rows)):
            for u, place in enumerate([*walk.places[1:], walk.end]):
                out[i, 2 * u, places.index(place)] = True
        return out

    def duration(rows: Rollout) -> Tensor:
        return torch.tensor(
            [sum(2.0 if m in "^v" else 1.0 for m in walk.moves) for walk in walks(rows)], device=rows.ids.device
        )

    order = {move: k for k, move in enumerate(MOVES)}
    switch = by_turn(lambda _, i, walk, u: int(u > 0 and room(walk.places[u]) != room(walk.places[u - 1])))
    return {
        "turn": by_turn(lambda _, i, walk, u: u),
        "state_key": by_turn(state),
        "action_key": by_turn(lambda _, i, walk, u: order.get(walk.moves[u], len(order))),
        "switch": lambda rows: switch(rows).bool(),
        "answer": lambda rows: torch.tensor([places.index(w.end) for w in walks(rows)], device=rows.ids.device),
        "cover": cover,
        "duration": duration,
    }
