"""Ratios, advantages and coefficients as pure functions."""

from __future__ import annotations

import pytest
import torch

from bilevel_rl.levels import estimators as e
from bilevel_rl.policy_gradient.batch import Batch
from bilevel_rl.policy_gradient.credit import ToGoLeaveOneOut

MASK = torch.tensor([[1.0, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 1]], dtype=torch.double)
GROUP = torch.tensor([0, 0, 1, 1])


def test_leave_one_out_with_weights_is_the_mean_of_the_others_under_the_weights():
    values, weights = torch.randn(4, 3, dtype=torch.double), torch.rand(4, dtype=torch.double) + 0.1
    found = e.weighted_leave_one_out(values, torch.zeros(4, dtype=torch.long), weights)
    for i in range(4):
        others = [j for j in range(4) if j != i]
        mean = (weights[others, None] * values[others]).sum(0) / weights[others].sum()
        torch.testing.assert_close(found[i], values[i] - mean)


def test_leave_one_out_leaves_a_group_of_one_alone():
    values = torch.randn(3, 2, dtype=torch.double)
    assert torch.equal(e.weighted_leave_one_out(values, torch.tensor([0, 1, 2])), values)


@pytest.mark.parametrize("tokens", [True, False])
def test_token_level_advantages_count_what_is_still_to_come(tokens):
    reward = torch.randn(4, 3, dtype=torch.double) * MASK
    found = ToGoLeaveOneOut(tokens=tokens)(Batch.make(MASK, reward, GROUP))
    to_go = reward.flip(1).cumsum(1).flip(1) * MASK if tokens else reward.sum(1, keepdim=True).expand(4, 3)
    for i, partner in enumerate((1, 0, 3, 2)):
        torch.testing.assert_close(found[i], (to_go[i] - to_go[partner]) * MASK[i])


def test_responses_alone_in_their_group_are_compared_with_one_another_and_by_their_importance():
    reward, weight = torch.randn(4, dtype=torch.double), torch.rand(4, dtype=torch.double) + 0.1
    batch = Batch.make(MASK, reward, [0, 0, 1, 2]).replace(importance=weight)
    found = ToGoLeaveOneOut(tokens=False)(batch)[:, 0]
    torch.testing.assert_close(found, reward - reward[[1, 0, 3, 2]])


def test_a_pair_left_out_is_the_covariance_with_what_the_pair_earns():
    """Over all groups of three draws of a law: rows 0 and 1 are judged, both earn h(y0, y1)."""
    import itertools

    # 64 bits from the start: chances rounded to 32 bits add up to 1 + 1e-8, and the mean is that far off
    p, g = torch.tensor([0.5, 0.3, 0.2], dtype=torch.double), torch.tensor([1.0, -2.0, 0.5]).double()
    h = torch.tensor([[0.3, -1.0, 2.0], [0.1, 0.4, -0.5], [1.5, 0.0, -2.0]], dtype=torch.double)
    found = 0.0
    for batch in itertools.product(range(3), repeat=3):
        a, b, _ = batch
        bonus = torch.stack([h[a, b], h[a, b], torch.zeros(()).double()])
        c = e.leave_pair_out(bonus, torch.zeros(3).long(), torch.tensor([1, 0, -1]))
        found += float(p[list(batch)].prod() * (c * g[list(batch)]).sum())
    pair = p[:, None] * p[None, :]
    exact = (pair * h * (g[:, None] + g[None, :])).sum() - 2 * (pair * h).sum() * (p * g).sum()
    assert found == pytest.approx(float(exact), abs=1e-12)


def test_ratio_of_a_sequence_is_the_product_and_its_clip_is_counted():
    logp, logp_l = torch.zeros(2, 3), torch.tensor([[0.1, 0.2, 9.0], [2.0, 2.0, 2.0]])
    ratios = e.importance(logp, logp_l, torch.tensor([[1.0, 1, 0], [1, 1, 1]]), "sequence", clip=3.0)
    torch.testing.assert_close(ratios.sequence, torch.tensor([0.3, 3.0]).exp())
    torch.testing.assert_close(ratios.weight[0], torch.tensor([1.0, 1, 0]) * torch.tensor(0.3).exp())
    torch.testing.assert_close(ratios.change, ratios.sequence - 1)
    assert ratios.clipped == 0.5
    rho = ratios.sequence
    assert ratios.effective == pytest.approx(float(rho.sum() ** 2 / (2 * (rho**2).sum())))


def test_token_ratios_are_the_first_order_of_the_product():
    logp = torch.randn(50, 8, dtype=torch.double)
    for size, order in ((1e-2, 1), (1e-3, 2)):
        step = size * torch.randn(50, 8, dtype=torch.double)
        token = e.importance(logp, logp + step, torch.ones(50, 8, dtype=torch.double), "token")
        whole = e.importance(logp, logp + step, torch.ones(50, 8, dtype=torch.double), "sequence")
        assert (token.change - whole.change).abs().max() < 40 * size**2, order


def test_penalty_coefficients_are_centred_and_unbiased():
    """Over all batches of three draws from a law, the mean of (1/N) sum c_i g_i is the exact difference."""
    import itertools

    p, q = (torch.tensor(v, dtype=torch.double) for v in ([0.5, 0.3, 0.2], [0.4, 0.4, 0.2]))
    g, w = torch.tensor([1.0, -2.0, 0.5], dtype=torch.double), 0.1
    mean = 0.0
    for batch in itertools.product(range(3), repeat=3):
        batch = list(batch)
        c = e.penalty_coefficients(q[batch] / p[batch] - 1, w)
        assert abs(float(c.sum())) < 1e-12
        mean += float(p[batch].prod() * (c * g[batch]).mean())
    assert mean == pytest.approx(float(((p - q) * g).sum()) / w, abs=1e-12)


def test_value_loss_is_half_the_mean_square_over_real_tokens():
    values, targets = torch.zeros(4, 3), torch.ones(4, 3)
    assert float(e.value_loss(values, targets, MASK, MASK, float(MASK.sum()))) == 0.5
