"""Happy tweets, the paper's second experiment: models and data, from our own grammar or from TweetEval
folders.

    language model    writes tweets of every mood; the frozen reference and the policies' start
    gold classifier   trained on labelled tweets that the language model never saw; the score that grades
    every method judge             prefers the happier of two tweets by a Bradley-Terry law on the gold score;
    its labels are counted prompts           the first words of tweets, some held out for evaluation

On the grammar everything is made on the spot, offline. On TweetEval the language model learns the emoji and
sentiment texts and the gold classifier the emotion labels (anger, joy, optimism, sadness).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from bilevel_rl.errors import InvalidProblem, message
from bilevel_rl.llm.data.sources import read_tweeteval
from bilevel_rl.llm.judges.builtin import ClassifierScore, ScoreJudge
from bilevel_rl.llm.judges.vader import Vader
from bilevel_rl.llm.loading import load_language_model, load_tokenizer
from bilevel_rl.llm.tasks import corpus
from bilevel_rl.llm.tasks.pretrain import (
    ClassifierConfig,
    LanguageModelConfig,
    fingerprint,
    language_model_stage,
    stage,
    train_classifier,
)

TWEETEVAL = {
    "language": (("emoji", "train"), ("sentiment", "test"), ("sentiment", "val")),
    "prompts": (("emoji", "val"),),
    "labels": (("emotion", "train"), ("emotion", "val")),
}
# The models of each size, ours. Small ones take seconds to minutes on two cores, large ones want a GPU.
SIZES: dict[str, dict[str, tuple[LanguageModelConfig, ClassifierConfig]]] = {
    "small": {
        "grammar": (LanguageModelConfig(width=64, heads=2, steps=700, learning_rate=4e-3), ClassifierConfig(width=64)),
        "tweeteval": (
            LanguageModelConfig(vocabulary=2048, steps=1000),
            ClassifierConfig(epochs=4, learning_rate=1e-3, dropout=0.2),
        ),
    },
    "large": {
        "grammar": (
            LanguageModelConfig(layers=6, width=256, heads=8, steps=2000, batch=128, learning_rate=1e-3),
            ClassifierConfig(layers=4, width=128),
        ),
        "tweeteval": (
            LanguageModelConfig(
                vocabulary=8192, layers=8, width=512, heads=8, context=96, steps=3000, batch=128, learning_rate=6e-4
            ),
            ClassifierConfig(epochs=4, learning_rate=2e-4, dropout=0.2),
        ),
    },
}  # fmt: skip


def sized(size: str, data: str) -> tuple[LanguageModelConfig, ClassifierConfig]:
    """The models' sizes for `"grammar"` or `"tweeteval"`.

    Args:
        size: `"small"`, `"large"`, or `"auto"`: large where there is an accelerator.

    Example:
        >>> sized("small", "grammar")[0].width
        64
    """
    import torch

    if size == "auto":
        size = "large" if torch.accelerator.is_available() else "small"
    return SIZES[size][data]


PROMPT_TOKENS = (
    24  # ours: three words of a tweet can be three hashtags of twenty tokens each; those are left out
)


@dataclasses.dataclass(frozen=True)
class HappyTweets:
    """The task, ready for a trainer.

    Attributes:
        name: `"grammar"` or `"tweeteval"`.
        model: folder of the language model and its tokenizer.
        classifier: folder of the gold classifier and its tokenizer; None: VADER is the gold score.
        label: the label whose probability is the gold score, or what the score is called.
        prompts: texts to train on.
        held_out: texts to evaluate on; none of them is among `prompts`.
        figures: what was measured while making the models, by stage.
        made: stages that this call made (the rest came from the cache).
        longest: completion length that fits nearly every tweet, in tokens.
    """

    name: str
    model: Path
    classifier: Path | None
    label: str
    prompts: list[str]
    held_out: list[str]
    figures: dict[str, Any]
    made: tuple[str, ...]
    longest: int

    def language_model(self) -> Any:
        """A fresh copy of the language model."""
        return load_language_model(self.model)

    def tokenizer(self) -> Any:
        """The tokenizer of language model and classifier."""
        return load_tokenizer(self.model)

    def gold(self) -> Any:
        """The gold score: the probability of the happy label, in [0, 1], or VADER's compound score, in [-1, 1]."""
        return Vader() if self.classifier is None else ClassifierScore(self.classifier, label=self.label)

    def judge(self, sharpness: float = 8.0, seed: int = 0, gold: Any = None, ties: str = "") -> ScoreJudge:
        """The labeller.

        Args:
            sharpness: slope of the Bradley-Terry law in the gold score (ours: 8 makes a clear pair sure and
                leaves two unhappy tweets near a coin's toss); `math.inf` is noise-free.
            seed: of the drawn labels.
            ties: see `ScoreJudge`.
        """
        return ScoreJudge(gold or self.gold(), sharpness, seed, ties)


def from_grammar(
    cache: str | Path,
    language: LanguageModelConfig = SIZES["small"]["grammar"][0],
    classifier: ClassifierConfig = SIZES["small"]["grammar"][1],
    tweets: int = 40_000,
    labelled: int = 8_000,
    held_out_prompts: int = 200,
    progress: bool = False,
) -> HappyTweets:
    """Make the task from the grammar, or read what is already in the cache.

    Args:
        cache: folder for models.
        tweets: for the tokenizer and the language model.
        labelled: for the gold classifier, drawn with another seed.
        held_out_prompts: prompts kept for evaluation.

    Raises:
        StorageFailed: the cache can't be written.
    """
    written, held = corpus.make_tweets(tweets, seed=1), corpus.make_tweets(1000, seed=2)
    known, unseen = corpus.make_tweets(labelled, seed=3), corpus.make_tweets(2000, seed=4)
    prompts = [str(p) for p in np.random.default_rng(5).permutation(corpus.make_prompts())]
    model, gold = _models(
        cache, language, classifier, written.texts, held.texts, (known.texts, known.labels),
        (unseen.texts, unseen.labels), list(corpus.MOODS), False, progress,
    )  # fmt: skip
    return HappyTweets(
        "grammar", model.folder, gold.folder, "happy", prompts[held_out_prompts:], prompts[:held_out_prompts],
        {"language_model": model.figures, "gold": gold.figures}, _made(model, gold), 28,
    )  # fmt: skip


def from_tweeteval(
    data: str | Path,
    cache: str | Path,
    language: LanguageModelConfig = SIZES["small"]["tweeteval"][0],
    classifier: ClassifierConfig = SIZES["small"]["tweeteval"][1],
    prompt_words: int = 3,
    held_out_prompts: int = 200,
    progress: bool = False,
) -> HappyTweets:
    """Make the task from a folder with TweetEval's `emoji`, `sentiment` and `emotion`.

    The gold classifier starts from the language model's weights: 3,257 labels alone are few for a network.

    Args:
        data: the folder; real tweets stay there, only models are written to `cache`.
        prompt_words: words of a tweet that make a prompt.

    Raises:
        InvalidProblem: a part is missing or broken.
    """
    data = Path(data)
    parts = {name: [read_tweeteval(data / folder, split).texts for folder, split in TWEETEVAL[name]]
             for name in ("language", "prompts")}  # fmt: skip
    texts = [text for part in parts["language"] for text in part if text]
    known, unseen = (read_tweeteval(data / folder, split) for folder, split in TWEETEVAL["labels"])
    folder = TWEETEVAL["labels"][0][0]
    if "joy" not in known.names:
        raise InvalidProblem(
            message(str(data / folder), f"the labels {known.names}",
                    "the gold score is the probability of 'joy'",
                    "Use TweetEval's emotion folder")
        )  # fmt: skip
    held = texts[::40][:1000]
    texts = [text for i, text in enumerate(texts) if i % 40 or i // 40 >= 1000]
    begun = (text.split() for part in parts["prompts"] for text in part)
    prompts = list(
        dict.fromkeys(" ".join(words[:prompt_words]) for words in begun if len(words) > prompt_words + 2)
    )
    if len(prompts) < 2:
        raise InvalidProblem(
            message(
                str(data), f"{len(prompts)} prompts", "at least two different ones are needed", "Add texts"
            )
        )
    model, gold = _models(
        cache, language, classifier, texts, held, (known.texts, known.labels), (unseen.texts, unseen.labels),
        known.names, True, progress,
    )  # fmt: skip
    tokenizer = load_tokenizer(model.folder)
    short = [len(ids) <= PROMPT_TOKENS for ids in tokenizer(prompts)["input_ids"]]
    prompts = [prompt for prompt, fits in zip(prompts, short, strict=True) if fits]
    held_out_prompts = min(held_out_prompts, max(1, len(prompts) // 5))
    return HappyTweets(
        "tweeteval", model.folder, gold.folder, "joy", prompts[held_out_prompts:], prompts[:held_out_prompts],
        {"language_model": model.figures, "gold": gold.figures}, _made(model, gold), 28,
    )  # fmt: skip


def _models(
    cache: str | Path, language: LanguageModelConfig, classifier: ClassifierConfig, texts: list[str], held:
    list[str],
    known: tuple[list[str], list[int]], unseen: tuple[list[str], list[int]], names: list[str], start: bool,
    progress: bool,
) -> Any:  # fmt: skip
    model = language_model_stage(cache, language, texts, held, progress)

    def make_gold(folder: Path) -> dict[str, Any]:
        tokenizer = load_tokenizer(model.folder)
        network, figures = train_classifier(
            *known, names, tokenizer, classifier, unseen, model.folder if start else None, progress
        )
        network.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return figures

    labelled = {
        "config": dataclasses.asdict(classifier), "texts": fingerprint(known[0]), "labels": list(known[1]),
        "held": fingerprint(unseen[0]), "names": names, "start": start, "model": model.folder.name,
    }  # fmt: skip
    return model, stage(cache, "gold", labelled, make_gold)


def _made(*stages: Any) -> tuple[str, ...]:
    return tuple(s.folder.name.rsplit("-", 1)[0] for s in stages if s.made)
