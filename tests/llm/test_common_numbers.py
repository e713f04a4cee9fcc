"""Draws with common numbers: each policy keeps its own law, and the two differ as seldom as their laws."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch
from llm_models import trainer

from bilevel_rl.llm.sampling.sampler import inverse_cdf, race

LOGITS = torch.tensor([0.3, -1.0, 2.0, 0.0, 1.1, -0.4], dtype=torch.double)


@pytest.mark.parametrize("choose", [race, inverse_cdf])
@pytest.mark.parametrize("seed", range(3))
def test_the_marginal_law_is_the_softmax(choose, seed):
    draws = 40_000
    u = torch.from_numpy(np.random.default_rng(seed).random(draws))
    tokens, logp = choose(LOGITS.expand(draws, -1), u)
    counts = torch.bincount(tokens, minlength=len(LOGITS)).numpy()
    expected = LOGITS.softmax(0).numpy() * draws
    assert scipy.stats.chisquare(counts, expected).pvalue > 1e-4
    torch.testing.assert_close(logp, LOGITS.log_softmax(0)[tokens])


def test_neighbouring_numbers_give_independent_tokens():
    """The hash leaves nothing of the order of u: tokens of u and of its successor are independent."""
    u = torch.arange(40_000).double() / 40_000
    tokens, _ = race(LOGITS.expand(len(u), -1), u)
    table = torch.zeros(6, 6)
    table.index_put_((tokens[:-1], tokens[1:]), torch.ones(len(u) - 1), accumulate=True)
    assert scipy.stats.chi2_contingency(table.numpy()).pvalue > 1e-4


def test_a_race_differs_less_than_inverse_laws_where_a_low_index_changes():
    u = torch.from_numpy(np.random.default_rng(0).random(40_000))
    p = torch.full((200,), 1 / 200, dtype=torch.double)
    q = p.clone()
    q[0] *= 10  # every cumulative weight moves
    q = q / q.sum()
    apart = {}
    for choose in (race, inverse_cdf):
        one, two = (choose(law.log().expand(len(u), -1), u)[0] for law in (p, q))
        apart[choose] = float((one != two).double().mean())
    distance = float((p - q).abs().sum() / 2)  # no coupling differs less often
    assert distance - 0.01 < apart[race] < 2.1 * distance
    assert apart[inverse_cdf] > 10 * apart[race]


def test_equal_followers_write_the_same_and_the_option_says_how():
    for option, same in (("race", True), ("inverse", True), ("none", False)):
        made = trainer(estimator="paired", objective="gold", common_numbers=option)
        theta, theta_l = made.sample(0)
        assert torch.equal(theta.rows.ids, theta_l.rows.ids) is same
    assert made.config.common == "none"
    assert trainer(estimator="shared").config.common == "none"
