"""Stored preferences as token ids: prompt and answers exactly as the policy would have read and written them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bilevel_rl.errors import InvalidConfig, InvalidProblem, message
from bilevel_rl.llm.data.prompts import Prompt, as_prompts
from bilevel_rl.llm.data.templates import apply, is_messages, opened

Pair = tuple[Prompt, tuple[int, ...], tuple[int, ...]]  # prompt, preferred completion, the other


def as_pairs(
    rows: Iterable[Any] | None,
    tokenizer: Any,
    longest_prompt: int,
    longest: int,
    size: int | None,
    eos: Sequence[int],
) -> list[Pair]:
    """Stored preferences as token ids.

    Args:
        rows: mappings or `PreferenceText`s with `prompt`, `chosen`, `rejected`: text, ids, or conversations.
        tokenizer: for text.
        longest_prompt, longest: tokens of a prompt, and of a completion (what is beyond is cut).
        size: of the vocabulary.
        eos: ids that end a completion; the first one ends what is given without an end.

    Raises:
        InvalidProblem: a row without its columns, a pair of equal or empty completions, or a chat template that renders
            a conversation otherwise once it has an answer.
    """
    pairs: list[Pair] = []
    for i, row in enumerate(rows or ()):
        where = f"preferences[{i}]"
        row = row._asdict() if hasattr(row, "_asdict") else row
        missing = [
            k for k in ("prompt", "chosen", "rejected") if not isinstance(row, Mapping) or k not in row
        ]
        if missing:
            raise InvalidProblem(
                message(where, f"a row without {missing[0]!r}", "a row has the columns prompt, chosen, rejected",
                        "Rename the columns")
            )  # fmt: skip
        (prompt,) = as_prompts([{"prompt": row["prompt"]}], tokenizer, longest_prompt, size, where)
        chosen, rejected = (
            answer_ids(row["prompt"], row[k], tokenizer, eos, f"{where}.{k}")[:longest]
            for k in ("chosen", "rejected")
        )
        if not chosen or not rejected or chosen == rejected:
            raise InvalidProblem(
                message(where, "completions that are equal or empty", "a preference needs two that differ",
                        "Remove the row")
            )  # fmt: skip
        pairs.append((prompt, chosen, rejected))
    return pairs


def answer_ids(
    prompt: Any, answer: Any, tokenizer: Any, eos: Sequence[int], where: str = "completion"
) -> tuple[int, ...]:
    """A completion as the ids that the policy would have written after its prompt, its end token included.

    Ids are taken as they are. Text after a conversation, and messages, are rendered by the chat template together with
    the prompt; what the template renders beyond the prompt is the completion.

    Args:
        prompt: text, ids or messages.
        answer: ids, text or messages.
        tokenizer: for text.
        eos: ids that end a completion; the first one ends what is given without an end.
        where: for errors.

    Raises:
        InvalidConfig: text without a tokenizer.
        InvalidProblem: messages after a prompt that is text, or a template that rewrites what came before.
    """
    if isinstance(answer, (list, tuple)) and all(isinstance(v, int) for v in answer):
        return tuple(answer)
    if tokenizer is None:
        raise InvalidConfig(message(where, "text without a tokenizer", "text needs one", "Pass tokenizer="))
    ids = list(
        tokenizer(_answer_text(prompt, answer, tokenizer, where), add_special_tokens=False)["input_ids"]
    )
    return tuple(_ended(ids, tokenizer, eos))


def _answer_text(prompt: Any, answer: Any, tokenizer: Any, where: str) -> str:
    """What the policy writes for an answer, as text."""
    if not is_messages(prompt):
        if isinstance(answer, str):
            return answer
        if is_messages(answer) and len(answer) == 1:
            return str(answer[0]["content"])
        raise InvalidProblem(
            message(where, f"{len(answer)} messages after a prompt that is text", "a conversation is messages throughout",
                    "Give the prompt as messages too")
        )  # fmt: skip
    turns = [{"role": "assistant", "content": answer}] if isinstance(answer, str) else list(answer)
    start = opened(tokenizer, prompt, where)
    before = list(prompt)
    if (
        before[-1]["role"] == "assistant" and turns[0]["role"] == "assistant"
    ):  # the answer goes on with those words
        turns[0] = {**turns[0], "content": before.pop()["content"] + turns[0]["content"]}
    full = apply(tokenizer, [*before, *turns], where, tokenize=False)
    if not full.startswith(start):
        raise InvalidProblem(
            message(where, "a chat template whose prompt is not the start of the conversation",
                    "prompt + completion must be what the template renders whole",
                    "Use a template that only appends, or give ids")
        )  # fmt: skip
    return full[len(start) :]


def _ended(ids: list[int], tokenizer: Any, eos: Sequence[int]) -> list[int]:
    """The ids up to their end token; what a template puts behind it (a line break) is not the policy's to write."""
    at = max((i for i, token in enumerate(ids) if token in eos), default=None)
    if at is not None and not tokenizer.decode(ids[at + 1 :]).strip():
        return ids[: at + 1]
    own = tokenizer.eos_token_id
    end = own if own in eos else next(iter(eos), None)
    return ids if end is None else [*ids, end]
