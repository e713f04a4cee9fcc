"""Arithmetic and string problems: answers, verifiers, splits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bilevel_rl.errors import InvalidConfig
from bilevel_rl.llm.tasks import arithmetic
from bilevel_rl.llm.tasks.arithmetic import (
    ALPHABET,
    KINDS,
    Characters,
    answer_of,
    as_rows,
    form,
    generate,
    is_held_out,
    partial,
    reward,
    rewards,
    verify,
)

EVERY = generate(600, seed=1, kinds=tuple(KINDS), levels=(1, 2, 3))


def test_every_answer_is_verified_and_worked_out_again():
    assert {p.kind for p in EVERY} == set(KINDS)
    for p in EVERY:
        assert answer_of(p.prompt) == p.answer
        assert verify(p.prompt, p.answer) == partial(p.prompt, p.answer) == form(p.prompt, p.answer) == 1
        assert set(p.prompt + p.answer) <= set(ALPHABET)


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [("12+30=", "42"), ("3-10=", "-7"), ("12*7=", "84"), ("max:3,21,12=", "21"), ("copy:abc=", "abc"),
     ("rev:abc=", "cba"), ("sort:cab=", "abc"), ("count:a:banana=", "3")],
)  # fmt: skip
def test_answers_by_hand(prompt, answer):
    assert answer_of(prompt) == answer


@given(st.text(alphabet=ALPHABET, max_size=6))
def test_only_the_answer_is_right(text):
    for p in EVERY[:30]:
        right = text == p.answer
        assert verify(p.prompt, text) == float(right)
        assert (partial(p.prompt, text) == 1) == right
        assert 0 <= partial(p.prompt, text) <= 1


def test_wrong_answers_get_less_by_how_wrong_they_are():
    assert partial("55+50=", "105") > partial("55+50=", "104") > partial("55+50=", "999") == 0
    assert partial("1+1=", "22222") < 1
    assert form("1+1=", "9") == 1
    assert form("1+1=", "cat") == form("1+1=", "123456") == form("rev:ab=", "12") == form("1+1=", "") == 0


def test_difficulty_grows_with_the_level():
    sizes = [
        sum(len(p.prompt + p.answer) for p in generate(80, 0, tuple(KINDS), (level,)))
        for level in (1, 2, 3, 4)
    ]
    assert sizes == sorted(sizes)
    assert sizes[0] < 0.8 * sizes[3]


def test_training_and_held_out_problems_never_meet_and_repeat_by_seed():
    train = generate(300, seed=0, kinds=("add", "sort"), levels=(2, 3))
    held = generate(300, seed=0, kinds=("add", "sort"), levels=(2, 3), held_out=True)
    assert not {p.prompt for p in train} & {p.prompt for p in held}
    assert all(is_held_out(p.prompt) for p in held)
    assert generate(300, seed=0, kinds=("add", "sort"), levels=(2, 3)) == train
    assert generate(300, seed=1, kinds=("add", "sort"), levels=(2, 3)) != train
    assert len({p.prompt for p in train}) == 300


def test_a_level_with_few_problems_gives_what_it_has():
    few = generate(1000, seed=0, kinds=("add",), levels=(1,))
    assert len(few) == sum(not is_held_out(f"{a}+{b}=") for a in range(10) for b in range(10))


def test_reward_functions_and_rows():
    prompts, completions = ["1+1=", "rev:ab="], ["2", "ab"]
    assert reward(prompts, completions, answer=["x", "y"]) == [1.0, 0.0]
    assert rewards(prompts, completions) == [[1.0, 1.0, 1.0], [0.0, 0.0, 1.0]]
    assert as_rows(EVERY[:1])[0]["completion"] == EVERY[0].answer


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: generate(1, 0, kinds=("ad",)), "Did you mean 'add'"),
        (lambda: generate(1, 0, levels=(0,)), "levels"),
        (lambda: answer_of("hello"), "prompt made by"),
        (lambda: Characters().encode("A"), "alphabet"),
    ],
)
def test_bad_input_is_named(call, match):
    with pytest.raises(InvalidConfig, match=match):
        call()


@given(st.text(alphabet=ALPHABET, max_size=20))
def test_the_codec_is_inverted_and_stops_at_the_end(text):
    codec = Characters()
    tokens = codec.encode(text)
    assert codec.decode(tokens) == text
    assert codec.decode([*tokens, codec.end, 7, 8]) == text
    assert max(tokens, default=2) < len(codec) == len(ALPHABET) + 2
    assert arithmetic.HELD_OUT == 0.2
