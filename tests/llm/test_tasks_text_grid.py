"""The text grid world: dynamics, verifier, recurring states, and credit that learns from them."""

from __future__ import annotations

import dataclasses
import itertools
import random

import pytest
import torch

from bilevel_rl.errors import InvalidConfig, InvalidProblem
from bilevel_rl.llm.tasks.text_grid import (
    MOVES,
    Grid,
    GridEpisode,
    Position,
    generate,
    play,
    replay,
    to_batch,
)
from bilevel_rl.policy_gradient.credit import HierarchyOfGroups, LeaveOneOut, TrajectoryGraph
from bilevel_rl.policy_gradient.losses import PolicyGradient
from bilevel_rl.policy_gradient.recipe import Recipe

GRID = Grid(size=3, start=(0, 0), key=(2, 0), door=(2, 2), walls=frozenset({(1, 1)}), limit=9)


def states(grid):
    cells = [(x, y) for x in range(grid.size) for y in range(grid.size) if (x, y) not in grid.walls]
    return [Position(c, k) for c in cells for k in (False, True)]


def test_moves_walls_borders_key_and_door():
    here = GRID.begin()
    assert GRID.step(here, "u") == (here, -0.01, False)
    assert GRID.step(Position((0, 1), False), "r")[0].at == (0, 1)  # the wall
    assert GRID.step(here, "jump")[0] == here
    assert GRID.step(Position((1, 0), False), " r ")[0] == Position((2, 0), True)
    assert GRID.step(Position((2, 1), True), "d") == (Position((2, 2), True), 0.99, True)
    assert GRID.step(Position((2, 1), False), "d") == (Position((2, 2), False), -0.01, False)


def test_lines_and_keys_say_the_same():
    """Two states have equal lines exactly when they have equal keys: the observation is the state."""
    for a, b in itertools.combinations(states(GRID), 2):
        assert GRID.observe(a) != GRID.observe(b)
        assert GRID.state_key(a) != GRID.state_key(b)
    assert GRID.observe(GRID.begin()) == "at 0,0 key 2,0 door 2,2 have no walls 1,1"


def test_distance_is_the_brute_force_optimum():
    for grid in generate(12, seed=3, level=1):
        shortest = next(
            n
            for n in range(1, 9)
            if any(replay(grid, words).done for words in itertools.product(MOVES, repeat=n))
        )
        assert grid.distance() == shortest
    closed = Grid(3, (0, 0), (2, 2), (2, 1), frozenset({(1, 0), (0, 1)}))
    assert closed.distance() is None


def test_replay_verifies_words_alone():
    episode = replay(GRID, ["r", "r", "d", "d", "l", "l"])
    assert episode.done
    assert len(episode.actions) == 4
    assert episode.score == pytest.approx(1 - 0.04)
    assert replay(GRID, ["d"] * 50).actions == ("d",) * 9
    assert not replay(GRID, []).done
    rng = random.Random(0)
    played = play(GRID, lambda line: rng.choice("udlr"))
    assert replay(GRID, played.actions) == played


def test_play_returns_to_any_state():
    late = play(GRID, lambda line: "d", state=Position((2, 1), True))
    assert late.done
    assert late.states == (Position((2, 1), True),)
    assert len(play(GRID, lambda line: "u", turns=3).actions) == 3


def test_generated_games_are_solvable_graded_and_reproducible():
    means = []
    for level in (1, 2, 3, 4):
        games = generate(40, seed=0, level=level)
        assert all(g.distance() is not None and g.limit == 3 * g.distance() for g in games)
        assert all(g.size == level + 2 and len(g.walls) == level - 1 for g in games)
        means.append(sum(g.distance() for g in games) / 40)
        assert generate(40, seed=0, level=level) == games
    assert means == sorted(means)
    with pytest.raises(InvalidConfig, match="level"):
        generate(1, 0, level=7)
    with pytest.raises(InvalidProblem, match=r"Grid\.key"):
        Grid(3, (0, 0), (3, 0), (1, 1))
    with pytest.raises(InvalidProblem, match=r"Grid\.door"):
        Grid(3, (0, 0), (1, 0), (1, 1), frozenset({(1, 1)}))


def test_batches_hold_what_happened():
    other = Grid(3, (0, 0), (1, 0), (0, 1))
    episodes = [replay(GRID, ["r", "r", "d", "d"]), replay(GRID, ["x"]), replay(other, ["r", "l", "d"])]
    b = to_batch(episodes)
    assert b.group.tolist() == [0, 0, 1]
    assert b.mask.sum(1).tolist() == [4, 1, 3]
    assert b.score.tolist() == pytest.approx([e.score for e in episodes])
    assert b.done.tolist() == [True, False, True]
    assert b.truncated.tolist() == [False, True, False]
    assert b.get("action_key")[1, 0] == 4
    assert b.state_key[0, :4].tolist() == [GRID.state_key(s) for s in episodes[0].states]
    assert isinstance(episodes[0], GridEpisode)


def test_states_recur_so_that_step_level_credit_has_something_to_compare():
    rng, long = random.Random(0), dataclasses.replace(GRID, limit=40)
    b = to_batch([play(long, lambda line: rng.choice("udlr")) for _ in range(8)])
    step = HierarchyOfGroups(depth=0)(b)[b.mask]
    assert (step != 0).double().mean() > 0.5
    merged, own = TrajectoryGraph(inner=LeaveOneOut())(b), LeaveOneOut()(b)
    assert ((merged != own) & b.mask).double().sum() > 5


def learn(credit, seed, iterations=60):
    """A table of logits by state, on-policy, eight episodes an iteration; share of solved ones at the end."""
    table = {GRID.observe(s): GRID.state_key(s) for s in states(GRID)}
    theta = torch.zeros(2 * GRID.size**2, 4, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([theta], lr=0.2)
    recipe, rng, moves = Recipe(credit=credit, loss=PolicyGradient()), random.Random(seed), list(MOVES)
    solved = []
    for _ in range(iterations):
        p = theta.detach().softmax(-1).tolist()
        episodes = [play(GRID, lambda line, p=p: rng.choices(moves, p[table[line]])[0]) for _ in range(8)]
        b = to_batch(episodes)
        logp = theta.log_softmax(-1)[b.state_key, b.get("action_key").clamp(max=3)]
        loss, _ = recipe.objective(recipe.prepare(b).replace(logp=logp))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        solved.append(sum(e.done for e in episodes) / 8)
    return sum(solved[:5]) / 5, sum(solved[-10:]) / 10


@pytest.mark.parametrize(
    "credit", [LeaveOneOut(), HierarchyOfGroups(depth=0, scale=True)], ids=["rloo", "gigpo"]
)
def test_a_tabular_policy_learns_the_game(credit):
    before, after = learn(credit, seed=0)
    assert before < 0.5
    assert after > 0.9
