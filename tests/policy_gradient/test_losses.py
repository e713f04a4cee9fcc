"""Each loss against what its paper implies: textbook gradients, closed-form optima, invariances."""

from __future__ import annotations

import itertools

import pytest
import torch

from bilevel_rl.errors import InvalidConfig
from bilevel_rl.policy_gradient.aggregate import per_sequence, per_token, sum_of_tokens
from bilevel_rl.policy_gradient.batch import Batch
from bilevel_rl.policy_gradient.credit.leave_one_out import leave_one_out
from bilevel_rl.policy_gradient.losses import (
    Clipped,
    ClippedWeight,
    Contrastive,
    DirectAdvantage,
    MirrorDescent,
    NashMirrorProx,
    NashPreference,
    PairwisePPO,
    PolicyGradient,
    Precision,
    SequenceRatio,
    Supervised,
    Unified,
)
from bilevel_rl.policy_gradient.losses import mirror_descent as md
from bilevel_rl.policy_gradient.losses.pairwise import log_partition, squared_differences
from bilevel_rl.policy_gradient.losses.unified import ClipMask, always, behaviour, itself, one, sampler


def gradient(loss, batch, field="logp"):
    leaf = torch.where(batch.mask, batch.get(field), 0).detach().requires_grad_()
    return torch.autograd.grad(loss(batch.replace(**{field: leaf})), leaf)[0]


def table(probabilities, reward, group=None, repeat=1, **fields):
    """Every outcome of a one-token policy as a row."""
    logp = torch.as_tensor(probabilities).log()
    n = len(logp)
    return Batch.make(
        mask=torch.ones(n, 1), reward=torch.as_tensor(reward), group=[0] * n if group is None else group,
        logp=logp[:, None], **{k: torch.as_tensor(v)[:, None] for k, v in fields.items()},
    )  # fmt: skip


# -- 5 the unified estimator --------------------------------------------------------------------------------


def test_unified_settings_are_the_textbook_losses(batch):
    ones = batch.replace(advantage=torch.ones_like(batch.advantage), weight=None)
    cases = [
        (Unified(itself, always), Supervised(), ones),
        (Unified(itself, always, sum_of_tokens), PolicyGradient(), batch),
        (Unified(sampler, ClipMask(0.2, 0.28)), Clipped(0.2, 0.28), batch),
        (Unified(sampler, ClipMask(), per_sequence), Clipped(aggregate=per_sequence), batch),
    ]
    for unified, textbook, data in cases:
        torch.testing.assert_close(gradient(unified, data), gradient(textbook, data), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("denominator", "field"), [(sampler, "old"), (behaviour, "behaviour"), (one, None)])
def test_unified_importance_sampling_by_formula(batch, denominator, field):
    weight = batch.inside("advantage") * batch.inside("weight")
    base = batch.inside(field) if field else torch.zeros_like(weight)
    expected = -weight * torch.exp(batch.inside("logp") - base) / batch.mask.sum()
    out = gradient(Unified(denominator), batch)
    torch.testing.assert_close(out, torch.where(batch.mask, expected, 0), rtol=1e-12, atol=1e-14)


# -- GSPO, CISPO --------------------------------------------------------------------------------------------


def test_sequence_ratio_by_formula(batch):
    b = batch.replace(advantage=batch.spread(batch.score), weight=None)
    loss = SequenceRatio(low=0.1, high=0.1)(b)
    expected = 0.0
    for i in range(len(b)):
        here = b.mask[i]
        s = (b.logp - b.old)[i, here].mean().exp()
        a = b.score[i]
        expected = expected - torch.minimum(s * a, s.clamp(0.9, 1.1) * a) / len(b)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)


def test_sequence_ratio_at_ratio_one_is_the_length_normalised_policy_gradient(batch):
    b = batch.replace(old=batch.logp, advantage=batch.spread(batch.score))
    b = b.replace(weight=None)
    torch.testing.assert_close(
        gradient(SequenceRatio(), b), gradient(PolicyGradient(per_sequence), b), rtol=1e-12, atol=1e-15
    )


def test_clipped_weight_keeps_a_gradient_where_ppo_has_none():
    logp = torch.tensor([[5.0]]).double().log()
    b = Batch.make(mask=[[1]], reward=[0.0], logp=logp, old=torch.zeros_like(logp), advantage=[[1.0]])
    assert gradient(Clipped(), b).item() == 0
    assert gradient(ClippedWeight(high=2.0), b).item() == pytest.approx(-3.0)


# -- the squared-difference core: 7 CoPG --------------------------------------------------------------------


def test_squared_differences_is_the_sum_over_pairs(batch):
    h = batch.score
    total = 0.0
    for q in batch.group.unique():
        mine = h[batch.group == q].tolist()
        total += sum((a - b) ** 2 for a, b in itertools.combinations(mine, 2)) / (len(mine) - 1)
    assert squared_differences(h, batch.group).sum().item() == pytest.approx(total, rel=1e-12)


def test_copg_gradient_is_leave_one_out_of_the_regularised_reward(batch):
    beta = 0.3
    drift = torch.where(batch.mask, batch.logp - batch.ref, 0).sum(1)
    regularised = batch.score - beta * drift
    expected = -batch.spread(leave_one_out(regularised, batch.group)) / len(batch)
    torch.testing.assert_close(gradient(Contrastive(beta), batch), expected, rtol=1e-11, atol=1e-13)


def test_copg_is_zero_at_its_optimum_for_any_sampling_law():
    g = torch.Generator().manual_seed(0)
    ref, reward = torch.randn(6, generator=g).double().log_softmax(0), torch.randn(6, generator=g).double()
    best = (ref + reward / 0.4).log_softmax(0)
    rows = torch.tensor([0, 0, 3, 5, 5, 5, 2])  # any multiset of outcomes
    b = table(best[rows].exp(), reward[rows], ref=ref[rows])
    assert Contrastive(0.4)(b).item() == pytest.approx(0, abs=1e-25)
    assert Contrastive(0.5)(b).item() > 1e-3


@pytest.mark.parametrize("loss", [Contrastive(0.3), PairwisePPO(), PairwisePPO(joint=True)])
def test_pairwise_losses_ignore_a_shift_of_each_prompts_reward(batch, loss):
    shift = torch.zeros_like(batch.reward)
    shift[:, 0, 0] = torch.tensor([5.0, -2.0, 11.0]).double()[batch.group]
    torch.testing.assert_close(
        gradient(loss, batch.replace(reward=batch.reward + shift)),
        gradient(loss, batch),
        rtol=1e-10,
        atol=1e-12,
    )


def test_copg_with_binary_rewards_is_ipo():
    """k = 2, R = +-1/2: (1 - beta (dlog pi - dlog ref))^2, IPO's square up to a constant factor."""
    logp, ref = torch.tensor([-0.3, -1.7]).double(), torch.tensor([-0.9, -1.1]).double()
    b = table(logp.exp(), torch.tensor([0.5, -0.5]).double(), ref=ref)
    beta = 0.2
    h = (logp[0] - logp[1]) - (ref[0] - ref[1])
    ipo = (h - 1 / beta).square() * beta**2
    assert Contrastive(beta)(b).item() == pytest.approx((ipo / (2 * beta * 2)).item(), rel=1e-12)


@pytest.mark.parametrize(
    "bad", [lambda: Contrastive(0.0), lambda: DirectAdvantage(-1.0), lambda: NashPreference(tau=1.0)]
)
def test_impossible_coefficients_are_refused(bad):
    with pytest.raises(InvalidConfig, match=r"beta|tau"):
        bad()


def softmax_descent(loss_of, size, steps=4000, rate=0.3, start=None):
    """Gradient descent on the logits of one categorical law; the probabilities at the end."""
    theta = (torch.zeros(size, dtype=torch.float64) if start is None else start.clone()).requires_grad_()
    optimiser = torch.optim.Adam([theta], lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        optimiser.zero_grad()
        loss_of(theta.log_softmax(0)).backward()
        optimiser.step()
        schedule.step()
    return theta.detach().softmax(0)


def test_copg_off_policy_reaches_the_regularised_optimum():
    """Groups drawn uniformly, far from the policy: total variation to ref e^{R/beta}/Z under 1e-2."""
    g = torch.Generator().manual_seed(0)
    ref, reward = torch.randn(5, generator=g).double().log_softmax(0), torch.randn(5, generator=g).double()
    beta = 0.5
    rows = torch.randint(5, (200, 4), generator=g)
    group = torch.arange(200).repeat_interleave(4)
    flat = rows.flatten()
    b = Batch.make(mask=torch.ones(800, 1), reward=reward[flat], group=group, ref=ref[flat][:, None])
    law = softmax_descent(lambda logp: Contrastive(beta)(b.replace(logp=logp[flat][:, None])), 5, steps=400)
    best = (ref + reward / beta).softmax(0)
    distance = 0.5 * (law - best).abs().sum().item()
    assert distance < 1e-2
    assert 0.5 * (ref.exp() - best).abs().sum().item() > 0.2  # it had far to go


# -- 9 P3O --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [PairwisePPO(clip=None), PairwisePPO(), PairwisePPO(joint=True)])
def test_p3o_on_policy_is_leave_one_out_and_copg_without_regularisation(batch, loss):
    on_policy = batch.replace(old=batch.logp)
    expected = -batch.spread(leave_one_out(batch.score, batch.group)) / len(batch)
    torch.testing.assert_close(gradient(loss, on_policy), expected, rtol=1e-11, atol=1e-13)
    at_reference = batch.replace(ref=batch.logp)
    torch.testing.assert_close(gradient(Contrastive(1e-3), at_reference), expected, rtol=1e-9, atol=1e-12)


def p3o_by_pairs(batch, clip, joint):
    """The sum over ordered pairs, in plain Python: coefficient of grad log pi(y_i)."""
    drift = torch.where(batch.mask, batch.logp - batch.old, 0).sum(1)
    out = torch.zeros(len(batch), dtype=torch.float64)
    for i in range(len(batch)):
        mates = [j for j in range(len(batch)) if batch.group[j] == batch.group[i] and j != i]
        for j in mates:
            gap, w = batch.score[i] - batch.score[j], (drift[i] + drift[j]).exp()
            if joint:
                better = (drift[i] - drift[j]).exp() if gap > 0 else (drift[j] - drift[i]).exp()
                stop = bool(better > 1 + clip)
            else:
                r = drift[i].exp()
                stop = bool(r > 1 + clip) if gap > 0 else bool(r < 1 - clip)
            out[i] -= 0.0 if stop else (w * gap / len(mates) / len(batch)).item()
    return out


@pytest.mark.parametrize("joint", [False, True])
def test_p3o_off_policy_by_pairs(batch, joint):
    expected = batch.spread(p3o_by_pairs(batch, 0.2, joint))
    out = gradient(PairwisePPO(clip=0.2, joint=joint), batch)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-12)
    unclipped = gradient(PairwisePPO(clip=None), batch)
    assert (out - unclipped).abs().max() > 1e-3


def test_p3o_joint_clip_stops_both_members_of_a_pair():
    b = table([0.9, 0.05], [1.0, 0.0], old=[-1.0, -1.0])
    out = gradient(PairwisePPO(clip=0.2, joint=True), b)
    assert out.abs().max() == 0


# -- 33 direct advantage ------------------------------------------------------------------------------------


def test_direct_advantage_optimum_on_a_table():
    """Samples = all actions with the reference's frequencies (weights); the centred target has
    log-partition 0.
    """
    g = torch.Generator().manual_seed(2)
    counts = torch.tensor([1, 2, 3, 4])
    rows = torch.repeat_interleave(torch.arange(4), counts)
    ref = (counts / counts.sum()).double().log()
    advantage = torch.randn(4, generator=g).double()
    beta = 0.7
    best = (ref + advantage / beta).softmax(0)
    data = table(ref[rows].exp(), [0.0] * 10, ref=ref[rows], advantage=advantage[rows])
    for shift in (0.0, 3.0):  # a constant in the state changes nothing, thanks to the centring
        moved = data.replace(advantage=data.advantage + shift)
        law = softmax_descent(
            lambda logp, b=moved: DirectAdvantage(beta)(b.replace(logp=logp[rows][:, None])), 4, steps=400
        )
        torch.testing.assert_close(law, best, rtol=1e-4, atol=1e-5)
    moved = data.replace(advantage=data.advantage + 3.0)
    law = softmax_descent(
        lambda logp: DirectAdvantage(beta, centre=False)(moved.replace(logp=logp[rows][:, None])),
        4,
        steps=400,
    )
    assert (law - best).abs().max() > 1e-2


def test_direct_advantage_of_a_strong_regulariser_is_the_reference():
    ref = torch.tensor([0.2, 0.8]).double().log()
    b = table(ref.exp(), [0.0, 0.0], ref=ref, advantage=torch.tensor([1.0, -1.0]).double())
    for beta in (1e2, 1e4):
        pull = gradient(DirectAdvantage(beta, centre=False), b).abs().max().item()
        stiffness = beta / 2
        assert pull / stiffness == pytest.approx(1 / beta, rel=1e-9)


def test_log_partition_by_hand():
    x = torch.tensor([0.0, 1.0, 5.0]).double()
    out = log_partition(x, torch.tensor([0, 0, 1]))
    expected = torch.log((x[0].exp() + x[1].exp()) / 2).item()
    assert out.tolist() == pytest.approx([expected, expected, 0.0])


# -- 52 INPO ------------------------------------------------------------------------------------------------


def population_of_pairs(law, preference):
    """All ordered pairs with their probabilities: (winner, loser, weight)."""
    n = len(law)
    return [(i, j, (law[i] * law[j] * preference[i, j]).item()) for i in range(n) for j in range(n) if i != j]


def test_inpo_population_gradient_is_zero_at_the_mirror_descent_step():
    g = torch.Generator().manual_seed(0)
    n, eta, tau = 4, 0.5, 0.2
    old, ref = (torch.randn(n, generator=g).double().log_softmax(0) for _ in range(2))
    p = torch.rand(n, n, generator=g).double()
    preference = torch.triu(p, 1) + torch.tril(1 - p.T, -1) + 0.5 * torch.eye(n).double()
    step = (tau / eta * ref + (1 - tau / eta) * old + preference @ old.exp() / eta).log_softmax(0)

    def population(theta, eta=eta):
        logp = theta.log_softmax(0)
        total = 0.0
        for i, j, weight in population_of_pairs(old.exp(), preference):
            rows = torch.tensor([i, j])
            b = table([1.0, 1.0], [0.0, 0.0]).replace(
                logp=logp[rows][:, None], old=old[rows][:, None], ref=ref[rows][:, None],
                winner=torch.tensor([True, False]),
            )  # fmt: skip
            total = total + weight * NashPreference(eta, tau)(b)
        return total

    theta = step.clone().requires_grad_()
    assert torch.autograd.grad(population(theta), theta)[0].abs().max() < 1e-10
    elsewhere = old.clone().requires_grad_()
    assert torch.autograd.grad(population(elsewhere), elsewhere)[0].abs().max() > 1e-2


def test_inpo_limits():
    logp, old, ref = (torch.tensor(x).double() for x in ([-0.3, -1.7], [-0.5, -1.0], [-0.9, -1.1]))
    b = table(logp.exp(), [0.0, 0.0], old=old, ref=ref).replace(winner=torch.tensor([True, False]))
    gap = (logp - ref)[0] - (logp - ref)[1]
    assert NashPreference(0.5, 0.5)(b).item() == pytest.approx((gap - 1).square().item())
    gap = (logp - old)[0] - (logp - old)[1]
    assert NashPreference(0.5, 0.0)(b).item() == pytest.approx((gap - 1).square().item())


# -- 12 precision -------------------------------------------------------------------------------------------


def test_precision_without_its_knobs_is_cross_entropy(batch):
    logits = torch.nan_to_num(batch.get("logits")).requires_grad_()
    (out,) = torch.autograd.grad(Precision(beta=0.0)(batch.replace(logits=logits)), logits)
    target = batch.get("target")
    nll = -logits.log_softmax(-1).gather(-1, target[..., None])[..., 0]
    (expected,) = torch.autograd.grad(nll[batch.mask].mean(), logits)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-15)


def test_cross_entropy_is_one_step_policy_gradient_with_the_inverse_probability_as_reward():
    logits = torch.tensor([0.3, -1.0, 0.5], dtype=torch.float64, requires_grad=True)
    p = logits.softmax(0)
    reward = torch.zeros(3, dtype=torch.float64)
    reward[1] = 1 / p[1].detach()
    (policy_gradient,) = torch.autograd.grad((p * reward).sum(), logits, retain_graph=True)
    (likelihood,) = torch.autograd.grad(logits.log_softmax(0)[1], logits)
    torch.testing.assert_close(policy_gradient, likelihood)


def weight_of_gold(beta, probability):
    """Size of the gradient on the gold logit relative to cross-entropy's."""
    logits = torch.tensor([[[probability, 1 - probability]]], dtype=torch.float64).log().requires_grad_()
    b = Batch.make(mask=[[1]], reward=[0.0], logits=logits, target=[[0]])
    out = torch.autograd.grad(Precision(beta=beta)(b), logits)[0]
    base = torch.autograd.grad(Precision(beta=0.0)(b), logits)[0]
    return (out / base)[0, 0, 0].item()


def test_the_sign_of_beta_decides_between_sure_and_unsure_gold_tokens():
    assert weight_of_gold(0.5, 0.9) < weight_of_gold(0.5, 0.1) < 1  # diversity: unsure ones count more
    assert weight_of_gold(-0.25, 0.9) > weight_of_gold(-0.25, 0.1) > 1  # precision: sure ones do


def test_precision_gradient_over_the_vocabulary_sums_to_zero_and_follows_the_rewards(batch):
    logits = torch.nan_to_num(batch.get("logits")).requires_grad_()
    loss = Precision(beta=0.0, top=0.0, tail=-0.5, k=1)(batch.replace(logits=logits))
    (out,) = torch.autograd.grad(loss, logits)
    assert out.sum(-1).abs().max() < 1e-15
    p = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    x = p.log()[None, None].requires_grad_()
    b = Batch.make(mask=[[1]], reward=[0.0], logits=x, target=[[0]])
    (g,) = torch.autograd.grad(Precision(beta=0.0, tail=-0.5, k=1)(b), x)
    r = torch.tensor([0.0, -0.5, -0.5]).double()
    expected = -(torch.tensor([1.0, 0, 0]).double() - p) - p * (r - (p * r).sum())
    torch.testing.assert_close(g[0, 0], expected)


# -- 26 MDPO, 31 Nash mirror prox ---------------------------------------------------------------------------


def test_mdpo_optimum_on_a_table_and_its_first_gradient():
    g = torch.Generator().manual_seed(0)
    old, advantage = torch.randn(5, generator=g).double().log_softmax(0), torch.randn(5, generator=g).double()
    advantage = advantage - (old.exp() * advantage).sum()
    t = 0.8
    b = table(old.exp(), [0.0] * 5, old=old, advantage=advantage)
    b = b.replace(weight=(5 * old.exp())[:, None])

    def population(logp):
        """The loss under the old policy: rows weighted by their probability, KL included."""
        total = 0.0
        for k in range(5):
            row = b.rows(torch.tensor([k])).replace(logp=logp[k].reshape(1, 1), weight=None)
            total = total + old[k].exp() * MirrorDescent(t)(row)
        return total

    law = softmax_descent(population, 5, steps=400)
    torch.testing.assert_close(law, md.proximal_step(old, advantage, t).exp(), rtol=1e-5, atol=1e-6)
    on_policy = b.replace(logp=b.old, weight=None)
    torch.testing.assert_close(
        gradient(MirrorDescent(t), on_policy),
        gradient(PolicyGradient(per_token), on_policy),
        rtol=1e-13,
        atol=0,
    )


def test_sampled_divergence_has_the_value_and_the_gradient_of_the_kl():
    g = torch.Generator().manual_seed(1)
    theta = torch.randn(6, generator=g).double().requires_grad_()
    old, ref = (torch.randn(6, generator=g).double().log_softmax(0) for _ in range(2))
    logp = theta.log_softmax(0)
    for q in (old, ref):
        sampled = (old.exp() * md.sampled_divergence(logp - old, logp - q)).sum()
        exact = (logp.exp() * (logp - q)).sum()
        assert sampled.item() == pytest.approx(exact.item(), rel=1e-12)
        one_, two = (torch.autograd.grad(x, theta, retain_graph=True)[0] for x in (sampled, exact))
        torch.testing.assert_close(one_, two, rtol=1e-10, atol=1e-12)
    assert (md.sampled_divergence(torch.linspace(-5, 5, 50), torch.linspace(-5, 5, 50)) >= 0).all()


def test_mdpo_limits_greedy_and_soft_actor_critic():
    q = torch.tensor([0.3, 1.0, -0.5]).double()
    uniform = torch.zeros(3).double()
    assert md.proximal_step(uniform.log_softmax(0), q, 1e3).exp()[1].item() == pytest.approx(1)
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).double().requires_grad_()
    alpha = 0.3
    law = logits.log_softmax(-1)
    soft_actor = (law.exp() * (alpha * law - q)).sum(-1).mean() / alpha
    (expected,) = torch.autograd.grad(soft_actor, logits)
    (out,) = torch.autograd.grad(md.projection_loss(logits, uniform.expand(4, 3), q, 1 / alpha), logits)
    torch.testing.assert_close(out, expected)


def test_mdpo_anneals_its_step():
    b = table([0.5, 0.5], [0.0, 0.0], old=[-1.0, -0.4], advantage=[0.0, 0.0])
    start, end = (MirrorDescent(anneal=True)(b.replace(progress=p)).item() for p in (0.0, 0.5))
    assert end == pytest.approx(2 * start)


ROCK_PAPER_SCISSORS = torch.tensor([[0.5, 0.0, 1.0], [1.0, 0.5, 0.0], [0.0, 1.0, 0.5]]).double()


def test_mirror_prox_converges_at_its_last_iterate_where_multiplicative_weights_do_not():
    log_pi = torch.tensor([0.8, 0.15, 0.05]).double().log()
    ref = torch.full((3,), 1 / 3).double().log()
    weights, distances = log_pi.clone(), []
    for _ in range(60):
        log_pi = md.mirror_prox(log_pi, ref, ROCK_PAPER_SCISSORS, beta=0.1, eta=1.0)
        weights = (weights + ROCK_PAPER_SCISSORS @ weights.exp()).log_softmax(0)
        distances.append((log_pi.exp() * (log_pi - ref)).sum().item())  # KL to the Nash policy
    assert distances[-1] < 1e-6
    ratio = (distances[40] / distances[20]) ** (1 / 20)
    assert ratio == pytest.approx(0.765, abs=5e-3)
    assert ratio < 1 / (1 + 2 * 0.1)  # the rate of the abstract, (1 + 2 beta)^(-N/2) with two queries a step
    assert (weights.exp() - 1 / 3).abs().max() > 0.3  # leaves the interior


def test_mirror_prox_fixed_point_is_its_own_regularised_best_response():
    g = torch.Generator().manual_seed(0)
    p = torch.rand(4, 4, generator=g).double()
    preference = torch.triu(p, 1) + torch.tril(1 - p.T, -1) + 0.5 * torch.eye(4).double()
    ref = torch.randn(4, generator=g).double().log_softmax(0)
    log_pi = ref.clone()
    for _ in range(400):
        log_pi = md.mirror_prox(log_pi, ref, preference, beta=0.2, eta=1.0)
    response = (ref + preference @ log_pi.exp() / 0.2).log_softmax(0)
    torch.testing.assert_close(log_pi, response, rtol=1e-8, atol=1e-8)


def test_nash_mirror_prox_by_samples_has_the_gradient_of_the_proximal_objective():
    """Rows = all actions, weighted by the centre: the loss's gradient is 0 at the closed-form step."""
    g = torch.Generator().manual_seed(0)
    n, beta, eta = 4, 0.3, 0.7
    old, ref = (torch.randn(n, generator=g).double().log_softmax(0) for _ in range(2))
    p = torch.rand(n, n, generator=g).double()
    preference = torch.triu(p, 1) + torch.tril(1 - p.T, -1) + 0.5 * torch.eye(n).double()
    win = preference @ old.exp()
    step = md.mirror_prox_step(old, ref, old.exp(), preference, beta, eta)

    def population(theta):
        logp = theta.log_softmax(0)
        total = 0.0
        for k in range(n):
            b = Batch.make(
                mask=[[1]], reward=[0.0], logp=logp[k].reshape(1, 1), old=old[k].reshape(1, 1),
                ref=ref[k].reshape(1, 1), advantage=win[k].reshape(1, 1),
            )  # fmt: skip
            total = total + old[k].exp() * NashMirrorProx(beta, eta)(b)
        return total

    theta = step.clone().requires_grad_()
    assert torch.autograd.grad(population(theta), theta)[0].abs().max() < 1e-12
    theta = old.clone().requires_grad_()
    assert torch.autograd.grad(population(theta), theta)[0].abs().max() > 1e-2
