"""What a user types, as prompts: through the tokenizer's chat template where it has one."""

from __future__ import annotations

from typing import Any


def as_turn(text: str, tokenizer: Any, plain: bool = False) -> Any:
    """A prompt of the command line: one message of a user where the tokenizer has a chat template, else the text itself.

    Args:
        text: as typed.
        tokenizer: of the policy, or None.
        plain: the text itself all the same.

    Example:
        >>> class Chats:
        ...     chat_template = "..."
        >>> as_turn("Hello", Chats()), as_turn("Hello", Chats(), plain=True), as_turn("Hello", None)
        ([{'role': 'user', 'content': 'Hello'}], 'Hello', 'Hello')
    """
    return [{"role": "user", "content": text}] if has_template(tokenizer) and not plain else text


def has_template(tokenizer: Any) -> bool:
    """Whether texts go through a chat template."""
    return bool(getattr(tokenizer, "chat_template", None))
