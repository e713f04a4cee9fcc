"""Each credit rule against what its paper implies: invariances, special cases, brute force."""

from __future__ import annotations

import itertools
import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bilevel_rl.errors import InvalidConfig
from bilevel_rl.policy_gradient.batch import Batch, paid_at_end
from bilevel_rl.policy_gradient.credit import (
    EMPG,
    GAE,
    GPG,
    Adora,
    Alignment,
    BatchNorm,
    Consistency,
    Episode,
    Gate,
    Greedy,
    GroupMean,
    GroupNorm,
    Hierarchical,
    HierarchyOfGroups,
    HintCredit,
    LeaveOneOut,
    LengthBaseline,
    MultiReward,
    OptimalBaseline,
    Polychromic,
    ReplayCredit,
    Return,
    RewardToGo,
    SegmentChain,
    SegmentTree,
    StepGroups,
    StepLevel,
    StepPotential,
    Sum,
    TrajectoryGraph,
    TruncatedGAE,
)
from bilevel_rl.policy_gradient.credit.alignment import aligned
from bilevel_rl.policy_gradient.credit.consistency import answer_entropy
from bilevel_rl.policy_gradient.credit.hierarchical import hierarchical_advantages
from bilevel_rl.policy_gradient.credit.hierarchy_of_groups import nested_labels
from bilevel_rl.policy_gradient.credit.multi_reward import variance_adaptive
from bilevel_rl.policy_gradient.credit.optimal_baseline import logit_score_norm, weighted_baseline
from bilevel_rl.policy_gradient.credit.polychromic import distinct_share, sets_of
from bilevel_rl.policy_gradient.credit.segment import cut_segments
from bilevel_rl.policy_gradient.credit.step_level import step_value_loss
from bilevel_rl.policy_gradient.credit.step_potential import step_potential
from bilevel_rl.policy_gradient.credit.truncated import finished_only
from bilevel_rl.policy_gradient.segments import Turns

ZERO_ONE = st.lists(st.floats(-3, 3), min_size=2, max_size=6)


def responses(reward, group=None, width=1, **fields):
    """One-turn responses with every token an action, in 64 bit."""
    reward = torch.tensor(reward, dtype=torch.float64)
    return Batch.make(mask=torch.ones(len(reward), width), reward=reward, group=group, **fields)


def per_response(advantage):
    return advantage[:, 0]


# -- 3 optimal baseline -------------------------------------------------------------------------------------


def test_score_norm_is_the_squared_norm_of_the_gradient():
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 6, generator=g, dtype=torch.float64, requires_grad=True)
    token = torch.tensor([0, 5, 2, 2])
    for i in range(4):
        chosen = logits.log_softmax(-1)[i, token[i]]
        (gradient,) = torch.autograd.grad(chosen, logits, retain_graph=True)
        expected = gradient.square().sum().item()
        assert logit_score_norm(logits[i], token[i]).item() == pytest.approx(expected, rel=1e-12)


def test_optimal_baseline_minimises_the_second_moment_of_the_gradient():
    g = torch.Generator().manual_seed(1)
    norm, score = torch.rand(8, generator=g).double(), torch.randn(8, generator=g).double()
    group = torch.zeros(8, dtype=torch.long)
    best = weighted_baseline(score, norm, group, leave_one_out=False)[0].item()

    def moment(b):
        return (norm * (score - b).square()).mean().item()

    grid = torch.linspace(best - 1, best + 1, 201, dtype=torch.float64).tolist()
    assert min(grid, key=moment) == pytest.approx(best, abs=1e-9)
    assert moment(best) < moment(score.mean().item())


def test_optimal_baseline_reduces_to_lengths_and_to_leave_one_out(batch):
    constant = batch.replace(score_norm=torch.full_like(batch.logp, 0.7))
    for loo in (True, False):
        torch.testing.assert_close(OptimalBaseline(loo)(constant), LengthBaseline(loo)(batch))
    equal = batch.replace(score_norm=torch.ones(len(batch), dtype=torch.float64))
    torch.testing.assert_close(OptimalBaseline()(equal), LeaveOneOut()(batch))
    torch.testing.assert_close(OptimalBaseline(False)(equal), GroupMean()(batch))


def test_leave_one_out_optimal_baseline_is_unbiased_and_the_printed_one_is_not():
    """Enumerate all pairs of draws from a three-armed bandit."""
    theta = torch.tensor([0.2, -0.5, 0.9], dtype=torch.float64, requires_grad=True)
    reward = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    (exact,) = torch.autograd.grad((theta.softmax(0) * reward).sum(), theta)
    p = theta.softmax(0).detach()
    scores = torch.eye(3, dtype=torch.float64) - p
    norm = scores.square().sum(1)
    means = {}
    for loo in (True, False):
        total = torch.zeros(3, dtype=torch.float64)
        for i, j in itertools.product(range(3), repeat=2):
            r, n = reward[[i, j]], norm[[i, j]]
            b = weighted_baseline(r, n, torch.zeros(2, dtype=torch.long), loo)
            total += p[i] * p[j] * ((r - b)[:, None] * scores[[i, j]]).mean(0)
        means[loo] = total
    torch.testing.assert_close(means[True], exact, rtol=1e-12, atol=1e-14)
    assert (means[False] - exact).abs().max() > 1e-2


# -- 6 EMPG -------------------------------------------------------------------------------------------------


def step_means(batch, advantage):
    turns = Turns.of(batch)
    return turns.mean(advantage)[turns.valid]


def test_empg_scaling_has_mean_one_and_falls_with_entropy(batch):
    ones = lambda b: torch.where(b.mask, torch.ones_like(b.token_reward), 0)  # noqa: E731
    gain = step_means(batch, EMPG(inner=ones, zeta=0.0, centre=False)(batch))
    assert gain.mean().item() == pytest.approx(1, rel=1e-12)
    entropy = step_means(batch, batch.inside("entropy"))
    assert (gain[torch.argsort(entropy)].diff() <= 1e-12).all()


def test_empg_without_its_knobs_is_the_inner_rule_up_to_centring(batch):
    inner = GroupNorm()(batch)
    same = EMPG(k=0.0, zeta=0.0, centre=False)(batch)
    torch.testing.assert_close(same, inner)
    centred = EMPG(k=0.0, zeta=0.0)(batch)
    shift = (inner - centred)[batch.mask]
    assert shift.std().item() == pytest.approx(0, abs=1e-12)
    assert step_means(batch, EMPG()(batch)).mean().item() == pytest.approx(0, abs=1e-13)


def test_empg_bonus_is_for_the_next_step_and_the_last_has_none():
    entropy = torch.tensor([[0.0, 1.0, 0.5]]).double()
    b = responses([0.0], width=3, entropy=entropy, turn=[[0, 1, 2]])
    out = EMPG(inner=Return(), zeta=1.0, centre=False)(b)
    assert out[0].tolist() == pytest.approx([math.exp(-1.0), math.exp(-0.5), 0.0])


# -- 28 COPO ------------------------------------------------------------------------------------------------


def test_copo_learns_where_group_norm_cannot():
    b = responses([1.0, 1.0, 0.0, 0.0], group=[0, 0, 1, 1], answer=[3, 3, 4, 4])
    assert GroupNorm()(b).abs().max() == 0
    out = per_response(Consistency(eps=0.0)(b))
    assert out.tolist() == pytest.approx([1, 1, -1, -1], abs=1e-8)


def test_copo_is_group_norm_where_all_answers_differ_and_prompts_alike_have_no_global_term():
    n = 32
    g = torch.Generator().manual_seed(0)
    r = torch.randn(2 * n, generator=g).double()
    b = responses(r.tolist(), group=[0] * n + [1] * n, answer=list(range(2 * n)))
    assert answer_entropy(b.answer, b.group)[0].item() == pytest.approx(math.log(n))
    torch.testing.assert_close(Consistency()(b), GroupNorm()(b), rtol=1e-9, atol=1e-9)
    alike = responses([1.0, 0.0, 1.0, 0.0], group=[0, 0, 1, 1], answer=[1, 1, 1, 1])
    local_weight = torch.sigmoid(torch.tensor(-30.0)).item()
    torch.testing.assert_close(Consistency()(alike), local_weight * GroupNorm()(alike), rtol=1e-6, atol=1e-16)


# -- 38 ADORA -----------------------------------------------------------------------------------------------


def test_adora_only_rescales_groups(batch):
    base, out = GroupNorm()(batch)[:, 0], Adora(weight=0.1, threshold=0.0)(batch)[:, 0]
    for q in batch.group.unique():
        rows = batch.group == q
        ratio = (out / base)[rows]
        assert ratio.std() < 1e-12
        assert round(ratio[0].item(), 9) in (1.0, 0.1)
    torch.testing.assert_close(Adora(weight=1.0)(batch), GroupNorm()(batch))


@pytest.mark.parametrize(
    ("lengths", "truncated", "weight"),
    [
        ([5, 2, 2], [0, 0, 0], 1.0),
        ([2, 5, 5], [0, 0, 0], 0.1),
        ([2, 5, 1], [0, 1, 0], 1.0),
    ],
)
@pytest.mark.parametrize("release", ["text", "vision"])
def test_adora_weight_by_hand(lengths, truncated, weight, release):
    """First response correct, the others wrong; truncated wrong ones don't count."""
    b = Batch.make(
        mask=torch.arange(9) < torch.tensor(lengths)[:, None], reward=torch.tensor([1.0, 0.0, 0.0]).double(),
        group=[0, 0, 0], done=[not t for t in truncated],
    )  # fmt: skip
    torch.testing.assert_close(Adora(release=release)(b), weight * GroupNorm()(b))


@pytest.mark.parametrize(
    ("scores", "text", "vision"),
    [([1.0, 0.0, 0.0], 1.0, 0.1), ([0.0, 0.2, 0.4], 0.1, 1.0)],
    ids=["all wrong ones cut", "none correct"],
)
def test_the_two_releases_of_adora_differ_where_a_side_is_missing(scores, text, vision):
    b = responses(scores, group=[0, 0, 0], width=4, done=[True, False, False])
    for release, weight in (("text", text), ("vision", vision)):
        torch.testing.assert_close(Adora(release=release)(b), weight * GroupNorm()(b))
    with pytest.raises(InvalidConfig, match=r"Adora\.release: got 'audio'; text or vision"):
        Adora(release="audio")


# -- 46 EGAE ------------------------------------------------------------------------------------------------


def test_truncated_gae_is_gae_on_finished_responses(batch):
    finished = batch.replace(truncated=torch.zeros_like(batch.truncated), extras={})
    torch.testing.assert_close(TruncatedGAE(0.9, 0.8)(finished), GAE(0.9, 0.8)(finished))
    cut = batch.replace(truncated=torch.ones_like(batch.truncated), extras={})
    assert (TruncatedGAE()(cut) - GAE()(cut)).abs().max() > 0.1


def test_truncated_gae_of_a_constant_value_is_zero_and_its_last_residual_the_reward(batch):
    constant = batch.replace(
        value=torch.full_like(batch.value, 0.7), reward=torch.zeros_like(batch.reward),
        truncated=torch.ones_like(batch.truncated),
    )  # fmt: skip
    assert TruncatedGAE(gamma=1.0, lam=0.9)(constant).abs().max() == 0
    cut = batch.replace(truncated=torch.ones_like(batch.truncated))
    out = TruncatedGAE(gamma=1.0, lam=0.0)(cut)
    last = torch.where(batch.mask, torch.arange(7), -1).amax(1, keepdim=True)
    torch.testing.assert_close(out.gather(1, last), cut.token_reward.gather(1, last), rtol=0, atol=1e-15)


def test_only_finished_responses_train_the_critic(batch):
    mask = finished_only(batch)
    assert not mask[batch.truncated].any()
    assert torch.equal(mask[~batch.truncated], batch.mask[~batch.truncated])


# -- 51 HAE, 69 VL-DAC, GAE ---------------------------------------------------------------------------------


def by_turn(seed=0, n=5, width=6):
    g = torch.Generator().manual_seed(seed)
    r, low, high = (torch.randn(n, width, generator=g, dtype=torch.float64) for _ in range(3))
    valid = torch.arange(width) < torch.randint(1, width + 1, (n, 1), generator=g)
    switch = torch.rand(n, width, generator=g) < 0.4
    return r, low, high, switch, valid


def hae_by_definition(r, low, high, switch, gamma, lam_turn, lam_segment):
    """One row of turns, segment by segment, in plain Python."""
    n = len(r)
    starts = [u for u in range(n) if u == 0 or switch[u]]
    a_low, a_high = [0.0] * n, [0.0] * n
    follow = 0.0
    for k in reversed(range(len(starts))):
        begin, end = starts[k], starts[k + 1] if k + 1 < len(starts) else n
        after = high[end] if end < n else 0.0
        run = 0.0
        for u in reversed(range(begin, end)):
            ahead = after if u == end - 1 else low[u + 1]
            run = r[u] + gamma * ahead - low[u] + gamma * lam_turn * (run if u < end - 1 else 0.0)
            a_low[u] = run
        d = end - begin
        gain = sum(gamma**i * r[begin + i] for i in range(d))
        follow = gain + gamma**d * after - high[begin] + gamma**d * lam_segment * follow
        a_high[begin] = follow
    return a_low, a_high


@pytest.mark.parametrize(
    ("gamma", "lam_turn", "lam_segment"), [(0.9, 0.7, 0.6), (1.0, 1.0, 1.0), (0.8, 0.0, 0.5)]
)
def test_hae_is_its_definition(gamma, lam_turn, lam_segment):
    r, low, high, switch, valid = by_turn()
    a_low, a_high = hierarchical_advantages(r, low, high, switch, valid, gamma, lam_turn, lam_segment)
    for i in range(len(r)):
        here = valid[i]
        expected = hae_by_definition(
            *(x[i, here].tolist() for x in (r, low, high, switch)), gamma, lam_turn, lam_segment
        )
        assert a_low[i, here].tolist() == pytest.approx(expected[0], abs=1e-12)
        assert a_high[i, here].tolist() == pytest.approx(expected[1], abs=1e-12)
        assert (a_low[i, ~here] == 0).all()


def one_token_turns(seed=0):
    """A batch whose turns have one token each, with both critics."""
    r, low, high, _, valid = by_turn(seed)
    turn = torch.arange(valid.shape[1]).expand(valid.shape)
    return Batch.make(mask=valid, reward=r, value=low, value_high=high, turn=turn,
                      switch=torch.zeros_like(valid))  # fmt: skip


def test_gae_hae_and_vl_dac_agree_in_their_limits():
    b = one_token_turns()
    gae = GAE(0.9, 0.7)(b)
    one_segment = Hierarchical(0.9, lam_turn=0.7, lam_segment=0.3)(b)
    step = StepLevel(0.9, 0.7)(b)
    assert (one_segment - gae).abs().max() < 1e-12
    assert (step - gae).abs().max() < 1e-12
    everywhere = b.replace(switch=torch.ones_like(b.mask), role=torch.ones_like(b.mask).long())
    high = Hierarchical(0.9, lam_turn=0.2, lam_segment=0.7)(everywhere)
    flat = GAE(0.9, 0.7)(b.replace(value=b.get("value_high")))
    assert (high - flat).abs().max() < 1e-12
    monte_carlo = GAE(0.9, 1.0)(b)
    returns = monte_carlo + torch.where(b.mask, b.value, 0)
    assert (Hierarchical(0.9, 1.0, 1.0)(b) + torch.where(b.mask, b.value, 0) - returns).abs().max() < 1e-12


def test_hae_at_lambda_one_is_the_monte_carlo_return_on_the_high_level():
    r, low, high, switch, valid = by_turn(3)
    _, a_high = hierarchical_advantages(r, low, high, switch, valid, 0.9, 0.4, 1.0)
    go = GAE(0.9, 1.0)(Batch.make(mask=valid, reward=r, value=torch.zeros_like(r)))
    opens = a_high != 0
    torch.testing.assert_close((a_high + high)[opens], go[opens], rtol=1e-12, atol=1e-12)


def test_hae_gives_each_role_its_own_advantage(batch):
    role = torch.tensor([0, 0, 1, 2, 0, 1, 0]).expand(len(batch), 7)
    probability = torch.full_like(batch.value, 0.3)
    out = Hierarchical()(batch.replace(role=role, switch_probability=probability))
    low = Hierarchical()(batch)
    assert torch.equal(out[role == 0], low[role == 0])
    turns = Turns.of(batch)
    gap = turns.at_first(batch.get("value_high")) - turns.at_first(batch.value)
    flag = turns.sum(batch.get("switch").double()) > 0
    expected = turns.spread((flag.double() - 0.3) * gap)
    torch.testing.assert_close(out[role == 2], expected[role == 2])


def test_vl_dac_does_not_care_how_an_action_is_split_into_tokens():
    b = one_token_turns(2)
    n, width = b.mask.shape
    wide = Batch.make(
        mask=b.mask.repeat_interleave(3, 1),
        reward=torch.nn.functional.pad(b.reward[..., 0][:, :, None], (2, 0)).reshape(n, -1),
        value=b.value.repeat_interleave(3, 1),
        turn=b.turn.repeat_interleave(3, 1),
    )
    torch.testing.assert_close(StepLevel()(wide)[:, ::3], StepLevel()(b), rtol=1e-13, atol=1e-13)
    assert torch.equal(StepLevel()(wide)[:, ::3], StepLevel()(wide)[:, 1::3])
    assert width == 6


def test_step_value_loss_reads_the_first_token_of_each_step(batch):
    value = batch.value.clone().requires_grad_()
    target = torch.zeros_like(batch.value)
    (gradient,) = torch.autograd.grad(step_value_loss(batch.replace(value=value), target), value)
    turns = Turns.of(batch)
    first = torch.zeros_like(batch.mask)
    for i, u in turns.valid.nonzero().tolist():
        first[i, turns.first[i, u]] = True
    assert (gradient[~first] == 0).all()
    torch.testing.assert_close(gradient[first], 2 * value[first] / turns.valid.sum())


# -- 55 DVAO ------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5), st.floats(-5, 5)), min_size=2, max_size=8))
def test_dvao_closed_form_and_bound(rows):
    scores = torch.tensor(rows, dtype=torch.float64)
    b = torch.tensor([1.0, 0.5, 2.0], dtype=torch.float64)
    out = variance_adaptive(scores, torch.zeros(len(rows), dtype=torch.long), b)
    assert out.square().mean().item() <= 1 + 1e-9
    sigma = scores.std(0, correction=0)
    if (sigma @ b) > 1e-6:
        weights = b * sigma / (b * sigma).sum()
        unit = (scores - scores.mean(0)) / torch.where(sigma > 0, sigma, 1)
        torch.testing.assert_close(out, unit @ weights, rtol=1e-7, atol=1e-7)


def test_dvao_special_cases():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(6, generator=g, dtype=torch.float64)
    group = torch.zeros(6, dtype=torch.long)
    ones = torch.ones(2, dtype=torch.float64)
    correlated = variance_adaptive(torch.stack([x, 3 * x + 1], 1), group, ones)
    assert correlated.square().mean().item() == pytest.approx(1)
    single = Batch.make(mask=torch.ones(6, 1), reward=x, group=group)
    torch.testing.assert_close(MultiReward()(single), GroupNorm(eps=0.0, ddof=0)(single))
    two = torch.randn(6, 2, generator=g, dtype=torch.float64)
    torch.testing.assert_close(variance_adaptive(7 * two, group, ones), variance_adaptive(two, group, ones))
    assert variance_adaptive(two, group, ones).square().mean().item() < 0.999


def test_dvao_weights_are_differentiable():
    """b can be an upper-level variable: automatic differentiation against central differences."""
    g = torch.Generator().manual_seed(0)
    s, group = torch.randn(5, 3, generator=g, dtype=torch.float64), torch.zeros(5, dtype=torch.long)
    b = torch.tensor([1.0, 0.5, 2.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda w: variance_adaptive(s, group, w), b)


# -- 56 SALT ------------------------------------------------------------------------------------------------


def test_salt_without_shared_steps_is_the_inner_rule(batch):
    turns = Turns.of(batch)
    unique = torch.arange(turns.valid.numel()).reshape(turns.valid.shape)
    apart = batch.replace(state_key=unique.gather(1, turns.turn))
    assert torch.equal(TrajectoryGraph()(apart), GroupNorm()(apart))


def test_salt_of_identical_trajectories_is_the_group_mean_and_sums_are_preserved(batch):
    same = batch.replace(
        mask=torch.ones_like(batch.mask), state_key=batch.turn, action_key=torch.zeros_like(batch.turn),
        reward=torch.nan_to_num(batch.reward),
    )  # fmt: skip
    assert TrajectoryGraph()(same).abs().max() < 1e-12
    merged, own = TrajectoryGraph()(batch), GroupNorm()(batch)
    turns = Turns.of(batch)
    a, m = turns.mean(own), turns.mean(merged)
    table: dict = {}
    for i, u in turns.valid.nonzero().tolist():
        t = turns.first[i, u]
        key = (int(batch.group[i]), int(batch.state_key[i, t]), int(batch.get("action_key")[i, t]))
        table.setdefault(key, []).append((a[i, u].item(), m[i, u].item()))
    assert any(len(v) > 1 for v in table.values())
    for values in table.values():
        mean = sum(x for x, _ in values) / len(values)
        assert [y for _, y in values] == pytest.approx([mean] * len(values), abs=1e-12)


# -- 59 SPAE ------------------------------------------------------------------------------------------------


def test_potential_corners_and_range():
    corner = {(1, 1): 1.0, (0, 1): -1.0, (1, 0): 0.5, (0, 0): 0.0}
    for (a, c), value in corner.items():
        assert step_potential(torch.tensor(float(a)), torch.tensor(float(c))).item() == value
    grid = torch.linspace(0, 1, 21)
    phi = step_potential(grid[:, None], grid[None])
    assert phi.min() >= -1
    assert phi.max() <= 1


def test_spae_shaping_telescopes_and_vanishes_without_its_knobs(batch):
    torch.testing.assert_close(StepPotential(saturation=1.0, xi=0.0)(batch), GroupNorm()(batch))
    none = lambda b: torch.zeros_like(b.token_reward)  # noqa: E731
    start = torch.linspace(-0.2, 0.3, len(batch)).double()
    rule = StepPotential(inner=none, saturation=1.0, xi=1.0, first_step=True)
    out = rule(batch.replace(start_potential=start))
    turns = Turns.of(batch)
    phi = step_potential(turns.at_first(batch.get("accuracy")), turns.at_first(batch.get("confidence")))
    last = phi.gather(1, torch.where(turns.valid, torch.arange(3), -1).amax(1, keepdim=True))[:, 0]
    total = torch.where(turns.valid, turns.mean(out), 0).sum(1)
    torch.testing.assert_close(total, last - start)


def test_spae_punishes_a_step_from_right_to_wrong_and_fades_outcome_credit_once_known():
    b = responses(
        [1.0], width=3, turn=[[0, 1, 2]],
        accuracy=torch.tensor([[1.0, 0.0, 1.0]]).double(), confidence=torch.ones(1, 3).double(),
    )  # fmt: skip
    none = lambda x: torch.zeros_like(x.token_reward)  # noqa: E731
    assert StepPotential(inner=none, xi=1.0)(b)[0].tolist() == [0.0, -2.0, 2.0]  # as released
    assert StepPotential(inner=none, xi=1.0, first_step=True)(b)[0].tolist() == [1.0, -2.0, 2.0]
    outcome = StepPotential(inner=Return(), xi=0.0)(b)
    assert outcome[0].tolist() == [1.0, 0.0, 1.0]


# -- 65 advantage alignment ---------------------------------------------------------------------------------


def test_alignment_is_the_double_sum_and_nothing_without_beta():
    g = torch.Generator().manual_seed(0)
    own, other = torch.randn(3, 6, generator=g).double(), torch.randn(3, 6, generator=g).double()
    valid = torch.ones(3, 6, dtype=torch.bool)
    out = aligned(own, other, valid, beta=1.7, gamma=0.8)
    for i in range(3):
        for t in range(6):
            past = sum(0.8 ** (t - k) * own[i, k] for k in range(t))
            assert out[i, t].item() == pytest.approx((own[i, t] + 1.7 * past * other[i, t]).item())
    assert torch.equal(aligned(own, other, valid, 0.0, 0.8), own)


def test_alignment_is_stable_on_long_games(batch):
    own = torch.ones(1, 20000, dtype=torch.float64)
    out = aligned(own, own, own.bool(), 1.0, 0.96)
    assert out[0, -1].item() == pytest.approx(1 + 0.96 / 0.04)
    torch.testing.assert_close(Alignment(beta=0.0)(batch), LeaveOneOut()(batch))


# -- 66 HGPO ------------------------------------------------------------------------------------------------


def hgpo_by_definition(batch, depth, alpha, gamma, drop_zeros, scale=False, base=None):
    """Steps as a list; for each context length that the step has, the steps of its prompt with that context."""
    turns = Turns.of(batch)
    reward, keys = turns.sum(batch.token_reward), turns.at_first(batch.state_key)
    steps = []
    for i in range(len(batch)):
        mine = [u for u in range(turns.valid.shape[1]) if turns.valid[i, u]]
        for position, u in enumerate(mine):
            go = sum(gamma**k * reward[i, v].item() for k, v in enumerate(mine[position:]))
            history = [int(keys[i, v]) for v in mine[: position + 1]][::-1]
            steps.append((i, u, int(batch.group[i]), history, go))
    result = {}
    for i, u, q, history, go in steps:
        total = norm = 0.0
        if base is not None and not (drop_zeros and base[i] == 0):
            total, norm = float(base[i]), 1.0  # k = 0
        for k in range(1, min(depth + 1, len(history)) + 1):
            mates = [s[4] for s in steps if s[2] == q and len(s[3]) >= k and s[3][:k] == history[:k]]
            a = go - sum(mates) / len(mates) if max(mates) > min(mates) else 0.0
            if scale and a:
                a /= statistics.pstdev(mates) + 1e-6
            if len(mates) == 1 or (drop_zeros and a == 0):
                continue
            total, norm = total + (k + 1) ** alpha * a, norm + (k + 1) ** alpha
        result[i, u] = total / (norm + 1e-6) if norm else 0.0
    return result


@pytest.mark.parametrize("base", [None, GroupMean()], ids=["no base", "base"])
@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize(("depth", "drop_zeros"), [(0, True), (2, True), (2, False), (5, True)])
def test_hgpo_is_its_definition(make_batch, depth, drop_zeros, scale, base):
    batch = make_batch(seed=5, samples=6)
    rule = HierarchyOfGroups(depth=depth, alpha=1.0, gamma=0.9, drop_zeros=drop_zeros, scale=scale, base=base)
    out, turns = rule(batch), Turns.of(batch)
    over = None if base is None else base(batch)[:, 0].tolist()
    expected = hgpo_by_definition(batch, depth, 1.0, 0.9, drop_zeros, scale, over)
    assert len(expected) == int(turns.valid.sum())
    for (i, u), value in expected.items():
        assert out[i, turns.first[i, u]].item() == pytest.approx(value, abs=1e-12)


def test_hgpo_of_distinct_observations_is_zero_or_the_base(batch):
    turns = Turns.of(batch)
    unique = torch.arange(turns.valid.numel()).reshape(turns.valid.shape)
    apart = batch.replace(state_key=unique.gather(1, turns.turn))
    assert HierarchyOfGroups()(apart).abs().max() == 0
    alone = HierarchyOfGroups(base=GroupNorm(), eps=0.0)(apart)
    torch.testing.assert_close(alone, GroupNorm()(apart))


def test_hgpo_groups_are_nested(batch):
    turns = Turns.of(batch)
    labels = nested_labels(batch.group, turns.at_first(batch.state_key), turns.valid, 3)
    position = (torch.cumsum(turns.valid.long(), 1) - 1)[turns.valid]
    for k, (_, exists) in enumerate(labels):
        assert torch.equal(exists, position >= k)
    for (wide, _), (narrow, exists) in itertools.pairwise(labels):
        for value in narrow[exists].unique():
            assert len(wide[exists & (narrow == value)].unique()) == 1


# -- GiGPO, GPG, sums ---------------------------------------------------------------------------------------


def test_sharing_a_state_with_worse_steps_raises_gigpos_credit(batch):
    """The sum: an episode's credit is added to, not averaged with, that of its steps."""
    rule = Episode() + 2.0 * StepGroups()
    torch.testing.assert_close(rule(batch), GroupMean()(batch) + 2.0 * StepGroups()(batch))
    turns = Turns.of(batch)
    unique = torch.arange(turns.valid.numel()).reshape(turns.valid.shape)
    apart = batch.replace(state_key=unique.gather(1, turns.turn))
    torch.testing.assert_close(rule(apart), GroupMean()(apart))  # a step alone has none of its own


def test_step_groups_by_definition(batch):
    turns = Turns.of(batch)
    reward, keys = turns.sum(batch.token_reward), turns.at_first(batch.state_key)
    steps: dict = {}
    for i, u in turns.valid.nonzero().tolist():
        later = [v for v in range(u, turns.valid.shape[1]) if turns.valid[i, v]]
        go = sum(0.9**n * reward[i, v].item() for n, v in enumerate(later))
        steps.setdefault((int(batch.group[i]), int(keys[i, u])), []).append((i, u, go))
    out, scaled = StepGroups(gamma=0.9)(batch), StepGroups(gamma=0.9, scale=True)(batch)
    assert any(len(mates) > 1 for mates in steps.values())
    for mates in steps.values():
        mean = statistics.fmean(go for _, _, go in mates)
        for i, u, go in mates:
            where = (i, turns.first[i, u])
            assert out[where].item() == pytest.approx(go - mean, abs=1e-12)
            if len(mates) > 1:
                spread = statistics.stdev(go for _, _, go in mates) + 1e-6
                assert scaled[where].item() == pytest.approx((go - mean) / spread, abs=1e-12)


def test_sums_of_credit_are_sums(batch):
    rule = 2 * (GroupMean() + 0.5 * Return()) + LeaveOneOut()
    expected = 2 * GroupMean()(batch) + Return()(batch) + LeaveOneOut()(batch)
    torch.testing.assert_close(rule(batch), expected)
    assert rule.weights == (2, 1.0, 1.0)
    with pytest.raises(InvalidConfig, match="one finite weight a term"):
        Sum((Return(),), (math.nan,))


def test_gpg_scales_up_by_the_rows_that_teach():
    b = responses([1.0, 0.0, 1.0, 1.0, 0.0, 0.0], group=[0, 0, 1, 1, 2, 2])
    # two of six rows have an advantage, three of six a score
    assert per_response(GPG()(b)).tolist() == pytest.approx([1.5, -1.5, 0, 0, 0, 0])
    assert per_response(GPG(count="score")(b)).tolist() == pytest.approx([1.0, -1.0, 0, 0, 0, 0])
    assert per_response(GPG(norm=2.0)(b)).tolist() == pytest.approx([0.75, -0.75, 0, 0, 0, 0])


def test_remax_credits_rewards_along_the_way_from_their_token_on():
    b = Batch.make(mask=torch.ones(1, 3), reward=torch.tensor([[1.0, 2.0, 4.0]]).double(), baseline=[3.0])
    assert Greedy()(b)[0].tolist() == [4, 3, 1]
    assert Greedy(to_go=False)(b)[0].tolist() == [4, 4, 4]


# -- 8 polychromic ------------------------------------------------------------------------------------------


def test_polychromic_with_sets_of_one_is_leave_one_out(batch):
    torch.testing.assert_close(Polychromic(size=1)(batch), LeaveOneOut()(batch))


def test_polychromic_by_hand():
    b = responses([1.0, 1.0, 1.0, 0.0], group=[0] * 4, answer=[1, 2, 3, 3], set_id=[0, 0, 1, 1])
    # f: mean 1 x 2/2 distinct = 1; mean .5 x 1/2 distinct = .25
    assert per_response(Polychromic()(b)).tolist() == pytest.approx([0.75, 0.75, -0.75, -0.75])
    additive = per_response(Polychromic(additive=0.1)(b))
    assert additive.tolist() == pytest.approx([0.55, 0.55, -0.55, -0.55])


def test_polychromic_duplicates_cost_and_order_inside_a_set_does_not_matter():
    share = distinct_share(torch.tensor([1, 1, 2, 5, 5, 5]), torch.tensor([0, 0, 0, 1, 1, 1]))
    assert share.tolist() == pytest.approx([2 / 3] * 3 + [1 / 3] * 3)
    g, t = torch.zeros(6, dtype=torch.long), torch.tensor([5, 3, 4, 0, 2, 1])
    sets = sets_of(g, t, 3)
    assert sets[t < 3].unique().numel() == 1
    assert sets[t >= 3].unique().numel() == 1


# -- 40 segments --------------------------------------------------------------------------------------------


def test_cut_points_divide_tokens_evenly(batch):
    segment = cut_segments(batch.inside("old"), batch.mask, 0.9, 2)
    cut = batch.mask & (batch.inside("old").exp() < 0.9)
    for i in range(len(batch)):
        number = [int(cut[i, segment[i] == s].sum()) for s in range(int(segment[i].max()) + 1)]
        assert all(k == 2 for k in number[:-1])


def test_chain_advantages_telescope(batch):
    rule = SegmentChain(threshold=0.5, interval=1)
    out = rule(batch)
    segment = cut_segments(batch.inside("old"), batch.mask, 0.5, 1)
    value = batch.get("prefix_value")
    for i in range(len(batch)):
        here = batch.mask[i].nonzero()[:, 0].tolist()
        per_segment = {int(segment[i, t]): out[i, t].item() for t in here}
        assert sum(per_segment.values()) == pytest.approx((batch.score[i] - value[i, here[0]]).item())
        for t in here:
            assert out[i, t].item() == per_segment[int(segment[i, t])]


def test_chain_limits():
    """One segment: reward minus the first value. One token a segment: token Monte-Carlo differences."""
    value = torch.tensor([[0.1, 0.4, 0.9]], dtype=torch.float64)
    b = responses([1.0], width=3, prefix_value=value, old=torch.log(torch.full((1, 3), 0.5).double()))
    assert SegmentChain(interval=99)(b)[0].tolist() == pytest.approx([0.9] * 3)
    assert SegmentChain(interval=1)(b)[0].tolist() == pytest.approx([0.3, 0.5, 0.1])
    sure = b.replace(old=torch.log(torch.tensor([[0.5, 0.95, 0.5]]).double()))
    assert SegmentChain(interval=99)(sure)[0].tolist() == pytest.approx([0.9] * 3)


def tree(depth=3, branching=2, seed=0):
    """All leaves of a balanced tree, one token a segment."""
    leaves = torch.tensor(list(itertools.product(range(branching), repeat=depth)))
    n = len(leaves)
    g = torch.Generator().manual_seed(seed)
    return Batch.make(
        mask=torch.ones(n, depth), reward=torch.randn(n, generator=g).double(), group=[0] * n, path=leaves,
        depth=torch.arange(depth).expand(n, depth), old=torch.full((n, depth), -1.0).double(),
    )  # fmt: skip


def test_tree_siblings_sum_to_zero_and_paths_telescope():
    b = tree()
    out = SegmentTree()(b)
    root = b.score.mean()
    torch.testing.assert_close(out.sum(1), b.score - root)
    for d in range(3):
        parents: dict = {}
        for i in range(len(b)):
            parents.setdefault(tuple(b.get("path")[i, :d].tolist()), {})[int(b.get("path")[i, d])] = out[
                i, d
            ].item()
        for siblings in parents.values():
            assert sum(siblings.values()) == pytest.approx(0, abs=1e-12)


def test_a_tree_of_depth_one_is_the_group_mean():
    b = tree(depth=1, branching=5)
    torch.testing.assert_close(SegmentTree()(b), GroupMean()(b))


# -- 5 the gate, 45 hints, 49 replay, returns ---------------------------------------------------------------


def gate_batch():
    return responses(
        [1.0, 0.0, 9.0, 0.0, 0.0, 9.0], group=[0, 0, 0, 1, 1, 1], demonstration=[0, 0, 1, 0, 0, 1]
    )


def test_gate_extremes_are_pure_rl_and_pure_sft():
    b = gate_batch()
    rl = per_response(Gate(gate=-1)(b))
    own = GroupNorm()(b.rows(torch.tensor([0, 1, 3, 4])))[:, 0]
    torch.testing.assert_close(rl[torch.tensor([0, 1, 3, 4])], own)
    assert rl[2] == rl[5] == 0
    sft = per_response(Gate(gate=2, coefficient=0.3)(b))
    assert sft.tolist() == pytest.approx([0, 0, 0.3, 0, 0, 0.3])


def test_gate_decides_prompt_by_prompt_and_mixes():
    out = per_response(Gate()(gate_batch()))
    assert out[2] == 0
    assert out[5] == 1
    assert out[0] > 0
    assert out[3] == out[4] == 0
    mixed = per_response(Gate(mix=lambda share: (share, 1 - share))(gate_batch()))
    assert mixed[2].item() == pytest.approx(0.5)
    assert mixed[0].item() == pytest.approx(0.5 * out[0].item())


def test_hint_credit_without_hints_is_group_norm(batch):
    none = batch.replace(hinted=torch.zeros(len(batch), dtype=torch.bool))
    torch.testing.assert_close(HintCredit()(none), GroupNorm()(none))


def test_hint_credit_compares_apart_and_discounts_what_a_hint_made_easy():
    b = responses([1.0, 0.0, 1.0, 1.0, 1.0, 0.0], group=[0] * 6, hinted=[0, 0, 1, 1, 1, 1])
    out = per_response(HintCredit(eps=0.0)(b))
    unhinted = GroupNorm(eps=0.0)(b.rows(torch.tensor([0, 1])))[:, 0]
    torch.testing.assert_close(out[:2], unhinted)
    hinted = GroupNorm(eps=0.0)(b.rows(torch.arange(2, 6)))[:, 0]
    torch.testing.assert_close(out[2:], hinted * ((1 + 1) / (2 + 2)) / ((3 + 1) / (4 + 2)))


def test_replay_credit_scales_only_replayed_rows(batch):
    out, base = ReplayCredit(alpha=0.25)(batch), GroupNorm()(batch)
    again = batch.get("replayed")
    torch.testing.assert_close(out[again], 0.25 * base[again])
    assert torch.equal(out[~again], base[~again])


def test_reward_to_go_by_hand():
    b = Batch.make(
        mask=torch.ones(2, 3), reward=torch.tensor([[1.0, 2.0, 4.0], [0.0, 0.0, 3.0]]).double(), group=[0, 0]
    )
    assert RewardToGo(baseline=False)(b).tolist() == [[7, 6, 4], [3, 3, 3]]
    assert RewardToGo()(b).tolist() == [[4, 3, 1], [-4, -4, -4]]
    assert RewardToGo(gamma=0.5, baseline=False)(b)[0].tolist() == [3, 4, 4]


def test_decorators_compose(batch):
    """empg(adora(group_norm())) does what its parts say, from the inside out."""
    composed = EMPG(inner=Adora(inner=GroupNorm(eps=0.0), threshold=0.0), centre=False, zeta=0.0)(batch)
    gain = EMPG(inner=lambda b: b.mask.double(), centre=False, zeta=0.0)(batch)
    torch.testing.assert_close(composed, gain * Adora(inner=GroupNorm(eps=0.0), threshold=0.0)(batch))
    assert BatchNorm(inner=Adora())(batch).isfinite().all()
    assert paid_at_end(batch.mask, torch.ones(12, 1)).sum() == 12
