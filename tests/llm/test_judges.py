"""Judges: labels follow their law, queues survive kills, and every wrong answer is named, retried and
counted.
"""

from __future__ import annotations

import math
import threading
import time

import numpy as np
import pytest
import torch

from bilevel_rl.errors import InvalidConfig, InvalidProblem
from bilevel_rl.llm.judges.asking import JudgeFailed, LabelsPending
from bilevel_rl.llm.judges.builtin import (
    CheckedJudge,
    ClassifierScore,
    HumanQueue,
    ScoreJudge,
)
from bilevel_rl.llm.tasks.pretrain import ClassifierConfig, train_classifier, train_tokenizer


def by_length(prompts, completions, **columns):
    return [float(len(text)) for text in completions]


def first(prompts, completions, shuffle_order=True):
    return [0] * len(prompts)


# -- scores --------------------------------------------------------------------------------------------------


def test_noise_free_labels_are_the_larger_score():
    pairs = [["aa", "b"], ["a", "bb"], ["a", "b"]]
    assert ScoreJudge(by_length)(["p"] * 3, pairs) == [0, 1, -1]


def test_drawn_labels_follow_bradley_terry():
    judge = ScoreJudge(by_length, sharpness=0.5, seed=3)
    pairs = [["aaa", f"b{i:04d}"[:1]] for i in range(4000)]
    prompts = [str(i) for i in range(4000)]
    labels = np.array(judge(prompts, pairs))
    p = 1 / (1 + math.exp(-0.5 * 2))
    assert abs((labels == 0).mean() - p) < 4.5 * math.sqrt(p * (1 - p) / 4000)


def test_a_drawn_label_depends_on_the_pair_alone():
    judge, prompts, pairs = (
        ScoreJudge(by_length, 0.3, seed=1),
        [str(i) for i in range(50)],
        [["ab", "c"]] * 50,
    )
    together = judge(prompts, pairs)
    assert together == [judge([p], [pair])[0] for p, pair in zip(prompts, pairs, strict=True)]
    assert together == judge(prompts[::-1], pairs)[::-1]
    assert together != ScoreJudge(by_length, 0.3, seed=2)(prompts, pairs)
    assert set(together) == {0, 1}


def test_sharpness_must_be_positive():
    with pytest.raises(InvalidConfig, match="sharpness"):
        ScoreJudge(by_length, 0.0)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    torch.set_num_threads(1)
    texts, labels = ["good day", "bad day"] * 32, [1, 0] * 32
    tokenizer = train_tokenizer(texts, 270)
    config = ClassifierConfig(layers=1, width=16, heads=2, context=16, epochs=20, batch=16, dropout=0.0)
    model, figures = train_classifier(texts, labels, ["sad", "happy"], tokenizer, config, (texts, labels))
    assert figures["accuracy"] == 1.0
    folder = tmp_path_factory.mktemp("classifier")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model, tokenizer, folder


def test_a_classifier_from_memory_and_from_its_folder_score_alike(classifier):
    model, tokenizer, folder = classifier
    assert {path.suffix for path in folder.iterdir()} <= {".json", ".safetensors"}
    prompts, completions = ["good", "bad"], [" day", " day"]
    memory = ClassifierScore(model, tokenizer, "happy")(prompts, completions)
    assert ClassifierScore(folder, label="happy")(prompts, completions) == pytest.approx(memory, abs=1e-6)
    assert memory[0] > 0.9 > 0.1 > memory[1]
    sad = ClassifierScore(model, tokenizer, 0)(prompts, completions)
    assert np.add(memory, sad) == pytest.approx([1.0, 1.0])


def test_scores_do_not_depend_on_the_batch(classifier):
    score = ClassifierScore(*classifier[:2], "happy")
    texts = [" day", " day day day day", "", " bad good"]
    alone = [score(["good"], [text])[0] for text in texts]
    assert score(["good"] * 4, texts) == pytest.approx(alone, abs=1e-5)
    assert score([], []) == []


def test_messages_are_scored_by_their_contents(classifier):
    score = ClassifierScore(*classifier[:2], "happy")
    talk, answer = [{"role": "user", "content": "good"}], [{"role": "assistant", "content": " day"}]
    assert score([talk], [answer]) == score(["good"], [" day"])


def test_an_unknown_label_is_named(classifier):
    with pytest.raises(InvalidConfig, match="Did you mean 'happy'"):
        ClassifierScore(*classifier[:2], "hapy")
    with pytest.raises(InvalidConfig, match=r"ClassifierScore\.label: got 2"):
        ClassifierScore(*classifier[:2], 2)


# -- people --------------------------------------------------------------------------------------------------


def test_a_queue_waits_for_labels_and_asks_each_pair_once(tmp_path):
    queue = HumanQueue(tmp_path, wait_seconds=30, poll_seconds=0.01)

    def person():
        other = HumanQueue(tmp_path)
        while len(pending := list(other.pending())) < 2:
            time.sleep(0.01)
        for row in pending:
            other.answer(row["id"], row["completions"].index("good"))

    thread = threading.Thread(target=person)
    thread.start()
    assert queue(["p", "q"], [["good", "bad"], ["bad", "good"]]) == [0, 1]
    thread.join()
    assert queue(["q", "p"], [["bad", "good"], ["good", "bad"]]) == [1, 0]
    assert len((tmp_path / "pairs.jsonl").read_text().splitlines()) == 2


def test_a_stopped_run_finds_its_labels_again(tmp_path):
    with pytest.raises(LabelsPending, match="2 pairs without a label"):
        HumanQueue(tmp_path, wait_seconds=0)(["p", "q"], [["a", "b"], ["c", "d"]])
    later = HumanQueue(tmp_path)
    for row in list(later.pending()):
        later.answer(row["id"], -1 if row["prompt"] == "q" else 1)
    assert HumanQueue(tmp_path, wait_seconds=0)(["p", "q"], [["a", "b"], ["c", "d"]]) == [1, -1]
    assert not list(later.pending())


def test_a_line_torn_by_a_kill_loses_only_itself(tmp_path):
    queue = HumanQueue(tmp_path, wait_seconds=0)
    with pytest.raises(LabelsPending):
        queue(["p"], [["a", "b"]])
    key = next(queue.pending())["id"]
    queue.answer(key, 1)
    with open(tmp_path / "labels.jsonl", "a") as file:
        file.write('{"id": "x", "la')
    assert queue(["p"], [["a", "b"]]) == [1]


def test_a_wrong_label_is_named(tmp_path):
    queue = HumanQueue(tmp_path)
    with pytest.raises(InvalidProblem, match="a label is 0, 1 or -1"):
        queue.answer("k", 2)
    (tmp_path / "labels.jsonl").write_text('{"id": "k", "label": "first"}\n')
    with pytest.raises(InvalidProblem, match="Correct the line of pair k"):
        queue.labels()


# -- the wrapper ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ([0], r"1 labels for 2 pairs, 3 times"),
        ([0, float("nan")], "NaN for pair 1"),
        ([0, 2], "2 for pair 1"),
        ([None, 0], "None for pair 0"),
        (None, "a NoneType"),
        (ZeroDivisionError("oops"), r"ZeroDivisionError \(oops\)"),
    ],
)
def test_wrong_answers_are_named_after_every_try(answer, reason):
    calls = []

    def judge(prompts, completions, shuffle_order=True):
        calls.append(1)
        if isinstance(answer, Exception):
            raise answer
        return answer

    checked = CheckedJudge(judge, pause=0)
    with pytest.raises(JudgeFailed, match=reason):
        checked(["p", "q"], [["a", "b"]] * 2)
    assert len(calls) == 3
    assert checked.labels == 0


def test_a_judge_that_recovers_is_asked_again_and_counted_once():
    answers = iter([[0], [0, float("nan")], [1, -1]])
    checked = CheckedJudge(lambda prompts, completions, shuffle_order=True: next(answers), pause=0)
    assert checked(["p", "q"], [["a", "b"]] * 2) == [1, -1]
    assert (checked.labels, checked.calls) == (1, 6)


def test_objects_arrays_and_empty_batches():
    class Old:
        def judge(self, prompts, completions, shuffle_order=True):
            return np.zeros(len(prompts))

    checked = CheckedJudge(Old())
    assert checked(["p"], [["a", "b"]]) == [0]
    assert checked([], []) == []
    assert CheckedJudge(first)(["p"], [("a", "b")]) == [0]


def test_a_pending_queue_is_not_retried(tmp_path):
    checked = CheckedJudge(HumanQueue(tmp_path, wait_seconds=0), pause=60)
    with pytest.raises(LabelsPending):
        checked(["p"], [["a", "b"]])


def test_what_is_not_a_judge_is_refused():
    with pytest.raises(InvalidConfig, match="a callable, or an object with a method `judge`"):
        CheckedJudge(3)
    with pytest.raises(InvalidProblem, match="each prompt needs two completions"):
        CheckedJudge(first)(["p"], [["a"]])
