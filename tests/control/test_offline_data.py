"""Data sets: what a folder keeps, mixtures, and each way in which data can be wrong, by name and before training."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from bilevel_rl.control.environments import Arm, CartPole, Pendulum
from bilevel_rl.control.offline import protocol, tabular
from bilevel_rl.control.offline.bank import Bank, draw
from bilevel_rl.control.offline.checks import check_data
from bilevel_rl.control.offline.data import ROWS, OfflineData, StoredEpisode, joined, mixed, summary
from bilevel_rl.control.offline.learners import BC, TD3BC
from bilevel_rl.control.offline.minari_folder import KEYS, load, save
from bilevel_rl.errors import InvalidConfig, InvalidProblem, StorageFailed


def path(steps=6, seed=0, source=0, terminated=False):
    rng = np.random.default_rng(seed)
    obs = np.concatenate([rng.uniform(-1, 1, (steps + 1, 2)), rng.uniform(-8, 8, (steps + 1, 1))], 1)
    return StoredEpisode(obs, rng.uniform(-2, 2, (steps, 1)), rng.normal(size=steps), terminated, source)


def pendulum(count=4, **about):
    return OfflineData.of("pendulum", [path(5 + i, i, i % 2, i == 1) for i in range(count)], sources=("a", "b"), **about)


def test_a_folder_keeps_everything_and_minari_reads_it(tmp_path, monkeypatch):
    minari = pytest.importorskip("minari")
    monkeypatch.chdir(tmp_path)
    data = pendulum(low=-10.0, high=5.0)
    folder = save(data, Pendulum(), "set")  # relative to where one is, as one types it
    again = load("set", Pendulum())
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    for name in ROWS:
        np.testing.assert_array_equal(getattr(again, name), getattr(data, name))
    assert (again.sources, again.low, again.high) == (data.sources, -10.0, 5.0)
    found = minari.MinariDataset(folder)
    assert (found.total_episodes, found.total_steps) == (4, len(data))
    assert found[1].observations.shape == (7, 3)
    with pytest.raises(StorageFailed, match="not overwritten"):
        save(data, Pendulum(), folder)


def test_infos_and_numbered_actions_are_kept(tmp_path):
    data = tabular.covered(tabular.chain(3), episodes=3)
    again = load(save(data, tabular.chain(3), tmp_path / "set"), tabular.chain(3))
    np.testing.assert_array_equal(again.info, data.info)
    assert again.action.dtype == np.int32


def test_minaris_own_files_are_read(tmp_path):
    """A data set that Minari's own collector wrote, without anything of ours."""
    minari = pytest.importorskip("minari")
    import gymnasium
    from minari.data_collector.episode_buffer import EpisodeBuffer
    from minari.dataset.minari_storage import MinariStorage

    env, one = gymnasium.make("CartPole-v1"), np.zeros((4, 4), np.float32)
    (tmp_path / "cart").mkdir()
    storage = MinariStorage.new(tmp_path / "cart", env.observation_space, env.action_space)
    storage.update_metadata({"dataset_id": "cart/mine-v0", "minari_version": minari.__version__})
    ends = np.array([False, False, True])
    storage.update_episodes([EpisodeBuffer(id=0, observations=one, actions=np.array([0, 1, 0]), rewards=np.ones(3),
                                           terminations=ends, truncations=~ends & False)])  # fmt: skip
    data = load(tmp_path / "cart", CartPole())
    assert (len(data), data.terminated.tolist(), data.sources) == (3, [False, False, True], ("data",))
    with pytest.raises(InvalidProblem, match=r"observations \[4\]; pendulum has \[3\]"):
        load(tmp_path / "cart", Pendulum())


def broken(**change):
    return dataclasses.replace(pendulum(), **change)


def with_value(name, row, value):
    data = pendulum()
    values = getattr(data, name).copy()
    values[row] = value
    return dataclasses.replace(data, **{name: values})


@pytest.mark.parametrize(("make", "environment", "said"), [
    (pendulum, Arm(), "these transitions are of 'pendulum'"),
    (lambda: broken(environment="arm"), Arm(), r"observations \[3\]; arm has \[12\]"),
    (lambda: broken(environment="cartpole", obs=np.zeros((len(pendulum()), 4)), next_obs=np.zeros((len(pendulum()), 4))),
     CartPole(), "those of cartpole are numbers below 2"),
    (lambda: with_value("action", 3, 2.5), Pendulum(), r"an action of 2.5 in row 3, coordinate 0; it must be in \[-2, 2\]"),
    (lambda: with_value("reward", 2, np.nan), Pendulum(), "1 rows of reward that are not finite, row 2 the first"),
    (lambda: with_value("obs", 4, np.inf), Pendulum(), "1 rows of obs that are not finite"),
    (lambda: broken(obs=pendulum().obs * 9, next_obs=pendulum().next_obs * 9), Pendulum(), "of observations outside"),
    (lambda: with_value("terminated", 1, True), Pendulum(), "ends in row 1 and an episode that goes on"),
    (lambda: with_value("over", -1, False), Pendulum(), "a last episode without an end"),
    (lambda: with_value("over", 4, False), Pendulum(), "row 5, whose observation is not where row 4"),
    (lambda: pendulum().rows(np.arange(0)), Pendulum(), "no transitions"),
    (lambda: OfflineData.of("pendulum", [path(1)]), Pendulum(), "one transition"),
    (lambda: broken(info=np.zeros((1, 0))), Pendulum(), "beside other numbers of info"),
], ids=["environment", "observations", "kind", "action", "nan", "inf", "scaled", "end", "no end", "cut", "empty", "one",
        "rows"])  # fmt: skip
def test_bad_data_are_refused_by_name_before_training(make, environment, said):
    learner = BC() if environment.name != "pendulum" else type("Never", (BC,), {"init": None})()
    with pytest.raises(InvalidProblem, match=said):
        protocol.run(learner, make(), environment)


@pytest.mark.parametrize(("episodes", "said"), [
    ([], "no episodes"),
    ([StoredEpisode(np.zeros((3, 3)), np.zeros((3, 1)), np.zeros(3), False)], "an episode of T >= 1 steps has T"),
    ([StoredEpisode(np.zeros((1, 3)), np.zeros((0, 1)), np.zeros(0), False)], "T >= 1"),
])  # fmt: skip
def test_episodes_that_do_not_fit_together_are_refused(episodes, said):
    with pytest.raises(InvalidProblem, match=said):
        OfflineData.of("pendulum", episodes)


@pytest.mark.parametrize(("change", "said"), [
    (lambda file: file["episode_1"].__delitem__("rewards"), "no 'rewards'"),
    (lambda file: file["episode_1/rewards"].__setitem__(2, 9.0), "its rewards sum to"),
    (lambda file: file["episode_0/truncations"].__setitem__(-1, False), "neither an end nor a cut at its last step"),
    (lambda file: file["episode_0/terminations"].__setitem__(2, True), "an end at step 2 of 5"),
], ids=["missing", "return", "uncut", "early"])  # fmt: skip
def test_broken_folders_are_refused_by_name(tmp_path, change, said):
    h5py = pytest.importorskip("h5py")
    folder = save(pendulum(), Pendulum(), tmp_path / "set")
    with h5py.File(folder / "main_data.hdf5", "a") as file:
        change(file)
    with pytest.raises(InvalidProblem, match=said):
        load(folder, Pendulum())


@pytest.mark.parametrize("key", KEYS)
def test_each_missing_key_is_named(tmp_path, key):
    h5py = pytest.importorskip("h5py")
    folder = save(pendulum(), Pendulum(), tmp_path / "set")
    with h5py.File(folder / "main_data.hdf5", "a") as file:
        del file[f"episode_2/{key}"]
    with pytest.raises(InvalidProblem, match=rf"episode 2: got no '{key}'; an episode has observations"):
        load(folder, Pendulum())


def test_what_is_no_data_set_is_refused(tmp_path):
    with pytest.raises(InvalidProblem, match="a folder in Minari"):
        load(tmp_path, Pendulum())
    (tmp_path / "metadata.json").write_text(json.dumps({}))
    with pytest.raises(InvalidProblem):
        load(tmp_path, Pendulum())


def test_mixtures_have_the_shares_that_were_asked_for():
    data = OfflineData.of("pendulum", [path(10, i, i % 2) for i in range(40)], sources=("good", "poor"))
    found = mixed(data, {"good": 0.25, "poor": 0.75}, 200)
    assert np.bincount(found.source).tolist() == [50, 150]
    check_data(found, Pendulum())
    assert [s.rows for s in summary(found)] == [50, 150]
    with pytest.raises(InvalidProblem, match="sum to"):
        mixed(data, {"good": 0.5}, 10)
    with pytest.raises(InvalidProblem, match="there are good, poor"):
        mixed(data, {"best": 1.0}, 10)
    with pytest.raises(InvalidProblem, match="300 are asked for"):
        mixed(data, {"good": 1.0}, 300)
    with pytest.raises(InvalidProblem, match="of one environment"):
        joined([data, dataclasses.replace(data, environment="arm")])


def test_splits_keep_episodes_whole():
    data = pendulum(6)
    train, held = data.split(0.5, seed=1)
    assert len(train) + len(held) == len(data)
    for part in (train, held):
        check_data(part, Pendulum())


def test_banks_know_returns_to_go_and_pieces_stop_at_the_end_of_their_episode():
    import jax

    data = OfflineData.of("pendulum", [dataclasses.replace(path(n, n), reward=np.ones(n)) for n in (4, 3, 6)])
    bank = Bank.of(data, unit=2.0)
    assert bank.to_go.tolist() == [2.0, 1.5, 1.0, 0.5, 1.5, 1.0, 0.5, 3.0, 2.5, 2.0, 1.5, 1.0, 0.5]
    assert (float(bank.facts.best), float(bank.facts.longest)) == (3.0, 6.0)
    piece = draw(bank, 64, 4, jax.random.key(0))
    np.testing.assert_array_equal(piece.inside.sum(1), np.minimum(4, np.asarray(piece.to_go[:, 0]) * 2))
    steps = piece.inside[:, 1:]  # inside an episode each step begins where the one before it led
    np.testing.assert_array_equal(piece.t.obs[:, 1:][steps], piece.t.next_obs[:, :-1][steps])
    np.testing.assert_array_equal(bank.next_action[:3], data.action[1:4])
    np.testing.assert_array_equal(bank.next_action[3], data.action[3])


def test_environments_outside_compiled_code_are_refused():
    outside = type("Outside", (Pendulum,), {"outside": True})()
    with pytest.raises(InvalidProblem, match="steps outside compiled code"):
        protocol.run(BC(), pendulum(), outside)


def test_scores_and_settings_are_checked():
    with pytest.raises(InvalidProblem, match="the expert's is the larger one"):
        protocol.normalised([1.0], 2.0, float("nan"))
    with pytest.raises(InvalidConfig, match="it must divide the 10 updates"):
        protocol.run(BC(), pendulum(), Pendulum(), protocol.Setting(updates=10, records=3))
    with pytest.raises(InvalidConfig, match="takes actions that are vectors"):
        TD3BC().check(CartPole())
