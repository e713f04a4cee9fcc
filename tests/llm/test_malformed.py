"""Malformed configurations, judges and rewards: one named error each, never another exception."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import time

import pytest
import yaml
from llm_models import gpt2, trainer

from bilevel_rl.commands.llm import train
from bilevel_rl.errors import BilevelError, InvalidConfig, InvalidProblem
from bilevel_rl.llm.config import Config
from bilevel_rl.llm.judges.asking import JudgeFailed
from bilevel_rl.llm.sections import SECTIONS

ODD = [
    None, "", "nonsense", "1e-3", -1, 0, 1, 2, 10**12, -0.5, 0.0, 0.5, 1e300, float("nan"), float("inf"), True, False,
    [], [1], ["x"], [None], {}, {"gold": 1.0}, {"gold": "x"}, {"nosuch": 1.0}, {"win_rate": float("nan")}, {"initial": 1},
    {"power": -1}, "../..", "a" * 300, "\x00", "vllm:", "http://", "4bit", "lora", "bfloat16", "fisher", "credit=",
    "loss=clipped(", "queue:",
]  # fmt: skip
KEYS = [*(f.name for f in dataclasses.fields(Config)), *SECTIONS, "nosuch", "stepz", 7, "tau.power", "lora.rankk", "top_p"]
START = {"steps": 2, "prompts_per_step": 2, "group": 2, "max_new_tokens": 3, "pairs_per_step": 1, "stop_ids": [1]}


def malformed(number: int) -> dict:
    """A configuration with one to four odd values."""
    choose = random.Random(number)
    return START | {choose.choice(KEYS): choose.choice(ODD) for _ in range(choose.randint(1, 4))}


def test_five_hundred_malformed_configurations_are_taken_or_refused_in_a_sentence():
    taken = 0
    for number in range(500):
        values = malformed(number)
        try:
            config = Config.from_dict(values)
        except BilevelError:
            continue
        except Exception as error:
            pytest.fail(f"{type(error).__name__} ({error}) from {values}")
        taken += 1
        assert Config.from_dict(config.asdict()) == config or "nan" in repr(values)
    assert 10 < taken < 490, taken  # the odd values are neither all refused nor all harmless


def test_configurations_that_are_taken_make_a_trainer_or_say_what_is_missing():
    made = 0
    for number in range(500):
        values = malformed(number)
        try:
            config = Config.from_dict(values)
        except BilevelError:
            continue
        if config.out or config.loggers or config.policy or config.steps > 2 or config.batch * config.max_new_tokens > 1e3:
            continue
        try:
            trainer(gpt2(), **{key: getattr(config, key) for key in values if hasattr(config, str(key))})
            made += 1
        except BilevelError:
            continue
        except Exception as error:
            pytest.fail(f"{type(error).__name__} ({error}) from {values}")
        if made > 6:
            break
    assert made > 5


@pytest.mark.parametrize(
    "text",
    ["", "[1, 2]", "words", "a: [", "{", "steps: 3\nsteps: 4", "? x", "\t- y", "!!python/object:os.system {}", "é: \x80"],
)
def test_files_that_are_no_configuration(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    with contextlib.suppress(BilevelError):
        assert isinstance(Config.load(path), Config)


def test_a_file_in_another_encoding_and_a_folder(tmp_path):
    (tmp_path / "latin.yaml").write_bytes("judge: caf\xe9".encode("latin-1"))
    for path in (tmp_path / "latin.yaml", tmp_path, tmp_path / "nosuch.yaml"):
        with pytest.raises(InvalidConfig):
            Config.load(path)
    (tmp_path / "good.yaml").write_text(yaml.safe_dump({"steps": 1}))
    with pytest.raises(InvalidConfig, match=r"config\.prompts: got nothing"):
        train.main([str(tmp_path / "good.yaml")])


def raises(*_, **__):
    raise KeyError("oops")


JUDGES = {
    "raises": (raises, "KeyError"), "too few": (lambda p, c, **_: [0], "1 answers for 4 pairs"),
    "a number": (lambda p, c, **_: 1, "TypeError"), "None": (lambda p, c, **_: None, "TypeError"),
    "a third": (lambda p, c, **_: [2] * len(p), "the answer 2"), "takes nothing": (lambda: [], "TypeError"),
    "text": (lambda p, c, **_: ["A"] * len(p), "the answer 'A'"),
    "halves": (lambda p, c, **_: [0.5] * len(p), "the answer 0.5"),
    "nan": (lambda p, c, **_: [float("nan")] * len(p), "the answer nan"),
    "lists": (lambda p, c, **_: [[0]] * len(p), "the answer"),
}  # fmt: skip


@pytest.mark.parametrize("name", JUDGES)
def test_judges_that_fail_are_named(name):
    judge, says = JUDGES[name]
    with pytest.raises(JudgeFailed, match=says):
        trainer(estimator="tilted", judge=judge, gold=None, objective="label_likelihood").train()


REWARDS = {
    "raises": (raises, r"KeyError \('oops'\), .*test_malformed.py line \d+"),
    "too few": (lambda completions, **_: [1.0], "1 values"),
    "a number": (lambda **_: 1.0, "1.0 for 16 completions"), "text": (lambda **_: "good", "'good' for 16 completions"),
    "nan": (lambda completions, **_: [float("nan")] * len(completions), "nan for completion 0"),
    "lists": (lambda completions, **_: [[1.0]] * len(completions), r"\[1.0\] for completion 0"),
    "takes nothing": (lambda: [], "take \\*\\*kwargs"),
}  # fmt: skip


@pytest.mark.parametrize("name", REWARDS)
def test_rewards_that_fail_are_named(name):
    reward, says = REWARDS[name]
    made = trainer(method="plain", recipe="grpo", reward=reward, judge=None, gold=None)
    with pytest.raises(InvalidProblem, match=says):
        made.train()


def test_a_slow_judge_is_waited_for_and_a_slow_reward_too():
    def slow(prompts, completions, shuffle_order=False):
        time.sleep(0.02)
        return [0] * len(prompts)

    def paid(completions, **_):
        time.sleep(0.02)
        return [float(i) for i in range(len(completions))]

    assert len(trainer(estimator="tilted", judge=slow, gold=None, objective="label_likelihood", steps=2).train()) == 2
    assert len(trainer(method="plain", recipe="grpo", reward=paid, judge=None, gold=None, steps=2).train()) == 2
