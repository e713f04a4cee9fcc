"""Prompts as token ids: rows in TRL's standard or conversational form, tokenised, checked, drawn in a seeded order."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from bilevel_rl.errors import InvalidConfig, InvalidProblem, message


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


def as_prompts(
    rows: Iterable[Any], tokenizer: Any = None, longest: int = 64, vocabulary: int | None = None
) -> list[Prompt]:
    """Tokenise and check.

    Args:
        rows: strings, lists of token ids, `Prompt`s, or mappings with the key `prompt` (a string, or a list of
            messages) and any other columns.
        tokenizer: needed unless every row is already token ids.
        longest: tokens allowed in a prompt.
        vocabulary: size of the policy's vocabulary; an id at or above it is an error.

    Raises:
        InvalidProblem: no rows, an empty or duplicate prompt, one that is too long, or ids outside the vocabulary.
        InvalidConfig: text without a tokenizer.

    Example:
        >>> [p.ids for p in as_prompts([[1, 2], [3]])]
        [(1, 2), (3,)]
    """
    prompts = [_one(i, row, tokenizer) for i, row in enumerate(rows)]
    if not prompts:
        raise InvalidProblem(
            message("prompts", "none", "at least one prompt is needed", "Check the data's path")
        )
    seen: dict[tuple[int, ...], int] = {}
    for i, prompt in enumerate(prompts):
        where = f"prompts[{i}]"
        if not prompt.ids:
            raise InvalidProblem(
                message(where, f"an empty prompt ({prompt.text!r})", "a prompt has at least one token",
                        "Remove it, or begin every prompt with the tokenizer's BOS")
            )  # fmt: skip
        if len(prompt.ids) > longest:
            raise InvalidProblem(
                message(where, f"{len(prompt.ids)} tokens", f"a prompt has at most {longest}",
                        "Shorten or remove it, or raise max_prompt_tokens")
            )  # fmt: skip
        if vocabulary is not None and max(prompt.ids) >= vocabulary:
            raise InvalidProblem(
                message(where, f"the token id {max(prompt.ids)}", f"the policy's vocabulary has {vocabulary} ids",
                        "Use the tokenizer that belongs to the policy")
            )  # fmt: skip
        if prompt.ids in seen:
            raise InvalidProblem(
                message(where, f"the same prompt as prompts[{seen[prompt.ids]}] ({_short(prompt.text)})",
                        "prompts must differ, or one is weighted twice silently", "Remove the duplicate")
            )  # fmt: skip
        seen[prompt.ids] = i
    return prompts


def draw(prompts: Sequence[Prompt], count: int, seed: int, step: int) -> list[Prompt]:
    """The prompts of iteration `step`: pass after pass over seeded permutations, a function of (seed, step) alone."""
    size, chosen = len(prompts), []
    for position in range(step * count, (step + 1) * count):
        epoch, offset = divmod(position, size)
        order = (
            np.random.default_rng([seed, 0xDA7A, epoch]).permutation(size)
            if offset == 0 or not chosen
            else order
        )
        chosen.append(prompts[order[offset]])
    return chosen


def _one(i: int, row: Any, tokenizer: Any) -> Prompt:
    if isinstance(row, Prompt):
        return row
    columns: Mapping[str, Any] = {}
    if isinstance(row, Mapping):
        if "prompt" not in row:
            raise InvalidProblem(
                message(f"prompts[{i}]", f"a row with the columns {sorted(row)}", "a row needs the column 'prompt'",
                        "Rename the column")
            )  # fmt: skip
        columns = {key: value for key, value in row.items() if key != "prompt"}
        row = row["prompt"]
    if isinstance(row, (list, tuple)) and all(isinstance(v, (int, np.integer)) for v in row):
        ids = tuple(int(v) for v in row)
        return Prompt(ids, tokenizer.decode(ids) if tokenizer is not None else list(ids), columns)
    if tokenizer is None:
        raise InvalidConfig(
            message(
                f"prompts[{i}]",
                "text without a tokenizer",
                "text needs a tokenizer",
                "Pass tokenizer=, or ids",
            )
        )
    if isinstance(row, str):
        return Prompt(tuple(tokenizer(row)["input_ids"]), row, columns)
    if isinstance(row, (list, tuple)) and all(isinstance(m, Mapping) and "content" in m for m in row):
        if not getattr(tokenizer, "chat_template", None):
            raise InvalidConfig(
                message(f"prompts[{i}]", "a conversation, and a tokenizer without a chat template",
                        "conversations need a chat template", "Set tokenizer.chat_template, or pass plain text")
            )  # fmt: skip
        ids = tokenizer.apply_chat_template(
            list(row), add_generation_prompt=True, tokenize=True, return_dict=False
        )
        return Prompt(tuple(ids), [dict(m) for m in row], columns)
    raise InvalidProblem(
        message(
            f"prompts[{i}]",
            type(row).__name__,
            "a prompt is text, token ids, or a list of messages",
            "Convert it",
        )
    )


def _short(text: Any) -> str:
    text = repr(text)
    return text if len(text) <= 40 else text[:37] + "..."
