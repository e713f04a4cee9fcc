"""sample, chat and compare on a trained run, with and without a chat template; a linear reward as a transformers model."""

from __future__ import annotations

import builtins
import json
import math

import pytest
import torch
import yaml
from llm_models import gpt2, trainer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

from bilevel_rl.commands import llm as commands
from bilevel_rl.commands.llm.compare import wins

WORDS = ["<s>", "</s>", "<pad>", "user", "assistant", ":", *"abcdefghijklmnop"]
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }} : {{ m['content'] }} </s> {% endfor %}"
    "{% if add_generation_prompt %}assistant : {% endif %}"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short run of the command line with a chat template, held-out prompts and a scorer in a file."""
    root = tmp_path_factory.mktemp("talk")
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.add_special_tokens(["<s>", "</s>", "<pad>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    tokenizer.chat_template = TEMPLATE
    gpt2(vocab_size=len(WORDS), n_positions=64).save_pretrained(root / "model")
    tokenizer.save_pretrained(root / "model")
    (root / "mine.py").write_text(
        "def score(completions, **_):\n    return [float(str(c).count('a')) for c in completions]\n"
        "def cost(completions, **_):\n    return [len(str(c)) / 10 for c in completions]\n"
    )
    rows = [{"prompt": [{"role": "user", "content": " ".join(word)}]} for word in ("ab", "cd", "ef", "gh")]
    (root / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    held = [{"prompt": [{"role": "user", "content": c}]} for c in "jk"]
    (root / "held.jsonl").write_text("".join(json.dumps(row) + "\n" for row in held))
    values = {
        "policy": str(root / "model"), "prompts": str(root / "prompts.jsonl"), "judge": f"{root}/mine.py:score~4",
        "held_out": {"prompts": str(root / "held.jsonl"), "every": 2}, "steps": 4,
        "risk": {"cost": f"{root}/mine.py:cost", "bound": 0.5},
        "sampling": {"prompts_per_step": 2, "group": 2, "max_new_tokens": 5}, "labels": {"pairs_per_step": 2},
        "keeping": {"save_every": 2, "keep_last": 2}, "out": str(root / "run"), "schedule": {"shape": "cosine", "warmup": 1},
    }  # fmt: skip
    (root / "config.yaml").write_text(yaml.safe_dump(values))
    assert commands.main(["train", str(root / "config.yaml")]) == 0
    return root / "run"


def test_the_command_line_knows_held_out_prompts_costs_and_schedules(run):
    held = [json.loads(line) for line in (run / "held_out.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in held] == [2, 4]
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"cost", "multiplier"} <= last.keys()
    assert (run / "best/state.json").exists()


def test_sample_goes_through_the_chat_template(run, monkeypatch):
    from bilevel_rl.llm import evaluation

    seen = []
    inner = evaluation.evaluate

    def watched(roles, prompts, *rest, **more):
        seen.append(prompts)
        return inner(roles, prompts, *rest, **more)

    monkeypatch.setattr(evaluation, "evaluate", watched)
    commands.main(["sample", str(run), "--prompt", "a b", "--checkpoint", "2"])
    commands.main(["sample", str(run), "--prompt", "a b", "--plain", "--checkpoint", "best"])
    assert seen == [[[{"role": "user", "content": "a b"}]], ["a b"]]


def test_chat_remembers_what_was_said(run, monkeypatch, capsys):
    from bilevel_rl.commands.llm import chat

    typed = iter(["a b", "c", "/new", "d", "/quit"])
    monkeypatch.setattr(builtins, "input", lambda _: next(typed))
    said, inner = [], chat.reply
    monkeypatch.setattr(chat, "reply", lambda t, s, *a: said.append(list(s)) or inner(t, s, *a))
    assert commands.main(["chat", str(run)]) == 0
    assert [[m["role"] for m in turns] for turns in said] == [["user"], ["user", "assistant", "user"], ["user"]]
    assert said[1][2]["content"] == "c"
    assert "its chat template" in capsys.readouterr().out


def test_compare_shows_two_checkpoints_side_by_side(run, tmp_path, capsys):
    out = tmp_path / "compared.json"
    assert commands.main(["compare", str(run), f"{run}@2", "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert [row["prompt"][0]["content"] for row in found["rows"]] == ["j", "k"]  # the run's held-out prompts
    assert all({"gold A", "gold B", "better"} <= row.keys() for row in found["rows"])
    assert found["wins"]["a"] + found["wins"]["b"] + found["wins"]["ties"] == 2
    text = capsys.readouterr().out
    assert "iteration 4" in text
    assert "iteration 2" in text
    # a run against itself: the same numbers write the same texts
    commands.main(["compare", str(run), str(run), "--prompt", "a", "--out", str(out)])
    found = json.loads(out.read_text())
    assert all(row["a"] == row["b"] for row in found["rows"])
    assert found["figures"][0] == found["figures"][1]


def test_the_interval_of_wins_is_wilsons():
    assert wins([-1, -1]) == {"a": 0, "b": 0, "ties": 2, "share": 0.5, "low": 0.0, "high": 1.0}
    found = wins([1] * 8 + [0] * 2)
    assert (round(found["low"], 3), round(found["high"], 3)) == (0.490, 0.943)
    assert math.isclose(wins([0] * 8 + [1] * 2)["low"], 1 - found["high"])


@pytest.mark.parametrize("backend", ["full", "lora"])
def test_a_linear_reward_is_a_classifier_on_the_reference(backend, tmp_path):
    made = trainer(estimator="tilted", reward="linear", backend=backend, objective={"gold": 1.0}, steps=3, zeta=0.1)
    made.train()
    made.export_reward(tmp_path / "reward")
    theta = made.last[0]
    rollout = theta.rows
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward").eval()
    assert loaded.config.num_labels == 1
    wanted = made.roles.rewards(rollout).detach()
    assert float(wanted.abs().max()) > 1e-3
    ends = rollout.ids[torch.arange(rollout.size), rollout.last]
    rows = (ends != 2).nonzero()[:, 0].tolist()[:4]  # no text ends with the padding id; these rows are drawn from all ids
    for i in rows:
        ids = rollout.ids[i][rollout.attention[i].bool()][None]
        with torch.no_grad():
            torch.testing.assert_close(loaded(input_ids=ids).logits[0, 0], wanted[i], atol=1e-5, rtol=1e-4)
