"""Prompts and preferences as rows, checked before training starts.

Formats are TRL's, so a dataset that TRL takes is taken here:

    prompt-only   {"prompt": "The sky is"}                    {"prompt": [{"role": "user", "content": "..."}]}
    preference    {"prompt": ..., "chosen": ..., "rejected": ...}
                  {"chosen": ..., "rejected": ...}             (implicit prompt: what both begin with)

The right column, a list of messages, is the conversational format; the tokenizer's chat template renders it.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from bilevel_rl.errors import InvalidConfig, InvalidProblem, message
from bilevel_rl.llm.data.sources import Row, load_rows
from bilevel_rl.llm.data.templates import apply
from bilevel_rl.llm.data.wording import as_text, check_kind, identity, render
from bilevel_rl.moved import renamed

__getattr__ = renamed("bilevel_rl.llm.data.rows", Preference="PreferenceText")


class PreferenceText(NamedTuple):
    """One stored comparison, rendered as text: `chosen` and `rejected` continue `prompt`."""

    prompt: str
    chosen: str
    rejected: str


def load_prompts(
    source: str | os.PathLike[str] | Sequence[Any],
    split: str = "train",
    words: int = 0,
    duplicates: Literal["error", "drop"] = "error",
) -> list[Row]:
    """Prompt rows as the trainer takes them: `prompt` (a text, or a list of messages) and the row's other
    columns.

    Args:
        source: anything `load_rows` takes, or a list of texts, message lists or rows.
        split: which part of a folder or hub dataset.
        words: when above 0, a row without a prompt but with a `text` gives the text's first `words` words.
        duplicates: `"error"` refuses a prompt that comes twice, `"drop"` keeps its first.

    Raises:
        InvalidProblem: empty or duplicate prompts, no prompt column, or a prompt that is neither text nor
        messages.

    Example:
        >>> load_prompts(["The sky is", "My cat"])
        [{'prompt': 'The sky is'}, {'prompt': 'My cat'}]
    """
    where = str(source) if isinstance(source, (str, os.PathLike)) else "prompts"
    result: list[Row] = []
    for i, row in enumerate(load_rows(source, split) if isinstance(source, (str, os.PathLike)) else source):
        if not isinstance(row, Mapping):
            result.append({"prompt": row})
        elif "prompt" in row:
            result.append({k: v for k, v in row.items() if k not in ("chosen", "rejected", "completion")})
        elif words > 0 and isinstance(row.get("text"), str):
            result.append({**row, "prompt": " ".join(row["text"].split()[:words])})
        elif "messages" in row:
            others = {key: value for key, value in row.items() if key != "messages"}
            asked = list(itertools.takewhile(lambda m: m.get("role") != "assistant", row["messages"]))
            result.append({**others, "prompt": asked})
        elif "text" in row:
            raise InvalidProblem(
                message(
                    f"{where}[{i}]",
                    "a text and no prompt",
                    "a prompt-only row has the column 'prompt'",
                    "Rename the column, or pass words=N to prompt with the first N words",
                )
            )
        else:
            raise _no_column(where, i, row, "prompt")
    if duplicates == "drop":
        result = list({identity(row["prompt"]): row for row in reversed(result)}.values())[::-1]
    check_prompts(result, where=where)
    return result


def preference_rows(source: str | os.PathLike[str] | Sequence[Any], split: str = "train") -> list[Row]:
    """Stored comparisons as the trainer takes them: `prompt`, `chosen`, `rejected`, as texts or as lists of
    messages.

    Args:
        source: anything `load_rows` takes, or a list of rows or `PreferenceText`. A row without `prompt` has an
            implicit one: what chosen and rejected both begin with.

    Raises:
        InvalidProblem: columns missing, an empty completion, or chosen equal to rejected.

    Example:
        >>> preference_rows([{"chosen": "my cat purrs", "rejected": "my cat hisses"}])
        [{'prompt': 'my cat', 'chosen': ' purrs', 'rejected': ' hisses'}]
    """
    where = str(source) if isinstance(source, (str, os.PathLike)) else "preferences"
    result = []
    for i, row in enumerate(load_rows(source, split) if isinstance(source, (str, os.PathLike)) else source):
        row = row._asdict() if isinstance(row, PreferenceText) else row
        for name in ("chosen", "rejected"):
            if name not in row:
                raise _no_column(where, i, row, name)
        prompt, chosen, rejected = _split(row)
        check_kind(prompt, f"{where}[{i}]")
        empty = not as_text(chosen).strip() or not as_text(rejected).strip()
        if empty or chosen == rejected:
            what = "chosen equal to rejected" if chosen == rejected else "an empty completion"
            raise InvalidProblem(
                message(
                    f"{where}[{i}]", what, "a comparison needs two different completions", "Remove the row"
                )
            )
        result.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    if not result:
        raise InvalidProblem(
            message(where, "no rows", "at least one comparison is needed", "Check the source")
        )
    return result


def load_preferences(
    source: str | os.PathLike[str] | Sequence[Any], tokenizer: Any = None, split: str = "train"
) -> list[PreferenceText]:
    """Stored comparisons as texts, messages rendered by the tokenizer's chat template.

    Args:
        source: as for `preference_rows`.
        tokenizer: needed for conversational rows only.

    Raises:
        InvalidProblem: as `preference_rows`; messages with a chat template that rewrites the
        prompt.

    Example:
        >>> load_preferences([{"prompt": "My cat", "chosen": " purrs", "rejected": " hisses"}])
        [PreferenceText(prompt='My cat', chosen=' purrs', rejected=' hisses')]
    """
    rows = preference_rows(source, split)
    return [_rendered(row, tokenizer, f"preferences[{i}]") for i, row in enumerate(rows)]


def _split(row: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """Prompt, chosen and rejected of a row; an implicit prompt is taken off both."""
    chosen, rejected = row["chosen"], row["rejected"]
    if "prompt" in row:
        return row["prompt"], chosen, rejected
    if isinstance(chosen, str):
        shared = os.path.commonprefix([chosen, rejected])  # noqa: RUF071 (texts, not paths)
        shared = shared[: max(shared.rfind(" "), 0)]  # break before a word, where tokens break too
        return shared, chosen[len(shared) :], rejected[len(shared) :]
    both = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False))
    prompt = [first for first, _ in both]
    return prompt, chosen[len(prompt) :], rejected[len(prompt) :]


def _rendered(row: Row, tokenizer: Any, where: str) -> PreferenceText:
    prompt, chosen, rejected = row["prompt"], row["chosen"], row["rejected"]
    start = render(prompt, tokenizer, where)
    if isinstance(chosen, str):
        return PreferenceText(start, chosen, rejected)
    ends = [apply(tokenizer, [*prompt, *end], where, tokenize=False) for end in (chosen, rejected)]
    for end in ends:
        if not end.startswith(start):
            raise InvalidProblem(
                message(where, "a chat template whose prompt is not the start of the conversation",
                        "prompt + completion must be what the template renders whole",
                        "Use a template that only appends")
            )  # fmt: skip
    return PreferenceText(start, ends[0][len(start) :], ends[1][len(start) :])


def _no_column(where: str, i: int, row: Mapping[str, Any], name: str) -> InvalidProblem:
    return InvalidProblem(
        message(
            f"{where}[{i}]",
            f"the columns {sorted(row)}",
            f"the column {name!r} is needed (TRL's names)",
            f"Rename the column that holds the {name}",
        )
    )


def check_prompts(
    prompts: Sequence[Any],
    tokenizer: Any = None,
    max_prompt_tokens: int | None = None,
    context: int | None = None,
    max_new_tokens: int = 0,
    where: str = "prompts",
) -> None:
    """Raise unless prompts are non-empty, distinct, and leave room to write.

    Args:
        prompts: rows with `prompt`, texts, or message lists.
        tokenizer: needed for the two length checks.
        max_prompt_tokens: longest prompt allowed, in tokens.
        context: positions of the model; prompt and `max_new_tokens` must fit.

    Raises:
        InvalidProblem: naming the first prompt that fails.
    """
    if not len(prompts):
        raise InvalidProblem(
            message(where, "no prompts", "at least one prompt is needed", "Check the source")
        )
    seen: dict[str, int] = {}
    for i, row in enumerate(prompts):
        prompt = row["prompt"] if isinstance(row, Mapping) else row
        check_kind(prompt, f"{where}[{i}]")
        if not as_text(prompt).strip():
            raise InvalidProblem(
                message(f"{where}[{i}]", "an empty prompt", "a prompt needs text", "Remove the row")
            )
        if (key := identity(prompt)) in seen:
            raise InvalidProblem(
                message(
                    f"{where}[{i}]",
                    f"the same prompt as {where}[{seen[key]}], {as_text(prompt)[:40]!r}",
                    "prompts must be distinct",
                    'Remove it, or load with duplicates="drop"',
                )
            )
        seen[key] = i
        if tokenizer is None:
            continue
        length = len(tokenizer(render(prompt, tokenizer, f"{where}[{i}]"))["input_ids"])
        if max_prompt_tokens is not None and length > max_prompt_tokens:
            raise InvalidProblem(
                message(
                    f"{where}[{i}]",
                    f"{length} tokens",
                    f"max_prompt_tokens is {max_prompt_tokens}",
                    "Shorten or remove the prompt, or raise max_prompt_tokens",
                )
            )
        if context is not None and length + max_new_tokens > context:
            raise InvalidProblem(
                message(
                    f"{where}[{i}]",
                    f"{length} tokens and {max_new_tokens} new ones",
                    f"the model's context is {context}",
                    "Shorten the prompt or lower max_new_tokens",
                )
            )


def check_tokenizer(tokenizer: Any, vocabulary: int | None = None) -> None:
    """Raise unless the tokenizer can end a text and fits the model.

    Args:
        vocabulary: rows of the model's embedding; None leaves that check out.

    Raises:
        InvalidConfig: no end token, or more tokens than the model has embeddings.
    """
    if tokenizer.eos_token_id is None:
        raise InvalidConfig(
            message(
                "tokenizer", "no EOS token", "an episode ends at EOS", 'Set tokenizer.eos_token, e.g. "</s>"'
            )
        )
    if vocabulary is not None and len(tokenizer) > vocabulary:
        raise InvalidConfig(
            message(
                "tokenizer",
                f"{len(tokenizer)} tokens",
                f"the model embeds {vocabulary}: a vocabulary mismatch",
                "Use the model's own tokenizer, or model.resize_token_embeddings(len(tokenizer))",
            )
        )
