"""`bilevel-rl offline`: from making data to comparing learners, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

from bilevel_rl.cli import main

pytest.importorskip("minari")
FEW = ["--updates", "4", "--records", "2", "--seeds", "2", "--episodes", "2", "--batch", "8"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from bilevel_rl.control.environments import Pendulum
    from bilevel_rl.control.offline.data import OfflineData, StoredEpisode
    from bilevel_rl.control.offline.minari_folder import save

    rng = np.random.default_rng(0)
    path = lambda i: StoredEpisode(rng.uniform(-1, 1, (6, 3)), rng.uniform(-2, 2, (5, 1)), -rng.uniform(size=5), False, i)  # noqa: E731
    data = OfflineData.of("pendulum", [path(0), path(1)], sources=("a", "b"), low=-1000.0, high=0.0)
    return str(save(data, Pendulum(), tmp_path_factory.mktemp("data") / "set"))


def test_a_data_set_is_checked_and_shown(folder, tmp_path, capsys):
    pytest.importorskip("plotly")
    assert main(["offline", "check", folder, "pendulum"]) == 0
    assert "10 transitions of pendulum in 2 episodes" in capsys.readouterr().out
    assert main(["offline", "show", folder, "pendulum", "--plot", str(tmp_path / "plot.html")]) == 0
    assert "-1000 is 0 (random actions), 0 is 100 (expert)" in capsys.readouterr().out
    assert "return of an episode" in (tmp_path / "plot.html").read_text()


def test_a_learner_is_trained_with_its_own_options(folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["offline", "train", folder, "pendulum", "bc", *FEW, "--learner.width", "8", "--out", str(out)]) == 0
    assert "interquartile means of 2 seeds" in capsys.readouterr().out
    facts = json.loads((out / "result.json").read_text())
    assert np.shape(facts["learners"]["bc"]["returns"]) == (2, 2)
    assert facts["setting"]["updates"] == 4
    assert (out / "learnt.safetensors").exists()


@pytest.mark.slow
def test_data_are_made_and_learners_compared(tmp_path, capsys):
    folder, few = str(tmp_path / "made"), ["--transitions", "1600", "--rows", "200", "--sources", "random", "replay"]
    assert main(["offline", "make", "bounded", "--out", folder, *few, "--shares", "0.5", "0.5"]) == 0
    assert "random" in capsys.readouterr().out
    assert main(["offline", "compare", folder, "bounded", "--learners", "bc", "iql", *FEW]) == 0
    assert "iql" in capsys.readouterr().out


@pytest.mark.parametrize(("words", "said"), [
    (["shuffle"], "the verb 'shuffle'"),
    (["check", "FOLDER", "pendulem"], "Did you mean 'pendulum'"),
    (["check", "FOLDER", "arm"], "these transitions are of 'pendulum'"),
    (["check", "nowhere", "pendulum"], "nowhere: got"),
    (["check", "FOLDER"], "it takes DATA ENVIRONMENT"),
    (["train", "FOLDER", "pendulum", "ikl"], "Did you mean 'iql'"),
    (["train", "FOLDER", "pendulum", "bc", "--learner.widht", "8"], "widht"),
    (["train", "FOLDER", "pendulum", "bc", "--learner.rate", "-1"], "learner bc.rate: got -1"),
    (["train", "FOLDER", "pendulum", "bc", "--updates", "5", "--records", "2"], "it must divide the 5 updates"),
    (["make", "pendulum", "--out", "FOLDER"], "data sets are not overwritten"),
    (["make", "pendulum", "--out", "x", "--sources", "experts"], "Did you mean 'expert'"),
    (["make", "pendulum", "--out", "x", "--shares", "1.0"], "1 shares of 4 sources"),
])  # fmt: skip
def test_what_is_wrong_is_said_in_one_sentence(folder, capsys, words, said):
    assert main(["offline", *(folder if word == "FOLDER" else word for word in words)]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("verb", [[], ["make"], ["check"], ["show"], ["train"], ["compare"]])
def test_each_verb_explains_itself(verb, capsys):
    try:
        code = main(["offline", *verb, "--help"])
    except SystemExit as stop:  # tyro's way
        code = stop.code
    assert not code
    assert "usage" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "key"), [
    ("a2pr", "liu2024a2pr"), ("offline_iql", "le2019batch"), ("lirpg", "zheng2018lirpg"), ("pa_rl", "nakamoto2023calql"),
])  # fmt: skip
def test_learners_and_solvers_of_parts_can_be_cited(name, key, capsys):
    assert main(["cite", name]) == 0
    assert f"{{{key}," in capsys.readouterr().out


def test_every_learner_of_a_paper_names_it():
    from bilevel_rl.control.offline import learners
    from bilevel_rl.references import BIBTEX

    for kind in learners.ALL:
        assert set(kind.references) <= set(BIBTEX), kind.name
        assert kind.references or kind.name == "bc"
