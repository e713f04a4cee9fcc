"""Names and first sentences of the library's problems and solvers, read from their source: no engine is imported.

`bilevel-rl list` and shell completion need words only, and importing JAX takes seconds.
"""

from __future__ import annotations

import ast
import functools
from pathlib import Path

from bilevel_rl.launch.plain import unicode

ROOT = Path(__file__).parents[1]


@functools.cache
def entries(group: str, engine: str = "finite") -> dict[str, str]:
    """Name -> first sentence of each class in the `ALL` of `problems` or `solvers`, in its order.

    Args:
        group: `"problems"` or `"solvers"`.
        engine: `"finite"`, or `"control"`, whose problems include those that `judged` makes of tables.

    Example:
        >>> next(iter(entries("solvers")))
        'coupled_penalty'
    """
    package = ROOT / engine / group
    classes, words = _classes(sorted(package.glob("*.py"))), _all(package / "__init__.py")
    if (engine, group) == ("control", "problems"):
        classes |= _classes([ROOT / "judged.py"])
        words += _all(ROOT / "judged.py")
    found = {}
    for word in words:
        name, text = classes[word]
        found[name] = unicode(text.split("\n\n")[0].replace("\n", " "))
    return found


def _all(path: Path) -> list[str]:
    """Class names of a package's `ALL`; a starred tuple is looked up where it was imported from."""
    tree = ast.parse(path.read_text())
    sources = {
        alias.asname or alias.name: node.module.rpartition(".")[2]
        for node in tree.body if isinstance(node, ast.ImportFrom) and node.module for alias in node.names
    }  # fmt: skip
    words: list[str] = []
    for part in _tuple(tree, "ALL"):
        if isinstance(part, ast.Starred) and isinstance(part.value, ast.Name):
            inner = ast.parse((path.parent / f"{sources[part.value.id]}.py").read_text())
            words += [name.id for name in _tuple(inner, part.value.id) if isinstance(name, ast.Name)]
        elif isinstance(part, ast.Name):
            words.append(part.id)
    return words


def _tuple(tree: ast.Module, name: str) -> list[ast.expr]:
    for node in tree.body:
        if isinstance(node, (ast.AnnAssign, ast.Assign)) and isinstance(node.value, ast.Tuple):
            target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
            if isinstance(target, ast.Name) and target.id == name:
                return node.value.elts
    return []


def _classes(paths: list[Path]) -> dict[str, tuple[str, str]]:
    """Class -> (its `name`, its docstring), of every file."""
    found = {}
    for path in paths:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef):
                found[node.name] = (_name(node), ast.get_docstring(node) or "")
    return found


def _name(node: ast.ClassDef) -> str:
    for line in node.body:
        if isinstance(line, (ast.AnnAssign, ast.Assign)) and isinstance(line.value, ast.Constant):
            target = line.target if isinstance(line, ast.AnnAssign) else line.targets[0]
            if isinstance(target, ast.Name) and target.id == "name":
                return str(line.value.value)
    return node.name
