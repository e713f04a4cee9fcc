"""Arithmetic and string tasks with one right answer: single-turn, graded, verified exactly, made on the spot.

Each problem is a line such as `12+7=` or `rev:cat=`, its completion the answer. Difficulty counts digits or letters, so
that a tiny model trained in seconds finds level 1 easy and level 4 hard. Training and held-out problems never meet: a
hash of the prompt decides to which of them it belongs.
"""

from __future__ import annotations

import dataclasses
import hashlib
import random
from collections.abc import Callable, Iterator, Sequence

from bilevel_rl.errors import InvalidConfig, did_you_mean, message
from bilevel_rl.moved import renamed

__getattr__ = renamed("bilevel_rl.llm.tasks.arithmetic", solve="answer_of", rows="as_rows")

LETTERS = "abcdefgh"
ALPHABET = "0123456789+-*=:," + "abcdefghijklmnopqrstuvwxyz"
HELD_OUT = 0.2  # share of problems kept for evaluation


def _number(rng: random.Random, digits: int) -> int:
    return rng.randrange(10**digits) if digits == 1 else rng.randrange(10 ** (digits - 1), 10**digits)


def _word(rng: random.Random, letters: int) -> str:
    return "".join(rng.choice(LETTERS) for _ in range(letters))


def _add(rng: random.Random, level: int) -> tuple[str, str]:
    a, b = _number(rng, level), _number(rng, level)
    return f"{a}+{b}=", str(a + b)


def _subtract(rng: random.Random, level: int) -> tuple[str, str]:
    a, b = _number(rng, level), _number(rng, level)
    return f"{a}-{b}=", str(a - b)


def _multiply(rng: random.Random, level: int) -> tuple[str, str]:
    a, b = _number(rng, level), _number(rng, 1)
    return f"{a}*{b}=", str(a * b)


def _largest(rng: random.Random, level: int) -> tuple[str, str]:
    numbers = [_number(rng, 2) for _ in range(level + 1)]
    return "max:" + ",".join(map(str, numbers)) + "=", str(max(numbers))


def _copy(rng: random.Random, level: int) -> tuple[str, str]:
    word = _word(rng, level + 1)
    return f"copy:{word}=", word


def _reverse(rng: random.Random, level: int) -> tuple[str, str]:
    word = _word(rng, level + 1)
    return f"rev:{word}=", word[::-1]


def _sort(rng: random.Random, level: int) -> tuple[str, str]:
    word = _word(rng, level + 1)
    return f"sort:{word}=", "".join(sorted(word))


def _count(rng: random.Random, level: int) -> tuple[str, str]:
    word, letter = _word(rng, 2 * level + 1), rng.choice(LETTERS)
    return f"count:{letter}:{word}=", str(word.count(letter))


KINDS: dict[str, Callable[[random.Random, int], tuple[str, str]]] = {
    "add": _add, "subtract": _subtract, "multiply": _multiply, "largest": _largest, "copy": _copy,
    "reverse": _reverse, "sort": _sort, "count": _count,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Exercise:
    """One question with its answer.

    Attributes:
        prompt: what the model reads.
        answer: the only right completion.
        kind: one of `KINDS`.
        level: difficulty, 1 and up.
    """

    prompt: str
    answer: str
    kind: str
    level: int


def is_held_out(prompt: str) -> bool:
    """True for the problems kept for evaluation: a function of the text alone."""
    digest = hashlib.sha256(prompt.encode()).digest()
    return int.from_bytes(digest[:4], "big") < HELD_OUT * 2**32


def generate(
    number: int,
    seed: int,
    kinds: Sequence[str] = ("add",),
    levels: Sequence[int] = (1,),
    held_out: bool = False,
) -> list[Exercise]:
    """Distinct problems, the kinds and levels in turn.

    Args:
        number: how many; fewer come back when a level has fewer distinct problems.
        seed: of the draw.
        kinds: names from `KINDS`.
        levels: difficulties, 1 to 9.
        held_out: problems kept for evaluation instead of those to train on.

    Raises:
        InvalidConfig: an unknown kind or a level outside 1 to 9.

    Example:
        >>> [p.prompt + p.answer for p in generate(2, seed=0, kinds=("add", "reverse"))]
        ['6+6=12', 'rev:ae=ea']
    """
    for kind in kinds:
        if kind not in KINDS:
            raise InvalidConfig(
                message(
                    "arithmetic.kinds", repr(kind), did_you_mean(kind, KINDS), "Choose one of these kinds"
                )
            )
    for level in levels:
        if not 1 <= level <= 9:
            raise InvalidConfig(
                message("arithmetic.levels", level, "levels are 1 to 9", "Choose one of these")
            )
    rng = random.Random(seed)
    places = [(kind, level) for level in levels for kind in kinds]
    found: dict[str, Exercise] = {}
    misses = 0
    while len(found) < number and misses < 2000:
        kind, level = places[(len(found) + misses) % len(places)]
        prompt, answer = KINDS[kind](rng, level)
        if prompt in found or is_held_out(prompt) != held_out:
            misses += 1
            continue
        misses = 0
        found[prompt] = Exercise(prompt, answer, kind, level)
    return list(found.values())


def answer_of(prompt: str) -> str:
    """The answer of any prompt of this family, worked out from its text: the verifier's own arithmetic.

    Raises:
        InvalidConfig: a text that is no problem.
    """
    body = prompt.removesuffix("=")
    try:
        name, _, rest = body.partition(":")
        if not rest:
            for sign, act in (("+", int.__add__), ("*", int.__mul__)):
                if sign in body:
                    a, b = map(int, body.split(sign))
                    return str(act(a, b))
            a, b = map(int, body.split("-"))
            return str(a - b)
        if name == "max":
            return str(max(map(int, rest.split(","))))
        if name == "count":
            letter, _, word = rest.partition(":")
            return str(word.count(letter))
        return {"copy": rest, "rev": rest[::-1], "sort": "".join(sorted(rest))}[name]
    except (ValueError, KeyError) as error:
        raise InvalidConfig(
            message(
                "arithmetic.answer_of",
                repr(prompt),
                "it must be a prompt made by `generate`",
                "Check the data set",
            )
        ) from error


def verify(prompt: str, completion: str) -> float:
    """1 for exactly the right answer (blanks around it are forgiven), 0 for anything else.

    Example:
        >>> verify("12+7=", "19"), verify("12+7=", "19."), verify("rev:cat=", " tac ")
        (1.0, 0.0, 1.0)
    """
    return float(completion.strip() == answer_of(prompt))


def partial(prompt: str, completion: str) -> float:
    """Share of positions that agree with the answer, counted on the longer of both: a graded reward in [0, 1].

    1 only for the right answer, so it orders like `verify` at the top; it can be gamed below.

    Example:
        >>> partial("12+7=", "18"), partial("12+7=", "1"), partial("12+7=", "19")
        (0.5, 0.5, 1.0)
    """
    answer, given = answer_of(prompt), completion.strip()
    agree = sum(a == b for a, b in zip(answer, given, strict=False))
    return agree / max(len(answer), len(given), 1)


def form(prompt: str, completion: str) -> float:
    """1 for a completion of the right kind (a number, or letters) and at most two characters too long; else 0."""
    answer, given = answer_of(prompt), completion.strip()
    number = answer.lstrip("-").isdigit()
    kind = given.removeprefix("-").isdigit() if number else given.isalpha()
    return float(kind and len(given) <= len(answer) + 2)


REWARDS: tuple[Callable[[str, str], float], ...] = (verify, partial, form)


def reward(prompts: Sequence[str], completions: Sequence[str], **columns: object) -> list[float]:
    """Exact rewards with the signature of reward functions: prompts, completions, further columns by keyword."""
    return [verify(p, c) for p, c in zip(prompts, completions, strict=True)]


def rewards(prompts: Sequence[str], completions: Sequence[str]) -> list[list[float]]:
    """Rows (exact, partial, form) of each completion: the reward terms of a multi-reward recipe."""
    return [[f(p, c) for f in REWARDS] for p, c in zip(prompts, completions, strict=True)]


def as_rows(problems: Sequence[Exercise]) -> list[dict[str, object]]:
    """As data-set rows: prompt, completion (the answer), kind, level."""
    return [{"prompt": p.prompt, "completion": p.answer, "kind": p.kind, "level": p.level} for p in problems]


class Characters:
    """A character codec for tiny models: 0 is padding, 1 the end, then the alphabet.

    Example:
        >>> codec = Characters()
        >>> codec.decode(codec.encode("1+2=") + [codec.end, 5])
        '1+2='
    """

    pad, end = 0, 1

    def __init__(self, alphabet: str = ALPHABET) -> None:
        self.alphabet = alphabet
        self.index = {c: i + 2 for i, c in enumerate(alphabet)}

    def __len__(self) -> int:
        return len(self.alphabet) + 2

    def encode(self, text: str) -> list[int]:
        """Token ids, without an end.

        Raises:
            InvalidConfig: a character that isn't in the alphabet.
        """
        unknown = sorted(set(text) - set(self.index))
        if unknown:
            raise InvalidConfig(
                message(
                    "Characters.encode", repr(unknown[0]), f"the alphabet is {self.alphabet!r}", "Extend it"
                )
            )
        return [self.index[c] for c in text]

    def decode(self, tokens: Sequence[int]) -> str:
        """The text up to the first end or padding."""
        return "".join(self._until_end(tokens))

    def _until_end(self, tokens: Sequence[int]) -> Iterator[str]:
        for token in tokens:
            if token in (self.pad, self.end):
                return
            yield self.alphabet[token - 2]
