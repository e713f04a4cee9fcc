"""The first sentence of a script, read without running it."""

from __future__ import annotations

import ast
from pathlib import Path


def first_sentence(path: Path) -> str:
    """First paragraph of a Python file's docstring, on one line."""
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    return text.split("\n\n")[0].replace("\n", " ")
