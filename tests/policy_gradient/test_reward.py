"""Reward components: telescoping gains, bounded factors, preferences, rankings."""

from __future__ import annotations

import itertools

import pytest
import torch

from bilevel_rl.errors import InvalidConfig
from bilevel_rl.policy_gradient.batch import Batch
from bilevel_rl.policy_gradient.credit import GroupNorm, RewardToGo
from bilevel_rl.policy_gradient.losses import PolicyGradient
from bilevel_rl.policy_gradient.reward import Coverage, Novelty, RankingReward, SoftOverlong, WinRate
from bilevel_rl.policy_gradient.reward.coverage import marginal_gains
from bilevel_rl.policy_gradient.reward.dominance import entropy_dominance
from bilevel_rl.policy_gradient.reward.novelty import gradient_novelty, sensitivity
from bilevel_rl.policy_gradient.reward.win_rate import bradley_terry

# -- DAPO soft overlong -------------------------------------------------------------------------------------


def test_soft_overlong_by_length():
    lengths = torch.tensor([0, 10, 12, 14, 16, 20])
    mask = torch.arange(20) < lengths[:, None]
    out = SoftOverlong(limit=16, cache=4)(Batch.make(mask=mask, reward=torch.zeros(6)))
    assert out[..., 1].sum(1).tolist() == pytest.approx([0, 0, 0, -0.5, -1, -1])
    with pytest.raises(InvalidConfig, match="cache"):
        SoftOverlong(limit=4, cache=5)


# -- 18 SubPO -----------------------------------------------------------------------------------------------


def coverage(cover, weights):
    return (cover.any(0).double() @ torch.tensor(weights, dtype=torch.float64)).item()


def test_gains_telescope_to_the_coverage_of_the_response(batch):
    weights = (1.0, 2.0, 0.5, 0.1)
    out = Coverage(weights=weights)(batch)[..., 0]
    for i in range(len(batch)):
        own = batch.get("cover")[i][batch.mask[i]]
        assert out[i, batch.mask[i]].sum().item() == pytest.approx(coverage(own, weights))
        for k, t in enumerate(batch.mask[i].nonzero()[:, 0].tolist()):
            gain = coverage(own[: k + 1], weights) - (coverage(own[:k], weights) if k else 0)
            assert out[i, t].item() == pytest.approx(gain, abs=1e-12)


def test_coverage_is_modular_where_nothing_overlaps_and_repeats_earn_nothing():
    cover = torch.eye(3).bool()[None]
    b = Batch.make(mask=torch.ones(1, 3), reward=[0.0], cover=cover)
    assert Coverage()(b)[0, :, 0].tolist() == [1, 1, 1]
    again = b.replace(cover=torch.ones(1, 3, 2).bool())
    assert Coverage()(again)[0, :, 0].tolist() == [2, 0, 0]


def test_marginal_gains_of_a_submodular_function_fall():
    """The gain of the same element after a longer history is never larger, on all histories of length <=
    3.
    """
    sets = [{0, 1}, {1, 2}, {3}, {0, 3}]

    def f(steps):
        return len(set().union(*steps)) if steps else 0

    for last in sets:
        for n in range(3):
            for history in itertools.product(sets, repeat=n):
                for more in sets:
                    short = marginal_gains(f, [*history, last])[-1]
                    long = marginal_gains(f, [*history, more, last])[-1]
                    assert long <= short
    assert sum(marginal_gains(f, sets)) == f(sets)


def test_submodular_policy_gradient_is_the_exact_one():
    """All 2-step trajectories over 3 places: REINFORCE on gains to go = gradient of E F."""
    theta = torch.randn(2, 3, generator=torch.Generator().manual_seed(0)).double().requires_grad_()
    places = torch.tensor(list(itertools.product(range(3), repeat=2)))
    law = theta.log_softmax(-1)
    logp = torch.stack([law[0][places[:, 0]], law[1][places[:, 1]]], 1)
    p = logp.sum(1).exp()
    distinct = torch.tensor([len(set(x)) for x in places.tolist()]).double()
    (exact,) = torch.autograd.grad((p * distinct).sum(), theta, retain_graph=True)
    b = Batch.make(
        mask=torch.ones(9, 2), reward=torch.zeros(9).double(), logp=logp, cover=torch.eye(3).bool()[places]
    )
    b = b.replace(reward=Coverage()(b))
    b = b.replace(advantage=RewardToGo(baseline=False)(b), weight=(9 * p.detach())[:, None].expand(9, 2))
    (estimate,) = torch.autograd.grad(-PolicyGradient()(b), theta)
    torch.testing.assert_close(estimate, exact, rtol=1e-12, atol=1e-14)


def test_greedy_coverage_is_within_its_guarantee():
    """Without transitions: greedy on gains reaches 1 - 1/e of the best set of three, on many random
    instances.
    """
    for seed in range(20):
        cover = torch.rand(6, 12, generator=torch.Generator().manual_seed(seed)) < 0.25
        chosen: list[int] = []
        for _ in range(3):
            gains = [float(cover[[*chosen, k]].any(0).sum()) for k in range(6)]
            chosen.append(max(range(6), key=lambda k: gains[k]))
        best = max(float(cover[list(c)].any(0).sum()) for c in itertools.combinations(range(6), 3))
        assert float(cover[chosen].any(0).sum()) >= (1 - 1 / 2.718281828) * best


# -- 21 gradient-guided novelty -----------------------------------------------------------------------------


def test_sensitivity_is_the_gradient_in_the_hidden_states():
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 3, 4, generator=g).double().requires_grad_()
    head = torch.randn(5, 4, generator=g).double()
    token = torch.randint(5, (2, 3), generator=g)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]]).bool()
    logits = hidden @ head.T
    logp = logits.log_softmax(-1).gather(-1, token[..., None])[..., 0]
    (gradient,) = torch.autograd.grad(logp[mask].sum(), hidden)
    torch.testing.assert_close(
        sensitivity(logits, token, head, mask), gradient.sum(1), rtol=1e-10, atol=1e-12
    )


def test_novelty_of_identical_and_orthogonal_responses():
    group, score = torch.zeros(3, dtype=torch.long), torch.tensor([1.0, 0.0, 2.0]).double()
    same = torch.tensor([[1.0, 2.0], [2.0, 4.0], [-1.0, -2.0]]).double()
    assert gradient_novelty(same, score, group).abs().max() < 1e-12
    apart = torch.eye(3).double()
    assert gradient_novelty(apart, score, group).tolist() == [1, 1, 1]


def test_novelty_weighs_good_neighbours_more():
    feature = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]).double()
    group = torch.zeros(3, dtype=torch.long)
    like_the_good = gradient_novelty(feature, torch.tensor([0.0, 5.0, 0.0]).double(), group)[0]
    like_the_bad = gradient_novelty(feature, torch.tensor([0.0, 0.0, 5.0]).double(), group)[0]
    assert like_the_good < 0.01
    assert like_the_bad > 0.99


def test_novelty_reward_is_bounded_keeps_signs_and_vanishes_without_scale(batch):
    out = Novelty(scale=100.0)(batch)
    inside = batch.mask[..., None].expand_as(out)
    ratio = out[inside] / torch.where(batch.reward[inside] == 0, torch.nan, batch.reward[inside])
    ratio = ratio[~ratio.isnan()]
    assert ratio.min() >= 0.5 - 1e-12
    assert ratio.max() <= 1.5 + 1e-12
    assert torch.equal(Novelty(scale=0.0)(batch), batch.reward)
    base = GroupNorm()(batch)
    assert torch.equal(GroupNorm()(batch.replace(reward=Novelty(scale=0.0)(batch))), base)


# -- 50 win rates -------------------------------------------------------------------------------------------


def rock_paper_scissors(batch, i, j):
    """Answers 0, 1, 2: each beats the previous one."""
    gap = (batch.answer[i] - batch.answer[j]) % 3
    return torch.tensor([0.5, 1.0, 0.0], dtype=torch.float64)[gap]


@pytest.mark.parametrize("rule", [WinRate(), WinRate(bradley_terry), WinRate(rock_paper_scissors)])
def test_win_rates_average_one_half_even_for_intransitive_preferences(batch, rule):
    score = batch.replace(reward=rule(batch)).score
    for q in batch.group.unique():
        assert score[batch.group == q].mean().item() == pytest.approx(0.5, abs=1e-12)


def test_win_rate_is_monotone_in_the_score(batch):
    score = batch.replace(reward=WinRate(bradley_terry)(batch)).score
    for q in batch.group.unique():
        mine = batch.group == q
        assert torch.equal(torch.argsort(score[mine]), torch.argsort(batch.score[mine]))


def self_play(preference, steps, rate):
    """Multiplicative weights on exact win rates against itself; the average policy and the last one."""
    log_pi = torch.tensor([0.6, 0.3, 0.1]).double().log()
    total = torch.zeros(3).double()
    for _ in range(steps):
        total += log_pi.exp()
        log_pi = (log_pi + rate * preference @ log_pi.exp()).log_softmax(0)
    return total / steps, log_pi.exp()


def test_self_play_finds_the_minimax_winner_and_drops_the_dominated():
    rps = torch.tensor([[0.5, 0.0, 1.0], [1.0, 0.5, 0.0], [0.0, 1.0, 0.5]]).double()
    average, _ = self_play(rps, 20000, 0.01)
    torch.testing.assert_close(average, torch.full((3,), 1 / 3).double(), rtol=0, atol=2e-2)
    dominated = torch.tensor([[0.5, 0.6, 0.9], [0.4, 0.5, 0.9], [0.1, 0.1, 0.5]]).double()
    _, last = self_play(dominated, 5000, 0.05)
    assert last[0] > 0.99
    assert last[2] < 1e-9


# -- 49 ranking rewards -------------------------------------------------------------------------------------


def test_dominance_is_a_strict_partial_order():
    g = torch.Generator().manual_seed(0)
    peak, overall = torch.rand(30, generator=g), torch.rand(30, generator=g)
    above = (peak[:, None] > peak[None]) & (overall[:, None] < overall[None])
    assert not (above & above.T).any()
    assert not above.diagonal().any()
    assert ((above.int() @ above.int() > 0) <= above).all()  # transitive
    counts = entropy_dominance(peak, overall, torch.zeros(30, dtype=torch.long))
    assert torch.equal(counts, above.sum(1))


def test_ranking_reward_by_hand():
    # peaks 3, 2, 1 and means 1, 1.5, 1 (the third neither dominates nor is dominated by mean alone)
    entropy = torch.tensor([[3.0, 0.0, 0.0], [2.0, 1.5, 1.0], [1.0, 1.0, 1.0], [9.0, 9.0, 9.0]]).double()
    b = Batch.make(
        mask=torch.ones(4, 3), reward=torch.tensor([0.0, 0.0, 0.0, 1.0]), group=[0] * 4, entropy=entropy
    )
    out = RankingReward(largest=0.1)(b)[..., 1].sum(1)
    # wins among the three failed: 0 beats 1 (3 > 2, 1 < 1.5); 2 has the mean of 0: none. Ranks 0, 1, 1.
    assert out.tolist() == pytest.approx([0.1, 0.05, 0.05, 0.0])
    alone = RankingReward()(b.rows(torch.tensor([0])))[..., 1].sum(1)
    assert alone.tolist() == pytest.approx([0.1])


def test_ranking_rewards_stay_in_their_range(batch):
    term = RankingReward(largest=0.3, threshold=0.0)(batch)[..., -1].sum(1)
    failed = (batch.score <= 0) | batch.truncated
    assert ((term >= 0) & (term <= 0.3 + 1e-12)).all()
    assert (term[~failed] == 0).all()
    assert term[failed].max() > 0
