"""Data: every source gives the same rows, chat templates render, and each kind of bad input is named."""

from __future__ import annotations

import csv
import json

import pytest

from bilevel_rl.errors import InvalidConfig, InvalidProblem
from bilevel_rl.llm.data import rows, sources, wording
from bilevel_rl.llm.tasks.pretrain import train_tokenizer

TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
ROWS = [{"prompt": "the sky"}, {"prompt": "my cat"}]
TALK = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["my cat is on the mat"] * 5, 300)


@pytest.fixture
def chat(tokenizer):
    tokenizer.chat_template = TEMPLATE
    yield tokenizer
    tokenizer.chat_template = None


def write(folder, kind):
    if kind == "jsonl":
        (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    elif kind == "json":
        (folder / "train.json").write_text(json.dumps(ROWS))
    elif kind == "txt":
        (folder / "train.txt").write_text("the sky\nmy cat\n")
    elif kind == "csv":
        with open(folder / "train.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, ["prompt"])
            writer.writeheader()
            writer.writerows(ROWS)
    elif kind == "parquet":
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.Table.from_pylist(ROWS), folder / "train.parquet")
    return folder / f"train.{kind}"


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "txt", "parquet"])
def test_a_file_and_its_folder_give_the_same_rows(tmp_path, kind):
    file = write(tmp_path, kind)
    assert sources.load_rows(file) == ROWS
    assert sources.load_rows(tmp_path) == ROWS
    assert rows.load_prompts(file) == ROWS


def test_a_saved_hub_dataset_gives_the_same_rows(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}).save_to_disk(tmp_path / "many")
    assert sources.load_rows(tmp_path / "one") == ROWS
    assert sources.load_rows(tmp_path / "many") == ROWS
    with pytest.raises(InvalidProblem, match="no split 'test'"):
        sources.load_rows(tmp_path / "many", "test")


def test_a_hub_id_goes_through_datasets(monkeypatch):
    datasets = pytest.importorskip("datasets")
    asked = []
    monkeypatch.setattr(
        datasets, "load_dataset", lambda name, split: asked.append((name, split)) or iter(ROWS)
    )
    assert sources.load_rows("someone/prompts", "validation") == ROWS
    assert asked == [("someone/prompts", "validation")]


def test_an_unreachable_hub_id_is_a_clear_error(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def fail(name, split):
        raise ConnectionError("no route\nlong trace")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(InvalidProblem, match=r"dataset 'someone/prompts': got ConnectionError \(no route\);"):
        sources.load_rows("someone/prompts")


def test_csv_cells_may_hold_messages(tmp_path):
    with open(tmp_path / "train.csv", "w", newline="") as file:
        csv.writer(file).writerows([["prompt"], [json.dumps(TALK)]])
    assert rows.load_prompts(tmp_path / "train.csv") == [{"prompt": TALK}]


@pytest.mark.parametrize(
    ("content", "name", "what"),
    [
        ("{broken", "a.jsonl", "unreadable content"),
        ("3\n", "a.jsonl", "rows that are not objects"),
        ("", "a.jsonl", "no rows"),
        ("x", "a.xml", "the ending '.xml'"),
    ],
)
def test_bad_files_are_named(tmp_path, content, name, what):
    (tmp_path / name).write_text(content)
    with pytest.raises(InvalidProblem, match=what):
        sources.load_rows(tmp_path / name)


def test_a_missing_path_is_not_taken_for_a_hub_id(tmp_path):
    for source in (tmp_path / "none", "none.jsonl", "./none"):
        with pytest.raises(InvalidProblem, match="no such file or folder"):
            sources.load_rows(source)
    with pytest.raises(InvalidProblem, match="no split 'train'"):
        sources.load_rows(tmp_path)


# -- TweetEval -----------------------------------------------------------------------------------------------


def tweeteval(folder, texts="good\nbad\u2028day\n", labels="1\n0\n", mapping="0\tsad\n1\tjoy"):
    for name, content in (("train_text", texts), ("train_labels", labels), ("mapping", mapping)):
        if content is not None:
            (folder / f"{name}.txt").write_text(content, encoding="utf-8")
    return folder


def test_tweeteval(tmp_path):
    read = sources.read_tweeteval(tweeteval(tmp_path))
    assert read == sources.Labelled(["good", "bad\u2028day"], [1, 0], ["sad", "joy"])
    assert sources.load_rows(tmp_path)[0] == {"text": "good", "label": "joy"}
    emoji = sources.read_tweeteval(tweeteval(tmp_path, mapping="0\t❤\t_red_heart_\t\n1\t😂\t_tears_\t"))
    assert emoji.names == ["_red_heart_", "_tears_"]


@pytest.mark.parametrize(
    ("files", "what"),
    [
        ({"labels": "1\n"}, "2 texts and 1 labels"),
        ({"labels": "1\n7\n"}, r"train_labels.txt line 2: got '7'; labels are 0 to 1"),
        ({"labels": "1\n\n"}, "line 2: got ''"),
        ({"labels": None}, "no train_labels.txt"),
        ({"mapping": "0\tsad\n2\tjoy"}, "they must count up from 0"),
        ({"mapping": "sad"}, "a number, a tab and a name"),
    ],
)
def test_bad_tweeteval_folders_are_named(tmp_path, files, what):
    with pytest.raises(InvalidProblem, match=what):
        sources.read_tweeteval(tweeteval(tmp_path, **files))


def test_prompts_from_the_first_words_of_texts(tmp_path):
    tweeteval(tmp_path, texts="a b c\na b d\n")
    found = rows.load_prompts(tmp_path, words=2, duplicates="drop")
    assert found == [{"text": "a b c", "label": "joy", "prompt": "a b"}]
    with pytest.raises(InvalidProblem, match="a text and no prompt"):
        rows.load_prompts(tmp_path)


# -- prompts and preferences ---------------------------------------------------------------------------------


def test_other_columns_stay_and_completions_go():
    found = rows.load_prompts([{"prompt": "p", "answer": 3, "chosen": "x", "rejected": "y"}])
    assert found == [{"prompt": "p", "answer": 3}]


def test_messages_up_to_the_first_answer_are_the_prompt():
    found = rows.load_prompts([{"messages": [*TALK, {"role": "assistant", "content": "hi"}]}])
    assert found == [{"prompt": TALK}]


@pytest.mark.parametrize(
    ("prompts", "what"),
    [
        ([], "no prompts"),
        (["a", " "], r"prompts\[1\]: got an empty prompt"),
        (["a", "b", "a"], r"prompts\[2\]: got the same prompt as prompts\[0\], 'a'"),
        ([TALK, TALK], "the same prompt"),
        ([3], "a prompt of type int"),
        ([[{"role": "user"}]], "role and content"),
        ([{"question": "a"}], r"the columns \['question'\]; the column 'prompt' is needed"),
    ],
)
def test_bad_prompts_are_named(prompts, what):
    with pytest.raises(InvalidProblem, match=what):
        rows.load_prompts(prompts)


def test_lengths_are_checked_in_tokens(tokenizer, chat):
    length = len(tokenizer("my cat")["input_ids"])
    given = [{"prompt": "my cat"}]
    rows.check_prompts(given, tokenizer, length, context=length + 5, max_new_tokens=5)
    with pytest.raises(InvalidProblem, match=f"{length} tokens; max_prompt_tokens is {length - 1}"):
        rows.check_prompts(given, tokenizer, length - 1)
    with pytest.raises(InvalidProblem, match="the model's context is"):
        rows.check_prompts(given, tokenizer, context=length + 4, max_new_tokens=5)
    with pytest.raises(InvalidProblem, match="max_prompt_tokens"):
        rows.check_prompts([TALK], chat, 3)


def test_preferences_standard_conversational_and_implicit(chat):
    explicit = rows.load_preferences([{"prompt": "my cat", "chosen": " purrs", "rejected": " hisses"}])
    assert explicit == [rows.PreferenceText("my cat", " purrs", " hisses")]
    implicit = rows.load_preferences([{"chosen": "my cat is happy", "rejected": "my cat is hungry"}])
    assert implicit == [rows.PreferenceText("my cat is", " happy", " hungry")]
    good, bad = ([{"role": "assistant", "content": text}] for text in ("yes", "no"))
    expected = [rows.PreferenceText("[user]hello[assistant]", "yes", "no")]
    plain = TEMPLATE.replace(
        "[{{ m['role'] }}]", "{% if m['role'] == 'user' %}[user]{% else %}[assistant]{% endif %}"
    )
    chat.chat_template = plain
    assert rows.load_preferences([{"prompt": TALK, "chosen": good, "rejected": bad}], chat) == expected
    assert rows.load_preferences([{"chosen": TALK + good, "rejected": TALK + bad}], chat) == expected


def test_rows_for_the_trainer_keep_their_messages():
    good, bad = ([{"role": "assistant", "content": text}] for text in ("yes", "no"))
    expected = [{"prompt": TALK, "chosen": good, "rejected": bad}]
    assert rows.preference_rows([{"chosen": TALK + good, "rejected": TALK + bad}]) == expected
    assert rows.preference_rows(expected) == expected
    with pytest.raises(InvalidProblem, match="an empty completion"):
        rows.preference_rows([{"prompt": TALK, "chosen": [], "rejected": bad}])


def test_a_template_that_rewrites_the_prompt_is_refused(chat):
    chat.chat_template = "{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    row = {
        "prompt": TALK,
        "chosen": [{"role": "assistant", "content": "a"}],
        "rejected": [{"role": "assistant", "content": "b"}],
    }
    with pytest.raises(InvalidProblem, match="not the start of the conversation"):
        rows.load_preferences([row], chat)


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"prompt": "p", "chosen": "a"}, "the column 'rejected' is needed"),
        ({"prompt": "p", "chosen": "a", "rejected": "a"}, "chosen equal to rejected"),
        ({"prompt": "p", "chosen": "a", "rejected": ""}, "an empty completion"),
    ],
)
def test_bad_preferences_are_named(row, what):
    with pytest.raises(InvalidProblem, match=what):
        rows.load_preferences([row])


def test_messages_need_a_chat_template(tokenizer):
    with pytest.raises(InvalidConfig, match="without a chat template"):
        wording.render(TALK, tokenizer)


def test_rendering_begins_the_answer_only_after_a_question(chat):
    assert wording.render(TALK, chat) == "[user]hello[assistant]"
    begun = [*TALK, {"role": "assistant", "content": "well"}]
    assert wording.render(begun, chat) == "[user]hello[assistant]well"


def test_tokenizer_without_end_or_with_too_many_tokens(tokenizer):
    rows.check_tokenizer(tokenizer, vocabulary=len(tokenizer))
    with pytest.raises(InvalidConfig, match="vocabulary mismatch"):
        rows.check_tokenizer(tokenizer, vocabulary=len(tokenizer) - 1)

    class Endless:
        eos_token_id = None

    with pytest.raises(InvalidConfig, match="no EOS token"):
        rows.check_tokenizer(Endless())
