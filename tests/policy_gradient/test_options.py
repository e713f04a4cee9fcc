"""Where a paper and its release differ, both are options: what each option changes, by hand."""

from __future__ import annotations

import pytest
import torch

from bilevel_rl.errors import InvalidConfig
from bilevel_rl.policy_gradient.batch import Batch
from bilevel_rl.policy_gradient.checks import SETTING
from bilevel_rl.policy_gradient.credit import GroupNorm
from bilevel_rl.policy_gradient.losses import Clipped, Hybrid, MirrorDescent, SequenceRatio
from bilevel_rl.policy_gradient.recipe import Recipe
from bilevel_rl.policy_gradient.recipes import compose, named
from bilevel_rl.policy_gradient.reward import SoftOverlong
from bilevel_rl.policy_gradient.setting import Setting, configured
from bilevel_rl.policy_gradient.weigh import ClipCovariance, Confident


def value_and_gradient(loss, batch):
    leaf = batch.logp.clone().requires_grad_()
    value = loss(batch.replace(logp=leaf))
    return value.detach(), torch.autograd.grad(value, leaf)[0]


# -- GSPO ---------------------------------------------------------------------------------------------------


def gspo_token_by_definition(batch, low, high):
    """s_i with the gradient of each token's own probability, written with explicit stop-gradients."""
    leaf = batch.inside("logp").clone().requires_grad_()
    length = batch.mask.sum(1)
    mean = torch.where(batch.mask, leaf - batch.inside("old"), 0).sum(1) / length
    ratio = mean.exp().detach()[:, None] * (leaf - leaf.detach()).exp()
    a = batch.inside("advantage")
    loss = -torch.minimum(ratio * a, ratio.clamp(1 - low, 1 + high) * a)
    value = (torch.where(batch.mask, loss, 0).sum(1) / length).mean()
    return value.detach(), torch.autograd.grad(value, leaf)[0]


def test_gspo_token_is_its_definition_and_another_gradient_than_gspos(batch):
    batch = batch.replace(weight=None)
    value, gradient = value_and_gradient(SequenceRatio(0.3, 0.4, by_token=True), batch)
    expected, slope = gspo_token_by_definition(batch, 0.3, 0.4)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient, slope)
    sequence, other = value_and_gradient(SequenceRatio(0.3, 0.4), batch)
    torch.testing.assert_close(sequence, value)
    assert (other - gradient).abs().max() > 1e-3


def test_both_gspos_agree_where_a_response_has_one_advantage(batch):
    batch = batch.replace(weight=None, advantage=GroupNorm()(batch))
    for one, two in zip(
        value_and_gradient(SequenceRatio(0.3, 0.4), batch),
        value_and_gradient(SequenceRatio(0.3, 0.4, by_token=True), batch),
        strict=True,
    ):
        torch.testing.assert_close(one, two)


# -- SPO's mask ---------------------------------------------------------------------------------------------


def test_confident_tokens_leave_the_mean_too(batch):
    """The loss of the masked recipe is that of responses without the confident tokens."""
    recipe = Recipe(credit=GroupNorm(), weigh=(Confident(0.3),), loss=Clipped())
    ready = recipe.prepare(batch.replace(weight=None))
    sure = batch.mask & (batch.inside("old").exp() >= 0.3)
    assert sure.any()
    without = batch.replace(weight=None, mask=batch.mask & ~sure, advantage=ready.advantage)
    loss, _ = recipe.objective(ready)
    torch.testing.assert_close(loss, Clipped()(without))
    scaled = Clipped()(ready.replace(counted=None))
    share = (~sure & batch.mask).sum() / batch.mask.sum()
    torch.testing.assert_close(scaled, loss * share)


def test_parts_of_a_masked_batch_add_up(batch):
    recipe = Recipe(credit=GroupNorm(), weigh=(Confident(0.3),), loss=Clipped())
    ready = recipe.prepare(batch.replace(weight=None))
    parts = torch.stack([recipe.objective(part)[0] for part in ready.split(5)])
    torch.testing.assert_close(parts.sum(), recipe.objective(ready)[0])


# -- Clip-Cov -----------------------------------------------------------------------------------------------


def test_clip_cov_chooses_at_every_gradient_step(batch):
    """The tokens without gradient are those chosen from the policy of that step, not of the first one."""
    batch = batch.replace(weight=None)
    moved = batch.replace(logp=batch.logp + torch.where(batch.mask, batch.inside("logp").flip(1), 0))
    zero = {}
    for every in (True, False):
        rule = ClipCovariance(share=0.2, low=0.0, every_step=every)
        recipe = Recipe(credit=GroupNorm(), weigh=(rule,), loss=Clipped(low=1.0, high=20.0))
        ready = recipe.prepare(batch)
        leaf = moved.logp.clone().requires_grad_()
        loss, _ = recipe.objective(ready.replace(logp=leaf))
        gradient = torch.autograd.grad(loss, leaf)[0]
        zero[every] = batch.mask & (gradient == 0) & (ready.advantage != 0)
        now = ready.replace(logp=moved.logp) if every else ready
        expected = batch.mask & (rule(now) == 0) & (ready.advantage != 0)
        assert torch.equal(zero[every], expected)
    assert not torch.equal(zero[True], zero[False])


# -- HPT ----------------------------------------------------------------------------------------------------


def test_hpts_loss_by_hand():
    """One prompt solved and one not: the demonstration of the second and the samples of the first, each apart."""
    logp = torch.log(torch.tensor([[0.5, 0.25], [0.5, 0.5], [0.1, 0.1], [0.5, 0.5], [0.5, 0.5], [0.2, 0.4]]).double())
    mask = torch.ones(6, 2, dtype=torch.bool)
    mask[5, 1] = False
    batch = Batch.make(
        mask, torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0, 0.0]).double(), [0, 0, 0, 1, 1, 1], logp=logp, old=logp,
        demonstration=[False, False, True, False, False, True],
    )  # fmt: skip
    recipe = compose("credit=hpt_gate(group_norm(eps=0.0)), loss=hybrid(length=10)")
    ready = recipe.prepare(batch)
    leaf = logp.clone().requires_grad_()
    loss, _ = recipe.objective(ready.replace(logp=leaf))
    a = 0.5**0.5  # of one right and one wrong answer
    assert loss.item() == pytest.approx(-torch.log(torch.tensor(0.2)).item())  # the samples' ratio terms cancel
    gradient = torch.autograd.grad(loss, leaf)[0]
    assert gradient[0].tolist() == pytest.approx([-a / 10] * 2)
    assert gradient[1].tolist() == pytest.approx([a / 10] * 2)
    assert gradient[2:5].abs().max() == 0
    assert gradient[5].tolist() == [-1.0, 0.0]


def test_limits_come_from_the_run_and_their_absence_is_said():
    assert configured(Hybrid(), Setting(max_new_tokens=32)) == Hybrid(length=32)
    assert configured(SoftOverlong(), Setting(max_new_tokens=20480)) == SoftOverlong(20480, 4096)  # the paper's
    assert configured(SoftOverlong(limit=8, cache=2), Setting(max_new_tokens=32)) == SoftOverlong(8, 2)
    recipe = named("dapo").configured(SETTING)
    assert recipe.reward[0] == SoftOverlong(7, 1)
    batch = Batch.make(mask=[[1]], reward=[1.0])
    with pytest.raises(InvalidConfig, match="reward 'soft_overlong': got limit=None outside a run; it takes this limit"):
        SoftOverlong()(batch)
    demonstration = batch.replace(logp=batch.token_reward, old=batch.token_reward, advantage=batch.token_reward)
    with pytest.raises(InvalidConfig, match="loss 'hybrid': got length=None outside a run"):
        Hybrid()(demonstration.replace(demonstration=torch.ones(1).bool()))


# -- MDPO ---------------------------------------------------------------------------------------------------


def test_mdpo_anneals_by_default(batch):
    early, late = (value_and_gradient(MirrorDescent(), batch.replace(progress=p))[0] for p in (0.0, 0.5))
    assert early != late
    twice = MirrorDescent(step=0.5, anneal=False)
    torch.testing.assert_close(value_and_gradient(twice, batch.replace(progress=0.5))[0], late)
    end = MirrorDescent(floor=0.25)(batch.replace(progress=1.0))
    torch.testing.assert_close(end, MirrorDescent(step=0.25, anneal=False)(batch))
