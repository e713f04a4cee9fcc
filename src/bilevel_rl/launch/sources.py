"""The user's own files: copied into a folder that needs them, with those of their neighbours that they import."""

from __future__ import annotations

import ast
import hashlib
from pathlib import Path

from bilevel_rl import records
from bilevel_rl.errors import InvalidConfig, message

WORDS = ("problem", "solver")  # a copy is called by what it is, FOLDER/problem.py


def keep(file: Path, folder: Path, word: str) -> str:
    """Copy a file as `FOLDER/word.py`, and beside it whatever of its own folder it imports.

    Returns:
        The copy's name.

    Raises:
        InvalidConfig: two different files would have one name.
    """
    file = file.expanduser()
    _copy(file, folder / f"{word}.py")
    for name, path in neighbours(file).items():
        there = folder / name
        if name in {f"{one}.py" for one in WORDS} or (there.exists() and there.read_bytes() != path.read_bytes()):
            raise InvalidConfig(
                message(str(path), f"a module named {name.removesuffix('.py')!r}, beside another of that name",
                        f"{file.name} and what it imports are copied into one folder", "Rename it")
            )  # fmt: skip
        _copy(path, folder / name)
    return f"{word}.py"


def _copy(path: Path, to: Path) -> None:
    records.make_folder(to.parent)
    records.write_bytes(to, path.read_bytes())


def named(folder: Path, word: str, name: str) -> str:
    """`FILE.py:NAME` of a copy, from the name that the original had.

    Example:
        >>> named(Path("cell"), "problem", "mine.py:toll")
        'cell/problem.py:toll'
    """
    _, colon, attribute = name.rpartition(":") if ":" in name else (name, ":", word)
    return f"{folder / word}.py{colon}{attribute}"


def digest(file: Path) -> str:
    """Of a file and of all its neighbours that it imports."""
    file = file.expanduser()
    found = hashlib.blake2b(file.read_bytes(), digest_size=16)
    for name, path in sorted(neighbours(file).items()):
        found.update(name.encode() + b"\0" + path.read_bytes())
    return found.hexdigest()


def neighbours(file: Path) -> dict[str, Path]:
    """Name below the file's folder -> path, of the modules and packages there that it imports, directly or by way of others.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     main, other = Path(folder) / "mine.py", Path(folder) / "tables.py"
        ...     _ = main.write_text("import numpy, tables"), other.write_text("")
        ...     list(neighbours(main))
        ['tables.py']
    """
    root = file.resolve().parent
    found: dict[str, Path] = {}
    left = [file.resolve()]
    while left:
        for name in _imported(left.pop()):
            module, package = root / f"{name}.py", root / name
            if module.is_file():
                paths = [module]
            elif (package / "__init__.py").is_file():
                paths = sorted(package.rglob("*.py"))
            else:
                continue
            for path in paths:
                key = path.relative_to(root).as_posix()
                if key not in found and path != file.resolve():
                    found[key] = path
                    left.append(path)
    return found


def _imported(file: Path) -> set[str]:
    """First parts of the names that a file imports; nothing where it is no Python, which loading it says better."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return set()
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found
