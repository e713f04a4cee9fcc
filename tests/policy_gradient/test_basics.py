"""What everybody uses: GAE, RLOO, group norms, the clipped loss, KL, and the recipe around them."""

from __future__ import annotations

import itertools

import pytest
import torch

from bilevel_rl.errors import InvalidConfig
from bilevel_rl.policy_gradient import Batch, Recipe
from bilevel_rl.policy_gradient.credit.gae import GAE, discounted_residuals, returns_to_go, value_targets
from bilevel_rl.policy_gradient.credit.group_normalised import BatchNorm, GroupMean, GroupNorm
from bilevel_rl.policy_gradient.credit.leave_one_out import Greedy, LeaveOneOut, Return
from bilevel_rl.policy_gradient.credit.polychromic import Polychromic
from bilevel_rl.policy_gradient.credit.step_level import StepLevel
from bilevel_rl.policy_gradient.losses.clipped import Clipped, clip_fraction
from bilevel_rl.policy_gradient.losses.policy_gradient import PolicyGradient, Supervised
from bilevel_rl.policy_gradient.recipes import named
from bilevel_rl.policy_gradient.regularizers import kl


def gae_by_definition(reward, value, gamma, lam):
    """The double sum, in plain Python."""
    t = len(reward)
    follow = [*value[1:], 0.0]
    delta = [reward[k] + gamma * follow[k] - value[k] for k in range(t)]
    return [sum((gamma * lam) ** (j - k) * delta[j] for j in range(k, t)) for k in range(t)]


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (0.9, 0.95), (0.7, 0.0)])
def test_gae_is_its_definition_on_the_action_tokens(batch, gamma, lam):
    batch = batch.replace(extras={})  # no final values: the episodes end
    advantage = GAE(gamma, lam)(batch)
    for i in range(len(batch)):
        here = batch.mask[i]
        expected = gae_by_definition(
            batch.token_reward[i, here].tolist(), batch.value[i, here].tolist(), gamma, lam
        )
        assert advantage[i, here].tolist() == pytest.approx(expected, abs=1e-12)
        assert (advantage[i, ~here] == 0).all()


def test_gae_at_lambda_one_is_return_minus_value(batch):
    batch = batch.replace(extras={})
    torch.testing.assert_close(
        GAE(0.9, 1.0)(batch)[batch.mask], (returns_to_go(batch, 0.9) - batch.value)[batch.mask]
    )
    targets = value_targets(batch.replace(advantage=GAE(0.9, 1.0)(batch)))
    torch.testing.assert_close(targets, returns_to_go(batch, 0.9))


def test_gae_bootstraps_only_where_a_final_value_is_given():
    r, v, m = torch.zeros(1, 2), torch.ones(1, 2), torch.ones(1, 2, dtype=torch.bool)
    cut = discounted_residuals(r, v, m, 0.5, 0.0, final=torch.tensor([4.0]))
    assert cut.tolist() == [[-0.5, 1.0]]
    assert discounted_residuals(r, v, m, 0.5, 0.0).tolist() == [[-0.5, -1.0]]


def test_only_cut_responses_are_bootstrapped(batch):
    final = batch.get("final_value")
    assert batch.truncated.any()
    assert not batch.truncated.all()
    change = GAE(1.0, 1.0)(batch) - GAE(1.0, 1.0)(batch.replace(extras={}))
    torch.testing.assert_close(change, batch.spread(torch.where(batch.truncated, final, 0)))
    turns = StepLevel(1.0, 1.0)(batch) - StepLevel(1.0, 1.0)(batch.replace(extras={}))
    torch.testing.assert_close(turns, change)


def test_group_baselines_by_hand():
    b = Batch.make(mask=torch.ones(5, 1), reward=[1.0, 0.0, 0.0, 5.0, 2.0], group=[4, 4, 4, 9, 1])
    assert LeaveOneOut()(b)[:, 0].tolist() == pytest.approx([1, -0.5, -0.5, 0, 0])
    assert GroupMean()(b)[:, 0].tolist() == pytest.approx([2 / 3, -1 / 3, -1 / 3, 0, 0])
    spread = torch.tensor([1.0, 0.0, 0.0]).std().item()
    assert GroupNorm(eps=0.0)(b)[:3, 0].tolist() == pytest.approx(
        [2 / 3 / spread, -1 / 3 / spread, -1 / 3 / spread]
    )
    assert GroupNorm(eps=0.0)(b)[3:, 0].tolist() == [0, 0]
    assert Return()(b)[:, 0].tolist() == [1, 0, 0, 5, 2]
    assert Greedy()(b.replace(baseline=torch.ones(5)))[:, 0].tolist() == [0, -1, -1, 4, 1]


def test_group_norm_is_invariant_to_shift_and_scale_of_each_prompts_reward(batch):
    moved = batch.replace(reward=batch.reward.clone())
    scale, shift = (
        torch.tensor([2.0, 0.5, 7.0]).double()[batch.group],
        torch.tensor([1.0, -3.0, 0.0]).double(),
    )
    extra = torch.zeros_like(batch.reward)
    extra[:, 0, 0] = shift[batch.group]  # the first token is an action in every row
    moved = batch.replace(reward=batch.reward * scale[:, None, None] + extra)
    torch.testing.assert_close(GroupNorm(eps=0.0)(moved), GroupNorm(eps=0.0)(batch))
    torch.testing.assert_close(
        LeaveOneOut()(batch.replace(reward=batch.reward + extra)), LeaveOneOut()(batch)
    )


def test_batch_norm_has_mean_zero_and_deviation_one(batch):
    a = BatchNorm(gamma=0.9, eps=0.0)(batch)[batch.mask]
    assert a.mean().item() == pytest.approx(0, abs=1e-14)
    assert a.std(correction=0).item() == pytest.approx(1)
    inner = BatchNorm(eps=0.0, inner=GroupMean())(batch)[batch.mask]
    assert inner.std(correction=0).item() == pytest.approx(1)


# -- losses -------------------------------------------------------------------------------------------------


def test_clipped_gradient_at_ratio_one_is_the_policy_gradient(batch):
    logp = torch.where(batch.mask, batch.logp, 0).requires_grad_()
    on_policy = batch.replace(logp=logp, old=logp.detach(), weight=None)
    (clipped,) = torch.autograd.grad(Clipped()(on_policy), logp)
    (plain,) = torch.autograd.grad(PolicyGradient(aggregate=Clipped().aggregate)(on_policy), logp)
    torch.testing.assert_close(clipped, plain, rtol=1e-13, atol=0)
    assert clip_fraction(on_policy).item() == 0


@pytest.mark.parametrize("advantage", [1.0, -1.0])
@pytest.mark.parametrize("ratio", [0.5, 0.79, 0.81, 1.0, 1.19, 1.21, 1.27, 1.29, 5.0])
def test_clipped_gradient_table(advantage, ratio):
    logp = torch.tensor([[ratio]], dtype=torch.float64).log().requires_grad_()
    b = Batch.make(mask=[[1]], reward=[0.0], logp=logp, old=torch.zeros_like(logp), advantage=[[advantage]])
    for high in (0.2, 0.28):
        (gradient,) = torch.autograd.grad(Clipped(low=0.2, high=high)(b), logp)
        stopped = ratio > 1 + high if advantage > 0 else ratio < 0.8
        assert gradient.item() == pytest.approx(0.0 if stopped else -advantage * ratio)
        assert clip_fraction(b, 0.2, high).item() == float(stopped)
    dual = Clipped(dual=3.0)(b).item()
    if advantage < 0:
        assert dual == pytest.approx(min(max(ratio, 0.8), 3.0))


@pytest.mark.parametrize("bad", [{"low": -0.1}, {"low": 1.5}, {"high": -1.0}, {"dual": 1.0}])
def test_clipped_refuses_impossible_limits(bad):
    with pytest.raises(InvalidConfig, match="Clipped"):
        Clipped(**bad)


def test_supervised_is_cross_entropy(batch):
    expected = -batch.logp[batch.mask].mean()
    torch.testing.assert_close(Supervised()(batch.replace(weight=None)), expected)


def test_reinforce_gradient_is_the_exact_gradient_when_all_sequences_are_enumerated():
    """E over a softmax policy on 3 tokens x 2 steps, by enumeration: the estimator's mean = autodiff of
    E[R].
    """
    theta = torch.randn(
        2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True
    )
    sequences = torch.tensor(list(itertools.product(range(3), repeat=2)))
    reward = torch.randn(9, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    law = theta.log_softmax(-1)
    logp = torch.stack([law[0][sequences[:, 0]], law[1][sequences[:, 1]]], 1)
    p = logp.sum(1).exp()
    (exact,) = torch.autograd.grad((p * reward).sum(), theta, retain_graph=True)
    b = Batch.make(mask=torch.ones(9, 2), reward=reward, logp=logp)
    b = b.replace(advantage=Return()(b), weight=(p.detach() * 9)[:, None].expand(9, 2))
    (estimated,) = torch.autograd.grad(-PolicyGradient()(b), theta)
    torch.testing.assert_close(estimated, exact, rtol=1e-12, atol=1e-14)


# -- KL -----------------------------------------------------------------------------------------------------


def test_kl_estimators_by_enumeration():
    """Values: k1 and k3 have mean KL(p||q). Gradients: k2's mean is KL(p||q)'s, k3's is KL(q||p)'s, k1's
    is 0.
    """
    g = torch.Generator().manual_seed(0)
    theta = torch.randn(6, generator=g, dtype=torch.float64, requires_grad=True)
    q = torch.randn(6, generator=g, dtype=torch.float64).log_softmax(-1)
    p = theta.log_softmax(-1)
    w = p.detach().exp()
    reverse = kl.exact_kl(theta, q)
    assert (w * kl.k1(p, q)).sum().item() == pytest.approx(reverse.item(), rel=1e-12)
    assert (w * kl.k3(p, q)).sum().item() == pytest.approx(reverse.item(), rel=1e-12)
    forward = (q.exp() * (q - p)).sum()

    def gradient(x):
        return torch.autograd.grad(x, theta, retain_graph=True)[0]

    torch.testing.assert_close(gradient((w * kl.k2(p, q)).sum()), gradient(reverse), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(gradient((w * kl.k3(p, q)).sum()), gradient(forward), rtol=1e-10, atol=1e-12)
    assert gradient((w * kl.k1(p, q)).sum()).abs().max() < 1e-14
    assert gradient(reverse).abs().max() > 1e-2


def test_k3_is_never_negative_and_exact_kl_handles_forbidden_tokens():
    x = torch.linspace(-30, 30, 101, dtype=torch.float64)
    assert (kl.k3(x, torch.zeros_like(x)) >= 0).all()
    logits = torch.tensor([0.0, -torch.inf, 1.0], requires_grad=True)
    same = kl.exact_kl(logits, torch.tensor([0.0, -torch.inf, 1.0]))
    assert same.item() == pytest.approx(0, abs=1e-7)
    both = kl.exact_kl(logits, torch.tensor([0.0, 0.0, 0.0]))
    (gradient,) = torch.autograd.grad(both, logits)
    assert both.isfinite()
    assert gradient.isfinite().all()


def test_kl_reward_adds_one_term_and_leaves_the_others(batch):
    out = kl.KLReward(0.1)(batch)
    assert torch.equal(out[..., :2], batch.reward)
    torch.testing.assert_close(out[..., 2][batch.mask], (-0.1 * (batch.old - batch.ref))[batch.mask])


def test_adaptive_coefficient_moves_toward_the_target_and_no_faster_than_allowed():
    c = kl.AdaptiveCoefficient(initial=0.1, target=6.0, horizon=100)
    assert c.update(0.1, 6.0, 10) == 0.1
    assert c.update(0.1, 6.6, 10) == pytest.approx(0.1 * (1 + 0.1 * 0.1))
    assert c.update(0.1, 1e9, 10) == pytest.approx(0.1 * 1.02)
    assert c.update(0.1, 0.0, 10) == pytest.approx(0.1 * 0.98)
    assert kl.FixedCoefficient(0.3).update(0.3, 1e9, 10) == 0.3
    with pytest.raises(InvalidConfig, match="target"):
        kl.AdaptiveCoefficient(target=0.0)


# -- the recipe ---------------------------------------------------------------------------------------------


def test_recipe_names_what_is_missing_before_training():
    with pytest.raises(InvalidConfig, match=r"credit 'gae'.*'value'.*critic"):
        Recipe(credit=GAE()).check({"logp", "old"})
    with pytest.raises(InvalidConfig, match=r"credit 'group_norm'.*1 response a prompt.*at least 2"):
        Recipe(credit=GroupNorm()).check({"logp", "old"}, group_size=1)
    with pytest.raises(InvalidConfig, match=r"regular 'exact_kl'.*'kl'"):
        Recipe(regular=((0.1, kl.ExactKL()),)).check({"logp"})
    Recipe(credit=BatchNorm(inner=GroupMean())).check({"logp"})
    with pytest.raises(InvalidConfig, match=r"polychromic.*4 responses.*at least 8"):
        Recipe(credit=Polychromic(size=4)).check({"logp", "answer"}, group_size=4)
    with pytest.raises(InvalidConfig, match="group_mean"):
        Recipe(credit=BatchNorm(inner=GroupMean())).check({"logp"}, group_size=1)


def test_a_component_may_give_what_a_later_one_needs():
    replayed = named("r3")
    replayed.check({"logp", "old", "entropy"})
    with pytest.raises(InvalidConfig, match="replayed"):
        Recipe(credit=replayed.credit).check({"logp", "old", "entropy"})


def test_prepare_computes_afresh(batch):
    stale = batch.replace(
        advantage=torch.full_like(batch.advantage, 7.0), weight=torch.zeros_like(batch.weight)
    )
    ready = Recipe(credit=GroupMean()).prepare(stale)
    torch.testing.assert_close(ready.advantage, GroupMean()(batch))
    assert ready.weight is None


def test_objective_is_loss_plus_coefficient_times_regulariser(batch):
    recipe = Recipe(loss=Clipped(), regular=((0.5, kl.ExactKL()), (2.0, kl.SampledKL(kl.k3))))
    ready = recipe.prepare(batch.replace(advantage=None, weight=None))
    total, terms = recipe.objective(ready)
    expected = Clipped()(ready) + 0.5 * kl.ExactKL()(ready) + 2 * kl.SampledKL(kl.k3)(ready)
    assert total.item() == pytest.approx(expected.item(), rel=1e-14)
    assert set(terms) == {"loss", "exact_kl", "sampled_kl"}


def test_microbatches_give_the_whole_gradient(batch):
    recipe = Recipe(credit=GroupNorm(), loss=Clipped(), regular=((0.1, kl.SampledKL()),))
    ready = recipe.prepare(batch.replace(advantage=None, weight=None))
    logp = torch.where(batch.mask, batch.logp, 0).requires_grad_()
    whole = torch.autograd.grad(recipe.objective(ready.replace(logp=logp))[0], logp)[0]
    parts = sum(recipe.objective(p)[0] for p in ready.replace(logp=logp).split(5))
    torch.testing.assert_close(torch.autograd.grad(parts, logp)[0], whole, rtol=1e-12, atol=1e-15)
