"""A file that makes one problem needs no attribute's name; one that makes several says which there are."""

from __future__ import annotations

import pytest

from bilevel_rl.errors import InvalidProblem
from bilevel_rl.finite.problems import Subsidy
from bilevel_rl.launch import load

HEAD = "from bilevel_rl.finite.problems import Subsidy\n"
OWN = HEAD + "class Mine(Subsidy):\n    name = 'mine'\n"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (OWN, "Mine"),  # a class of its own, beside one that it imports
        (HEAD + "tax = Subsidy()\n", "tax"),
        (OWN + "tax = Mine()\n", "tax"),  # what is made comes before what it is made of
        (OWN + "problem = Mine\nother = Mine()\n", None),  # the usual name needs no search
    ],
)
def test_the_only_problem_of_a_file_is_found(text, found, tmp_path):
    (tmp_path / "a.py").write_text(text)
    target = load.find_problem(f"{tmp_path}/a.py")
    assert isinstance(target.build({}), Subsidy)
    assert target.name == (f"{tmp_path}/a.py" + (f":{found}" if found else ""))
    assert isinstance(load.find_problem(target.name).build({}), Subsidy)  # as a run folder names it


def test_several_problems_of_a_file_are_named(tmp_path):
    (tmp_path / "a.py").write_text(HEAD + "tax = Subsidy()\ntoll = Subsidy()\n")
    with pytest.raises(InvalidProblem, match=r"several of which each is a problem: tax, toll.*a\.py:tax"):
        load.find_problem(f"{tmp_path}/a.py")
    (tmp_path / "a.py").write_text(HEAD)
    with pytest.raises(InvalidProblem, match="no attribute 'problem'"):
        load.find_problem(f"{tmp_path}/a.py")
