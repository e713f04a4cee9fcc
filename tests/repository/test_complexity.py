"""Functions stay short and straight: counted by ruff's own rules, and by the lines of each function."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

SOURCE = Path(__file__).parents[2] / "src" / "bilevel_rl"
ROOMS = sorted(path.parent.name for path in SOURCE.glob("*/__init__.py"))
LONGEST, MOST, USUAL = 80, 15, 5  # lines of a function; branches of the worst, and of the 90th percentile
UNBORN = 12  # fields of a class that start as None


def branches() -> dict[str, list[int]]:
    """Room -> McCabe's complexity of each function, as ruff reports it when nothing is allowed."""
    found = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--isolated", "--no-cache", "--select", "C901", "--output-format", "concise",
         "--config", "lint.mccabe.max-complexity = 0", "."],
        capture_output=True, text=True, cwd=SOURCE,
    )  # fmt: skip
    counts = defaultdict(list)
    for room, number in re.findall(r"^(\w+)/.*is too complex \((\d+) > 0\)", found.stdout, re.MULTILINE):
        counts[room].append(int(number))
    return counts


def test_functions_have_few_branches():
    found = branches()
    assert sorted(found) == ROOMS
    worst = {room: (max(counts), int(np.percentile(counts, 90, method="inverted_cdf"))) for room, counts in found.items()}
    assert not {room: pair for room, pair in worst.items() if pair[0] > MOST or pair[1] > USUAL}


def test_functions_are_short():
    long = []
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = node.end_lineno - node.lineno + 1
                if lines > LONGEST:
                    long.append(f"{path.name}: {node.name} has {lines} lines")
    assert not long


def test_classes_are_born_whole():
    """Few fields that start as None: a class with many is several classes. `Batch` is a row of optional columns."""
    late = {}
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and node.name != "Batch":
                late[f"{path.name}: {node.name}"] = sum(
                    isinstance(line, ast.AnnAssign) and isinstance(line.value, ast.Constant) and line.value.value is None
                    for line in node.body
                )
    assert len(late) > 100
    assert not {name: count for name, count in late.items() if count > UNBORN}
