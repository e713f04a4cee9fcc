"""Components that are not in the library: named by where they stand, checked, and refused in one sentence."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import pathlib
import re
import sys

import pytest
import torch

from bilevel_rl.errors import InvalidConfig
from bilevel_rl.policy_gradient import Recipe, check_component, compose
from bilevel_rl.policy_gradient.batch import PROVIDERS, Batch
from bilevel_rl.policy_gradient.checks import random_batch
from bilevel_rl.policy_gradient.component import Card, Effect, Slot
from bilevel_rl.policy_gradient.credit import GroupMean, GroupNorm, LeaveOneOut
from bilevel_rl.policy_gradient.lookup import COMPONENTS
from bilevel_rl.policy_gradient.recipes import from_description

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "adding" / "policy-gradient.md"


@pytest.fixture
def rules(tmp_path, monkeypatch):
    """The worked example of docs/adding/policy-gradient.md as a file in the working directory."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (source,) = [block for block in blocks if "class Sure(Credit)" in block]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_rules.py").write_text(source)
    return tmp_path / "my_rules.py"


def with_sureness(batch):
    return batch.replace(judge_sure=torch.linspace(0.1, 1.0, len(batch), dtype=torch.float64))


def test_the_worked_example_is_named_by_its_file_composed_trained_and_written_down(rules):
    recipe = compose("credit=my_rules.py:Sure(group_mean, power=0.5) + 0.1*leave_one_out, loss=clipped")
    batch = with_sureness(random_batch())
    sure = batch.get("judge_sure")[:, None]
    expected = GroupMean()(batch) * sure.sqrt() + 0.1 * LeaveOneOut()(batch)
    torch.testing.assert_close(recipe.credit(batch), torch.where(batch.mask, expected, 0))
    ready = recipe.prepare(batch.replace(weight=None))
    leaf = batch.logp.clone().requires_grad_()
    assert torch.autograd.grad(recipe.objective(ready.replace(logp=leaf))[0], leaf)[0].abs().max() > 0
    described = recipe.describe()
    assert "my_rules.py:Sure(inner=group_mean(), power=0.5)" in described["composition"]
    assert from_description(described).credit == recipe.credit


def test_it_varies_a_named_recipe_and_says_who_provides_its_field(rules):
    recipe = compose("grpo, credit=my_rules.py:Sure")
    assert recipe.credit.inner == GroupNorm()
    assert recipe.loss == compose("grpo").loss
    with pytest.raises(InvalidConfig, match=r"credit 'sure': got a batch without 'judge_sure'.*The task: give each"):
        recipe.check({"logp", "old"}, group_size=4)
    recipe.check({"logp", "old", "judge_sure"}, group_size=4)
    from bilevel_rl.policy_gradient.setting import Setting

    assert "power=0" in compose("credit=my_rules.py:Sure(power=0)").idle(Setting())[0]


def test_an_importable_module_and_an_entry_point_name_it_too(rules, monkeypatch):
    monkeypatch.syspath_prepend(str(rules.parent))
    assert compose("credit=my_rules:Sure(power=2.0)").credit.power == 2.0
    entry = importlib.metadata.EntryPoint("sure", "my_rules:Sure", "bilevel_rl.components")
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [entry] if "bilevel_rl" in group else [])
    assert compose("credit=empg(sure(power=3.0))").credit.inner.power == 3.0
    broken = importlib.metadata.EntryPoint("sure", "no_such_module:Sure", "bilevel_rl.components")
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [broken] if "bilevel_rl" in group else [])
    with pytest.raises(InvalidConfig, match=r"entry point 'sure'.*got ModuleNotFoundError"):
        compose("credit=sure")
    sys.modules.pop("my_rules", None)


def test_check_component_reports_and_never_raises(rules):
    sure = compose("credit=my_rules.py:Sure").credit
    assert check_component(sure, with_sureness(random_batch())) == []
    assert check_component(sure) == [
        "credit 'sure' needs 'judge_sure', which the batch lacks: give check_component a batch with it"
    ]
    assert check_component(3) == ["int is no component: it needs `card`, a Card, and `__call__`"]

    class Raises:
        card = Card("raises", Slot.CREDIT, Effect.CHANGES)

        def __call__(self, batch):
            raise RuntimeError("no")

    assert check_component(Raises()) == ["credit 'raises' raises RuntimeError: no"]

    class Fragile(Raises):
        def __call__(self, batch):
            return batch.spread(batch.score) if len(batch) else 1 // len(batch)

    assert any("raises ZeroDivisionError on no response" in line for line in check_component(Fragile()))


BAD = {
    "raise ValueError('broken')": (
        "credit=mine.py:Rule", r"component file .*mine\.py: got ValueError: broken; the file must import without errors",
    ),
    "Rule = 3": ("credit=mine.py:Rule", r"component 'mine\.py:Rule': got int; a component is a frozen dataclass with"),
    "class Rule:\n    pass": ("credit=mine.py:Rule", "got a class without a card"),
    "Other = 1": ("credit=mine.py:Rule", r"mine\.py:Rule: got no 'Rule' in mine\.py; .*Known: Other"),
    "": ("credit=nowhere.py:Rule", r"component: got no file '.*nowhere\.py'; a thing of your own is FILE\.py:NAME"),
    "x = 1": ("credit=no.such.module:Rule", r"component: got no module named 'no'; an importable module"),
}  # fmt: skip


@pytest.mark.parametrize("source", BAD, ids=[value[1][:30] for value in BAD.values()])
def test_bad_files_are_one_error_each(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(source)
    text, pattern = BAD[source]
    with pytest.raises(InvalidConfig, match=pattern):
        compose(text)


def test_a_slot_twice_an_unknown_option_and_a_wrong_slot_are_one_error_each(rules):
    with pytest.raises(InvalidConfig, match="got the slot 'credit' twice, which is given once"):
        compose("credit=gae, credit=group_norm")
    with pytest.raises(InvalidConfig, match="an option of 'gae' twice"):
        compose("credit=gae(lam=1, lam=0.5)")
    with pytest.raises(InvalidConfig, match=r"the option 'strength' of 'my_rules\.py:Sure'.*Known: inner, power"):
        compose("credit=my_rules.py:Sure(strength=2)")
    with pytest.raises(InvalidConfig, match=r"'my_rules\.py:Sure' in the slot 'loss'; it belongs in 'credit'"):
        compose("loss=my_rules.py:Sure")
    with pytest.raises(InvalidConfig, match="only credit rules are added and scaled"):
        compose("loss=clipped + cispo")
    with pytest.raises(InvalidConfig, match="Did you mean 'grpo'"):
        compose("grpoo, loss=gspo")


def test_a_field_that_nobody_provides_is_said():
    class Orphan:
        card = Card("orphan", Slot.CREDIT, Effect.CHANGES, needs=("unheard_of",))

        def __call__(self, batch):
            return self.card.take(batch, "unheard_of")[0]

    with pytest.raises(InvalidConfig, match=r"'unheard_of'.*Nobody is known to provide it: say who in `card.fields`"):
        Recipe(credit=Orphan()).check({"logp"}, 4)
    with pytest.raises(InvalidConfig, match="give a field of your own as extras="):
        Batch.make(mask=[[1]], reward=[1.0], unheard_of=[1.0])
    assert Batch.make(mask=[[1]], reward=[1.0], extras={"unheard_of": [1.0]}).has("unheard_of")


def test_names_in_the_errors_exist():
    for sentence in PROVIDERS.values():
        for path in re.findall(r"policy_gradient(?:\.\w+)+", sentence):
            module, _, name = f"bilevel_rl.{path}".rpartition(".")
            assert hasattr(importlib.import_module(module), name), path
        for name in re.findall(r"\(([a-z]+_[a-z_]+(?:, [a-z_]+)*)\)", sentence):
            known = {cls.card.name for cls in COMPONENTS}
            assert set(name.split(", ")) <= known | {"gae"}, sentence


def test_a_card_derives_its_references():
    for cls in COMPONENTS:
        entries = cls.card.references
        for number in re.findall(r"arXiv (\d{4}\.\d{4,5})", cls.card.source):
            assert sum(number in entry for entry in entries) == 1, (cls.card.name, number)
        assert all(entry.startswith("@") and entry.count("{") == entry.count("}") for entry in entries)
    assert "Hierarchical" not in GroupNorm.card.references[0]
