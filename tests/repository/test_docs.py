"""The documentation is true: its names exist, its links lead somewhere, its code runs, its tables are up to date."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bilevel_rl.cli import VERBS
from bilevel_rl.control import solvers as control_solvers
from bilevel_rl.finite import solvers

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("docs/**/*.md"), *ROOT.glob("*.md")])


def test_every_name_in_the_notation_table_exists():
    names = re.findall(r"`(bilevel_rl\.[\w.]+)`", (ROOT / "docs/notation.md").read_text())
    assert len(names) > 25
    for name in names:
        parts = name.split(".")
        for cut in range(len(parts), 0, -1):
            try:
                found = importlib.import_module(".".join(parts[:cut]))
                break
            except ModuleNotFoundError:
                continue
        for part in parts[cut:]:
            fields = getattr(found, "__dataclass_fields__", {})
            assert part in fields or hasattr(found, part), f"{name}: no {part}"
            found = getattr(found, part, fields.get(part))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page):
    words = re.sub(r"```.*?```|\$\$.*?\$\$|\$[^$]*\$|`[^`]*`", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", words):
        made = re.search(r"reference/(bilevel_rl[\w.]*)\.md$", target)  # docs/hooks/reference.py makes a page a module
        if made:
            assert importlib.util.find_spec(made[1]) is not None, f"{page.name} links to {target}"
        elif "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_in_the_pages_exist(page):
    for verb in re.findall(r"(?:^|`)bilevel-rl ([a-z]+)", page.read_text(), re.MULTILINE):
        assert verb in VERBS, f"{page.name}: bilevel-rl {verb}"


def test_files_named_in_the_pages_exist():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    known = {f"/{name}" for name in tracked} or {f"/{path.relative_to(ROOT)}" for path in ROOT.glob("[!.]*/**/*.py")}
    for page in PAGES:
        for name in re.findall(r"`([\w/.]+\.py)`", page.read_text()):
            if not re.match(r"(my_\w+|mine)\.py$", name):  # the reader's own
                assert any(path.endswith(f"/{name}") for path in known), f"{page.name}: {name}"


def test_every_solver_has_a_page_in_the_site():
    nav = (ROOT / "mkdocs.yml").read_text()
    for kind in solvers.ALL:
        assert (ROOT / f"docs/algorithms/{kind.name}.md").exists(), kind.name
    chosen = (ROOT / "docs/control/index.md").read_text() + (ROOT / "docs/control/choosing.md").read_text()
    for kind in control_solvers.ALL:  # neural followers' methods share two pages
        assert f"`{kind.name}`" in chosen, kind.name
    assert "Algorithms: algorithms/" in nav  # docs/hooks/nav.py lists the folder


ADDING = sorted(f"adding/{page.stem}" for page in ROOT.glob("docs/adding/*.md") if page.stem != "index")


@pytest.mark.parametrize("name", [*ADDING, "penalty-bias"])
def test_code_of_the_pages_runs(name):
    """All Python blocks of the page, one after the other, as a reader would type them."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / f"docs/{name}.md").read_text(), re.DOTALL)
    assert len(blocks) >= 2
    scope: dict = {"__name__": name}
    sys.modules[name] = type(sys)(name)
    try:
        for block in blocks:
            exec(compile(block, f"docs/{name}.md", "exec"), scope)
    finally:
        del sys.modules[name]


@pytest.mark.slow
@pytest.mark.parametrize("script", sorted((ROOT / "examples").glob("0*.py")), ids=lambda path: path.stem)
def test_examples_run(script, tmp_path):
    """Each example asserts what it shows."""
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout


def test_every_results_file_says_where_it_was_measured():
    files = sorted((ROOT / "benchmarks/results").glob("*.json"))
    assert files
    for file in files:
        facts = json.loads(file.read_text())
        assert "hardware" in json.dumps(facts), f"{file.name} names no hardware"


def test_pages_of_results_can_be_written_and_the_readme_is_up_to_date():
    """`make test` and the site write docs/results afresh; the README's table is committed, so it is compared."""
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("results", ROOT / "docs/hooks/results.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    pages = module.pages(ROOT)
    words = "\n".join(pages.values())
    files = sorted((ROOT / "benchmarks/results").glob("*.json"))
    findings = words.count("\n## What was found\n")  # of a page with several files, before them
    assert words.count("\n## ") - findings == len(files)
    assert words.count("Measured on") == len(files)
    assert all(f"({name})" in pages["index.md"] for name in pages if name != "index.md")
    assert (ROOT / "README.md").read_text() == module.readme(ROOT), "run: python docs/hooks/results.py"
    for page, now in module.inserted(ROOT).items():
        assert (ROOT / page).read_text() == now, f"{page}: run: python docs/hooks/results.py"


def test_nothing_names_the_machine_it_was_written_on():
    """No absolute paths of a workplace in tracked files."""
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split("\n")
    for name in listed:
        path = ROOT / name
        if (
            name
            and path.is_file()
            and path.suffix in {".py", ".md", ".toml", ".yml", ".json", ".txt", ".cff", ""}
        ):
            text = path.read_text(errors="ignore")
            found = re.search(r"(?<![\w.])/(?:work|home|root)/\w+", text)
            assert found is None or path == Path(__file__), f"{name}: {found[0] if found else ''}"
