"""Happy tweets as the paper has them: a Transformer of four layers, preferences by rules of sentiment, and no classifier.

    language model    four layers; writes tweets of every mood; the frozen reference and the policies' start
    gold and judge    VADER's compound score, in [-1, 1], of the whole tweet
    prompts           the first words of tweets that the language model did not learn, some held out for evaluation

The tweets are our grammar's without sarcasm, which VADER reads as praise, or any folder of texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bilevel_rl.errors import InvalidProblem, message
from bilevel_rl.llm.judges.vader import Vader
from bilevel_rl.llm.loading import load_tokenizer
from bilevel_rl.llm.tasks import corpus
from bilevel_rl.llm.tasks.happy_tweets import HappyTweets
from bilevel_rl.llm.tasks.pretrain import LanguageModelConfig, language_model_stage

LAYERS = 4  # the paper's
# ours: as small as still writes English of a kind; a run takes seconds on one core
LANGUAGE: dict[str, LanguageModelConfig] = {
    "grammar": LanguageModelConfig(
        vocabulary=1024, layers=LAYERS, width=32, heads=2, context=48, steps=500, learning_rate=5e-3
    ),
    "tweets": LanguageModelConfig(
        vocabulary=1024, layers=LAYERS, width=48, heads=2, context=48, steps=800, learning_rate=5e-3
    ),
}
LONGEST = 12  # ours: tokens of a completion, about eight words
WORDS = (6, 12)  # ours: words of a tweet that is learnt; longer ones would be cut anyway
PROMPT_WORDS, PROMPT_TOKENS = 3, 14
EVERY = 12  # ours: of so many texts one gives a prompt and is not learnt
LEAST = 40  # texts from which a language model can be made at all
SAMPLED = 400  # texts that are scored to see whether the analyser can read them


def from_grammar(
    cache: str | Path, language: LanguageModelConfig | None = None, tweets: int = 20_000, held_out_prompts: int = 200,
    progress: bool = False,
) -> HappyTweets:  # fmt: skip
    """The task on our grammar's tweets, no sarcasm among them.

    Args:
        cache: folder for models.
        language: size and training of the language model; None: `LANGUAGE`.
        tweets: for the tokenizer and the language model.
        held_out_prompts: prompts kept for evaluation.

    Raises:
        MissingDependency: without the extra `vader`.
        StorageFailed: the cache can't be written.
    """
    Vader()
    written = corpus.make_tweets(tweets, seed=1, sarcasm=0.0)
    held = corpus.make_tweets(500, seed=2, sarcasm=0.0)
    prompts = [str(p) for p in np.random.default_rng(5).permutation(corpus.make_prompts())]
    return _task(
        "paper_grammar", cache, language or LANGUAGE["grammar"], written.texts, held.texts, prompts, held_out_prompts,
        progress,
    )  # fmt: skip


def from_folder(
    data: str | Path, cache: str | Path, language: LanguageModelConfig | None = None, held_out_prompts: int = 200,
    progress: bool = False,
) -> HappyTweets:  # fmt: skip
    """The task on a folder of texts, one a line: TweetEval's, or any.

    Args:
        data: the folder; its `*_text.txt` files count, in folders below too, or else its `*.txt` files. The texts stay
            there, only models are written to `cache`.
        cache: folder for models.
        language: size and training of the language model; None: `LANGUAGE`.
        held_out_prompts: prompts kept for evaluation.

    Raises:
        InvalidProblem: no texts, too few of them, or texts that all score 0.
        MissingDependency: without the extra `vader`.
    """
    gold = Vader()
    texts = read_texts(data)
    texts = [text for text in dict.fromkeys(texts) if WORDS[0] <= len(text.split()) <= WORDS[1]]
    texts = [texts[i] for i in np.random.default_rng(6).permutation(len(texts))]
    asked, learnt = texts[::EVERY], [text for i, text in enumerate(texts) if i % EVERY]
    prompts = list(dict.fromkeys(" ".join(text.split()[:PROMPT_WORDS]) for text in asked))
    if len(texts) < LEAST or len(prompts) < 2:
        raise InvalidProblem(
            message(str(data), f"{len(texts)} different texts of {WORDS[0]} to {WORDS[1]} words, {len(prompts)} beginnings",
                    f"a language model needs at least {LEAST} texts, its prompts 2 beginnings", "Add texts, one a line")
        )  # fmt: skip
    check_readable(gold, learnt[:SAMPLED], str(data))
    held = learnt[:: max(40, len(learnt) // 500)]
    known = set(held)
    learnt = [text for text in learnt if text not in known]
    return _task(
        "paper_tweets",
        cache,
        language or LANGUAGE["tweets"],
        learnt,
        held,
        prompts,
        held_out_prompts,
        progress,
    )


def read_texts(data: str | Path) -> list[str]:
    """The texts of a folder: lines of `*_text.txt`, wherever below it, or else of `*.txt`.

    Raises:
        InvalidProblem: no such folder, no such file, or files without a text.
    """
    folder = Path(data).expanduser()
    files = sorted(folder.rglob("*_text.txt")) or sorted(folder.glob("*.txt"))
    if not files:
        what = "no *_text.txt or *.txt" if folder.is_dir() else "no such folder"
        raise InvalidProblem(
            message(str(folder), what, "a folder of texts holds text files with one text a line",
                    "Add the texts, or leave --data out: the grammar writes its own")
        )  # fmt: skip
    texts: list[str] = []
    for file in files:
        try:
            lines = file.read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidProblem(
                message(str(file), f"{type(error).__name__} ({error})", "texts are read as UTF-8", "Convert the file")
            ) from error  # fmt: skip
        texts += [line.strip() for line in lines if line.strip()]
    if not texts:
        raise InvalidProblem(
            message(str(folder), f"{len(files)} files without a text", "one text a line", "Add texts")
        )
    return texts


def check_readable(gold: Any, texts: Sequence[str], where: str) -> None:
    """Raise `InvalidProblem` where a scorer gives the same score to all texts: there is nothing to prefer.

    Args:
        gold: a scorer.
        texts: some of the texts.
        where: for the error.
    """
    scores = set(gold(prompts=[""] * len(texts), completions=list(texts)))
    if len(scores) < 2:
        raise InvalidProblem(
            message(where, f"a score of {scores.pop() if scores else 0:g} for each of {len(texts)} texts",
                    "VADER knows English words alone, and prefers nothing where all score alike", "Choose English texts")
        )  # fmt: skip


def _task(
    name: str, cache: str | Path, language: LanguageModelConfig, texts: list[str], held: list[str], prompts: list[str],
    held_out_prompts: int, progress: bool,
) -> HappyTweets:  # fmt: skip
    model = language_model_stage(cache, language, texts, held, progress)
    short = [len(ids) <= PROMPT_TOKENS for ids in load_tokenizer(model.folder)(prompts)["input_ids"]]
    prompts = [prompt for prompt, fits in zip(prompts, short, strict=True) if fits]
    held_out_prompts = min(held_out_prompts, max(1, len(prompts) // 5))
    return HappyTweets(
        name, model.folder, None, "compound sentiment", prompts[held_out_prompts:], prompts[:held_out_prompts],
        {"language_model": model.figures}, ("language-model",) if model.made else (), LONGEST,
    )  # fmt: skip
