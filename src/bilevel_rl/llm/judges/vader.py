"""Sentiment by rules: VADER's lexicon of 7,500 English words, with its rules for negation, emphasis and emoticons.

A gold scorer that needs no network and no model: `judge: builtin:vader`. It knows English alone, and says when a
text is not English.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import Any

from bilevel_rl.errors import InvalidConfig, message, require
from bilevel_rl.llm.data.wording import as_text

log = logging.getLogger(__name__)
WORD = re.compile(r"[^\W\d_]+")
FOREIGN = 0.2  # ours: share of letters outside the Latin alphabet without marks from which a text counts as not English
TOLERATED = 0.25  # ours: share of texts that may look foreign; of tweets full of names and hashtags one in nine does
SHORT = 6  # ours: fewer words tell no language
# ours: the commonest function words of English; a text of some length without any is not English
COMMON = frozenset({
    "the", "a", "an", "and", "or", "but", "of", "to", "in", "on", "at", "for", "with", "is", "are", "was", "were",
    "be", "been", "am", "it", "its", "this", "that", "these", "those", "i", "you", "he", "she", "we", "they", "my",
    "your", "his", "her", "our", "their", "me", "him", "us", "them", "not", "no", "do", "does", "did", "have", "has",
    "had", "will", "would", "can", "could", "so", "if", "as", "by", "from", "up", "out", "just", "what", "when", "who",
    "how", "all", "very", "more", "there", "here", "im", "dont",
})  # fmt: skip


class Vader:
    """VADER's compound score of a text (prompt + completion), in [-1, 1].

    Raises:
        MissingDependency: without the extra `vader`.
        InvalidConfig: the package's lexicon is empty or missing.

    References:
        Hutto and Gilbert, "VADER: a parsimonious rule-based model for sentiment analysis of social media text",
        ICWSM 2014.
    """

    __name__ = "vader"  # TRL logs a reward function by its name

    def __init__(self) -> None:
        package = require("vaderSentiment.vaderSentiment", "vader")
        try:
            self.analyser = package.SentimentIntensityAnalyzer()
            words = len(self.analyser.lexicon)
        except OSError as error:
            raise _no_lexicon(f"{type(error).__name__} ({error})") from error
        if not words:
            raise _no_lexicon("an empty lexicon")
        self.warned = False

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
        """Compound scores in [-1, 1], one a completion."""
        texts = [as_text(p) + as_text(y) for p, y in zip(prompts, completions, strict=True)]
        odd = [text for text in texts if not is_english(text)]
        if len(odd) > TOLERATED * len(texts) and not self.warned:
            log.warning("vader: %d of %d texts are not English, e.g. %.60r: its scores of them mean nothing",
                        len(odd), len(texts), odd[0])  # fmt: skip
            self.warned = True
        return [float(self.analyser.polarity_scores(text)["compound"]) for text in texts]


def is_english(text: str) -> bool:
    """Whether a text may be English: plain letters, and some function word where it has several words.

    Example:
        >>> [is_english(t) for t in ("I love this!", "das ist ein sehr schöner und warmer Tag", "это хорошо", "")]
        [True, False, False, True]
    """
    letters = [c for c in text if c.isalpha()]
    if letters and sum(ord(c) > 127 for c in letters) > FOREIGN * len(letters):
        return False
    words = [word.lower() for word in WORD.findall(text.replace("'", ""))]
    return len(words) < SHORT or not COMMON.isdisjoint(words)


def _no_lexicon(what: str) -> InvalidConfig:
    return InvalidConfig(
        message(
            "judge builtin:vader",
            what,
            "VADER is its lexicon",
            "Install vaderSentiment again: it brings the file along",
        )
    )
