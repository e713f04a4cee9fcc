"""Doors to Gymnasium and its agents: x as a reward, agents as black boxes, followers as files."""

from __future__ import annotations

import warnings

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from bilevel_rl.control import export
from bilevel_rl.control.agents import METHODS, Agent, ScriptAgent, StableBaselines3Agent, descend
from bilevel_rl.control.environments import Arm, CombinationLock, Pendulum
from bilevel_rl.control.followers import SAC
from bilevel_rl.control.problems import InventoryContract, PendulumShaping
from bilevel_rl.control.scoring import policy_from_sb3, score
from bilevel_rl.control.solvers import SPSA, Covariance
from bilevel_rl.control.wrappers import AsGymnasium, RewardWrapper
from bilevel_rl.errors import InvalidConfig, InvalidProblem, RunNotFound
from bilevel_rl.schedules import PowerDecay

X = [4.0, 0.5, 0.0, -1.0]


def test_the_reward_wrapper_pays_what_the_problem_pays():
    problem = PendulumShaping()
    env = RewardWrapper(gymnasium.make("Pendulum-v1"), problem, X)
    env.reset(seed=3)
    for _ in range(5):
        obs, reward, _, _, info = env.step(np.array([1.0], np.float32))
        cos, sin, speed = (float(v) for v in obs)
        phi = np.array([cos, -(speed**2) / 8, sin * speed / 8, cos * speed**2 / 8])
        np.testing.assert_allclose(reward, (info["own_reward"] + np.dot(X, phi)) / 8, rtol=1e-5)
        np.testing.assert_allclose(info["leader_utility"], info["own_reward"] / 8, rtol=1e-6)


@pytest.mark.parametrize("make", [
    lambda: RewardWrapper(gymnasium.make("Pendulum-v1"), PendulumShaping(), X),
    lambda: AsGymnasium(Arm()), lambda: AsGymnasium(CombinationLock()),
    lambda: RewardWrapper(AsGymnasium(InventoryContract().environment), InventoryContract()),
], ids=["wrapped", "arm", "lock", "inventory"])  # fmt: skip
def test_gymnasium_checks_pass(make):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about actions that are not in [-1, 1], and bounds that are infinite
        check_env(make(), skip_render_check=True)


def test_own_pendulum_through_the_door_is_gymnasiums():
    env, twin = AsGymnasium(Pendulum(precise=True)), gymnasium.make("Pendulum-v1").unwrapped
    env.reset(seed=0)
    twin.reset(seed=0)
    twin.state = np.asarray(env._state)
    for _ in range(200):
        action = np.array([1.5])
        found, other = env.step(action), twin.step(action)
        np.testing.assert_allclose(found[0], other[0], atol=1e-5)
    assert found[3]
    assert not found[2]


def test_other_spaces_and_missing_numbers_are_refused():
    with pytest.raises(InvalidProblem, match="observations"):
        RewardWrapper(gymnasium.make("CartPole-v1"), PendulumShaping())

    class Bare(AsGymnasium):
        def step(self, action):
            return *super().step(action)[:4], {}

    env = RewardWrapper(Bare(InventoryContract().environment), InventoryContract())
    env.reset(seed=0)
    with pytest.raises(InvalidProblem, match="'left'"):
        env.step(np.ones(1, np.float32))


def order_up_to(env, steps, seed):
    """A script that tries levels in the environment and keeps the one that is paid best."""
    levels, totals = np.linspace(0.2, 0.9, 8), []
    for level in levels:
        obs, _ = env.reset(seed=seed)
        total = 0.0
        for _ in range(steps // len(levels)):
            obs, reward, *_ = env.step(np.clip(level - obs, 0, 2).astype(np.float32))
            total += reward
        totals.append(total)
    best = levels[int(np.argmax(totals))]
    return lambda obs: np.clip(best - obs, 0, 2).astype(np.float32)


@pytest.mark.parametrize("method", METHODS)
def test_a_black_box_agent_is_led(method):
    """A script that finds its order level by trial is led to what the head office wants."""
    problem = InventoryContract(gamma=0.8)
    agent = lambda: ScriptAgent(order_up_to)  # noqa: E731
    assert isinstance(agent(), Agent)
    found = descend(problem, agent, method=method, iterations=3, steps=320, episodes=2, radius=PowerDecay(0.8, 0.0),
                    zeta=PowerDecay(8.0, 0.0), x0=[0.8])  # fmt: skip
    assert found.x.shape == (4, 1)
    assert float(problem.truth(jnp.asarray(found.x[-1]), 0.0)) < float(problem.truth(jnp.array([0.8]), 0.0))
    assert np.all(np.diff(found.transitions) > 0)


def test_methods_that_need_gradients_refuse_a_black_box():
    with pytest.raises(InvalidConfig, match="black box: spsa, finite_difference, nested"):
        descend(PendulumShaping(), lambda: ScriptAgent(order_up_to), method="covariance")
    for kind in (Covariance, SPSA):
        with pytest.raises(InvalidConfig, match="ScriptAgent, which is no Follower"):
            kind(follower=ScriptAgent(order_up_to)).check(PendulumShaping())


def test_any_policy_is_scored_for_both_levels():
    """Sums of an idle pendulum by Gymnasium's own numbers; what x pays is linear in x."""
    problem, idle = PendulumShaping(), lambda obs: np.zeros(1, np.float32)
    at = lambda x: score(problem, idle, np.array(x), lambda: gymnasium.make("Pendulum-v1"), episodes=2, seed=5)  # noqa: E731
    plain, once, twice = at(np.zeros(4)), at(X), at(2 * np.array(X))
    own = []
    for seed in (5, 6):
        env, total, over = gymnasium.make("Pendulum-v1"), 0.0, False
        env.reset(seed=seed)
        while not over:
            _, reward, _, over, _ = env.step(np.zeros(1, np.float32))
            total += reward
        own.append(total)
    np.testing.assert_allclose(plain.own, own, rtol=1e-6)
    np.testing.assert_allclose(plain.follower, plain.own / 8, rtol=1e-5)  # the problem pays an eighth
    np.testing.assert_allclose(twice.follower - plain.follower, 2 * (once.follower - plain.follower), rtol=1e-4)
    assert str(plain).count("±") == 3
    with pytest.raises(InvalidConfig, match="must be at least 1"):
        score(problem, idle, episodes=0)
    with pytest.raises(InvalidConfig, match="has a method predict"):
        policy_from_sb3(idle)


@pytest.mark.slow
def test_stable_baselines3_learns_in_the_wrapper(tmp_path):
    sb3 = pytest.importorskip("stable_baselines3")
    make = lambda env, seed: sb3.SAC("MlpPolicy", env, seed=seed, learning_starts=64, policy_kwargs={"net_arch": [16]})  # noqa: E731
    agent, problem = StableBaselines3Agent(make), PendulumShaping()
    env = RewardWrapper(gymnasium.make("Pendulum-v1"), problem, X)
    agent.learn(env, 128, 0)
    before = agent.model.policy.state_dict()["actor.mu.weight"].clone()
    agent.learn(env, 64, 0)
    assert not (before == agent.model.policy.state_dict()["actor.mu.weight"]).all()
    assert agent.act(env.reset(seed=0)[0]).shape == (1,)
    agent.model.save(tmp_path / "mine.zip")
    loaded = policy_from_sb3(sb3.SAC.load(tmp_path / "mine.zip"))
    here = [score(problem, policy, X, lambda: gymnasium.make("Pendulum-v1"), episodes=1) for policy in (loaded, agent.act)]
    np.testing.assert_allclose(here[0].leader, here[1].leader)
    with pytest.raises(InvalidConfig, match="black box"):
        descend(problem, lambda: agent, method="pair")


def test_followers_come_back_from_their_files(tmp_path):
    follower, environment = SAC(width=8), Pendulum()
    learnt = follower.init(environment, jax.random.key(0))
    export.save(tmp_path / "f.safetensors", learnt, {"x": X})
    back = export.load(tmp_path / "f.safetensors", follower.init(environment, jax.random.key(1)))
    assert all((a == b).all() for a, b in zip(jax.tree.leaves(learnt), jax.tree.leaves(back), strict=True))
    assert export.about(tmp_path / "f.safetensors") == {"x": X}
    with pytest.raises(RunNotFound, match=r"actor\.params"):
        export.load(tmp_path / "f.safetensors", SAC(width=16).init(environment, jax.random.key(0)))
    with pytest.raises(RunNotFound, match="no file"):
        export.load(tmp_path / "g.safetensors", learnt)
