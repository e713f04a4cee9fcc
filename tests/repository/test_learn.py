"""The pages of *Learn* are true: their code runs as a reader would type it, their excerpts stand in the sources."""

from __future__ import annotations

import re
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / f"docs/{page}.md").read_text(), re.DOTALL)


def hook(name: str):
    spec = spec_from_file_location(name, ROOT / f"docs/hooks/{name}.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_notebooks_are_their_pages():
    made = hook("notebooks")
    for page in made.PAGES:
        assert (ROOT / f"docs/learn/{page}.ipynb").read_text() == made.notebook(ROOT, page), "run: make notebooks"


def cells(page: str) -> list[str]:
    """The code of the notebook, which is the page's."""
    import json

    made = json.loads((ROOT / f"docs/learn/{page}.ipynb").read_text())
    return ["".join(cell["source"]) for cell in made["cells"] if cell["cell_type"] == "code"]


@pytest.mark.parametrize("page", ["designers", pytest.param("tour", marks=pytest.mark.slow)])
def test_notebooks_run(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    scope: dict = {"__name__": page}
    monkeypatch.setitem(sys.modules, page, type(sys)(page))
    for cell in cells(page):
        exec(compile(cell, f"docs/learn/{page}.ipynb", "exec"), scope)
    printed = capsys.readouterr().out
    if page == "tour":  # what its sentences say
        assert "tolls [0.29 0.19]" in printed
        assert scope["gaps"].max() < 0.01
        assert (tmp_path / "tour.svg").stat().st_size > 10_000
    else:
        assert "tax [0.71]" in printed
        assert "premium [0.49]" in printed


def test_excerpts_of_the_algorithm_stand_in_the_sources():
    source = (ROOT / "src/bilevel_rl/finite/solvers/penalty_actor_critic.py").read_text()
    lines = {line.strip() for line in source.splitlines()}
    shown = [line.strip() for block in blocks("learn/paper") for line in block.strip().splitlines()]
    assert len(shown) >= 7
    for line in shown:
        assert line in lines, f"no longer in penalty_actor_critic.py: {line}"


def test_the_readme_shows_an_address_only_where_there_is_one(tmp_path):
    made = hook("settings")
    (tmp_path / "pyproject.toml").write_text('[tool.bilevel-rl]\nrepository = ""\n')
    assert made.badges(tmp_path) == made.colab(tmp_path, "a.ipynb") == ""
    (tmp_path / "pyproject.toml").write_text('[tool.bilevel-rl]\nrepository = "https://github.com/some/one/"\n')
    assert "https://github.com/some/one/actions/workflows/ci.yml/badge.svg" in made.badges(tmp_path)
    assert "colab.research.google.com/github/some/one/blob/main/a.ipynb" in made.colab(tmp_path, "a.ipynb")
