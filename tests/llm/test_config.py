"""The configuration: few keys, each documented, unknown ones refused with a suggestion."""

from __future__ import annotations

import dataclasses

import pytest

from bilevel_rl.errors import InvalidConfig
from bilevel_rl.llm.config import REFUSED, Config, parse_overrides
from bilevel_rl.llm.sections import PLACES, written


def test_a_file_has_at_most_forty_keys_at_its_top_and_each_says_what_it_means():
    assert len(Config.top_level()) <= 40
    assert all(len(meaning) > 10 for meaning in Config.keys().values())
    assert PLACES.keys() <= Config.keys().keys()  # no section names what is no key


def test_sections_dots_and_flat_keys_say_the_same(tmp_path, caplog):
    yaml = pytest.importorskip("yaml")
    flat = {"group": 2, "label_budget": 9, "tau": 0.1, "tau_power": 0.05, "ratio": "token", "lora_rank": 2, "clip_norm": 0.5}
    nested = {
        "sampling": {"group": 2}, "labels": {"budget": 9}, "tau": {"initial": 0.1, "power": 0.05},
        "ratio": {"kind": "token"}, "lora": {"rank": 2}, "clipping": {"policies": 0.5},
    }  # fmt: skip
    dotted = [f"{written(key)}={value}" for key, value in flat.items()]
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(nested))
    assert Config.load(path) == Config(**flat) == Config().override(*dotted)
    assert not caplog.records
    assert Config.load(path, ["sampling.group=3", "--temperature=0.5"]) == Config(**flat | {"group": 3, "temperature": 0.5})
    path.write_text(yaml.safe_dump(flat))
    assert Config.load(path) == Config(**flat)
    (record,) = caplog.records
    assert "sampling.group for group" in record.message
    assert "tau for" not in record.message
    # what a run folder holds is flat, and read without a word
    assert Config.from_dict(Config(**flat).asdict()) == Config(**flat)
    assert len(caplog.records) == 1


@pytest.mark.parametrize(("values", "words"), [
    ({"sampling": {"groop": 2}}, "config.sampling: got the unknown key 'groop'; Did you mean 'group'?"),
    ({"sampling": {"group": 2}, "group": 3}, "got group and sampling.group; they are one key"),
    ({"samplin": {"group": 2}}, "config: got the unknown key 'samplin'; Did you mean 'sampling'?"),
    ({"sampling": 3}, "config: got the unknown key 'sampling'"),
    ({"labels": {"budget": -1}}, "config.label_budget: got -1; it must be a whole number of at least 0"),
])  # fmt: skip
def test_sections_are_checked(values, words):
    with pytest.raises(InvalidConfig) as caught:
        Config.from_dict(values)
    assert words in str(caught.value)


def test_it_survives_yaml_and_overrides(tmp_path):
    yaml = pytest.importorskip("yaml")
    path = tmp_path / "config.yaml"
    config = Config(steps=7, objective={"gold": 2.0, "preference": 1.0}, lora_targets=["c_attn"], zeta=1e-3)
    path.write_text(yaml.safe_dump(config.asdict()))
    assert Config.load(path) == config
    changed = Config.load(path, ["steps=9", "--estimator=paired", "w=1e-2", "gradient-checkpointing=true", "out=a=b"])
    assert (changed.steps, changed.estimator, changed.w, changed.gradient_checkpointing, changed.out) == (
        9, "paired", 0.01, True, "a=b",
    )  # fmt: skip
    path.write_text("zeta: 1e-3\nobjective: gold\n")  # YAML reads 1e-3 as text
    assert (Config.load(path).zeta, Config.load(path).objective) == (1e-3, {"gold": 1.0})
    path.write_text("")
    assert Config.load(path) == Config()


def test_schedules_are_the_papers_powers():
    at = Config(zeta=0.5, zeta_power=0.5, w=0.3, w_power=0.15, tau=0.1).schedules.at(3)
    assert (at.zeta, at.w, at.tau) == (0.25, pytest.approx(0.3 / 4**0.15), 0.1)


def test_a_configuration_does_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().steps = 3


BAD = {
    "unknown key": ({"stepz": 3}, "config: got the unknown key 'stepz'; Did you mean 'steps'?"),
    "unknown choice": ({"estimator": "pair"}, "config.estimator: got 'pair'; Did you mean 'paired'?"),
    "top-p": ({"top_p": 0.9}, "config.top_p: got 0.9; training gradients are those of the true sampling law"),
    "remote code": ({"trust_remote_code": True}, "code from a model's repository is never run"),
    "type": ({"steps": "many"}, "config.steps: got 'many'; a value of type int is needed. Correct the value."),
    "bool is no int": ({"steps": True}, "config.steps: got True; a value of type int is needed"),
    "range": ({"group": 0}, "config.group: got 0; it must be a whole number of at least 1. Set group accordingly."),
    "not finite": ({"temperature": float("nan")}, "config.temperature: got nan; it must be a finite number above 0"),
    "coupling": ({"coupling": 1.5}, r"config.coupling: got 1.5; it must lie in [0, 1]"),
    "schedule": ({"w": 0.0}, "config.w.initial: got 0.0; it must be a finite number above 0"),
    "rising schedule": ({"tau_power": -0.1}, "a schedule may not increase"),
    "objective": ({"objective": {"golf": 1.0}}, "the unknown objective 'golf'; Did you mean 'gold'?"),
    "no objective": ({"objective": {}}, "at least one objective with a weight other than 0"),
    "pairs": ({"pairs_per_step": 99}, "config.pairs_per_step: got 99; a batch of 64 completions has at most 32"),
    "pair of one": ({"group": 1, "pairs_per_step": 2}, "a pair is two completions of one prompt"),
    "group norm": ({"credit": "group_norm", "level": "sequence"}, "Write recipe: grpo, or recipe: credit=group_norm"),
    "k3 entropy": ({"regularizer": "entropy", "kl_estimator": "k3"}, "k3 estimates a KL, not an entropy"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_values_are_named_with_what_is_allowed(name):
    values, text = BAD[name]
    with pytest.raises(InvalidConfig) as caught:
        Config.from_dict(values)
    assert text in str(caught.value)


def test_refused_keys_are_not_keys():
    assert not REFUSED.keys() & Config.keys().keys()


def test_files_that_are_not_configurations(tmp_path):
    with pytest.raises(InvalidConfig, match="a readable YAML file is needed"):
        Config.load(tmp_path / "none.yaml")
    path = tmp_path / "a.yaml"
    path.write_text("- 1\n")
    with pytest.raises(InvalidConfig, match="got list; a mapping of keys to values is needed"):
        Config.load(path)
    path.write_text("a: [")
    with pytest.raises(InvalidConfig, match="text that is not YAML"):
        Config.load(path)
    with pytest.raises(InvalidConfig, match="an override reads key=value"):
        parse_overrides(["steps"])


@pytest.mark.parametrize(("method", "length"), [("bilevel", 100), ("nested", 10), ("finite_difference", 10)])
def test_a_step_of_x_falls_over_as_many_steps_as_x_takes(method, length):
    config = Config(method=method, steps=100, inner_steps=10, schedule="linear", objective={"gold": 1.0})
    assert config.schedules.zeta.steps == length
    assert config.schedules.alpha.steps == 100
