"""A language model behind an OpenAI-compatible server as judge or scorer.

    judge: https://HOST/v1@MODEL                      which of two completions is better
    gold:  https://HOST/v1@MODEL?cache=runs/judged    a number for each completion

Requests of one call go out together; failures are tried again after growing pauses; what was answered is kept on disk, so
that a resumed run asks nothing twice. A judge is asked while the policy learns and writes its next rows (`overlaps`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import re
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from bilevel_rl.errors import InvalidConfig, did_you_mean, message
from bilevel_rl.json_lines import append_line
from bilevel_rl.llm import http
from bilevel_rl.llm.data.wording import as_text
from bilevel_rl.records import make_folder

log = logging.getLogger(__name__)
SCHEMES = ("http://", "https://")
LETTERS = {"A": 0, "B": 1, "C": -1}
PAIR = (
    "You compare two answers to one prompt.\n\n[Prompt]\n{prompt}\n\n[Answer A]\n{first}\n\n[Answer B]\n{second}\n\n"
    "Which answer is better? Reply with one letter alone: A, B, or C if they are equally good."
)
SCORE = (
    "You grade an answer to a prompt.\n\n[Prompt]\n{prompt}\n\n[Answer]\n{answer}\n\n"
    "How good is the answer, from 0 (useless) to 10 (perfect)? Reply with the number alone."
)
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


@dataclasses.dataclass
class Endpoint:
    """Chat completions of one model on one server.

    Args:
        url: up to and with `/v1`.
        model: its name there.
        key: name of the environment variable that holds the key; the key itself is in no file.
        cache: folder in which answers are kept; "": nowhere.
        concurrency: requests under way at once.
        timeout, tries, pause: of a request: seconds, how often, seconds before the second try.
        tokens: longest answer asked for.

    Attributes:
        asked: requests sent so far, those that the cache spared left out.
    """

    url: str
    model: str
    key: str = "OPENAI_API_KEY"
    cache: str = ""
    concurrency: int = 16
    timeout: float = 60.0
    tries: int = 5
    pause: float = 1.0
    tokens: int = 8

    def __post_init__(self) -> None:
        self.url = http.address(self.url, "judge")
        for name in ("concurrency", "tries", "tokens"):
            if getattr(self, name) < 1:
                raise InvalidConfig(message(f"judge {self.url}", f"{name}={getattr(self, name)}", "at least 1", "Raise it"))
        self.asked = 0
        self._lock = threading.Lock()
        self._known: dict[str, str] = {}
        self._file: Path | None = None
        if self.cache:
            self._file = make_folder(self.cache) / "answers.jsonl"
            self._known = dict(_answers(self._file))

    def answers(self, texts: Sequence[str], valid: Callable[[str], bool]) -> list[str]:
        """What the model says to each text; an answer that is not valid is not kept.

        Raises:
            EndpointFailed: the server did not answer.
        """
        with ThreadPoolExecutor(min(self.concurrency, max(1, len(texts)))) as pool:
            return list(pool.map(lambda text: self._answer(text, valid), texts))

    def _answer(self, text: str, valid: Callable[[str], bool]) -> str:
        digest = hashlib.sha256(json.dumps([self.url, self.model, self.tokens, text]).encode()).hexdigest()
        with self._lock:
            if digest in self._known:
                return self._known[digest]
            self.asked += 1
        body = {
            "model": self.model, "messages": [{"role": "user", "content": text}], "temperature": 0.0,
            "max_tokens": self.tokens,
        }  # fmt: skip
        answer = http.post(
            f"{self.url}/chat/completions", body, key=os.environ.get(self.key, ""), timeout=self.timeout, tries=self.tries,
            pause=self.pause,
        )  # fmt: skip
        try:
            said = str(answer["choices"][0]["message"]["content"] or "")
        except (KeyError, IndexError, TypeError) as error:
            raise http.EndpointFailed(
                message(f"{self.url}/chat/completions", f"an answer without choices ({str(answer)[:100]!r})",
                        "choices[0].message.content, as OpenAI's servers give it", "Check the address: it ends in /v1")
            ) from error  # fmt: skip
        if valid(said):
            with self._lock:
                self._known[digest] = said
                if self._file is not None:
                    append_line(self._file, {"digest": digest, "answer": said})
        return said


class EndpointJudge:
    """Which of two completions a model prefers; it sees them in an order that depends on their texts alone.

    A reply that is neither A nor B is no answer (-1), as a tie is.

    Args:
        endpoint: who is asked.
        question: with the fields `prompt`, `first`, `second`.

    Attributes:
        overlaps: it may be asked while something else is computed.
    """

    overlaps = True

    def __init__(self, endpoint: Endpoint, question: str = PAIR) -> None:
        self.endpoint, self.question = endpoint, question
        self.__name__ = f"{endpoint.url}@{endpoint.model}"
        self._odd = 0

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Sequence[Any]], shuffle_order: bool = True
    ) -> list[int]:
        """Index of the better completion of each pair, or -1."""
        texts, swaps = [], []
        for prompt, pair in zip(prompts, completions, strict=True):
            first, second = (as_text(text) for text in pair)
            texts_of = json.dumps([*sorted((first, second)), as_text(prompt)])
            swap = hashlib.sha256(texts_of.encode()).digest()[0] % 2 == 1
            swap = swap != (first > second)  # the same two texts are shown in the same order, whichever comes first here
            shown = (second, first) if swap else (first, second)
            texts.append(self.question.format(prompt=as_text(prompt), first=shown[0], second=shown[1]))
            swaps.append(swap)
        said = self.endpoint.answers(texts, lambda text: letter(text) is not None)
        return [self._label(text, swap) for text, swap in zip(said, swaps, strict=True)]

    def _label(self, text: str, swap: bool) -> int:
        found = letter(text)
        if found is None:
            self._odd += 1
            if self._odd in (1, 10, 100, 1000):
                log.warning(
                    "judge %s: %d replies that are no letter, e.g. %.40r: they count as ties", self.__name__, self._odd, text
                )
            return -1
        label = LETTERS[found]
        return 1 - label if swap and label >= 0 else label


class EndpointScore:
    """A model's grade of each completion, in [0, 1].

    Args:
        endpoint: who is asked.
        question: with the fields `prompt` and `answer`; the reply is a number from 0 to 10.

    Raises:
        EndpointFailed: a reply without a number (on call).
    """

    def __init__(self, endpoint: Endpoint, question: str = SCORE) -> None:
        self.endpoint, self.question = endpoint, question
        self.__name__ = f"{endpoint.model}_score"

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
        """One number a completion."""
        texts = [
            self.question.format(prompt=as_text(p), answer=as_text(y)) for p, y in zip(prompts, completions, strict=True)
        ]
        said = self.endpoint.answers(texts, lambda text: NUMBER.search(text) is not None)
        return [self._grade(text) for text in said]

    def _grade(self, text: str) -> float:
        found = NUMBER.search(text)
        if found is None:
            raise http.EndpointFailed(
                message(f"scorer {self.endpoint.url}@{self.endpoint.model}", f"the reply {text[:60]!r}",
                        "a number from 0 to 10", "Choose a model that follows the instruction, or raise tokens=")
            )  # fmt: skip
        return max(0.0, min(10.0, float(found.group()))) / 10


def letter(text: str) -> str | None:
    """A, B or C of a reply: its first such letter that stands alone.

    Example:
        >>> [letter(t) for t in ("B", "Answer: A.", "c", "Both are bad", "")]
        ['B', 'A', 'C', None, None]
    """
    found = re.search(r"\b([ABC])\b", text.strip().upper() if len(text.strip()) == 1 else text)
    return found.group(1) if found else None


def is_endpoint(source: str) -> bool:
    """Whether a judge's name is a server's."""
    return source.startswith(SCHEMES)


def parse(source: str, where: str) -> Endpoint:
    """`URL@MODEL?option=value&...` as an endpoint.

    Raises:
        InvalidConfig: no model, or an option that there is not.

    Example:
        >>> parse("http://localhost:8000/v1@small?concurrency=4", "config.judge").concurrency
        4
    """
    address, _, query = source.partition("?")
    url, sign, model = address.rpartition("@")
    if not sign or not model or "://" in model:
        raise InvalidConfig(
            message(where, repr(source), "a server is named with its model", "Write https://HOST/v1@MODEL")
        )
    kinds = {f.name: f.type for f in dataclasses.fields(Endpoint) if f.name not in ("url", "model")}
    options: dict[str, Any] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in kinds:
            raise InvalidConfig(message(where, f"the option {name!r}", did_you_mean(name, kinds), "Choose among these"))
        try:
            options[name] = {"str": str, "int": int, "float": float}[str(kinds[name])](value)
        except ValueError:
            raise InvalidConfig(message(where, f"{name}={value!r}", f"{kinds[name]} is needed", "Correct it")) from None
    return Endpoint(url, model, **options)


def _answers(path: Path) -> list[tuple[str, str]]:
    """Kept answers; a line torn by a kill loses itself alone."""
    found = []
    for line in path.read_text(encoding="utf-8").split("\n") if path.exists() else []:
        try:
            row = json.loads(line)
            found.append((str(row["digest"]), str(row["answer"])))
        except (ValueError, KeyError, TypeError):
            continue
    return found
