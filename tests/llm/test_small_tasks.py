"""Small tasks with worlds: what they say of rows, rollouts that go on from prefixes in them, and the command."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from llm_models import untimed

from bilevel_rl.commands.llm import train
from bilevel_rl.errors import InvalidConfig
from bilevel_rl.llm.config import Config
from bilevel_rl.llm.data.prompts import Prompt, as_prompts
from bilevel_rl.llm.export import restore
from bilevel_rl.llm.fields import fields_by_name
from bilevel_rl.llm.sampling.rollout import from_pairs
from bilevel_rl.llm.sampling.sampler import uniforms
from bilevel_rl.llm.tasks import prisoners, running_sums, text_world
from bilevel_rl.llm.tasks.by_name import TASKS, task
from bilevel_rl.llm.tasks.small import tiny_gpt2
from bilevel_rl.llm.trainer import BilevelTrainer


def trainer(name, recipe="grpo", rows=8, **changes):
    """On a small task, with a policy that has learnt nothing."""
    made = task(name)
    words = made.tokenizer
    policy = tiny_gpt2(len(words), 0, 40, width=16)
    values = {
        "method": "plain", "recipe": recipe, "steps": 2, "prompts_per_step": 2, "group": rows // 2, "tau": 1e-3,
        "max_new_tokens": made.horizon, "kl_estimator": "k1", "alpha": 1e-2, "beta": 1e-2, "device": "cpu",
    }  # fmt: skip
    return BilevelTrainer(
        Config(**values | changes), policy, made.reward, made.rows, tokenizer=words, fields=made.fields(words),
        generator=made.generator(words), gold=made.reward,
    )  # fmt: skip


@pytest.mark.parametrize("level", [1, 4])
def test_the_shortest_path_earns_one_and_every_turn_more_costs_a_tenth(level):
    made, world = text_world.make_task(level), text_world.make_map(level)
    for row in [*made.rows, *made.held_out]:
        prompt, path = row["prompt"], row["demonstration"]
        assert made.reward([prompt], [path]) == [1.0]
        distance = world.distances(prompt[1])[prompt[0]]
        assert 2 <= distance <= 4
        assert len(path) == 2 * distance - 1
        into_a_wall = next((m for m in text_world.MOVES if world.move(prompt[0], m) == prompt[0]), None)
        if into_a_wall:
            assert made.reward([prompt], [into_a_wall + prompt[0] + path]) == pytest.approx([0.9])
        assert made.reward([prompt], [path[:-1]]) == [0.0]
    assert not {r["prompt"] for r in made.rows} & {r["prompt"] for r in made.held_out}


def test_rows_interleave_moves_and_answers_and_only_moves_are_the_policys():
    made, world = task("text_world@2"), text_world.make_map(2)
    words = made.tokenizer
    policy = tiny_gpt2(len(words), 0, 40, width=16)
    prompts = as_prompts(made.rows, words)[:8] * 4
    y = made.generator(words)(policy, prompts, uniforms(len(prompts), made.horizon, 0, 1))
    found = made.fields(words)
    turn, state, room = (found[name](y) for name in ("turn", "state_key", "switch"))
    for i, ids in enumerate(y.completion_ids()):
        text, prompt = text_world.Answering(world, words).text(ids), prompts[i].text
        walk = text_world.walked(world, prompt, text)
        assert y.mask[i, : len(ids)].tolist() == [float(t % 2 == 0) for t in range(len(ids))]
        assert len(walk.moves) == len(ids) // 2 + 1
        assert bool(y.ended[i])
        for u, place in enumerate(walk.places):
            assert turn[i, 2 * u] == u
            assert state[i, 2 * u] % len(world.places) == world.places.index(place)
            if u:
                assert text[2 * u - 1] == place  # what the world has said is where one is
        assert not bool(room[i, 0])
    assert (y.logp[y.mask == 0] == 0).all()


def test_rows_written_again_keep_the_marks_of_the_worlds_words():
    made = trainer("text_world@2", "rollout=refill(attempts=1), credit=group_norm", steps=1)
    once = trainer("text_world@2", "credit=group_norm", steps=1)
    made.train(), once.train()
    rows, first = made.learner.rewarded, once.learner.rewarded
    again = ~torch.isin(rows.group, first.group)
    assert bool(again.any())
    for mask in rows.mask:
        moves = mask.nonzero()[:, 0].tolist()
        assert moves == list(range(0, 2 * len(moves), 2))  # every second token is an answer of the world
    assert made.tokens == int(first.mask.sum()) + int(rows.mask[again].sum())


def test_rows_go_on_from_any_of_the_policys_tokens_in_a_world():
    one = trainer("text_world@2", "rollout=[vine, prefix_values(continuations=2, interval=1)], credit=segment_chain")
    rows = one.engine.sample("policy", 0)
    assert rows.size == 8
    cut, value, segment = (rows.extras[n] for n in ("window_start", "prefix_value", "segment"))
    world = text_world.make_map(2)
    answering = text_world.Answering(world, one.tokenizer)
    assert (cut % 2 == 0).all()  # never inside an answer
    for i, ids in enumerate(rows.completion_ids()):
        text = answering.text(ids)
        walk = text_world.walked(world, rows.prompts[i].text, text)
        assert len(ids) == 2 * len(walk.moves) - 1
        assert rows.mask[i, : len(ids)].tolist() == [float(t % 2 == 0) for t in range(len(ids))]
    assert ((value == 0) | (rows.mask > 0)).all()
    assert (segment[:, 1:] >= segment[:, :-1])[rows.mask[:, 1:] > 0].all()


def test_what_two_rows_of_a_game_see_is_what_the_other_did():
    made = task("prisoners")
    words = made.tokenizer
    prompts = [p for p in as_prompts(made.rows, words) for _ in range(2)]
    y = made.generator(words)(tiny_gpt2(len(words), 0, 40, width=16), prompts, uniforms(10, made.horizon, 0, 1))
    rows = [prisoners.Meeting(words).text(ids) for ids in y.completion_ids()]
    for one, two in zip(rows[::2], rows[1::2], strict=True):
        assert len(one) == len(two)
        for mine, seen in ((one, two), (two, one)):
            choices = [c if c in "CD" else "D" for c in mine[:-1:2]]
            assert seen[1::2] == "".join(choices).lower()
    assert prisoners.reward([""], ["CcDd."]) == pytest.approx([0.4])
    other = made.fields(words)["other_advantage"](y)
    group = torch.tensor([p.ids[1] for p in prompts])
    for g in group.unique():
        assert other[group == g].sum(0).abs().max() < 1e-6
    with pytest.raises(InvalidConfig, match="even number"):
        made.generator(words)(tiny_gpt2(len(words), 0, 40, width=16), prompts[:3], uniforms(3, 5, 0))


def test_hints_and_probes_read_solutions_and_answers():
    assert running_sums.solution([3, 4, 8]) == "7;5>5"
    assert running_sums.graded("3+4+8=", "whatever>5") == 1.0
    one = trainer("running_sums", "spae")
    rows = one.engine.sample("policy", 0)
    assert {"accuracy", "confidence", "start_potential"} <= set(rows.extras)
    accuracy = rows.extras["accuracy"][rows.mask > 0]
    assert ((accuracy > 0) & (accuracy < 1)).all()  # of a policy that has learnt nothing
    hinted = trainer("running_sums", "adhint").engine.sample("policy", 0)
    for i, (mark, text) in enumerate(zip(hinted.extras["hint"], hinted.texts, strict=True)):
        given = int(mark.sum())
        assert text[:given] == running_sums.solution([int(n) for n in hinted.prompts[i].text[:-1].split("+")])[:given]
    assert bool(hinted.extras["hinted"].any())
    assert not bool(hinted.extras["hinted"].all())


def test_an_unfinished_row_is_not_paid_and_goes_on_after_a_stop(tmp_path):
    recipe = "rollout=windows(tokens=2), credit=truncated_gae, weigh=window, loss=clipped"

    def run(steps=4, **changes):
        return trainer("running_sums", recipe, steps=steps, **changes)

    whole = run()
    lines = untimed(whole.train())
    stopped = run(2, out=str(tmp_path / "run"))
    stopped.train()
    waiting = stopped.learner.memory["windows"]["length"]
    assert 0 < len(waiting) <= 8
    assert set(waiting.tolist()) <= {2, 4}
    later = run(out=str(tmp_path / "run"), resume="auto")
    assert later.step == 2
    assert untimed(later.train()) == lines
    rows = whole.engine.sample("policy", 0)
    assert bool(rows.extras["pending"].any())
    with torch.no_grad():
        assert (whole.engine.rewards(rows)[rows.extras["pending"]] == 0).all()


def test_plain_rows_are_what_they_were_before_a_component_wrote_them():
    plain = trainer("text_world@2").engine.sample("policy", 0)
    with_values = trainer("text_world@2", "rollout=prefix_values, credit=segment_chain").engine.sample("policy", 0)
    assert with_values.completion_ids() == plain.completion_ids()
    torch.testing.assert_close(with_values.logp, plain.logp)


def test_the_command_trains_on_a_task_with_fields_of_ones_own(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "import torch\ndef halves(rows):\n    return (torch.arange(rows.horizon) // 3).expand(rows.size, -1)\n"
    )
    monkeypatch.setattr("bilevel_rl.llm.tasks.small.SmallTask._train", lambda self, folder, seed: _untrained(self, folder))
    argv = ["--method", "plain", "--task", "arithmetic", "--recipe", "spae", "--steps", "1", "--prompts_per_step", "2",
            "--group", "2", "--task.fields", "turn=mine.py:halves", "--out", "run", "--device", "cpu"]  # fmt: skip
    assert train.main(argv) == 0
    header = json.loads((tmp_path / "run/run.json").read_text())
    assert header["config"]["fields"] == {"turn": "mine.py:halves"}
    assert header["problem"] == "arithmetic"
    again = restore("run")  # for sampling and exporting, with all that its recipe reads
    assert (again.step, again.recipe.name) == (1, "spae")
    capsys.readouterr()


def _untrained(made, folder):
    words = made.tokenizer
    tiny_gpt2(len(words), 0, 40, width=16).save_pretrained(folder)
    words.save_pretrained(folder)
    return {}


def test_a_field_is_a_function_or_a_column_of_numbers():
    prompts = [Prompt((3,), "a", {"seconds": 2, "word": "x"}), Prompt((4,), "b", {"seconds": 3, "word": "y"})]
    rows = from_pairs([(p, (5, 6)) for p in prompts], pad_id=0)
    assert fields_by_name({"duration": "seconds"}, prompts)["duration"](rows).tolist() == [2, 3]
    for source, words in {
        "second": "Did you mean 'seconds'", "word": "holds a number in every row", "math:pi": "a function of a rollout",
        "nowhere.py:f": "no file",
    }.items():  # fmt: skip
        with pytest.raises(InvalidConfig, match=words):
            fields_by_name({"duration": source}, prompts)
    with pytest.raises(InvalidConfig, match=r"config\.fields\.turn"):
        fields_by_name({"turn": "math:fsum"}, prompts)["turn"](from_pairs([(prompts[0], (5, 6))], pad_id=0))
    assert Config.from_dict({"fields": "turn=a:b, duration=seconds"}).fields == {"turn": "a:b", "duration": "seconds"}
    with pytest.raises(InvalidConfig, match="name=source"):
        Config.from_dict({"fields": "turn"})


def test_unknown_tasks_and_levels_are_named():
    for name, words in {
        "text_wrld": "Did you mean 'text_world'", "text_world@x": "whole number", "text_world@9": "1 to 6",
    }.items():  # fmt: skip
        with pytest.raises(InvalidConfig, match=words):
            task(name)
    for name in TASKS:
        made = task(name)
        words = made.tokenizer
        known = set(made.symbols)
        lines = made.lines(4, np.random.default_rng(0))
        assert all(set(p + c) <= known for p, c in lines)
        assert words.unk_token_id not in words("".join(p + c for p, c in lines))["input_ids"]
        assert all(len(words(c)["input_ids"]) <= made.horizon for _, c in lines)


def test_rollouts_that_cannot_go_together_are_refused_before_training():
    for recipe, words in {
        "rollout=[tree, vine]": "one component of the slot begins rows", "rollout=[refill, tree]": "begins rows",
        "rollout=hint, credit=adhint_credit": "demonstration",
    }.items():  # fmt: skip
        with pytest.raises(InvalidConfig, match=words):
            trainer("prisoners", recipe)
    paired = {"method": "bilevel", "estimator": "paired", "objective": {"gold": 1.0}}
    with pytest.raises(InvalidConfig, match="each policy would write other starts"):
        trainer("running_sums", "t_ppo_windows", **paired)


@pytest.mark.slow
def test_the_text_world_is_learnt_by_the_baseline(tmp_path):
    """From a quarter to above .8 in some seconds of processor time (a minute is granted on a slow machine)."""
    made = task("text_world@2")
    folder = made.start(tmp_path)
    one = BilevelTrainer(
        Config(method="plain", recipe="grpo", policy=str(folder), steps=100, prompts_per_step=8, group=8, alpha=1e-3,
               tau=1e-3, kl_estimator="k1", max_new_tokens=made.horizon, device="cpu"),
        reward=made.reward, prompts=made.rows, fields=made.fields(made.tokenizer),
        generator=made.generator(made.tokenizer),
    )  # fmt: skip
    with one.roles.model("policy") as policy:
        before = made.score(policy, 1)
    one.train()
    with one.roles.model("policy") as policy:
        assert made.score(policy, 1) > max(0.8, before + 0.3)
