"""Functions stay short and straight: counted by ruff's own rules, and by the lines of each function."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SOURCE = Path(__file__).parents[2] / "src" / "bilevel_rl"
ROOMS = ("loop", "finite")
LONGEST, MOST, USUAL = 80, 15, 5  # lines of a function; branches of the worst, and of the 90th percentile


@pytest.mark.parametrize("room", ROOMS)
def test_functions_have_few_branches(room):
    """McCabe's complexity of every function, as ruff reports it when nothing is allowed."""
    found = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "C901", "--output-format", "concise",
         "--config", "lint.mccabe.max-complexity = 0", str(SOURCE / room)],
        capture_output=True, text=True,
    )  # fmt: skip
    counts = [int(n) for n in re.findall(r"is too complex \((\d+) > 0\)", found.stdout)]
    assert len(counts) > 50, found.stderr
    assert max(counts) <= MOST
    assert np.percentile(counts, 90) <= USUAL


@pytest.mark.parametrize("room", ROOMS)
def test_functions_are_short(room):
    long = []
    for path in sorted((SOURCE / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = node.end_lineno - node.lineno + 1
                if lines > LONGEST:
                    long.append(f"{path.name}: {node.name} has {lines} lines")
    assert not long
