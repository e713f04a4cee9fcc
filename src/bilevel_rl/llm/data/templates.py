"""Chat templates: messages to text or ids, and whatever a template objects to as an error that names the row."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from bilevel_rl.errors import InvalidConfig, InvalidProblem, message

SKIP = "skip_special_tokens"  # of decoding; all other options are the chat template's
OWN = ("tokenize", "return_dict", "return_tensors", "add_generation_prompt", "continue_final_message", "conversation")


def with_text_options(tokenizer: Any, options: Mapping[str, Any]) -> Any:
    """The tokenizer with options for every text that it renders and decodes; a copy, where there are any.

    Args:
        tokenizer: of the policy.
        options: of its chat template, by the names that the template reads, and `skip_special_tokens` of decoding.

    Raises:
        InvalidConfig: no tokenizer, or an option that is decided elsewhere.
    """
    if not options:
        return tokenizer
    odd = next((name for name in options if name in OWN), "")
    if tokenizer is None or odd or not isinstance(options.get(SKIP, True), bool):
        got = "options without a tokenizer" if tokenizer is None else repr(odd) if odd else f"{SKIP}={options[SKIP]!r}"
        raise InvalidConfig(
            message("config.texts", got, f"options that a chat template reads, and {SKIP}: true or false",
                    "Correct or remove the option")
        )  # fmt: skip
    own = copy.copy(tokenizer)
    own.text_options = dict(options)
    return own


def of_template(tokenizer: Any) -> dict[str, Any]:
    """Options of a tokenizer's chat template."""
    return {name: value for name, value in getattr(tokenizer, "text_options", {}).items() if name != SKIP}


def completion_texts(tokenizer: Any, ids: Sequence[Sequence[int]]) -> list[str]:
    """Completions as texts; special tokens are left out unless the options keep them."""
    skip = getattr(tokenizer, "text_options", {}).get(SKIP, True)
    found: list[str] = tokenizer.batch_decode(ids, skip_special_tokens=skip)
    return found


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
            [dict(m) for m in messages], tokenize=tokenize, return_dict=False, **of_template(tokenizer), **options
        )
    except (jinja2.TemplateError, ValueError, KeyError, TypeError) as error:
        words = str(error).strip().splitlines()
        raise InvalidProblem(
            message(where, f"a conversation that the chat template refuses ({words[-1] if words else type(error).__name__})",
                    "a template renders roles in the order that it was written for",
                    "Change the row's roles, or set another chat template")
        ) from error  # fmt: skip
