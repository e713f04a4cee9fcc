"""The Gymnasium host: what a batch of environments gives an engine, and what each way of breaking is called."""

from __future__ import annotations

import os

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from bilevel_rl.errors import InvalidConfig, InvalidProblem
from bilevel_rl.host import (
    EnvironmentCrashed,
    EnvironmentFault,
    GymnasiumHost,
    NotFiniteFromEnvironment,
    ObservationOutsideSpace,
    RewardOfWrongShape,
    SpacesChanged,
    UnsupportedSpace,
)
from bilevel_rl.host.guarded import Guarded

LENGTH = 3


class Counter(gymnasium.Env):
    """Counts its steps, and ends (or is cut off) after three; pays 1 a step, and tells `info` where it is."""

    def __init__(self, end="terminated", broken=None, at=2):
        self.observation_space, self.action_space = Box(0, 10, (1,), np.float32), Box(-1, 1, (2,), np.float32)
        self.end, self.broken, self.at = end, broken, at

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        self.first = float(self.np_random.uniform())
        if self.broken == "spaces" and getattr(self, "again", False):
            self.observation_space = Box(0, 10, (2,), np.float32)
        self.again = True
        return np.array([0.0], np.float32), {}

    def step(self, action):
        self.count += 1
        over, broken = self.count == LENGTH, self.broken if self.count == self.at else None
        observation, reward, info = np.array([self.count], np.float32), 1.0, {"place": float(self.count)}
        if broken == "raise":
            raise RuntimeError("the wheel came off")
        if broken == "die":
            os._exit(3)
        if broken in ("nan", "outside", "shape"):
            observation = np.array({"nan": [np.nan], "outside": [11.0], "shape": [1.0, 2.0]}[broken], np.float32)
        if broken in ("reward nan", "reward shape"):
            reward = {"reward nan": np.nan, "reward shape": np.ones(1)}[broken]
        if broken == "info":
            info = {"place": np.inf}
        return observation, reward, over and self.end == "terminated", over and self.end == "truncated", info


def vector(mode):
    return SyncVectorEnv([lambda: Counter("truncated"), lambda: Counter("terminated")], autoreset_mode=mode)


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_transitions_are_the_same_whatever_resets_the_copies(mode):
    """Where each transition led, of an end too; a step that only resets is marked."""
    host = GymnasiumHost(vector(mode), info=("place",))
    seen = [host.step(np.zeros((2, 2))) for _ in range(8)]
    rows = [
        (s.observation[0, 0], s.observation_next[0, 0], s.info[0, 0], s.truncated[0], s.terminated[0], s.terminated[1])
        for s in seen
        if s.valid.all()
    ]
    one = [(0, 1, 1, False, False, False), (1, 2, 2, False, False, False), (2, 3, 3, True, False, True)]
    assert rows == (one * 3)[: len(rows)]
    assert len(rows) == (6 if mode == AutoresetMode.NEXT_STEP else 8)


def test_a_time_limit_of_the_environment_is_no_end():
    """Temporal differences that take `truncated` for an end learn another value than those that bootstrap."""
    host, discount = GymnasiumHost(lambda: Counter("truncated")), 0.9
    honest, wrong = np.zeros(LENGTH + 1), np.zeros(LENGTH + 1)
    honest[LENGTH] = 1 / (1 - discount)  # the task goes on after the clock has run out, and pays 1 for ever
    for _ in range(400):
        step = host.step(np.zeros((1, 2)))
        s, s_next = int(step.observation[0, 0]), int(step.observation_next[0, 0])
        r, cut = step.reward[0], step.terminated[0] or step.truncated[0]
        honest[s] += 0.5 * (r + discount * (not step.terminated[0]) * honest[s_next] - honest[s])
        wrong[s] += 0.5 * (r + discount * (not cut) * wrong[s_next] - wrong[s])
    np.testing.assert_allclose(honest[:LENGTH], 10.0, rtol=1e-6)
    np.testing.assert_allclose(wrong[:LENGTH], [2.71, 1.9, 1.0], rtol=1e-6)


@pytest.mark.parametrize(
    ("broken", "error"),
    [("raise", EnvironmentCrashed), ("nan", NotFiniteFromEnvironment), ("outside", ObservationOutsideSpace),
     ("shape", ObservationOutsideSpace), ("reward nan", NotFiniteFromEnvironment), ("reward shape", RewardOfWrongShape),
     ("info", NotFiniteFromEnvironment), ("spaces", SpacesChanged)],
)  # fmt: skip
def test_each_way_of_breaking_has_a_name_and_the_last_good_step_is_kept(broken, error):
    host = GymnasiumHost(lambda: Counter(broken=broken), info=("place",))
    good = 2 if broken == "spaces" else 1
    for _ in range(good):
        host.step(np.zeros((1, 2)))
    before = host.observation.copy()
    with pytest.raises(EnvironmentFault) as found:
        host.step(np.zeros((1, 2)))
    assert type(found.value) is error
    np.testing.assert_array_equal(host.observation, before)
    assert host.steps == good


@pytest.mark.parametrize("broken", ["die", "nan"])
def test_processes_that_die_or_break(broken):
    host = GymnasiumHost(Made(broken), processes=True)
    host.step(np.zeros((1, 2)))
    with pytest.raises(EnvironmentCrashed if broken == "die" else NotFiniteFromEnvironment):
        host.step(np.zeros((1, 2)))
    host.close()


class Made:
    """A factory that other processes can take over."""

    __name__ = "Counter"

    def __init__(self, broken):
        self.broken = broken

    def __call__(self):
        return Counter(broken=self.broken)


@pytest.mark.parametrize(
    ("observation", "action"),
    [(Dict({"a": Discrete(2)}), Discrete(2)), (Discrete(3), MultiDiscrete([2, 2])),
     (Discrete(3), Box(-np.inf, np.inf, (1,)))],
)  # fmt: skip
def test_other_spaces_are_refused_in_words(observation, action):
    class Other(Counter):
        def __init__(self):
            super().__init__()
            self.observation_space, self.action_space = observation, action

    with pytest.raises(UnsupportedSpace, match="Wrap"):
        GymnasiumHost(Other)


def test_discrete_spaces_are_one_hot_and_numbered_from_0():
    class Shifted(gymnasium.Env):
        observation_space, action_space = Discrete(3, start=5), Discrete(2, start=1)

        def reset(self, *, seed=None, options=None):
            return 5, {}

        def step(self, action):
            return 5 + int(action), 0.0, False, False, {}

    host = GymnasiumHost(Shifted, count=2)
    assert host.observation_size == 3
    np.testing.assert_array_equal(host.step(np.array([0, 1])).observation_next, [[0, 1, 0], [0, 0, 1]])
    with pytest.raises(ValueError, match=r"0\.\.1"):
        host.step(np.array([0, 2]))


def test_seeds_repeat_and_differ_between_copies():
    first, again, other = (GymnasiumHost("Pendulum-v1", 2, seed=s).observation for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).min() > 0
    assert np.abs(first[0] - first[1]).min() > 0


def test_resuming_says_what_is_lost():
    host = GymnasiumHost("Pendulum-v1", 1, horizon=5)
    for _ in range(5):
        last = host.step(np.zeros((1, 1)))
    assert last.truncated[0]
    assert not last.terminated[0]
    later = GymnasiumHost("Pendulum-v1", 1)
    assert "can't be put back" in later.resumed(host.position())
    assert later.steps == 5
    assert np.abs(later.observation - host.observation).max() > 0


@pytest.mark.parametrize("given", [{"environment": "Pendulm-v1"}, {"environment": Counter(), "count": 2},
                                   {"environment": Counter, "count": 0}])  # fmt: skip
def test_what_is_no_environment(given):
    with pytest.raises(InvalidConfig):
        GymnasiumHost(**given)


def test_a_number_that_info_lacks():
    host = GymnasiumHost(Counter, info=("plce",))
    with pytest.raises(InvalidProblem, match="Did you mean 'place'"):
        host.step(np.zeros((1, 2)))


def test_actions_are_clipped_and_their_shape_is_checked():
    env = Guarded(Counter(), "counter")
    env.reset(seed=0)
    host = GymnasiumHost(Counter)
    host.step(np.full((1, 2), 7.0))  # clipped to the bounds
    for wrong in (np.zeros((1, 3)), np.zeros((2, 2)), np.full((1, 2), np.nan)):
        with pytest.raises(ValueError, match="action"):
            host.step(wrong)
