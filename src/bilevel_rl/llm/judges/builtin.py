"""Who labels a pair: a callable, a classifier, or people through a folder; and the wrapper that checks every
answer.

A judge has the signature of TRL's pairwise judges: `judge(prompts, completions, shuffle_order=True)`, with
two completions for each prompt, returns for each pair the index of the better one, 0 or 1, or -1 for a tie or
no answer. An object with a method `judge` of that signature is taken too. A scorer has the signature of TRL's
reward functions: `score(prompts=, completions=, **columns)` returns a number for each completion.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from bilevel_rl.errors import InvalidConfig, InvalidProblem, did_you_mean, message
from bilevel_rl.json_lines import append_line
from bilevel_rl.llm.data.wording import whole
from bilevel_rl.llm.judges.asking import JudgeFailed, LabelsPending
from bilevel_rl.llm.loading import label_scores, load_classifier, load_tokenizer
from bilevel_rl.records import make_folder

Pairs = Sequence[Sequence[str]]
TIES = ("break", "skip")  # what a judge made of scores does with two equal ones


class PairwiseJudge(Protocol):
    """Index of the better completion of each pair, or -1."""

    def __call__(
        self, prompts: list[str], completions: list[list[str]], shuffle_order: bool = True
    ) -> list[int]: ...


# -- scores, and the judge made of one -----------------------------------------------------------------------


class ClassifierScore:
    """Probability that a text (prompt + completion) has a label, by a sequence classifier; the score itself where it has
    one label (a reward model).

    Args:
        model: a sequence classifier, its folder, or its hub id.
        tokenizer: the classifier's; None reads it beside the model.
        label: name or index of the label that is wanted; -1 is the last.

    Raises:
        InvalidConfig: the classifier has no such label.
    """

    def __init__(self, model: Any, tokenizer: Any = None, label: str | int = -1):
        if isinstance(model, (str, Path)):
            tokenizer = load_tokenizer(model) if tokenizer is None else tokenizer
            model = load_classifier(model)
        names = {str(name): int(i) for i, name in model.config.id2label.items()}
        label = len(names) - 1 if label == -1 else label
        if label not in (names if isinstance(label, str) else names.values()):
            raise InvalidConfig(
                message(
                    "ClassifierScore.label",
                    repr(label),
                    did_you_mean(str(label), names),
                    "Choose one of these",
                )
            )
        self.model, self.tokenizer = model, tokenizer
        self.label = names[label] if isinstance(label, str) else label
        # TRL logs a reward function by its name
        self.__name__ = "score" if len(names) == 1 else f"probability_of_{label}"

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
        """Probabilities in [0, 1], or scores, one a completion."""
        texts = [whole(p, y, self.tokenizer) for p, y in zip(prompts, completions, strict=True)]
        return label_scores(self.model, self.tokenizer, texts)[:, self.label].tolist()


class ScoreJudge:
    r"""Prefers the completion with the higher score, or draws the label from a Bradley-Terry law.

    $$\Pr(0 \succ 1) = \sigma(\beta (s_0 - s_1))$$

    A drawn label depends on the seed and the pair's texts alone, so that a resumed run, or one that asks in
    another order, gets the same answer.

    Args:
        score: a scorer.
        sharpness: $\beta$, in 1 / unit of the score; infinity is noise-free.
        seed: of the draws.
        ties: completions of exactly the same score: `break` draws the label like a coin, `skip` answers -1; empty: what the
            law says, a coin where labels are drawn and -1 where they are noise-free.

    Example:
        >>> judge = ScoreJudge(lambda prompts, completions, **_: [float(len(text)) for text in completions])
        >>> judge(["a"], [["long", "longer"]])
        [1]
    """

    def __init__(
        self, score: Callable[..., Sequence[float]], sharpness: float = math.inf, seed: int = 0, ties: str = ""
    ):
        if ties not in ("", *TIES):
            raise InvalidConfig(
                message("ScoreJudge.ties", repr(ties), did_you_mean(ties, TIES), "Choose one of these")
            )
        if not sharpness > 0:
            raise InvalidConfig(
                message("ScoreJudge.sharpness", sharpness, "it must be above 0", "math.inf is noise-free")
            )
        self.score, self.sharpness, self.seed = score, sharpness, seed
        self.ties = ties or ("skip" if math.isinf(sharpness) else "break")

    def __call__(self, prompts: Sequence[str], completions: Pairs, shuffle_order: bool = True) -> list[int]:
        """Index of the preferred completion of each pair."""
        repeated = [prompt for prompt in prompts for _ in range(2)]
        scores = np.asarray(
            self.score(prompts=repeated, completions=[y for pair in completions for y in pair]), float
        )
        gap = scores.reshape(-1, 2) @ np.array([1.0, -1.0])
        return [
            self._label(prompt, pair, float(g))
            for prompt, pair, g in zip(prompts, completions, gap, strict=True)
        ]

    def _label(self, prompt: str, pair: Sequence[str], gap: float) -> int:
        if gap == 0 and self.ties == "skip":
            return -1
        if gap and math.isinf(self.sharpness):
            return int(gap < 0)
        slope = 0.0 if gap == 0 else max(-700.0, min(700.0, self.sharpness * gap))
        return int(_uniform(self.seed, prompt, *pair) >= 1 / (1 + math.exp(-slope)))


def _uniform(seed: int, *texts: str) -> float:
    digest = hashlib.sha256(json.dumps([seed, *texts]).encode()).digest()
    return int.from_bytes(digest[:7], "big") / 2**56


# -- people --------------------------------------------------------------------------------------------------


class HumanQueue:
    """Labels by people: pairs are written to a folder, the run waits, the labels are read back.

        pairs.jsonl     {"id": ..., "prompt": ..., "completions": [first, second]}   by the run
        labels.jsonl    {"id": ..., "label": 0 | 1 | -1}                             by `bilevel-rl llm judge`

    A pair's id is a digest of its texts: a run that was stopped asks for the same pairs again and finds the
    labels given meanwhile, and no pair is asked twice. Both files only grow, line by line, so that nothing is
    lost at a kill.

    Args:
        folder: of the queue; made if missing.
        wait_seconds: how long a call waits for labels before it raises `LabelsPending`; 0 does not wait.
        poll_seconds: time between looks at the folder.
    """

    def __init__(self, folder: str | Path, wait_seconds: float = math.inf, poll_seconds: float = 1.0):
        self.folder, self.wait_seconds, self.poll_seconds = make_folder(folder), wait_seconds, poll_seconds

    def __call__(self, prompts: Sequence[str], completions: Pairs, shuffle_order: bool = True) -> list[int]:
        """Labels of the pairs, once all are there.

        Raises:
            LabelsPending: they are not there in time; the pairs stay in the queue.
        """
        wanted = [self._id(prompt, pair) for prompt, pair in zip(prompts, completions, strict=True)]
        known = {row["id"] for row in self._read("pairs.jsonl")}
        for key, prompt, pair in zip(wanted, prompts, completions, strict=True):
            if key not in known:
                known.add(key)
                append_line(
                    self.folder / "pairs.jsonl", {"id": key, "prompt": prompt, "completions": list(pair)}
                )
        deadline = time.monotonic() + self.wait_seconds
        while missing := [key for key in wanted if key not in (labels := self.labels())]:
            if time.monotonic() >= deadline:
                raise LabelsPending(
                    message(
                        str(self.folder),
                        f"{len(set(missing))} pairs without a label",
                        "every pair needs one",
                        f"Run: bilevel-rl llm judge {self.folder}   and then: bilevel-rl llm resume RUN",
                    )
                )
            time.sleep(min(self.poll_seconds, max(0.0, deadline - time.monotonic())))
        return [labels[key] for key in wanted]

    def labels(self) -> dict[str, int]:
        """Labels given so far, by pair id; the last one counts.

        Raises:
            InvalidProblem: a label that is not 0, 1 or -1.
        """
        result = {}
        for row in self._read("labels.jsonl"):
            if row.get("label") not in (0, 1, -1) or isinstance(row.get("label"), bool):
                raise InvalidProblem(
                    message(
                        str(self.folder / "labels.jsonl"),
                        repr(row.get("label")),
                        "a label is 0, 1 or -1",
                        f"Correct the line of pair {row.get('id')}",
                    )
                )
            result[row["id"]] = row["label"]
        return result

    def pending(self) -> Iterator[dict[str, Any]]:
        """Pairs without a label, oldest first."""
        done = self.labels()
        for row in self._read("pairs.jsonl"):
            if row["id"] not in done:
                yield row

    def answer(self, key: str, label: int) -> None:
        """Record a label (0, 1, or -1 for a tie)."""
        if label not in (0, 1, -1):
            raise InvalidProblem(
                message("HumanQueue.answer", repr(label), "a label is 0, 1 or -1", "Choose one")
            )
        append_line(self.folder / "labels.jsonl", {"id": key, "label": label})

    @staticmethod
    def _id(prompt: str, pair: Sequence[str]) -> str:
        return hashlib.sha256(json.dumps([prompt, *pair]).encode()).hexdigest()[:16]

    def _read(self, name: str) -> list[dict[str, Any]]:
        path, rows = self.folder / name, []
        for line in path.read_text(encoding="utf-8").split("\n") if path.exists() else []:
            try:
                row = json.loads(line)
            except ValueError:
                continue  # blank, or torn by a kill in the middle of a write
            if isinstance(row, dict) and "id" in row:
                rows.append(row)
        return rows


# -- the wrapper ---------------------------------------------------------------------------------------------


class CheckedJudge:
    """Checks every answer of a judge, tries again when one is wrong, and counts labels.

    Attributes:
        labels: answers 0 or 1 so far: what a label budget counts.
        calls: pairs shown so far, ties and repeated tries included.

    Args:
        judge: a pairwise judge, or an object with a method `judge`.
        tries: how often a batch is shown before the run fails.
        pause: seconds before the second try, doubled each time.

    Example:
        >>> def first(prompts, completions, shuffle_order=True):
        ...     return [0] * len(prompts)
        >>> CheckedJudge(first)(["p"], [["a", "b"]])
        [0]
    """

    def __init__(self, judge: Any, tries: int = 3, pause: float = 0.5):
        if not callable(judge) and not callable(getattr(judge, "judge", None)):
            raise InvalidConfig(
                message(
                    "judge",
                    type(judge).__name__,
                    "a callable, or an object with a method `judge`, is needed",
                    "Pass f(prompts, completions, shuffle_order) -> list of 0, 1 or -1",
                )
            )
        if tries < 1:
            raise InvalidConfig(message("CheckedJudge.tries", tries, "it must be at least 1", "Raise tries"))
        self.inner, self.tries, self.pause = judge, tries, pause
        self.labels = self.calls = 0

    def __call__(self, prompts: Sequence[str], completions: Pairs, shuffle_order: bool = True) -> list[int]:
        """Labels of the pairs, checked.

        Raises:
            JudgeFailed: no valid answer after all tries.
            LabelsPending: from a human queue, untouched.
        """
        prompts, pairs = list(prompts), [list(pair) for pair in completions]
        if len(pairs) != len(prompts) or any(len(pair) != 2 for pair in pairs):
            raise InvalidProblem(
                message(
                    "judge",
                    f"{len(prompts)} prompts and {len(pairs)} sets of completions",
                    "each prompt needs two completions",
                    "Pass pairs",
                )
            )
        if not prompts:
            return []
        ask = self.inner if callable(self.inner) else self.inner.judge
        reason, cause = "", None
        for attempt in range(self.tries):
            if attempt and self.pause:
                time.sleep(self.pause * 2 ** (attempt - 1))
            self.calls += len(prompts)
            try:
                answer = ask(prompts, pairs, shuffle_order=shuffle_order)
            except LabelsPending:
                raise
            except Exception as error:
                reason, cause = f"{type(error).__name__} ({error})", error
                continue
            reason, cause = _fault(answer, len(prompts)), None
            if not reason:
                result = [int(label) for label in answer]
                self.labels += sum(label >= 0 for label in result)
                return result
        raise JudgeFailed(
            message("judge", f"{reason}, {self.tries} times", "it must answer 0, 1 or -1 for every pair",
                    "Correct the judge, then resume the run: nothing was lost")
        ) from cause  # fmt: skip


def _fault(answer: Any, count: int) -> str:
    """What is wrong with an answer, or an empty text."""
    try:
        values = list(answer)
    except TypeError:
        return f"a {type(answer).__name__}"
    if len(values) != count:
        return f"{len(values)} labels for {count} pairs"
    for i, value in enumerate(values):
        try:
            number = float(value)
        except (TypeError, ValueError):
            return f"{value!r} for pair {i}"
        if math.isnan(number):
            return f"NaN for pair {i}"
        if number not in (-1.0, 0.0, 1.0):
            return f"{value!r} for pair {i}"
    return ""
