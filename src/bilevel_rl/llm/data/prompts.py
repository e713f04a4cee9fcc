"""Prompts as token ids: rows in TRL's standard or conversational form, tokenised, checked, drawn in a seeded order."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from bilevel_rl.errors import InvalidConfig, InvalidProblem, message
from bilevel_rl.llm.data.templates import is_messages, opened

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One prompt.

    Attributes:
        ids: token ids, chat template applied.
        text: what a reward function or a judge receives: a string, or a conversation's list of messages.
        columns: the row's other columns, handed to reward functions by keyword.
    """

    ids: tuple[int, ...]
    text: Any
    columns: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def conversational(self) -> bool:
        """Whether the text is a list of messages."""
        return isinstance(self.text, list)


@dataclasses.dataclass(frozen=True)
class Begun(Prompt):
    """A prompt with the first tokens of its completion, to be gone on from.

    Attributes:
        begun: tokens of the completion that end `ids`.
    """

    begun: tuple[int, ...] = ()

    @property
    def whole(self) -> Prompt:
        """The prompt alone."""
        return Prompt(self.ids[: len(self.ids) - len(self.begun)], self.text, self.columns)


RESERVED = (
    "prompts",
    "completions",
    "completion_ids",
    "trainer_state",
)  # what a reward function is given besides columns
LONG = ("refuse", "drop", "cut")  # what becomes of a prompt that is too long


def as_prompts(
    rows: Iterable[Any], tokenizer: Any = None, longest: int = 64, vocabulary: int | None = None,
    where: str = "prompts", long_prompts: str = "refuse",
) -> list[Prompt]:  # fmt: skip
    """Tokenise and check.

    Args:
        rows: strings, lists of token ids, `Prompt`s, or mappings with the key `prompt` (a string, or a list of
            messages) and any other columns. Every prompt gets every column, None where its row has none.
        tokenizer: needed unless every row is already token ids.
        longest: tokens allowed in a prompt.
        vocabulary: size of the policy's vocabulary; an id at or above it is an error.
        where: for errors.
        long_prompts: what becomes of a longer one: an error (`refuse`), left out (`drop`), or without its beginning
            (`cut`); how many is logged.

    Raises:
        InvalidProblem: no rows, an empty or duplicate prompt, one that is too long, ids outside the vocabulary, or a
            column whose name a reward function's own arguments have.
        InvalidConfig: text without a tokenizer.

    Example:
        >>> [p.ids for p in as_prompts([[1, 2], [3]])]
        [(1, 2), (3,)]
        >>> [dict(p.columns) for p in as_prompts([{"prompt": [1]}, {"prompt": [2], "answer": "7"}])]
        [{'answer': None}, {'answer': '7'}]
    """
    prompts = [_one(f"{where}[{i}]", row, tokenizer) for i, row in enumerate(rows)]
    prompts = _fitting(prompts, longest, where, long_prompts)
    if not prompts:
        raise InvalidProblem(message(where, "none", "at least one prompt is needed", "Check the data's path"))
    seen: dict[tuple[int, ...], int] = {}
    for i, prompt in enumerate(prompts):
        _check(prompt, f"{where}[{i}]", vocabulary)
        if prompt.ids in seen:
            raise InvalidProblem(
                message(f"{where}[{i}]", f"the same prompt as {where}[{seen[prompt.ids]}] ({_short(prompt.text)})",
                        "prompts must differ, or one is weighted twice silently", "Remove the duplicate")
            )  # fmt: skip
        seen[prompt.ids] = i
    return _same_columns(prompts, where)


def _fitting(prompts: list[Prompt], longest: int, where: str, long_prompts: str) -> list[Prompt]:
    """The prompts without those that are too long, or with those cut."""
    long = [i for i, prompt in enumerate(prompts) if len(prompt.ids) > longest]
    if not long:
        return prompts
    if long_prompts == "refuse":
        raise InvalidProblem(
            message(f"{where}[{long[0]}]", f"{len(prompts[long[0]].ids)} tokens", f"a prompt has at most {longest}",
                    "Shorten or remove it, or raise max_prompt_tokens")
        )  # fmt: skip
    log.warning("%s: %d of %d are longer than %d tokens: %s", where, len(long), len(prompts), longest,
                "left out" if long_prompts == "drop" else "their beginning is cut")  # fmt: skip
    if long_prompts == "drop":
        return [prompt for prompt in prompts if len(prompt.ids) <= longest]
    return [
        prompt if len(prompt.ids) <= longest else dataclasses.replace(prompt, ids=prompt.ids[-longest:])
        for prompt in prompts
    ]


def _check(prompt: Prompt, where: str, vocabulary: int | None) -> None:
    """Raise `InvalidProblem` on an empty prompt or ids that the policy does not know."""
    if not prompt.ids:
        raise InvalidProblem(
            message(where, f"an empty prompt ({prompt.text!r})", "a prompt has at least one token",
                    "Remove it, or begin every prompt with the tokenizer's BOS")
        )  # fmt: skip
    if vocabulary is not None and max(prompt.ids) >= vocabulary:
        raise InvalidProblem(
            message(where, f"the token id {max(prompt.ids)}", f"the policy's vocabulary has {vocabulary} ids",
                    "Use the tokenizer that belongs to the policy")
        )  # fmt: skip


def _same_columns(prompts: list[Prompt], where: str) -> list[Prompt]:
    """The prompts with one set of columns, so that a reward function is called alike whatever was drawn."""
    names = list(dict.fromkeys(name for prompt in prompts for name in prompt.columns))
    taken = [name for name in names if name in RESERVED]
    if taken:
        raise InvalidProblem(
            message(where, f"the column {taken[0]!r}", f"reward functions are given {', '.join(RESERVED)} by the trainer",
                    "Rename the column")
        )  # fmt: skip
    if all(len(prompt.columns) == len(names) for prompt in prompts):
        return prompts
    return [
        dataclasses.replace(prompt, columns={name: prompt.columns.get(name) for name in names})
        for prompt in prompts
    ]


def prompts_of(prompts: Sequence[Prompt], count: int, seed: int, step: int) -> list[Prompt]:
    """The prompts of iteration `step`: pass after pass over seeded permutations, a function of (seed, step) alone."""
    size = len(prompts)
    chosen: list[Prompt] = []
    for position in range(step * count, (step + 1) * count):
        epoch, offset = divmod(position, size)
        if offset == 0 or not chosen:
            order = np.random.default_rng([seed, 0xDA7A, epoch]).permutation(size)
        chosen.append(prompts[order[offset]])
    return chosen


def _one(where: str, row: Any, tokenizer: Any) -> Prompt:
    if isinstance(row, Prompt):
        return row
    columns: Mapping[str, Any] = {}
    if isinstance(row, Mapping):
        if "prompt" not in row:
            raise InvalidProblem(
                message(where, f"a row with the columns {sorted(row)}", "a row needs the column 'prompt'",
                        "Rename the column")
            )  # fmt: skip
        columns = {key: value for key, value in row.items() if key != "prompt"}
        row = row["prompt"]
    if isinstance(row, (list, tuple)) and all(isinstance(v, (int, np.integer)) for v in row):
        ids = tuple(int(v) for v in row)
        return Prompt(ids, tokenizer.decode(ids) if tokenizer is not None else list(ids), columns)
    if tokenizer is None:
        raise InvalidConfig(
            message(where, "text without a tokenizer", "text needs a tokenizer", "Pass tokenizer=, or ids")
        )
    if isinstance(row, str):
        return Prompt(_begun_once(tuple(tokenizer(row)["input_ids"]), tokenizer, where), row, columns)
    if is_messages(row):
        ids = tuple(opened(tokenizer, row, where, tokenize=True))
        return Prompt(_begun_once(ids, tokenizer, where), [dict(m) for m in row], columns)
    raise InvalidProblem(
        message(where, type(row).__name__, "a prompt is text, token ids, or a list of messages", "Convert it")
    )


def _begun_once(ids: tuple[int, ...], tokenizer: Any, where: str) -> tuple[int, ...]:
    """The ids with one begin token: text that a chat template rendered has it already, and the tokenizer adds another."""
    begin = getattr(tokenizer, "bos_token_id", None)
    if begin is None or ids[:2] != (begin, begin):
        return ids
    log.warning("%s begins with two %s: one is left out", where, tokenizer.bos_token)
    return ids[1:]


def _short(text: Any) -> str:
    text = repr(text)
    return text if len(text) <= 40 else text[:37] + "..."
