"""The grammar: frequencies, independence of the prompt, and the trap it sets for reward models."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bilevel_rl.errors import InvalidConfig
from bilevel_rl.llm.tasks import corpus

COUNT = 8000


@pytest.fixture(scope="module")
def tweets():
    return corpus.make_tweets(COUNT, seed=5)


def near(share, p, count=COUNT):
    return abs(share - p) < 4.5 * math.sqrt(p * (1 - p) / count)


def test_moods_come_with_their_frequencies(tweets):
    for i, mood in enumerate(corpus.MOODS):
        assert near(tweets.labels.count(i) / COUNT, corpus.FREQUENCY[mood])
    assert math.isclose(sum(corpus.FREQUENCY.values()), 1.0)


def test_same_seed_same_tweets_and_another_seed_others():
    assert corpus.make_tweets(50, 1) == corpus.make_tweets(50, 1)
    assert corpus.make_tweets(50, 1).texts != corpus.make_tweets(50, 2).texts


def test_the_prompt_says_nothing_about_the_mood(tweets):
    happy = np.array(tweets.labels) == corpus.MOODS.index("happy")
    opener = np.array([next(o for o in corpus.OPENERS if p.startswith(o + " ")) for p in tweets.prompts])
    for name in corpus.OPENERS[:6]:
        chosen = opener == name
        assert near(happy[chosen].mean(), corpus.FREQUENCY["happy"], chosen.sum())
    assert set(tweets.prompts) <= set(corpus.make_prompts())


def test_glad_words_are_sarcastic_more_often_than_happy(tweets):
    labels = np.array(tweets.labels)
    glad = np.array([any(phrase in text for phrase in corpus.GLAD) for text in tweets.texts])
    happy, angry = (labels == corpus.MOODS.index(mood) for mood in ("happy", "angry"))
    assert not (glad & ~happy & ~angry).any()
    sarcasm = corpus.FREQUENCY["angry"] * corpus.SARCASM
    genuine = corpus.FREQUENCY["happy"] * (1 - corpus.TERSE)
    assert near(angry[glad].mean(), sarcasm / (sarcasm + genuine), glad.sum())


def test_a_tweet_is_its_prompt_and_its_continuation(tweets):
    assert tweets.texts[0] == tweets.prompts[0] + tweets.continuations[0]
    assert all(rest.startswith(" ") and "  " not in rest for rest in tweets.continuations)


def test_at_least_one_tweet():
    with pytest.raises(InvalidConfig, match="count"):
        corpus.make_tweets(0, 0)
