"""Chat templates: messages to text or ids, and whatever a template objects to as an error that names the row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bilevel_rl.errors import InvalidConfig, InvalidProblem, message


def is_messages(value: Any) -> bool:
    """Whether a value is a conversation: a list of mappings with a content."""
    return (
        isinstance(value, (list, tuple))
        and len(value) > 0
        and all(isinstance(m, Mapping) and "content" in m for m in value)
    )


def opened(tokenizer: Any, prompt: Sequence[Mapping[str, Any]], where: str, tokenize: bool = False) -> Any:
    """A prompt up to where the policy goes on: after the last user's words a new assistant's turn; after the
    assistant's own words, those words.
    """
    if prompt[-1].get("role") == "assistant":
        return apply(tokenizer, prompt, where, tokenize=tokenize, continue_final_message=True)
    return apply(tokenizer, prompt, where, tokenize=tokenize, add_generation_prompt=True)


def apply(
    tokenizer: Any, messages: Sequence[Mapping[str, Any]], where: str, tokenize: bool, **options: Any
) -> Any:
    """Messages rendered by the tokenizer's chat template, as text or as ids.

    Args:
        tokenizer: with a chat template.
        messages: mappings with `role` and `content`.
        where: for errors.
        tokenize: ids instead of text.
        options: of `apply_chat_template`.

    Raises:
        InvalidConfig: a tokenizer without a chat template.
        InvalidProblem: a conversation that the template refuses, with the template's own words.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise InvalidConfig(
            message(where, "a conversation, and a tokenizer without a chat template",
                    "conversations need a chat template", "Set tokenizer.chat_template, or pass plain text")
        )  # fmt: skip
    import jinja2

    try:
        return tokenizer.apply_chat_template(
            [dict(m) for m in messages], tokenize=tokenize, return_dict=False, **options
        )
    except (jinja2.TemplateError, ValueError, KeyError, TypeError) as error:
        words = str(error).strip().splitlines()
        raise InvalidProblem(
            message(where, f"a conversation that the chat template refuses ({words[-1] if words else type(error).__name__})",
                    "a template renders roles in the order that it was written for",
                    "Change the row's roles, or set another chat template")
        ) from error  # fmt: skip
