"""The command line: every verb works on a real run, and what it can't do it says."""

from __future__ import annotations

import contextlib
import json
import shlex
import shutil

import pytest
import torch
import yaml

from bilevel_rl.commands import llm as commands
from bilevel_rl.errors import InvalidConfig
from bilevel_rl.experiments import happy_tweets as experiment
from bilevel_rl.launch import options
from bilevel_rl.llm.config import Config
from bilevel_rl.llm.judges.builtin import HumanQueue
from bilevel_rl.llm.judges.by_name import make_judge
from bilevel_rl.llm.tasks import corpus, pretrain
from bilevel_rl.llm.tasks import happy_tweets as task
from bilevel_rl.machines import job, where
from bilevel_rl.records import Run

TINY = pretrain.LanguageModelConfig(vocabulary=300, layers=1, width=16, heads=2, steps=30, batch=16)
TINY_GOLD = pretrain.ClassifierConfig(layers=1, width=16, heads=2, epochs=1)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def models(cache):
    torch.set_num_threads(1)
    return task.from_grammar(cache, TINY, TINY_GOLD, tweets=300, labelled=200, held_out_prompts=20)


@pytest.fixture
def tiny_task(monkeypatch, models):
    monkeypatch.setattr(experiment, "prepare", lambda settings, progress=False: models)


@pytest.fixture
def config_file(tmp_path, models):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in corpus.make_prompts()[:12]))
    path = tmp_path / "config.yaml"
    values = {
        "policy": str(models.model), "prompts": str(prompts), "judge": f"{models.classifier}@happy~8", "steps": 3,
        "prompts_per_step": 4, "group": 2, "pairs_per_step": 2, "max_new_tokens": 6, "out": str(tmp_path / "run"),
        "samples_every": 1,
    }  # fmt: skip
    path.write_text(yaml.safe_dump(values))
    return path


def trace(folder):
    return Run.read(folder).trace


# -- train, resume, sample, export ---------------------------------------------------------------------------


def test_train_then_sample_export_and_resume(config_file, tmp_path, capsys):
    run = tmp_path / "run"
    assert commands.main(["train", str(config_file), "--steps", "2", "--estimator=paired"]) == 0
    assert Run.read(run).config["estimator"] == "paired"
    assert trace(run)["iteration"][0].tolist() == [1, 2]
    assert trace(run)["labels"][0].tolist() == [2, 4]
    assert commands.main(["resume", str(run), "--steps", "4"]) == 0
    assert trace(run)["iteration"][0].tolist() == [1, 2, 3, 4]
    capsys.readouterr()
    assert commands.main(["sample", str(run), "--prompt", "today my cat", "--role", "reference"]) == 0
    out = capsys.readouterr().out
    assert "today my cat" in out
    assert "KL 0 nats" in out
    assert commands.main(["sample", str(run), "--count", "2", "--role", "policy_l"]) == 0
    assert commands.main(["export", str(run), "--out", str(tmp_path / "out")]) == 0
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"policy", "reward"}


def test_a_resumed_run_is_the_uninterrupted_one(config_file, tmp_path):
    assert commands.main(["train", str(config_file), "--steps", "3", "--out", str(tmp_path / "whole")]) == 0
    assert commands.main(["train", str(config_file), "--steps", "1", "--out", str(tmp_path / "parts")]) == 0
    assert commands.main(["resume", str(tmp_path / "parts"), "--steps", "3"]) == 0
    whole, parts = trace(tmp_path / "whole"), trace(tmp_path / "parts")
    for key in ("learned_reward", "kl", "gold", "hyper", "labels"):
        assert whole[key].tolist() == parts[key].tolist()


def test_stored_preferences_need_no_judge(config_file, tmp_path):
    rows = [{"chosen": f"today my cat {word} yay", "rejected": f"today my cat {word} meh"} for word in "abcd"]
    file = tmp_path / "preferences.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    argv = [
        "train",
        str(config_file),
        "--objective",
        "stored_preference",
        "--preferences",
        str(file),
        "--judge",
        "",
    ]
    assert commands.main(argv) == 0
    found = trace(tmp_path / "run")
    assert found["labels"][0].tolist() == [0, 0, 0]
    assert (found["hyper_upper"] > 0).all()


def test_plain_fine_tuning_with_a_recipe_from_the_command_line(config_file, tmp_path, models, monkeypatch):
    (tmp_path / "mine.py").write_text("def shouts(completions, **_):\n    return [float('!' in c) for c in completions]\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    values = yaml.safe_load(config_file.read_text())
    common = ["--policy", values["policy"], "--prompts", values["prompts"], "--method", "plain", "--steps", "2",
              "--prompts-per-step", "4", "--group", "2", "--max-new-tokens", "6",
              "--reward", "function:mine.shouts"]  # fmt: skip
    recipe = "credit=group_norm, loss=clipped(high=0.28), regular=0.01*sampled_kl"
    assert commands.main(["train", *common, f"recipe={recipe}", "--out", str(tmp_path / "parts")]) == 0
    assert Run.read(tmp_path / "parts").config["recipe"] == recipe
    assert trace(tmp_path / "parts")["labels"][0].tolist() == [0, 0]
    assert commands.main(["train", str(config_file), "--recipe", "grpo", "--steps", "1"]) == 0
    assert commands.main(["resume", str(tmp_path / "run"), "--steps", "2"]) == 0
    assert trace(tmp_path / "run")["iteration"][0].tolist() == [1, 2]
    with pytest.raises(InvalidConfig, match=r"config.reward: got no 'whispers' in mine"):
        commands.main(["train", *common[:-1], "function:mine.whispers"])


def test_a_role_that_a_run_lacks_is_named(config_file, tmp_path):
    commands.main(["train", str(config_file), "--steps", "1", "--method", "partial_sgd"])
    with pytest.raises(InvalidConfig, match="no penalised policy"):
        commands.main(["sample", str(tmp_path / "run"), "--role", "policy_l"])


def test_labels_by_hand_stop_the_run_and_go_on(config_file, tmp_path, capsys, monkeypatch):
    queue, run = tmp_path / "queue", tmp_path / "run"
    assert commands.main(["train", str(config_file), "--steps", "1", "--judge", f"queue:{queue}"]) == 0
    out = capsys.readouterr().out
    assert "labels are pending" in out
    assert f"bilevel-rl llm judge {queue}" in out.replace("\n", "")
    assert len(list(HumanQueue(queue).pending())) == 2
    answers = iter(["what?", "1", "q"])
    monkeypatch.setattr("builtins.input", lambda _: next(answers))
    assert commands.main(["judge", str(queue)]) == 0
    assert "1 pairs still wait" in capsys.readouterr().out
    monkeypatch.setattr("builtins.input", lambda _: "t")
    assert commands.main(["judge", str(queue)]) == 0
    assert commands.main(["resume", str(run)]) == 0
    assert trace(run)["labels"][0].tolist() == [2]
    assert commands.main(["judge", str(queue)]) == 0
    assert "no pairs wait" in capsys.readouterr().out


def test_closing_the_terminal_keeps_the_labels(tmp_path, monkeypatch):
    queue = HumanQueue(tmp_path, wait_seconds=0)
    with pytest.raises(Exception, match="without a label"):
        queue(["p", "q"], [["a", "b"], ["c", "d"]])
    lines = iter(["2"])

    def read(_):
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", read)
    assert commands.main(["judge", str(tmp_path)]) == 0
    assert list(queue.labels().values()) == [1]


# -- the experiment ------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings(
    "ignore:Mean of empty slice:RuntimeWarning"
)  # a report of a key that is never finite
@pytest.mark.parametrize(
    "methods",
    [("partial_sgd", "nested"), pytest.param(tuple(experiment.METHODS), marks=pytest.mark.slow)],
    ids=["two", "all"],
)
def test_happy_tweets_runs_every_method_once(tiny_task, tmp_path, capsys, methods):
    argv = ["happy-tweets", "--out", str(tmp_path / "ht"), "--methods", *methods, "--rollouts", "8", "--labels", "12"]
    assert commands.main(argv) == 0
    out = capsys.readouterr().out
    results = json.loads((tmp_path / "ht" / "results.json").read_text())
    assert [line["method"] for line in results["summary"]] == list(methods)
    for label in methods:
        assert label in out
        assert Run.read(tmp_path / "ht" / f"{label}-0").status["state"] == "finished"
    for row in results["runs"]:
        assert row["labels"] <= 12
        assert row["before"]["kl"] == 0.0
        assert row["after"]["kl"] > 0.0
    rollouts = {row["method"]: row["tokens"] for row in results["runs"]}
    assert max(rollouts.values()) < 1.5 * min(rollouts.values())
    stamp = (tmp_path / "ht" / "nested-0" / "metrics.jsonl").stat().st_mtime_ns
    assert commands.main(argv) == 0  # what is done is skipped
    assert (tmp_path / "ht" / "nested-0" / "metrics.jsonl").stat().st_mtime_ns == stamp
    with pytest.raises(InvalidConfig, match="runs of other settings"):
        commands.main([*argv[:-1], "14"])
    shutil.rmtree(tmp_path / "ht" / "nested-0")
    assert commands.main(["resume", str(tmp_path / "ht" / "partial_sgd-0")]) == 0
    assert (tmp_path / "ht" / "nested-0" / "evaluation.json").exists()


@pytest.mark.filterwarnings("ignore:Mean of empty slice:RuntimeWarning")
@pytest.mark.parametrize("there", ["this process", pytest.param("another process", marks=pytest.mark.slow)])
def test_happy_tweets_done_elsewhere_are_those_done_here(there, tiny_task, models, tmp_path, monkeypatch, capsys):
    """A job knows its folder alone: neither the cache nor the data of the machine that asked."""
    argv = ["happy-tweets", "--methods", "partial_sgd", "--rollouts", "4", "--labels", "12", "--out"]
    assert commands.main([*argv, str(tmp_path / "here")]) == 0
    seen = []

    def worker(one, tell):
        tell("running", "on there")
        seen.append(sorted(path.name for path in (one.folder / "task").iterdir()))
        if there == "another process":
            return job.here(one, tell)
        return job.Outcome(job.carried_out([str(one.folder)], experiment.fill), "")

    monkeypatch.setattr(where, "worker", lambda *_: (worker, 1))
    again = [*argv, str(tmp_path / "there"), "--ray", "auto", "--cpus", "2"]
    assert commands.main(again) == 0
    assert "running partial_sgd-0" in " ".join(capsys.readouterr().out.split())
    assert seen == [["classifier", "model", "task.json"]]
    ours, theirs = (tmp_path / name / "partial_sgd-0" for name in ("here", "there"))
    assert sorted(path.name for path in theirs.iterdir()) == sorted(path.name for path in ours.iterdir())
    for key, value in trace(ours).items():
        if key not in ("seconds", "tokens_per_second", "memory"):
            assert value.tolist() == trace(theirs)[key].tolist(), key
    configs = [Run.read(folder).config for folder in (ours, theirs)]
    assert configs[0] | {"out": ""} == configs[1] | {"out": ""}
    grades = [json.loads((folder / "evaluation.json").read_text()) for folder in (ours, theirs)]
    assert grades[0] | {"seconds": 0} == grades[1] | {"seconds": 0}
    assert commands.main(again[:-4]) == 0  # the same experiment, wherever it is done
    with pytest.raises(InvalidConfig, match="runs of an earlier experiment"):
        commands.main([*again[:-4], "--resume", "never"])


def test_the_command_of_an_experiment_can_be_given_again(tmp_path):
    settings = experiment.Settings(paper=True, ray="auto", methods=("nested", "partial_sgd"), out=tmp_path / "a b", runs=2)
    assert experiment.command(settings) == "bilevel-rl llm happy-tweets --paper --runs 2 --methods nested partial_sgd"
    words = shlex.split(experiment.command(settings, whole=True))[3:]
    assert options.parse("llm happy-tweets", experiment.Settings, words) == settings


def test_every_method_may_spend_the_same(models):
    settings = experiment.Settings(labels=300, rollouts=150)
    for label, keys in experiment.METHODS.items():
        config = experiment.configuration(settings, label, 0, models)
        assert config.label_budget == 300
        batches = 2 if keys.get("estimator") == "paired" else 1
        generating = config.steps
        if label == "fixed_reward":
            asking = -(-300 // config.pairs_per_step)
            generating -= config.reward_steps - asking  # fitting on the labels there are generates nothing
        assert generating * batches * config.batch == pytest.approx(150 * 32, rel=0.01)
        assert config.steps * config.pairs_per_step >= 300


def test_too_many_labels_for_the_fixed_reward_are_named(models):
    with pytest.raises(InvalidConfig, match="leave room for 90"):
        experiment.configuration(experiment.Settings(labels=100, rollouts=10), "fixed_reward", 0, models)


def test_the_frontier_bins_by_kl(tmp_path):
    lines = [
        {"kl": kl, "gold": gold}
        for kl, gold in [(0.1, 0.2)] * 3 + [(2.5, 0.6), (2.6, 0.8), (2.9, 1.0), (5.0, 0.1)]
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    means = experiment.frontier(tmp_path)
    assert means[0] == pytest.approx(0.2)
    assert means[2] == pytest.approx(0.8)
    assert means[1] is None
    assert means[4] is None  # one iteration is no mean


def test_methods_are_compared_at_equal_kl_seed_by_seed():
    def row(method, seed, *frontier):
        return {"method": method, "seed": seed, "frontier": [*frontier, *[None] * (7 - len(frontier))]}

    rows = [
        row("a", 0, 0.5, 0.9),
        row("a", 1, 0.3),
        row("b", 0, 0.1, None),
        row("b", 1, 0.4, 0.2),
        row("b", 2, 0.0, 0.0),
    ]
    first, second, *rest = experiment.paired_gaps(rows, "a", "b")
    assert first == {"seeds": 2, "gap": pytest.approx(0.15), "ahead": 1}
    assert second is None
    assert set(rest) == {None}


def test_tweeteval_folders_make_the_same_task(tmp_path):
    tweets = corpus.make_tweets(400, 0)
    names = ["anger", "joy", "optimism", "sadness"]
    for part, split in [("emoji", "train"), ("emoji", "val"), ("sentiment", "val"), ("sentiment", "test"),
                        ("emotion", "train"), ("emotion", "val")]:  # fmt: skip
        folder = tmp_path / "data" / part
        folder.mkdir(parents=True, exist_ok=True)
        rows = slice(0, 300) if split == "train" else slice(300, 400)
        (folder / f"{split}_text.txt").write_text("\n".join(tweets.texts[rows]) + "\n")
        (folder / f"{split}_labels.txt").write_text("\n".join(map(str, tweets.labels[rows])) + "\n")
        (folder / "mapping.txt").write_text("\n".join(f"{i}\t{name}" for i, name in enumerate(names)))
    made = task.from_tweeteval(tmp_path / "data", tmp_path / "cache", TINY, TINY_GOLD)
    assert made.label == "joy"
    assert made.made == ("language-model", "gold")
    assert not set(made.prompts) & set(made.held_out)
    assert 0 < made.figures["gold"]["accuracy"] < 1
    assert made.gold()(["so happy"], [" today"])[0] == pytest.approx(0.5, abs=0.5)
    again = task.from_tweeteval(tmp_path / "data", tmp_path / "cache", TINY, TINY_GOLD)
    assert again.made == ()
    assert again.figures == made.figures


# -- bad input -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "what"),
    [
        (["trian"], "Did you mean 'train'"),
        (["happy-tweets", "--rollout", "3"], "--rollouts"),
        (["happy-tweets", "--methods", "partial"], "Did you mean 'partial_sgd'"),
        (["happy-tweets", "--runs", "0"], "at least 1"),
        (["train", "--steps", "3"], "config.prompts: got nothing"),
        (["train", "none.yaml"], "none.yaml"),
        (["sample"], "bilevel-rl llm sample: got options that can't be read"),
        (["sample", "x", "--role", "critic"], "'critic'"),
        (["judge", "nowhere"], "no such folder"),
    ],
)
def test_bad_words_are_named(argv, what):
    with pytest.raises(InvalidConfig, match=what):
        commands.main(argv)


def test_unknown_keys_and_missing_values(config_file):
    with pytest.raises(InvalidConfig, match="Did you mean 'steps'"):
        commands.main(["train", str(config_file), "--step", "3"])
    with pytest.raises(InvalidConfig, match="--steps without a value"):
        commands.main(["train", str(config_file), "--steps"])
    with pytest.raises(InvalidConfig, match="the word '3'"):
        commands.main(["train", str(config_file), "3"])


def test_a_run_needs_prompts(tmp_path):
    (tmp_path / "c.yaml").write_text("steps: 3")
    with pytest.raises(InvalidConfig, match=r"config\.prompts"):
        commands.main(["train", str(tmp_path / "c.yaml")])


def test_judges_by_name(models, tmp_path):
    assert make_judge("") == (None, None)
    judge, gold = make_judge(f"{models.classifier}@sad~3.5", seed=4)
    assert (judge.sharpness, judge.seed, gold.label) == (3.5, 4, corpus.MOODS.index("sad"))
    assert make_judge(str(models.classifier))[1].label == len(corpus.MOODS) - 1
    assert isinstance(make_judge(f"queue:{tmp_path}")[0], HumanQueue)
    with pytest.raises(InvalidConfig, match="after ~ comes a number"):
        make_judge(f"{models.classifier}~much")


@pytest.mark.parametrize("verb", sorted(commands.VERBS))
def test_every_verb_has_help(verb, capsys):
    with contextlib.suppress(SystemExit):  # tyro ends the process after its help
        assert commands.main([verb, "--help"]) == 0
    assert "usage: bilevel-rl llm" in capsys.readouterr().out
    if verb == "train":
        assert len(Config.top_level()) <= 40  # sections hold the others
    assert len(Config.keys()) < 90
