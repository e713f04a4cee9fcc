"""A word has one meaning: no two packages define a public class of the same name."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src" / "bilevel_rl"

# Names that several packages define, and why that is one meaning
SHARED = {
    "FiniteDifference": "the same method, on tables and on any Torch policy",
    "PartialSGD": "the same method, on tables and on any Torch policy",
    "Replay": "past samples that are learnt from again, on tables and in a batch",
    "RunFolder": "the folder of one run, of the JAX loop and of the Torch loop",
    "Settings": "the options of one verb, experiment, benchmark or method: every module reads its own",
    "Solver": "`finite.Solver` is the loop's, with what a table adds",
    "WinRate": "how often a text is preferred, as the follower's reward and as the leader's objective",
}


def public_classes() -> dict[str, set[str]]:
    """Name of each public class -> the packages (rooms directly below the root) that define it."""
    found = defaultdict(set)
    for path in SOURCE.rglob("*.py"):
        room, *rest = path.relative_to(SOURCE).parts
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found[node.name].add(room if rest else "the root")
    return found


def test_no_public_class_is_defined_in_two_packages():
    twice = {name: sorted(rooms) for name, rooms in public_classes().items() if len(rooms) > 1 and name not in SHARED}
    assert not twice, f"{twice}: rename the lesser one, or write in SHARED why all of them mean the same"


def test_every_shared_name_is_still_shared():
    classes = public_classes()
    assert not [name for name in SHARED if len(classes[name]) < 2]
