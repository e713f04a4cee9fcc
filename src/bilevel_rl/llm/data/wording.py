"""A prompt or completion, a text or a list of messages, in words: for a reader, for a tokenizer, for comparing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from bilevel_rl.errors import InvalidProblem, message
from bilevel_rl.llm.data.templates import apply, opened


def render(prompt: Any, tokenizer: Any, where: str = "prompt") -> str:
    """A prompt as text: a string as it is, a list of messages through the tokenizer's chat template.

    Raises:
        InvalidProblem: neither.
        InvalidConfig: messages without a chat template.
    """
    check_kind(prompt, where)
    if isinstance(prompt, str):
        return prompt
    return opened(tokenizer, prompt, where)


def whole(prompt: Any, completion: Any, tokenizer: Any) -> str:
    """Prompt and completion as one text for another model's tokenizer: texts joined, messages through its template.

    Without a template the contents stand as they are, the completion right after the prompt: what it says of messages is
    what it says of their texts.
    """
    if isinstance(prompt, str):
        return prompt + as_text(completion)
    messages = [*prompt, *completion] if not isinstance(completion, str) else [
        *prompt, {"role": "assistant", "content": completion}
    ]  # fmt: skip
    if getattr(tokenizer, "chat_template", None):
        return apply(tokenizer, messages, "reward", tokenize=False)
    return as_text(prompt) + as_text(completion)


def as_text(value: Any) -> str:
    """A prompt or completion for a reader (a classifier, a person): a text as it is, messages as their
    contents.
    """
    return value if isinstance(value, str) else "\n".join(str(part["content"]) for part in value)


def check_kind(prompt: Any, where: str) -> None:
    """Raise `InvalidProblem` unless a prompt is a text or messages with role and content."""
    if isinstance(prompt, str):
        return
    messages = list(prompt) if isinstance(prompt, Sequence) else []
    if not messages or not all(isinstance(m, Mapping) and {"role", "content"} <= m.keys() for m in messages):
        raise InvalidProblem(
            message(
                where,
                f"a prompt of type {type(prompt).__name__}",
                "a prompt is a text or a list of messages with role and content",
                "Correct the row",
            )
        )


def identity(prompt: Any) -> str:
    """A text that is the same for equal prompts alone."""
    return json.dumps(prompt, sort_keys=True, default=str)
