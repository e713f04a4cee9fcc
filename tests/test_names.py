"""Things by name: one reader, whatever is named."""

from __future__ import annotations

import sys

import pytest

from bilevel_rl import names
from bilevel_rl.errors import InvalidConfig, InvalidProblem

KNOWN = {"two": 2}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "here_alone.py").write_text("class Box:\n    inside = 3\n")
    (tmp_path / "beside.py").write_text("import here_alone\nvalue = here_alone.Box.inside\n")
    (tmp_path / "needs.py").write_text("import nosuch_package\n")
    (tmp_path / "leaves.py").write_text("raise SystemExit\n")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("here_alone", None)


def test_modules_files_and_builtins_are_found_and_the_path_is_as_before(folder):
    before = list(sys.path)
    assert names.find("builtin:two", KNOWN, "x") == names.find("two", KNOWN, "x") == 2
    assert names.find("here_alone:Box.inside", KNOWN, "x") == 3
    assert names.find("beside.py:value", KNOWN, "x") == 3
    assert names.find(f"{folder}/beside.py:value", KNOWN, "x") == 3
    assert sys.path == before


@pytest.mark.parametrize(("text", "kind", "words"), [
    ("builtin:too", InvalidConfig, "Did you mean 'two'"),
    ("too", InvalidConfig, "a thing by name is builtin:NAME, MODULE:NAME or FILE.py:NAME"),
    ("here_alone:Bax", InvalidConfig, "no 'Bax' in here_alone; Did you mean 'Box'"),
    ("here_alne:Box", InvalidConfig, "x: got no module named 'here_alne'"),
    ("nosuch.py:Box", InvalidConfig, "no file 'nosuch.py'"),
    ("needs:value", InvalidProblem, "ModuleNotFoundError: No module named 'nosuch_package'; the module must import"),
    ("needs.py:value", InvalidProblem, "the file must import without errors. Mend the file"),
    ("leaves.py:value", InvalidProblem, "SystemExit"),
])  # fmt: skip
def test_what_is_wrong_is_named(folder, text, kind, words):
    with pytest.raises(kind) as caught:
        names.find(text, KNOWN, "x")
    assert words in str(caught.value)
