"""The error family, and the sentence it speaks."""

from __future__ import annotations

import pytest

from bilevel_rl import errors


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        (errors.InvalidProblem, ValueError), (errors.InvalidConfig, ValueError), (errors.MissingDependency, ImportError),
        (errors.RunNotFound, LookupError), (errors.StorageFailed, OSError), (errors.NonFiniteState, ArithmeticError),
    ],
)  # fmt: skip
def test_each_error_is_of_the_family_and_of_a_builtin(kind, builtin):
    assert issubclass(kind, errors.BilevelError)
    assert issubclass(kind, builtin)


def test_a_missing_module_names_the_command(snapshot):
    with pytest.raises(errors.MissingDependency) as error:
        errors.require("bilevel_rl_absent", "report")
    assert str(error.value) == snapshot


def test_require_gives_the_module():
    assert errors.require("json", "report").dumps([1]) == "[1]"


def test_suggestions_come_nearest_first_and_only_when_near():
    assert errors.did_you_mean("hpgd", ["amd", "hgpd"]).startswith("Did you mean 'hgpd'?")
    assert errors.did_you_mean("zzz", ["amd", "hpgd"]) == "Known: amd, hpgd"
