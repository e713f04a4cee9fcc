"""Environments as tables: the environment itself where cells lose nothing; elsewhere the error that is stated is there."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest

from bilevel_rl.errors import InvalidProblem
from bilevel_rl.finite import discretised
from bilevel_rl.finite.model import planning


class Corridor(gymnasium.Env):
    """A place in [0, 1] that moves by .2 to the right or left, with slips; 1 is paid at the right end, where it is over."""

    observation_space = gymnasium.spaces.Box(0.0, 1.0, (1,), np.float64)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, jitter: float = 0.0):
        self.jitter = jitter

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.x = 0.1
        return np.array([self.x]), {}

    def step(self, action):
        way = 0.2 if action == 1 else -0.2
        way = -way if self.np_random.random() < 0.25 else way
        self.x = float(np.clip(self.x + way + self.jitter * self.np_random.uniform(-1, 1), 0.1, 0.9))
        return np.array([self.x]), float(self.x > 0.85), self.x > 0.85, False, {}


def test_a_table_whose_cells_lose_nothing_is_the_environment():
    """Places are .1, .3, .5, .7, .9: five cells hold one each, and the chain is known."""
    table = discretised(Corridor(), 5, steps=20_000, discount=0.9)
    P = np.asarray(table.mdp.dense())
    np.testing.assert_allclose(table.centres[:, 0], [0.1, 0.3, 0.5, 0.7])
    assert P.shape == (5, 2, 5)  # four places from which one moves on, and the end
    n = table.visits[1, 1]
    assert abs(P[1, 1, 2] - 0.75) < 4.5 * np.sqrt(0.75 * 0.25 / n)
    assert P[0, 0].tolist()[0] > 0.7  # against the left end
    assert abs(P[3, 1, 4] - 0.75) < 4.5 * np.sqrt(0.75 * 0.25 / table.visits[3, 1])
    assert table.rewards[3, 1] == pytest.approx(P[3, 1, 4])
    best = np.asarray(planning.soft_optimal(table.mdp, table.rewards, 0.01).pi)
    assert best[:4, 1].min() > 0.95
    found = table.error(best, episodes=400, seed=5)
    assert abs(found.promised - found.measured) < 4.5 * found.standard_error + 0.02
    assert found.outside == 0
    assert "the table promises" in str(found)


def test_the_stated_error_sees_what_cells_lose():
    """Two cells can't tell .1 from .3: the table promises another value than the environment gives, by many errors."""
    table = discretised(Corridor(), 2, steps=20_000, discount=0.9)
    right = np.stack([np.zeros(table.mdp.n_states), np.ones(table.mdp.n_states)], axis=1)
    found = table.error(right, episodes=2000)
    assert abs(found.promised - found.measured) > 4.5 * found.standard_error


def test_an_action_that_was_never_tried_is_not_offered():
    table = discretised(Corridor(jitter=0.02), 20, steps=40, discount=0.9)
    tried = table.visits > 0
    allowed = np.asarray(table.mdp.allowed)
    assert (allowed[tried.any(axis=1)] == tried[tried.any(axis=1)]).all()
    act = table.follower(np.full((table.mdp.n_states, 2), 0.5))
    assert act(np.array([0.1])) in (0, 1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"low": -np.inf}, "Give low= and high="),
        ({"bins": 0}, "at least 1"),
        ({"bins": 10_000_000}, "at most 1,000,000 cells"),
    ],
)
def test_what_can_not_be_a_table_is_refused(change, said):
    with pytest.raises(InvalidProblem, match=said):
        discretised(Corridor(), **({"bins": 4, "steps": 10} | change))


def test_spaces_that_need_a_word_are_refused():
    box = Corridor()
    box.action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,))
    with pytest.raises(InvalidProblem, match="Give actions="):
        discretised(box, 4, steps=10)
    box.observation_space = gymnasium.spaces.Discrete(3)
    with pytest.raises(InvalidProblem, match="FlattenObservation"):
        discretised(box, 4, steps=10)
