"""The pages on Gymnasium and on followers of the literature do what they say, as a reader would type it."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs/control"


def typed(page, least):
    """What stands after all code of a page, in order."""
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)
    assert len(blocks) >= least
    scope: dict = {"__name__": "page_of_docs"}
    sys.modules["page_of_docs"] = type(sys)("page_of_docs")
    try:
        for block in blocks:
            exec(compile(block, page, "exec"), scope)
    finally:
        del sys.modules["page_of_docs"]
    return scope


@pytest.mark.slow
def test_code_of_the_page_runs():
    scope = typed("gymnasium.md", 6)
    assert scope["trace"].x.shape == (1, 3, 1)
    assert scope["found"].x.shape == (3, 1)


@pytest.mark.slow
def test_code_of_the_systems_runs():
    scope = typed("systems.md", 2)
    assert scope["returns"].shape == (2,)
    assert scope["log"]["coverage"].shape == (1,)
