"""Objectives that are not the labels' mean: worst prompts, a constraint with its price, calibration; against enumeration."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from table_engine import TableEngine, TableLabels
from torch import Tensor

from bilevel_rl.levels.loop import Loop
from bilevel_rl.levels.objectives import (
    Calibration,
    Constrained,
    Gold,
    Preference,
    Sample,
    WorstPrompts,
    make_objective,
)
from bilevel_rl.levels.settings import Settings
from bilevel_rl.policy_gradient.recipes import named
from bilevel_rl.schedules import PowerDecay, TimeScales


class Rows:
    def __init__(self, group: Tensor) -> None:
        self.group, self.size = group, len(group)


def sample(gold: Tensor, group: Tensor, **more) -> Sample:
    ones = torch.ones(len(gold), dtype=gold.dtype)
    rewards = torch.zeros(len(gold), dtype=gold.dtype, requires_grad=True)
    nothing = torch.empty(0, 2, dtype=torch.long)
    return Sample(Rows(group), rewards, ones, gold, nothing, lambda _: None, **more)


def test_worst_prompts_are_the_mean_of_the_tail_and_pay_it_alone():
    gold = torch.tensor([1.0, 3.0, 0.0, 2.0, 5.0, 7.0, 4.0, 4.0])
    group = torch.arange(8) // 2  # means 2, 1, 6, 4
    half = WorstPrompts(0.5).evaluate(sample(gold, group))
    assert half.value == -1.5
    assert half.bonus.tolist() == [2.0, 6.0, 0.0, 4.0, 0.0, 0.0, 0.0, 0.0]
    worst = WorstPrompts(1e-9).evaluate(sample(gold, group))
    assert worst.value == -1.0
    assert worst.bonus.nonzero()[:, 0].tolist() == [3]
    every = WorstPrompts(1.0).evaluate(sample(gold, group))
    whole = Gold().evaluate(sample(gold, group))
    assert every.value == pytest.approx(whole.value)
    torch.testing.assert_close(every.bonus, whole.bonus)


def test_the_bonus_of_worst_prompts_is_minus_the_gradient_of_f():
    """Two prompts with laws of their own: f = -min of their means; the score-function sum is its exact gradient."""
    gold = torch.tensor([[1.0, 0.0], [3.0, 2.0]], dtype=torch.double)  # [prompt, action]
    logits = torch.tensor([[0.3, -0.2], [0.1, 0.4]], dtype=torch.double, requires_grad=True)
    law = logits.softmax(-1)
    (exact,) = torch.autograd.grad(-(law * gold).sum(-1).min(), logits, retain_graph=True)
    total = torch.zeros_like(logits)
    for a, b in itertools.product(range(2), range(2)):  # one row a prompt: every batch
        chance = law[0, a] * law[1, b]
        upper = WorstPrompts(0.5).evaluate(sample(torch.stack([gold[0, a], gold[1, b]]), torch.arange(2)))
        logp = torch.stack([law[0, a].log(), law[1, b].log()])
        (g,) = torch.autograd.grad((upper.bonus * logp).sum() / 2, logits, retain_graph=True)
        total = total + chance.detach() * g
    torch.testing.assert_close(total, -exact)


def test_the_price_of_a_constraint_rises_where_it_is_broken_and_falls_where_it_is_kept():
    gold, group = torch.tensor([1.0, 2.0]), torch.zeros(2, dtype=torch.long)
    for cost, sign in ((torch.tensor([3.0, 1.0]), -1), (torch.tensor([0.0, 0.5]), 1)):
        made = Constrained(Gold(), bound=1.0, start=0.5)
        assert made.price == pytest.approx(0.5, rel=1e-4)
        upper = made.evaluate(sample(gold, group, cost=cost))
        assert upper.value == pytest.approx(-1.5 + 0.5 * float(cost.mean() - 1), rel=1e-4)
        torch.testing.assert_close(upper.bonus, gold - 0.5 * cost, atol=1e-4, rtol=0)
        (g,) = torch.autograd.grad(upper.loss, made.multiplier)
        assert math.copysign(1, float(g)) == sign  # x descends, so a broken constraint raises the price
    spent = Constrained(Gold(), bound=1.0)
    assert spent.evaluate(sample(gold, group)).loss is None
    assert (spent.needs_gold, spent.needs_pairs, spent.fits) == (True, False, False)


def test_calibration_is_the_brier_score_and_bounded():
    pairs = torch.tensor([[0, 1], [2, 3]])
    rewards = torch.tensor([2.0, 0.0, -50.0, 50.0], requires_grad=True)
    at = Sample(Rows(torch.tensor([0, 0, 1, 1])), rewards, torch.ones(4), None, pairs, lambda _: None)
    upper = Calibration().evaluate(at)
    right = 1 / (1 + math.exp(-2.0))
    assert upper.value == pytest.approx(((1 - right) ** 2 + 1.0) / 2)
    assert Preference().evaluate(at).value > 40  # the likelihood is not
    assert upper.pairs is not None
    assert make_objective({"calibration": 1.0}) == Calibration()
    assert make_objective({"worst_prompts": 1.0}, tail=0.1).share == 0.1


class Costly(TableLabels):
    """The first feature is what a row costs."""

    def cost(self, rows):
        return self.engine.features[rows.number, 0]


@pytest.mark.parametrize("bound", [-0.4, 5.0])
def test_a_constrained_run_keeps_its_bound_or_pays_nothing_for_it(bound):
    scales = TimeScales(PowerDecay(0.05), PowerDecay(0.05), PowerDecay(0.05), PowerDecay(0.4), PowerDecay(0.3))
    engine = TableEngine(networks=1, rows=64, group=64)
    made = Constrained(Gold(), bound=bound)
    made.multiplier.data = made.multiplier.data.double()
    plain = engine.parameters
    engine.parameters = lambda role: plain(role) | (made.parameters() if role == "reward" else {})
    settings = Settings(batch=64, group=64, steps=150, schedules=scales, pairs_per_step=0)
    loop = Loop(engine, settings, made, Costly(engine), named("token_rloo"))
    loop.train()
    cost = float(engine.law("policy").detach() @ engine.features[:, 0])
    if bound < 0:
        assert cost < bound + 0.1
        assert made.price > 0.1
    else:
        assert made.price < 0.02
    line = loop.history[-1]
    assert {"cost", "multiplier"} <= line.keys()
    assert line["labels"] == 150 * 64 * 2  # gold scores and costs are labels
