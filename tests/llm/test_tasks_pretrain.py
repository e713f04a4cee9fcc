"""Stages: made once, whole or not at all; the tokenizer is lossless; training learns what it should."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bilevel_rl.errors import InvalidConfig, NonFiniteState
from bilevel_rl.llm.loading import (
    encode,
    label_probabilities,
    load_classifier,
    load_language_model,
    pad_rows,
)
from bilevel_rl.llm.tasks import corpus, happy_tweets, pretrain

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def tokenizer():
    return pretrain.train_tokenizer(corpus.make_tweets(500, 0).texts, 400)


# -- stages --------------------------------------------------------------------------------------------------


def test_a_stage_is_made_once_for_its_inputs(tmp_path):
    calls = []

    def make(folder):
        calls.append(folder)
        (folder / "weights").write_text("w")
        return {"accuracy": 0.5}

    made = pretrain.stage(tmp_path, "lm", {"steps": 1}, make)
    again = pretrain.stage(tmp_path, "lm", {"steps": 1}, make)
    other = pretrain.stage(tmp_path, "lm", {"steps": 2}, make)
    assert (made.made, again.made, other.made) == (True, False, True)
    assert made.folder == again.folder != other.folder
    assert again.figures == made.figures
    assert made.figures["accuracy"] == 0.5
    assert len(calls) == 2


def test_a_stage_that_fails_leaves_nothing_and_is_made_again(tmp_path):
    def fail(folder):
        (folder / "half").write_text("x")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain.stage(tmp_path, "lm", {}, fail)
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".lock"]
    assert pretrain.stage(tmp_path, "lm", {}, lambda folder: {}).made


def test_a_folder_without_its_last_file_is_made_again(tmp_path):
    done = pretrain.stage(tmp_path, "lm", {}, lambda folder: {})
    (done.folder / "stage.json").unlink()
    assert pretrain.stage(tmp_path, "lm", {}, lambda folder: {}).made


def test_fingerprints_tell_texts_apart():
    assert (
        pretrain.fingerprint(["a", "b"]) == pretrain.fingerprint(["a", "b"]) != pretrain.fingerprint(["a b"])
    )


# -- tokenizer -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["my cat", " two  spaces", "naïve 😂 \u2028 ünseen", "a\nb"])
def test_every_text_survives_the_tokenizer(tokenizer, text):
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id == tokenizer.eos_token_id != tokenizer.pad_token_id
    assert tokenizer.decode(ids[1:]) == text
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert len(tokenizer) == 400


def test_a_prompt_is_tokenised_as_it_is_inside_its_tweet(tokenizer):
    tweets = corpus.make_tweets(200, 9)
    for prompt, text in zip(tweets.prompts, tweets.texts, strict=True):
        start = tokenizer(prompt)["input_ids"]
        assert tokenizer(text)["input_ids"][: len(start)] == start


def test_bytes_must_fit():
    with pytest.raises(InvalidConfig, match="at least 258"):
        pretrain.train_tokenizer(["a"], 257)


# -- rows and batches ----------------------------------------------------------------------------------------


def test_encode_ends_both_sides_and_cuts(tokenizer):
    end = tokenizer.eos_token_id
    row = encode(tokenizer, ["my cat my cat my cat"], 5)[0]
    assert len(row) == 5
    assert row[0] == row[-1] == end
    assert encode(tokenizer, [], 5) == []
    ids, mask = pad_rows([[1, 2, 3], [end]], pad=end)
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]  # from lengths: the padding id may be a real token
    assert ids[1].tolist() == [end] * 3


def test_batches_show_every_row_once_a_pass():
    rows = [[0] * n for n in np.random.default_rng(0).integers(1, 30, 70)]
    batches = list(pretrain._batches(rows, 8, 18, np.random.default_rng(1)))
    assert len(batches) == 18
    assert sorted(i for batch in batches[:9] for i in batch) == list(range(70))
    assert sorted(i for batch in batches[9:] for i in batch) == list(range(70))


# -- training ------------------------------------------------------------------------------------------------

SMALL = pretrain.LanguageModelConfig(vocabulary=400, layers=1, width=32, heads=2, steps=300, batch=32)


@pytest.fixture(scope="module")
def language_model(tokenizer, tmp_path_factory):
    tweets, held = corpus.make_tweets(3000, 1), corpus.make_tweets(200, 2)
    model, figures = pretrain.train_language_model(tweets.texts, held.texts, tokenizer, SMALL)
    folder = tmp_path_factory.mktemp("lm")
    model.save_pretrained(folder)
    return SimpleNamespace(model=model, figures=figures, folder=folder, held=held.texts)


def test_the_language_model_learns_and_its_held_out_loss_is_right(language_model, tokenizer):
    assert language_model.figures["held_out_loss"] < 0.6 * math.log(400)
    total = count = 0.0
    for text in language_model.held:
        ids = torch.tensor(encode(tokenizer, [text], SMALL.context))
        with torch.no_grad():
            logp = language_model.model(input_ids=ids).logits.log_softmax(-1)
        total -= float(logp[0, :-1].gather(-1, ids[0, 1:, None]).sum())
        count += ids.shape[1] - 1
    assert language_model.figures["held_out_loss"] == pytest.approx(total / count, rel=1e-5)


def test_training_is_a_function_of_its_seed(tokenizer):
    texts = corpus.make_tweets(100, 1).texts
    few = pretrain.LanguageModelConfig(vocabulary=400, layers=1, width=16, heads=2, steps=5, batch=8)
    one, two = (pretrain.train_language_model(texts, texts, tokenizer, few)[0] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_only_safetensors_are_written_and_read(language_model, tmp_path):
    assert {path.suffix for path in language_model.folder.iterdir()} == {".json", ".safetensors"}
    loaded = load_language_model(language_model.folder)
    assert all(
        torch.equal(a, b) for a, b in zip(loaded.parameters(), language_model.model.parameters(), strict=True)
    )
    torch.save(language_model.model.state_dict(), tmp_path / "pytorch_model.bin")
    language_model.model.config.save_pretrained(tmp_path)
    with pytest.raises(InvalidConfig, match="safetensors"):
        load_language_model(tmp_path)


def test_the_classifier_beats_the_majority_and_starts_from_the_language_model(tokenizer, language_model):
    train, held = corpus.make_tweets(1500, 3), corpus.make_tweets(300, 4)
    config = pretrain.ClassifierConfig(layers=1, width=32, heads=2, epochs=3)
    args = (train.texts, train.labels, corpus.MOODS, tokenizer, config, (held.texts, held.labels))
    model, figures = pretrain.train_classifier(*args, start=language_model.folder)
    assert figures["accuracy"] > figures["majority"] + 0.2
    guess = label_probabilities(model, tokenizer, held.texts)
    assert figures["accuracy"] == pytest.approx((guess.argmax(1) == held.labels).mean())
    assert guess.sum(1) == pytest.approx(np.ones(300))
    assert model.config.id2label[1] == "happy"
    untrained, _ = pretrain.train_classifier(
        train.texts[:1], train.labels[:1], corpus.MOODS, tokenizer,
        pretrain.ClassifierConfig(epochs=1, learning_rate=1e-12), (held.texts[:2], held.labels[:2]),
        start=language_model.folder,
    )  # fmt: skip
    assert torch.equal(
        untrained.transformer.wte.weight, language_model.model.transformer.wte.weight
    ) or torch.allclose(
        untrained.transformer.wte.weight, language_model.model.transformer.wte.weight, atol=1e-9
    )


def test_a_saved_classifier_predicts_the_same(tokenizer, tmp_path):
    train = corpus.make_tweets(40, 3)
    config = pretrain.ClassifierConfig(layers=1, width=16, heads=2, epochs=1)
    model, _ = pretrain.train_classifier(
        train.texts, train.labels, corpus.MOODS, tokenizer, config, train[::2]
    )
    model.save_pretrained(tmp_path)
    same = label_probabilities(load_classifier(tmp_path), tokenizer, train.texts)
    assert same == pytest.approx(label_probabilities(model, tokenizer, train.texts), abs=1e-6)


def test_a_diverging_run_is_named(tokenizer):
    texts = corpus.make_tweets(100, 1).texts
    wild = pretrain.LanguageModelConfig(
        vocabulary=400, layers=1, width=16, heads=2, steps=40, batch=8, learning_rate=1e30
    )
    with pytest.raises(NonFiniteState, match="language model"):
        pretrain.train_language_model(texts, texts, tokenizer, wild)


def test_the_size_is_large_where_there_is_an_accelerator(monkeypatch):
    for here, size in ((False, "small"), (True, "large")):
        monkeypatch.setattr(torch.accelerator, "is_available", lambda here=here: here)
        for data in ("grammar", "tweeteval"):
            language, classifier = happy_tweets.sized("auto", data)
            assert (language, classifier) == happy_tweets.SIZES[size][data] == happy_tweets.sized(size, data)
            assert language.width % language.heads == 0
            assert classifier.width % classifier.heads == 0
    parameters = [
        c.layers * 12 * c.width**2
        for c, _ in (happy_tweets.sized(s, "tweeteval") for s in ("small", "large"))
    ]
    assert parameters[1] > 50 * parameters[0]
