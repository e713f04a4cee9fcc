"""Nothing is inert in silence: each component says in which configurations it can't act, and it is true."""

from __future__ import annotations

import pytest
import torch

from bilevel_rl.policy_gradient import compose
from bilevel_rl.policy_gradient.batch import Batch
from bilevel_rl.policy_gradient.recipe import Recipe
from bilevel_rl.policy_gradient.setting import Setting

KNOWN = Setting(epochs=2, group=4, max_new_tokens=64, turns=True, truncates=True, answers=4)
CASES = [
    ("loss=clipped", {"epochs": 1}, "loss 'clipped' can't act here: one gradient step a batch"),
    ("loss=cispo", {"epochs": 1}, "loss 'cispo'"),
    ("loss=gspo", {"epochs": 1}, "loss 'gspo'"),
    ("loss=unified", {"epochs": 1}, "loss 'unified'"),
    ("loss=mdpo", {"epochs": 1}, "loss 'mdpo'"),
    ("loss=p3o", {"epochs": 1}, "loss 'p3o'"),
    ("regular=0.1*kl_cov", {"epochs": 1}, "regular 'kl_cov'"),
    ("credit=spae", {"turns": False}, "credit 'spae' can't act here: every response has one turn"),
    ("credit=episode + 1.0*step_groups", {"turns": False}, "credit 'step_groups'"),
    ("credit=hgpo", {"turns": False}, "credit 'hgpo'"),
    ("credit=salt", {"turns": False}, "credit 'salt'"),
    ("credit=advantage_alignment", {"turns": False}, "credit 'advantage_alignment'"),
    ("regular=epo", {"turns": False}, "regular 'epo'"),
    (
        "credit=truncated_gae",
        {"truncates": False},
        "credit 'truncated_gae' can't act here: no response is cut",
    ),
    (
        "reward=soft_overlong",
        {"truncates": False},
        "reward 'soft_overlong' can't act here: no response can reach",
    ),
    (
        "reward=soft_overlong(limit=100, cache=20)",
        {},
        "responses have at most 64 tokens and the penalty begins after 80",
    ),
    ("reward=g2rl", {"answers": 1}, "reward 'g2rl' can't act here: every prompt has one correct answer"),
    ("credit=copo", {"answers": 1}, "credit 'copo'"),
    ("credit=adora(weight=1)", {}, "credit 'adora' can't act here: weight=1"),
    ("weigh=probability_mask(below=1)", {}, "weigh 'probability_mask' can't act here: below=1"),
    ("select=d3s(start=1)", {}, "select 'd3s'"),
    ("weigh=d3s_tokens(start=1)", {}, "weigh 'd3s_tokens'"),
    ("credit=empg(adora(weight=1))", {}, "credit 'adora'"),
]


@pytest.mark.parametrize(("text", "known", "sentence"), CASES, ids=[f"{t} {k}" for t, k, _ in CASES])
def test_what_cannot_act_says_so(text, known, sentence):
    said = compose(text).idle(Setting(**{**vars(KNOWN), **known}))
    assert any(line.startswith(sentence) or sentence in line for line in said), said
    assert all(line.count(". ") == 1 for line in said)  # why, and what to do


@pytest.mark.parametrize("text", sorted({text for text, known, _ in CASES if known}))
def test_and_is_silent_where_it_can_or_where_nothing_is_known(text):
    assert compose(text).idle(KNOWN) == []
    assert compose(text).idle(Setting()) == []


ONE_STEP = [text for text, known, _ in CASES if "epochs" in known]


def step(recipe, batch):
    """The gradient of the first step on a batch."""
    ready = recipe.prepare(batch.replace(weight=None, old=batch.logp))
    leaf = batch.logp.clone().requires_grad_()
    loss, _ = recipe.objective(ready.replace(logp=leaf))
    return torch.autograd.grad(loss, leaf)[0]


@pytest.mark.parametrize("text", [t for t in ONE_STEP if t not in ("loss=gspo", "loss=p3o")])
def test_at_ratio_one_they_are_the_policy_gradient(text, batch):
    """What the sentence says is so: the first step's gradient is that of the loss without them."""
    plain = "loss=policy_gradient(aggregate=per_token)"
    with_it = compose(f"{text}, {plain}" if "regular" in text else text)
    torch.testing.assert_close(step(with_it, batch), step(compose(plain), batch), rtol=1e-12, atol=1e-14)


def one_turn(batch: Batch) -> Batch:
    return batch.replace(turn=torch.zeros_like(batch.turn))


@pytest.mark.parametrize("text", ["credit=spae(saturation=1.0)", "credit=advantage_alignment(group_norm)"])
def test_with_one_turn_they_are_what_they_wrap(text, batch):
    batch = one_turn(batch)
    torch.testing.assert_close(compose(text).credit(batch), compose("credit=group_norm").credit(batch))


def test_two_memories_of_one_name_are_apart(batch):
    recipe = compose("regular=[0.1*epo(low=0.9), 0.2*epo(smooth=0.0), 1.0*safe]")
    memory = recipe.init()
    assert list(memory) == ["epo", "epo#2", "safe"]
    memory = recipe.update(memory, batch)
    memory["epo#2"] = {**memory["epo#2"], "mean": memory["epo#2"]["mean"] * 100}
    seen = batch.replace(memory=memory, progress=0.25)
    _, terms = recipe.objective(seen)
    assert set(terms) == {"loss", "epo", "epo#2", "safe"}
    alone = Recipe(regular=(recipe.regular[0],)).objective(seen)[1]["epo"]
    assert terms["epo"] == alone
    other = compose("regular=[0.1*epo(low=0.9), 0.2*epo(smooth=1.0)]")
    assert other.objective(seen)[1]["epo#2"] > 50  # a penalty against a hundredfold history
