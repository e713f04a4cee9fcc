"""The reference: a page a module, and one a package that lists its modules, made from the sources when the site is built."""

from __future__ import annotations

import ast
from pathlib import Path

from mkdocs.structure.files import File

PAGE = "# {name}\n\n::: {name}\n    options:\n      show_root_heading: false\n      show_root_toc_entry: false\n"
# package (or the base layer, the files beside them), in the order of dependence: what it is stands in its own docstring
ROOMS = ("", "loop", "finite", "control", "host", "policy_gradient", "levels", "llm", "report", "bench", "experiments",
         "launch", "commands")  # fmt: skip
FEW = 60  # modules of a package that are listed one after another


def on_config(config, **_):
    """MkDocs calls this before it reads the navigation: the packages' pages take their place in it."""
    source = Path(config.docs_dir).parent / "src/bilevel_rl"
    rooms = [{title(room): uri(room)} for room in ROOMS if (source / room).is_dir()]
    for entry in config.nav:
        for name, pages in entry.items():
            if name == "Reference":
                entry[name] = [*(p for p in pages if p != "reference/"), *rooms]
    return config


def on_files(files, config, **_):
    """MkDocs calls this once it knows the written pages."""
    package = Path(config.docs_dir).parent / "src/bilevel_rl"
    for room in ROOMS:
        if not (package / room).is_dir():
            continue
        modules = sorted((package / room).glob("**/*.py" if room else "*.py"))
        modules = [m for m in modules if m.stem == "__init__" or not m.stem.startswith("_")]
        files.append(File.generated(config, uri(room), content=listing(room, modules, package)))
        for module in modules:
            name = dotted(module, package)
            # what a package exports stands on the pages of its modules
            shown = PAGE.format(name=name) + ("      members: false\n" if module.stem == "__init__" else "")
            files.append(File.generated(config, f"reference/{name}.md", content=shown))
    return files


def listing(room: str, modules: list[Path], package: Path) -> str:
    """The page of a package: a line a module, those of the packages inside it under lines that open."""
    parts = [f"# {title(room)}\n"]
    for folder in sorted({module.parent for module in modules}, key=lambda f: (f != package / room, f)):
        rows = ["| Module | What it is |", "|---|---|"]
        for module in (m for m in modules if m.parent == folder):
            name = dotted(module, package)
            rows.append(f"| [`{name.removeprefix('bilevel_rl.')}`]({name}.md) | {first_line(module)} |")
        if folder == package / room or len(modules) < FEW:
            parts.append("\n".join(rows) + "\n")
        else:
            name = dotted(folder / "__init__.py", package).removeprefix("bilevel_rl.")
            inside = "\n".join(f"    {row}" for row in rows)
            parts.append(f'??? note "`{name}`: {len(rows) - 2} modules"\n\n{inside}\n')
    return "\n".join(parts)


def first_line(module: Path) -> str:
    """The first sentence of a module's docstring, safe in a table."""
    words = (ast.get_docstring(ast.parse(module.read_text())) or "").split("\n\n")[0]
    return " ".join(words.split()).replace("|", "\\|")


def dotted(module: Path, package: Path) -> str:
    """A file's name as one imports it."""
    parts = module.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def uri(room: str) -> str:
    """Where a package's page lies."""
    return f"reference/{room or 'base'}.md"


def title(room: str) -> str:
    """A package's name in the navigation."""
    return f"bilevel_rl.{room}" if room else "bilevel_rl: the base layer"
