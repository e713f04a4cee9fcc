"""Old module names give the very same modules, and say where they went."""

from __future__ import annotations

import importlib
import sys

import pytest

from bilevel_rl.moved import MOVED


@pytest.mark.parametrize("old", MOVED)
def test_old_names_forward_with_a_warning(old):
    sys.modules.pop(old, None)
    new = importlib.import_module(MOVED[old])
    with pytest.warns(DeprecationWarning, match=f"{old} is {MOVED[old]} now"):
        assert importlib.import_module(old) is new
    assert new.__spec__.name == MOVED[old]


def test_the_usual_form_of_import_works():
    import bilevel_rl.finite

    sys.modules.pop("bilevel_rl.finite.horizon", None)
    vars(bilevel_rl.finite).pop("horizon", None)
    with pytest.warns(DeprecationWarning, match="finite.model.horizon now"):
        from bilevel_rl.finite import horizon
    assert horizon.unrolled.__module__ == "bilevel_rl.finite.model.horizon"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("policy_gradient.optimiser.Solver", "PolicyOptimiser"),
        ("policy_gradient.optimiser.State", "OptimiserState"),
        ("policy_gradient.rollout.Ask", "RolloutAsk"),
        ("policy_gradient.rollout.Plan", "RolloutPlan"),
        ("levels.objectives.UpperObjective", "SampledObjective"),
        ("llm.UpperObjective", "SampledObjective"),
        ("llm.data.rows.Preference", "PreferenceText"),
    ],
)
def test_classes_that_got_another_name_keep_the_old_one_with_a_warning(old, new):
    pytest.importorskip("torch")
    where, _, name = f"bilevel_rl.{old}".rpartition(".")
    module = importlib.import_module(where)
    with pytest.warns(DeprecationWarning, match=f"{name} is .*{new} now"):
        assert getattr(module, name) is getattr(module, new)
    with pytest.raises(AttributeError, match="no attribute 'nosuch'"):
        _ = module.nosuch


def test_names_that_never_were_are_no_modules():
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("bilevel_rl.finite.nosuch")


def test_a_module_that_became_a_room_gives_its_names_with_a_warning():
    rooms = pytest.importorskip("bilevel_rl.llm.judges")
    pytest.importorskip("torch")
    with pytest.warns(DeprecationWarning, match=r"llm\.judges\.HumanQueue is bilevel_rl\.llm\.judges\.builtin"):
        assert rooms.HumanQueue.__module__ == "bilevel_rl.llm.judges.builtin"
    with pytest.raises(AttributeError, match="no attribute 'nosuch'"):
        _ = rooms.nosuch


def test_lines_of_json_have_a_module_of_their_own():
    from bilevel_rl import json_lines, records

    with pytest.warns(DeprecationWarning, match=r"records\.append_line is .*json_lines\.append_line now"):
        assert records.append_line is json_lines.append_line
    with pytest.raises(AttributeError, match="no attribute 'nosuch'"):
        _ = records.nosuch
