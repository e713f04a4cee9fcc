"""A word has one meaning: no two packages define a public class, and no two engines a public function, of the same name,
unless it is said here what the name means in all of them."""

from __future__ import annotations

import ast
import builtins
import symtable
from collections import defaultdict
from collections.abc import Iterator
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
ENGINES = ("loop", "finite", "control", "host", "levels", "policy_gradient", "llm", "flows")
SHARED_FUNCTIONS = {
    "begin": "where what learns or walks stands before its first step",
    "centred": "less a mean of others, of chains or of a segment",
    "check_compiled": "raises where an environment steps outside compiled code",
    "check_fits": "raises where a solver can't run on a problem; `finite` adds what tables require",
    "demonstrations": "of actions, in tables and in texts",
    "descend": "x moves down the leader's direction, once or for a whole run",
    "draw": "samples: of a policy, or rows of stored data",
    "fingerprint": "a digest of what numbers depend on",
    "flat": "observations as rows of numbers, of one environment or of a batch",
    "joined": "several parts as one: rows, or data sets",
    "learn": "updates from transitions, of a table or of networks",
    "load": "what `save` wrote, back",
    "named": "a thing by its name",
    "plan": "constants of a run, proposed from a pilot at fixed x",
    "play": "an episode of what acts",
    "read": "a file, a text or a run's options, as values",
    "render": "something as text",
    "returns_to_go": "the rewards still to come, with arrays of either library",
    "rewards": "what each row pays",
    "save": "what was learnt, stored or is to be gone on from, into its file or folder",
    "scaled": "in units of its own spread or bounds",
    "search": "`finite.multistart` is `loop.searching` with a comparison for tables",
    "size": "how many numbers it holds",
    "slopes": "the derivative in x of each row's reward, and of its transition's likelihood where x moves that",
    "soft_optimal": "the entropy-regularised optimum, of a table or of a linear-quadratic system",
    "step": "one update: of a search, of critics, or of the chains that walk",
    "train": "a whole run of learning by one call",
    "uniforms": "random numbers in [0, 1), of either library",
    "value_loss": "what a critic of values lowers",
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


def scopes(table: symtable.SymbolTable) -> Iterator[symtable.SymbolTable]:
    """A module's scope and all within it."""
    yield table
    for child in table.get_children():
        yield from scopes(child)


def undefined(source: str, name: str = "module") -> list[str]:
    """Names that some line of a module uses and none defines: a NameError that waits for that line."""
    top = symtable.symtable(source, name, "exec")
    inside = list(scopes(top))
    made = {s.get_name() for s in top.get_symbols() if s.is_assigned() or s.is_imported() or s.is_namespace()}
    made |= {s.get_name() for one in inside for s in one.get_symbols() if s.is_declared_global() and s.is_assigned()}
    known = made | set(dir(builtins)) | {"__file__", "__annotations__"}
    used = {s.get_name() for one in inside for s in one.get_symbols() if s.is_global() and s.is_referenced()}
    used |= {s.get_name() for s in top.get_symbols() if s.is_referenced()}
    return sorted(f"{name}: {one}" for one in used - known)


def test_every_name_is_defined():
    """Linters can't say so here: strings that hold shapes would be undefined names to them."""
    assert undefined("def f():\n    return _broken(g)\n") == ["module: _broken", "module: g"]
    files = [*SOURCE.rglob("*.py"), *(SOURCE.parents[1] / "benchmarks").rglob("*.py")]
    assert [line for file in files for line in undefined(file.read_text(), str(file.relative_to(SOURCE.parents[1])))] == []
