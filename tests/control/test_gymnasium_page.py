"""The page From Gymnasium and Stable-Baselines3 does what it says, as a reader would type it."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs/control/gymnasium.md"


@pytest.mark.slow
def test_code_of_the_page_runs():
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) >= 6
    scope: dict = {"__name__": "gymnasium_page"}
    sys.modules["gymnasium_page"] = type(sys)("gymnasium_page")
    try:
        for block in blocks:
            exec(compile(block, str(PAGE), "exec"), scope)
    finally:
        del sys.modules["gymnasium_page"]
    assert scope["trace"].x.shape == (1, 3, 1)
    assert scope["found"].x.shape == (3, 1)
