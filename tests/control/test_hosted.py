"""The loop of neural followers around environments of Gymnasium that step outside compiled code."""

from __future__ import annotations

import base64
import io
import json
from typing import ClassVar

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from bilevel_rl.control import ControlProblem, Environment, drawing, evaluate
from bilevel_rl.control.followers import SoftQ
from bilevel_rl.control.hosted import Hosted, train
from bilevel_rl.control.problems import PendulumShaping
from bilevel_rl.control.solvers import CoupledPair, Covariance, PartialSGD
from bilevel_rl.errors import InvalidConfig, InvalidProblem
from bilevel_rl.host import EnvironmentFault, GymnasiumHost
from bilevel_rl.loop import checkpoint, solve
from bilevel_rl.loop.checking import check_solver
from bilevel_rl.report import rollouts


class Upright(ControlProblem):
    """CartPole, paid for standing straight; x weighs how much."""

    environment: Environment = Hosted.of("CartPole-v1")
    x0 = jnp.zeros(1)

    def features(self, t):
        return jnp.stack([t.reward, t.next_obs[2] ** 2])

    def reward(self, x, features):
        return features[0] - x[0] * features[1]


SOLVER = PartialSGD(follower=SoftQ(width=4), chains=2, batch=4, recent=4, capacity=64)


@pytest.mark.slow
def test_training_goes_on_from_its_folder(tmp_path):
    """Networks, replay and x of a run that went on are what they were; only episodes begin anew, and that is said."""
    problem, folder = Upright(), tmp_path / "run"
    seen = []
    whole = train(problem, SOLVER, iterations=12, record_every=4, folder=folder, on_record=lambda k, _: seen.append(k))
    assert seen == [4, 8, 12]
    assert whole["samples"].tolist() == [[0, 8, 16, 24]]
    moved = jax.tree.leaves(whole.state.follower)
    assert all(bool(jnp.all(jnp.isfinite(v))) for v in moved)
    with pytest.warns(UserWarning, match="can't be put back"):
        again = train(problem, SOLVER, iterations=12, record_every=4, folder=folder, resume=True)
    for a, b in zip(jax.tree.leaves(whole.state.follower), jax.tree.leaves(again.state.follower), strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.all(np.isfinite(whole.x))
    drawn = np.load(folder / "scene.npz")["path_curves"]  # what the follower does at the end
    assert drawn.shape[0] == 1
    assert drawn.shape[1] > 2
    assert drawn.shape[2] == 4


class Painted(gymnasium.Env):
    """Five steps, each of which is a picture of its number's shade."""

    metadata: ClassVar = {"render_modes": ["rgb_array"]}

    def __init__(self, render_mode=None):
        self.render_mode, self.count = render_mode, 0
        self.observation_space, self.action_space = Box(0.0, 9.0, (1,)), Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.count += 1
        return np.full(1, self.count, np.float32), 1.0, self.count == 5, False, {}

    def render(self):
        return np.full((320, 640, 3), 50 * self.count, np.uint8)


def painted(render_mode=None):
    return Painted(render_mode)


def test_an_episode_outside_is_drawn_by_its_pictures_or_by_what_it_observed():
    found = drawing.episode(Hosted.of(painted).shown(0), lambda obs: np.array(1))
    assert found["path_curves"][0, :, 0].tolist() == [0, 1, 2, 3, 4, 5]
    images = found["path_images"][0]
    assert images.shape == (5, 80, 160, 3)  # a fourth of their size, up to the end
    assert images[:, 0, 0, 0].tolist() == [0, 50, 100, 150, 200]
    assert set(drawing.episode(Hosted.of(Painted).host(1), lambda obs: np.array(1))) == {"path_curves"}
    go = pytest.importorskip("plotly.graph_objects")
    row = rollouts.draw(go, {"images": images, "curves": found["path_curves"][0]})
    assert len(row.layout.images) == 5
    curves = rollouts.draw(go, {"curves": found["path_curves"][0]})
    assert curves.data[0].y == (0.0, 1.0, 2.0, 3.0, 4.0, 5.0)
    picture = pytest.importorskip("PIL.Image")
    shown = picture.open(io.BytesIO(base64.b64decode(row.layout.images[3].source.partition(",")[2])))
    np.testing.assert_array_equal(np.asarray(shown), images[3])


def test_what_does_not_fit_is_refused():
    problem = PendulumShaping(environment=Hosted.of("Pendulum-v1"))
    small = Covariance(chains=2, batch=4, recent=4)
    alike = PendulumShaping(environment=Hosted.of("Pendulum-v1"), gamma=0.98)
    with pytest.raises(InvalidProblem, match="chains of its own"):
        train(alike, CoupledPair(chains=2, batch=4, recent=4), iterations=1)
    with pytest.raises(InvalidConfig, match="3 copies"):
        train(problem, small, GymnasiumHost("Pendulum-v1", 3), iterations=1)
    with pytest.raises(InvalidConfig, match="the problem's are"):
        train(problem, small, GymnasiumHost("CartPole-v1", 2), iterations=1)
    makers = [lambda: gymnasium.make("Pendulum-v1")] * 2
    late = GymnasiumHost(SyncVectorEnv(makers, autoreset_mode=AutoresetMode.NEXT_STEP))
    with pytest.raises(InvalidConfig, match="SAME_STEP"):
        train(problem, small, late, iterations=1)
    with pytest.raises(InvalidConfig, match="can be compiled"):
        train(PendulumShaping(), small, iterations=1)


def test_compiled_code_can_not_step_it():
    environment = Hosted.of("Pendulum-v1")
    assert jax.eval_shape(environment.reset, jax.random.key(0))[1].shape == (3,)
    with pytest.raises(Exception, match=r"hosted\.train"):
        jax.block_until_ready(jax.jit(environment.reset)(jax.random.key(0)))


class Breaks(gymnasium.Wrapper):
    """Out of order from one of its steps on."""

    def __init__(self, at):
        super().__init__(gymnasium.make("CartPole-v1"))
        self.left = at

    def step(self, action):
        self.left -= 1
        if not self.left:
            raise RuntimeError("out of order")
        return super().step(action)


def test_a_fault_of_the_environment_keeps_its_name():
    with pytest.raises(EnvironmentFault, match="out of order"):
        train(Upright(), SOLVER, GymnasiumHost(lambda: Breaks(1), 2), iterations=1)


@pytest.mark.slow
def test_what_was_recorded_before_a_fault_is_kept_and_gone_on_from(tmp_path, monkeypatch):
    """Seven steps are whole, with records at 2, 4 and 6; the run goes on from there once the environment is mended."""
    monkeypatch.setattr(checkpoint, "SECONDS", 0.0)
    options = {"iterations": 8, "record_every": 2, "folder": tmp_path / "run"}
    with pytest.raises(EnvironmentFault, match="out of order"):
        train(Upright(), SOLVER, GymnasiumHost(lambda: Breaks(8), 2), **options)
    kept = np.load(tmp_path / "run" / "metrics.npz")
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["state"] == "failed"
    assert "out of order" in status["message"]
    with pytest.warns(UserWarning, match="can't be put back"):
        whole = train(Upright(), SOLVER, resume=True, **options)
    assert whole["samples"].tolist() == [[0, 4, 8, 12, 16]]
    np.testing.assert_array_equal(whole.x[:, :4], kept["x"])


def test_what_copies_states_refuses_a_world_outside_in_a_sentence():
    for ask in (lambda: check_solver(SOLVER, Upright()), lambda: evaluate.fresh(Upright(), seeds=1)):
        with pytest.raises(InvalidProblem, match="steps outside compiled code; its states can't be copied"):
            ask()


@pytest.mark.slow
def test_the_loop_takes_a_problem_of_the_outside_as_it_is():
    trained, solved = (f(Upright(), SOLVER, iterations=4, record_every=2, seed=1) for f in (train, solve))
    for a, b in zip(jax.tree.leaves(trained.state.follower), jax.tree.leaves(solved.state.follower), strict=True):
        np.testing.assert_array_equal(a, b)
