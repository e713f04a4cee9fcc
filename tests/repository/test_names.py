"""A word has one meaning: no two packages define a public class, and no two engines a public function, of the same name."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src" / "bilevel_rl"

# Names that several packages define, and why that is one meaning
SHARED = {
    "DirectAdvantage": "the same loss, of texts and of stored transitions",
    "FiniteDifference": "the same method, on tables and on any Torch policy",
    "Follower": "an agent that learns the lower level, as a table or as networks",
    "HPGD": "the same method, on tables and on networks",
    "Leader": "what moves x",
    "Nested": "x moves once for each inner loop of the followers, whatever learns there",
    "Nothing": "the choice that adds nothing, of explorations and of hyper-gradients",
    "Pair": "both followers side by side",
    "PartialSGD": "the same method, on tables and on any Torch policy",
    "PenaltyActorCritic": "the same method, on tables and on networks",
    "Replay": "past samples that are learnt from again, on tables and in a batch",
    "Rows": "a batch that is learnt from, of episodes or of transitions",
    "RunFolder": "the folder of one run, of the JAX loop and of the Torch loop",
    "Seen": "what was met on a walk",
    "Setting": "the numbers that one trial is made with, or that a component is told of its run",
    "Settings": "the options of one verb, experiment, benchmark or method: every module reads its own",
    "Solver": "`finite.Solver` is the loop's, with what a table adds",
    "Transition": "a step of an environment, of tables or of arrays",
    "Window": "what the last steps brought",
    "WinRate": "how often a text is preferred, as the follower's reward and as the leader's objective",
}

# Rooms of the library itself. Programs (commands, report, bench, ...) call their functions within one file.
ENGINES = ("loop", "finite", "levels", "policy_gradient", "llm")
SHARED_FUNCTIONS = {
    "centred": "less a mean of others, of chains or of a segment",
    "check_fits": "raises where a solver can't run on a problem; `finite` adds what tables require",
    "demonstrations": "of actions, in tables and in texts",
    "fingerprint": "a digest of what numbers depend on",
    "load": "what `save` wrote, back",
    "named": "a thing by its name",
    "norm": "of a gradient",
    "read": "a file or a run's options, as values",
    "render": "something as text",
    "returns_to_go": "the rewards still to come, with arrays of either library",
    "save": "the state of a run, into its folder",
    "search": "`finite.multistart` is `loop.searching` with a comparison for tables",
    "uniforms": "random numbers in [0, 1), of either library",
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


def public_functions() -> dict[str, set[str]]:
    """Name of each public function of a module -> the engines that define it."""
    found = defaultdict(set)
    for room in ENGINES:
        for path in (SOURCE / room).rglob("*.py"):
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                    found[node.name].add(room)
    return found


def test_no_public_function_is_defined_in_two_engines():
    functions = public_functions()
    twice = {name: sorted(rooms) for name, rooms in functions.items() if len(rooms) > 1 and name not in SHARED_FUNCTIONS}
    assert not twice, f"{twice}: rename the lesser one, or write in SHARED_FUNCTIONS why all of them mean the same"
    assert not [name for name in SHARED_FUNCTIONS if len(functions[name]) < 2]
