"""Our docstrings say `Example:`; Griffe draws code only under `Examples:`."""

from __future__ import annotations

import re

import griffe


class Doctests(griffe.Extension):
    """Rename the section as docstrings are read."""

    def on_object(self, *, obj, **_) -> None:
        """Called for every module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
