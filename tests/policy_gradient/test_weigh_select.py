"""Weights and selections against brute force, quirks and limits."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch

from bilevel_rl.errors import InvalidConfig
from bilevel_rl.policy_gradient.batch import Batch, paid_at_end
from bilevel_rl.policy_gradient.credit import GroupNorm, ReplayCredit
from bilevel_rl.policy_gradient.losses import Clipped
from bilevel_rl.policy_gradient.recipe import Recipe
from bilevel_rl.policy_gradient.recipes import named
from bilevel_rl.policy_gradient.regularizers.covariance import covariances
from bilevel_rl.policy_gradient.select import Budget, Informative, MostVaried, PromptCurriculum, Replay
from bilevel_rl.policy_gradient.select.prompts import (
    ContextValue,
    PassRates,
    allocate,
    contrast,
    nearest_to,
    pass_rate_loss,
)
from bilevel_rl.policy_gradient.select.replay import ReplayBuffer
from bilevel_rl.policy_gradient.select.spread import most_varied
from bilevel_rl.policy_gradient.weigh import (
    ClipCovariance,
    Curvature,
    Duration,
    EntropyTokens,
    HintWeight,
    Window,
)
from bilevel_rl.policy_gradient.weigh.curvature import adam_change, last_layer_model
from bilevel_rl.policy_gradient.weigh.hints import hint_length

# -- 1 D3S --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [1, 2, 3, 5, 7])
def test_most_varied_is_the_brute_force_optimum(keep):
    g = torch.Generator().manual_seed(keep)
    values, group = torch.randn(14, generator=g).double(), torch.tensor([0] * 7 + [1] * 7)
    chosen = most_varied(values, group, torch.tensor([keep, keep]))
    for q in (0, 1):
        x, mine = values[group == q], chosen[group == q]
        assert int(mine.sum()) == keep
        best = max(x[list(c)].var(correction=0).item() for c in itertools.combinations(range(7), keep))
        assert x[mine].var(correction=0).item() == pytest.approx(best, abs=1e-12)


def test_d3s_keeps_everything_at_its_end_and_never_renormalises(batch):
    whole = MostVaried(start=0.5, end=1.0)(batch.replace(progress=1.0))
    assert whole.trajectory.tolist() == batch.trajectory.tolist()
    half = MostVaried(start=0.5, end=1.0)(batch)
    assert len(half) == len(batch) // 2
    kept = torch.isin(batch.trajectory, half.trajectory)
    assert torch.equal(half.inside("advantage"), batch.inside("advantage")[kept])
    fewer = MostVaried(start=1.0, across=0.5)(batch)
    assert len(fewer) == len(batch) // 2
    value = batch.inside("advantage").sum(1) / batch.mask.sum(1)
    best = most_varied(value, torch.zeros_like(batch.group), torch.tensor([6]))
    assert fewer.trajectory.tolist() == batch.trajectory[best].tolist()


@pytest.mark.parametrize("progress", [0.0, 0.3, 1.0])
def test_d3s_tokens_keeps_exactly_its_share(batch, progress):
    weight = EntropyTokens(start=0.2, end=1.0)(batch.replace(progress=progress))
    share = 0.2 + 0.8 * progress
    assert int(weight.sum()) == math.ceil(share * int(batch.mask.sum()) - 1e-9)
    assert not weight[~batch.mask].any()
    score = (batch.advantage.abs() * batch.entropy)[batch.mask]
    kept = weight[batch.mask].bool()
    if (~kept).any():
        assert score[kept].min() >= score[~kept].max()


# -- 29 Clip-Cov --------------------------------------------------------------------------------------------


def test_covariances_do_not_depend_on_a_shift_of_the_advantages(batch):
    a = covariances(batch.inside("logp"), batch.inside("advantage"), batch.mask)
    b = covariances(batch.inside("logp"), batch.inside("advantage") + 5.0, batch.mask)
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    x, y = batch.advantage[batch.mask], batch.logp[batch.mask]
    assert a.sum().item() / len(x) == pytest.approx(torch.cov(torch.stack([x, y]), correction=0)[0, 1].item())


def test_clip_cov_drops_exactly_its_share_of_candidates_and_at_least_one(batch):
    candidates = covariances(batch.inside("logp"), batch.inside("advantage"), batch.mask) > 0.1
    candidates &= batch.mask
    assert int(candidates.sum()) > 4
    n = int(batch.mask.sum())
    for share in (0.0, 1e-6, 0.05, 0.1):
        weight = ClipCovariance(share=share, low=0.1, high=1e9, clip=1e9)(batch)
        dropped = batch.mask & (weight == 0)
        assert int(dropped.sum()) == max(int(share * n), 1)
        assert not (dropped & ~candidates).any()
    everything = ClipCovariance(share=1.0, low=0.1, high=1e9, clip=1e9)(batch)
    assert torch.equal(batch.mask & (everything == 0), candidates)
    none = ClipCovariance(share=1.0, low=1e9, high=2e9)(batch)
    assert torch.equal(none.bool(), batch.mask)


def test_clip_cov_leaves_tokens_that_the_clip_stops_and_its_tokens_have_no_gradient(batch):
    stopped = Clipped()
    logp = batch.inside("logp").clone().requires_grad_()
    weight = ClipCovariance(share=1.0, low=0.0, high=1e9, clip=0.2)(batch)
    plain = batch.replace(logp=logp, weight=None)
    (before,) = torch.autograd.grad(stopped(plain), logp)
    (after,) = torch.autograd.grad(stopped(plain.replace(weight=weight)), logp)
    dropped = batch.mask & (weight == 0)
    assert dropped.any()
    assert (after[dropped] == 0).all()
    assert (before[dropped] != 0).all()
    assert torch.equal(after[~dropped], before[~dropped])


def test_clip_cov_draws_uniformly(batch):
    """Over many iterations every candidate is dropped equally often, within 4.5 standard errors."""
    candidates = batch.mask & (covariances(batch.inside("logp"), batch.inside("advantage"), batch.mask) > 0)
    n = int(candidates.sum())
    rule = ClipCovariance(share=0.0, low=0.0, high=1e9, clip=1e9)
    trials = 1500
    count = sum((batch.mask & (rule(batch.replace(iteration=k)) == 0)).double() for k in range(trials))
    share = count[candidates] / trials
    assert (share - 1 / n).abs().max().item() < 4.5 * (1 / n * (1 - 1 / n) / trials) ** 0.5


# -- 11 CAPO ------------------------------------------------------------------------------------------------


def test_curvature_predictions_are_right_to_third_order():
    g = torch.Generator().manual_seed(0)
    hidden, head = torch.randn(4, 3, generator=g).double(), torch.randn(6, 3, generator=g).double()
    direction = torch.randn(6, 3, generator=g).double()
    token, advantage = torch.tensor([0, 3, 5, 2]), torch.tensor([1.0, -2.0, 0.5, 1.5]).double()
    logits = hidden @ head.T
    p = logits.softmax(-1)
    errors = []
    for eps in (1e-1, 1e-2, 1e-3):
        change = eps * direction
        new = (hidden @ (head + change).T).log_softmax(-1)
        old = logits.log_softmax(-1)
        kl = (p * (old - new)).sum(-1)
        gain = advantage * ((new - old).gather(-1, token[:, None])[:, 0].exp() - 1)
        m_h, m_f = last_layer_model(hidden, logits, token, advantage, change)
        errors.append(((m_f - kl).abs().max().item(), (m_h - gain).abs().max().item()))
    for which in (0, 1):
        slopes = [math.log10(errors[k][which] / errors[k + 1][which]) for k in (0, 1)]
        assert all(2.8 < s < 3.2 for s in slopes)


def test_adam_change_is_what_adam_does():
    g = torch.Generator().manual_seed(0)
    w = torch.nn.Parameter(torch.randn(5, 3, generator=g).double())
    optimiser = torch.optim.Adam([w], lr=0.01, betas=(0.8, 0.95))
    for step in range(1, 5):
        w.grad = torch.randn(5, 3, generator=g).double()
        state = optimiser.state[w]
        first, second = (state.get(k, torch.zeros_like(w)).clone() for k in ("exp_avg", "exp_avg_sq"))
        predicted = adam_change(w.grad, first, second, step, 0.01, (0.8, 0.95))
        before = w.detach().clone()
        optimiser.step()
        torch.testing.assert_close(w.detach() - before, predicted, rtol=1e-9, atol=1e-15)


def test_curvature_rejects_an_exploding_token_and_nothing_without_limits(batch):
    inf = math.inf
    assert torch.equal(Curvature(-inf, inf, inf)(batch).bool(), batch.mask)
    shift = torch.full_like(batch.logp, 0.001)
    shift[3, 0] = 10.0
    gain = torch.zeros_like(shift)
    gain[4, 0], gain[5, 0] = 3.0, -3.0
    weight = Curvature()(batch.replace(predicted_shift=shift, predicted_gain=gain))
    rejected = (batch.mask & (weight == 0)).nonzero().tolist()
    assert rejected == [[3, 0], [4, 0], [5, 0]]


# -- 15 durations -------------------------------------------------------------------------------------------


def test_duration_weights_undo_the_race_exactly():
    """Arrivals at rates pi / duration, over one unit of time: weighted gradient = policy gradient,
    unweighted is not.
    """
    theta = torch.tensor([0.3, -0.2, 0.7], dtype=torch.float64, requires_grad=True)
    reward = torch.tensor([1.0, 0.2, 0.5], dtype=torch.float64)
    duration = torch.tensor([4.0, 1.0, 0.5], dtype=torch.float64)
    (exact,) = torch.autograd.grad((theta.softmax(0) * reward).sum(), theta)
    p = theta.softmax(0).detach()
    arrivals = p / duration / (p / duration).sum()
    scores = torch.eye(3, dtype=torch.float64) - p
    counts = (arrivals * 1_000_000).round().long()
    rows = torch.repeat_interleave(torch.arange(3), counts)
    b = Batch.make(mask=torch.ones(len(rows), 1), reward=reward[rows], duration=duration[rows])
    w = Duration()(b)[:, 0]
    assert w.mean().item() == pytest.approx(1)
    weighted = (w[:, None] * reward[rows][:, None] * scores[rows]).mean(0)
    plain = (reward[rows][:, None] * scores[rows]).mean(0)
    torch.testing.assert_close(weighted, exact, rtol=1e-4, atol=1e-5)
    assert (plain - exact).abs().max() > 0.02
    constant = b.replace(duration=torch.full_like(b.duration, 3.0))
    assert (Duration()(constant) == 1).all()


# -- 45 hints -----------------------------------------------------------------------------------------------


def test_hints_shrink_with_the_pass_rate_and_vanish_when_solved():
    rate = torch.linspace(0, 1, 11)
    length = hint_length(rate, torch.full((11,), 20))
    assert length[-1] == 0
    assert (length.diff() <= 0).all()
    assert length[0] == 16


def test_hint_tokens_never_push_down_and_others_are_untouched(batch):
    weight = HintWeight(threshold=0.2)(batch)
    hint = batch.get("hint") & batch.mask
    assert (weight[batch.mask & ~hint] == 1).all()
    assert (weight[hint & (batch.advantage <= 0)] == 0).all()
    p = batch.old.exp()
    assert (weight[hint & (p < 0.2)] == 0).all()
    good = hint & (batch.advantage > 0) & (p >= 0.2)
    assert good.any()
    torch.testing.assert_close(weight[good], p[good])


# -- selection: 20 PCL, 10 V0, dynamic sampling -------------------------------------------------------------


def test_pcl_with_exact_values_picks_the_most_variable_prompts():
    p = torch.linspace(0.02, 0.98, 25)
    kept = nearest_to(p, 6)
    others = torch.ones(25, dtype=torch.bool)
    others[kept] = False
    variance = p * (1 - p)
    assert variance[kept].min() >= variance[others].max()
    assert nearest_to(p, 25).tolist() == list(range(25))  # as many as there are: plain sampling


def test_pcl_component_keeps_whole_prompts(batch):
    b = batch.replace(prompt_value=torch.tensor([0.9, 0.45, 0.6]).double()[batch.group])
    assert PromptCurriculum(share=2 / 3)(b).group.unique().tolist() == [1, 2]
    assert len(PromptCurriculum(share=0.1)(b)) == 4


def test_pass_rates_converge_to_the_true_ones_and_can_forget():
    g = torch.Generator().manual_seed(0)
    truth = torch.tensor([0.1, 0.5, 0.9])
    table = PassRates(prompts=4, prior=0.3)
    state = table.init()
    group = torch.arange(3).repeat_interleave(16)
    for _ in range(60):
        reward = torch.bernoulli(truth[group], generator=g)
        state = table.update(state, Batch.make(mask=torch.ones(48, 1), reward=reward, group=group))
    error = 4.5 * (0.25 / 960) ** 0.5
    assert (state["value"][:3] - truth).abs().max() < error
    assert state["value"][3].item() == pytest.approx(0.3)
    recent = PassRates(prompts=1, memory=16)
    state = recent.init()
    for value in (0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0):
        state = recent.update(state, Batch.make(mask=torch.ones(16, 1), reward=[value] * 16, group=[0] * 16))
    assert state["value"].item() > 0.95


def test_contrast_is_zero_for_one_rollout_and_for_decided_prompts():
    p = torch.linspace(0, 1, 11)
    assert (contrast(torch.ones(11), p) == 0).all()
    assert contrast(torch.tensor(8.0), torch.tensor(1.0)) == 0
    assert contrast(torch.tensor(8.0), torch.tensor(0.0)) == 0
    assert contrast(torch.tensor(8.0), torch.tensor(0.3)) > contrast(torch.tensor(4.0), torch.tensor(0.3)) > 0


def test_allocation_is_exhaustively_best_where_the_utility_is_concave():
    """From the budget on where marginal utilities fall, greedy = exhaustive."""
    p = torch.tensor([0.9, 0.6, 0.75])
    b = torch.arange(1, 9, dtype=torch.float64)
    gains = (contrast(b[1:], p[:, None].double()) - contrast(b[:-1], p[:, None].double())).diff(dim=1)
    assert (gains[:, 3:] <= 1e-12).all()  # concave from 4 rollouts on
    best = max(
        (c for c in itertools.product(range(4, 9), repeat=3) if sum(c) == 17),
        key=lambda c: contrast(torch.tensor(c).double(), p.double()).sum().item(),
    )
    assert allocate(p, 17, smallest=4, largest=8).tolist() == list(best)


def test_allocation_spends_its_total_within_limits():
    p = torch.tensor([0.0, 0.3, 0.5, 1.0])
    out = allocate(p, 30, smallest=2, largest=12)
    assert int(out.sum()) == 30
    assert out.min() >= 2
    assert out.max() <= 12
    assert int(allocate(p, 10**6, 1, 4).sum()) == 16
    with pytest.raises(InvalidConfig, match="total"):
        allocate(p, 3)


def test_context_value_ignores_order_and_rises_with_success():
    g = torch.Generator().manual_seed(0)
    query, context = torch.randn(5, 3, generator=g).double(), torch.randn(20, 3, generator=g).double()
    outcome = torch.bernoulli(torch.full((20,), 0.5), generator=g).double()
    model = ContextValue()
    order = torch.randperm(20, generator=g)
    torch.testing.assert_close(model(query, context[order], outcome[order]), model(query, context, outcome))
    assert (model(query, context, torch.ones(20).double()) > model(query, context, outcome)).all()
    far = model(query + 100, context, outcome)
    torch.testing.assert_close(far, torch.full((5,), 0.5).double())


def test_budget_keeps_the_allotted_number(batch):
    b = batch.replace(prompt_value=torch.tensor([0.5, 0.0, 1.0]).double()[batch.group])
    kept = Budget(share=0.5, smallest=1)(b)
    assert [int((kept.group == q).sum()) for q in range(3)] == [4, 1, 1]
    first = Budget(share=0.5, smallest=2)(b)
    assert [int((first.group == q).sum()) for q in range(3)] == [2, 2, 2]


def test_dynamic_sampling_drops_only_undecided_groups(batch):
    score = torch.tensor([1.0] * 4 + [0.0, 1.0, 0.0, 0.0] + [0.0] * 4).double()
    b = batch.replace(reward=paid_at_end(batch.mask, score[:, None]))
    assert Informative()(b).group.unique().tolist() == [1]
    dull = b.replace(reward=torch.zeros_like(b.reward))
    assert len(Informative()(dull)) == 0
    ready = Recipe(select=(Informative(),), credit=GroupNorm()).prepare(dull.replace(advantage=None))
    assert ready.advantage.shape == (0, 7)


# -- 49 replay ----------------------------------------------------------------------------------------------


def outcomes(scores, iteration=0, width=3):
    n = len(scores)
    return Batch.make(
        mask=torch.ones(n, width),
        reward=torch.tensor(scores).double(),
        group=[0] * (n // 2) + [1] * (n // 2),
        old=torch.zeros(n, width).double() - iteration, iteration=iteration,
    )  # fmt: skip


def test_replay_adds_the_opposite_outcome_only_where_there_is_no_variance():
    buffer = ReplayBuffer(oldest=5)
    rule = Replay(buffer)
    mixed = outcomes([1.0, 0.0, 1.0, 0.0])
    assert len(rule(mixed)) == 4
    buffer.add(mixed)
    dull = outcomes([0.0, 0.0, 1.0, 0.0], iteration=3, width=4)
    out = rule(dull)
    assert len(out) == 5
    added = out.rows(torch.tensor([4]))
    assert added.get("replayed").tolist() == [True]
    assert added.score.item() == 1.0
    assert added.group.item() == 0
    assert added.old[0].tolist() == [0.0, 0.0, 0.0, 0.0]
    assert added.mask[0].tolist() == [True] * 3 + [False]
    assert out.trajectory.unique().numel() == 5
    credit = ReplayCredit(inner=GroupNorm(), alpha=0.5)(out)
    assert credit[4, 0] > 0
    assert credit[0, 0] < 0


@pytest.mark.parametrize("stored_terms", [1, 2, 3])
def test_replay_fits_rows_with_another_number_of_reward_terms(stored_terms):
    """Rows stored before a reward component added its term (or after) keep their score."""
    buffer = ReplayBuffer()
    before = outcomes([1.0, 0.0, 1.0, 0.0])
    share = before.reward / stored_terms
    buffer.add(before.replace(reward=share.expand(-1, -1, stored_terms)))
    now = outcomes([0.0] * 4, iteration=1)
    out = Replay(buffer)(now.replace(reward=torch.cat([now.reward, 0 * now.reward], -1)))
    assert out.reward.shape == (6, 3, 2)
    assert out.score[4:].tolist() == pytest.approx([1.0, 1.0])


def test_the_replay_recipe_runs_on_what_it_stored():
    recipe = dataclasses.replace(named("r3"), select=(Replay(ReplayBuffer()),))
    for k, scores in enumerate(([1.0, 0.0, 1.0, 0.0], [0.0, 0.0, 1.0, 1.0])):
        fresh = outcomes(scores, iteration=k).replace(entropy=torch.ones(4, 3).double())
        ready = recipe.prepare(fresh)
        recipe.select[0].buffer.add(fresh)
    assert ready.get("replayed").tolist() == [False] * 4 + [True] * 2
    logp = torch.zeros(6, 3, dtype=torch.float64, requires_grad=True)
    loss, _ = recipe.objective(ready.replace(logp=logp))
    (gradient,) = torch.autograd.grad(loss, logp)
    assert gradient[ready.get("replayed")].abs().min() > 0


def test_replay_forgets_and_never_stores_what_it_replayed():
    buffer = ReplayBuffer(capacity=1, oldest=5)
    buffer.add(outcomes([1.0, 0.0, 0.0, 0.0]))
    late = outcomes([0.0, 0.0, 0.0, 0.0], iteration=6)
    assert len(Replay(buffer)(late)) == 4
    early = outcomes([0.0, 0.0, 0.0, 0.0], iteration=5)
    again = Replay(buffer)(early)
    assert len(again) == 5
    buffer.add(again)
    assert [when for when, _ in buffer.rows[0, True]] == [0]
    assert all(len(v) == 1 for v in buffer.rows.values())


# -- 46 windows, 10 the value model's loss ------------------------------------------------------------------


def test_windows_train_every_token_exactly_once(batch):
    """Four windows of two columns: their weights add up to the mask."""
    total = torch.zeros_like(batch.token_reward)
    for start in (0, 2, 4, 6):
        written = batch.mask & (torch.arange(7) < start + 2)
        now = batch.replace(mask=written, window_start=torch.full((len(batch),), start))
        total += Window()(now)
    assert torch.equal(total, batch.mask.double())


def test_pass_rate_loss_is_its_two_parts():
    logit = torch.tensor([1.0, -0.5, 0.3]).double()
    outcome = torch.tensor([1.0, 0.0, 0.0])
    pairs = [math.log1p(math.exp(-(1.0 + 0.5))), math.log1p(math.exp(-(1.0 - 0.3)))]
    entropy = sum([math.log1p(math.exp(-1.0)), math.log1p(math.exp(-0.5)), math.log1p(math.exp(0.3))]) / 3
    expected = 0.25 * sum(pairs) / 2 + 0.75 * entropy
    assert pass_rate_loss(logit, outcome).item() == pytest.approx(expected)
    same = pass_rate_loss(logit, torch.ones(3), pairwise=1.0)
    assert same.item() == 0
