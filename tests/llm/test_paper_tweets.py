"""Happy tweets as the paper has them: the task, its ties, its budgets, its errors."""

import json
import sys

import numpy as np
import pytest

pytest.importorskip("vaderSentiment.vaderSentiment")

from bilevel_rl.commands import llm as commands
from bilevel_rl.errors import InvalidConfig, InvalidProblem, MissingDependency
from bilevel_rl.experiments import happy_tweets as experiment
from bilevel_rl.experiments import paper_tweets
from bilevel_rl.llm.judges.builtin import ScoreJudge
from bilevel_rl.llm.judges.vader import Vader
from bilevel_rl.llm.tasks import corpus
from bilevel_rl.llm.tasks import paper_tweets as tasks
from bilevel_rl.llm.tasks.pretrain import LanguageModelConfig

TINY = LanguageModelConfig(
    vocabulary=300, layers=4, width=16, heads=1, context=64, steps=3, batch=8, learning_rate=1e-3
)


@pytest.fixture(scope="module")
def grammar(tmp_path_factory):
    return tasks.from_grammar(tmp_path_factory.mktemp("cache"), TINY, tweets=200, held_out_prompts=6)


def auc(first, second):
    return float(
        np.mean(np.subtract.outer(first, second) > 0) + 0.5 * np.mean(np.subtract.outer(first, second) == 0)
    )


def test_without_the_trap_vader_prefers_the_happy_mood():
    found = {}
    for sarcasm in (corpus.SARCASM, 0.0):
        tweets = corpus.make_tweets(800, 11, sarcasm)
        scores, moods = np.array(Vader()(tweets.prompts, tweets.continuations)), np.array(tweets.labels)
        found[sarcasm] = auc(
            scores[moods == corpus.MOODS.index("happy")], scores[moods == corpus.MOODS.index("angry")]
        )
    assert found[0.0] > 0.9 > found[corpus.SARCASM]


def test_the_trap_is_in_by_default():
    assert corpus.make_tweets(50, 3) == corpus.make_tweets(50, 3, corpus.SARCASM)


def test_ties_are_skipped_or_broken():
    def same(prompts, completions, **_):
        return [0.0] * len(completions)

    prompts, pairs = ["p"] * 400, [[f"a{i}", f"b{i}"] for i in range(400)]
    for sharpness in (float("inf"), 3.0):
        assert set(ScoreJudge(same, sharpness, ties="skip")(prompts, pairs)) == {-1}
        broken = ScoreJudge(same, sharpness, ties="break")(prompts, pairs)
        assert set(broken) == {0, 1}
        assert abs(np.mean(broken) - 0.5) < 4.5 * 0.5 / 400**0.5
        assert broken == ScoreJudge(same, sharpness, ties="break")(prompts, pairs)  # drawn once for all
    with pytest.raises(InvalidConfig, match=r"'brek'.*break"):
        ScoreJudge(same, ties="brek")


def test_ties_leave_the_other_labels_as_they_are():
    def length(prompts, completions, **_):
        return [float(len(text)) for text in completions]

    pairs = [["a", "bb"], ["ccc", "d"], ["e", "f"]]
    assert ScoreJudge(length)(["p"] * 3, pairs) == [1, 0, -1]
    assert ScoreJudge(length, ties="break")(["p"] * 3, pairs)[:2] == [1, 0]


def test_the_task_has_four_layers_and_needs_no_classifier(grammar):
    assert grammar.language_model().config.n_layer == 4
    assert grammar.classifier is None
    assert not set(grammar.prompts) & set(grammar.held_out)
    judge = grammar.judge(float("inf"))
    assert judge(["my cat "], [["is awful", "is lovely"]]) == [1]


def test_every_entry_spends_the_same_labels_and_what_it_says_of_completions(grammar):
    updates, labels = paper_tweets.UPDATES, paper_tweets.LABELS
    written = {}
    for entry, method in paper_tweets.ENTRIES.items():
        count = paper_tweets.updates_of(entry)
        config = paper_tweets.configuration(
            method, paper_tweets.CHOSEN[entry], grammar, 0, count, labels
        )
        asked = config.steps if method != "fixed_reward" else config.reward_steps
        assert config.label_budget == labels <= asked * config.pairs_per_step
        asking = -(-labels // config.pairs_per_step) if method == "fixed_reward" else 0
        written[entry] = (count + asking) * (
            2 if config.estimator == "paired" and config.uses_penalised else 1
        )
    assert written["paired"] == written["partial_sgd_twice"] == written["fixed_reward"] == 2 * updates
    assert written["partial_sgd"] == written["shared"] == written["tilted"] == updates


def test_x_alone_takes_plain_steps(grammar):
    import torch

    from bilevel_rl.levels.coupled_adam import CoupledAdam
    from bilevel_rl.llm.trainer import BilevelTrainer

    setting = paper_tweets.Setting(1e-3, 0.1, "sgd_x")
    config = paper_tweets.configuration("paired", setting, grammar, 0, 1, 4)
    trainer = BilevelTrainer(
        config, None, None, grammar.prompts, tokenizer=grammar.tokenizer(), judge=grammar.judge()
    )
    assert isinstance(trainer.optimizers["reward"], torch.optim.SGD)
    assert isinstance(trainer.optimizers["policies"], CoupledAdam)
    before = [p.detach().clone() for p in trainer.leader.parameters]
    gradients = []
    hyper = trainer.method.hyper_gradient

    def watched(*args):
        gradients.append(hyper(*args))
        return gradients[-1]

    object.__setattr__(trainer.method, "hyper_gradient", watched)
    trainer.train()
    for old, new, g in zip(before, trainer.leader.parameters, gradients[0].total, strict=True):
        torch.testing.assert_close(new.detach(), old - 0.1 * g)


def test_the_command_runs_and_goes_on(grammar, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(experiment, "prepare", lambda settings, progress=False: grammar)
    argv = ["happy-tweets", "--paper", "--out", str(tmp_path / "ht"), "--methods", "paired", "partial_sgd",
            "--rollouts", "6", "--labels", "12", "--ties", "break"]  # fmt: skip
    assert commands.main(argv) == 0
    out = capsys.readouterr().out
    assert "VADER's compound sentiment" in out
    results = json.loads((tmp_path / "ht" / "results.json").read_text())
    assert [line["method"] for line in results["summary"]] == ["paired", "partial_sgd"]
    paired, partial = results["runs"]
    assert paired["steps"] == partial["steps"] == 3
    assert paired["labels"] == partial["labels"] == 12
    assert paired["tokens"] > 1.5 * partial["tokens"]
    assert all(-1 <= row["after"]["gold"] <= 1 for row in results["runs"])
    assert "--paper" in results["provenance"]["command"]
    with pytest.raises(InvalidConfig, match="runs of other settings"):
        commands.main([*argv[:-1], "skip"])


def test_the_papers_methods_have_names_of_their_own():
    with pytest.raises(InvalidConfig, match="partial_sgd_twice"):
        experiment.Settings(paper=True, methods=("partial_sgd_twic",)).check()
    experiment.Settings(methods=("nested",)).check()
    with pytest.raises(InvalidConfig, match="nested"):
        experiment.Settings(paper=True, methods=("nested",)).check()


def test_a_missing_analyser_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "vaderSentiment.vaderSentiment", None)
    for settings in (
        experiment.Settings(paper=True, cache=tmp_path),
        experiment.Settings(paper=True, cache=tmp_path, data=tmp_path),
    ):
        with pytest.raises(MissingDependency, match=r"pip install '\.\[vader\]'"):
            experiment.prepare(settings)


def test_an_empty_lexicon_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "vaderSentiment.vaderSentiment.SentimentIntensityAnalyzer.make_lex_dict", lambda self: {}
    )
    with pytest.raises(InvalidConfig, match="an empty lexicon"):
        experiment.prepare(experiment.Settings(paper=True, cache=tmp_path))


def test_folders_without_texts_are_said(tmp_path):
    with pytest.raises(InvalidProblem, match="no such folder"):
        tasks.from_folder(tmp_path / "none", tmp_path)
    with pytest.raises(InvalidProblem, match=r"no \*_text.txt"):
        tasks.from_folder(tmp_path, tmp_path)
    (tmp_path / "tweets.txt").write_text("\n \n")
    with pytest.raises(InvalidProblem, match="1 files without a text"):
        tasks.from_folder(tmp_path, tmp_path)
    (tmp_path / "tweets.txt").write_text("what a day this was for us\n" * 50)
    with pytest.raises(InvalidProblem, match="1 different texts of 6 to 12 words"):
        tasks.from_folder(tmp_path, tmp_path)
    (tmp_path / "tweets.txt").write_bytes("schön und gut".encode("latin-1"))
    with pytest.raises(InvalidProblem, match="UTF-8"):
        tasks.from_folder(tmp_path, tmp_path)


def test_texts_that_all_score_the_same_are_said(tmp_path, caplog):
    lines = [f"{i} сегодня был очень хороший день для нас" for i in range(60)]
    (tmp_path / "tweets.txt").write_text("\n".join(lines))
    with pytest.raises(InvalidProblem, match=r"a score of 0 for each of \d+ texts.*English"):
        tasks.from_folder(tmp_path, tmp_path)
    assert "are not English" in caplog.text


def test_a_folder_of_texts_is_enough(tmp_path):
    texts = corpus.make_tweets(150, 3, 0.0).texts
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "train_text.txt").write_text("\n".join(texts))
    (tmp_path / "read_me.txt").write_text("not a tweet, and not read because there are files named text")
    assert tasks.read_texts(tmp_path) == texts
    task = tasks.from_folder(tmp_path, tmp_path / "cache", TINY, held_out_prompts=2)
    assert task.name == "paper_tweets"
    assert len(task.held_out) >= 1
    assert all(len(prompt.split()) == 3 for prompt in task.prompts)
