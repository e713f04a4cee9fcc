"""The win-rate objective: its bonus is the policy gradient of the win, and its loss is the labels'
likelihood.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from bilevel_rl.errors import InvalidConfig
from bilevel_rl.llm.objectives import Preference, Sample
from bilevel_rl.llm.tasks.win_rate import WinRate


def sample_of(rewards, pairs):
    n = len(rewards)
    return Sample(
        SimpleNamespace(size=n), torch.tensor(rewards, requires_grad=True), torch.ones(n), None,
        torch.tensor(pairs, dtype=torch.long).reshape(-1, 2), lambda rollout: None,
    )  # fmt: skip


def test_winners_earn_what_losers_pay_and_the_others_nothing():
    upper = WinRate(2.0).evaluate(sample_of([0.0] * 8, [[1, 4], [6, 3]]))
    assert upper.bonus.tolist() == [0, 2, 0, -2, -2, 0, 2, 0]  # c/2 * N/(2M)


def test_the_bonus_is_the_gradient_of_the_win_rate_against_the_own_policy():
    """One-token policy on three answers of which the higher beats the lower: exact by enumeration of all
    pairs.
    """
    torch.manual_seed(0)
    logits = torch.randn(3, dtype=torch.float64, requires_grad=True)
    p = logits.softmax(0)
    win = torch.tensor([[0.5, 0.0, 0.0], [1.0, 0.5, 0.0], [1.0, 1.0, 0.5]], dtype=torch.float64)
    exact = torch.autograd.grad(p @ win @ p.detach(), logits)[0]
    total = torch.zeros(3, dtype=torch.float64)
    for i in range(3):
        for j in range(3):
            order = [[0, 1]] if win[i, j] == 1 else [[1, 0]]
            answers = [([0, 1], 0.5), ([1, 0], 0.5)] if i == j else [(order[0], 1.0)]
            for pair, chance in answers:
                bonus = WinRate(1.0).evaluate(sample_of([0.0, 0.0], [pair])).bonus.double()
                logp = torch.log_softmax(logits, 0)[torch.tensor([i, j])]
                grad = torch.autograd.grad((bonus * logp).mean(), logits, retain_graph=True)[0]
                total += (p[i] * p[j] * chance).detach() * grad
    # both completions of a pair are drawn from the policy: each is a sample of the same gradient
    assert torch.allclose(total, exact, atol=1e-12)


def test_the_loss_is_that_of_the_labels():
    sample = sample_of([0.3, -0.2, 1.0, 0.0], [[0, 1], [3, 2]])
    ours, theirs = WinRate(5.0).evaluate(sample), Preference().evaluate(sample)
    assert torch.equal(ours.loss, theirs.loss)
    assert ours.value == theirs.value


def test_no_labels_no_bonus_and_no_negative_weight():
    assert WinRate(1.0).evaluate(sample_of([0.0, 1.0], [])).bonus.tolist() == [0, 0]
    with pytest.raises(InvalidConfig, match=r"WinRate\.weight"):
        WinRate(-1.0)
