"""Components that claim to keep the objective: their mean gradient is the exact one, within 4.5 standard
errors.

A policy on sequences of one or two tokens (the first token 0 ends), small enough to enumerate: 7
sequences, 9 parameters.
"""

from __future__ import annotations

import pytest
import torch

from bilevel_rl.policy_gradient.aggregate import sum_of_tokens
from bilevel_rl.policy_gradient.batch import Batch
from bilevel_rl.policy_gradient.component import Effect
from bilevel_rl.policy_gradient.credit import (
    GAE,
    Greedy,
    GroupMean,
    GroupNorm,
    Hierarchical,
    LeaveOneOut,
    LengthBaseline,
    OptimalBaseline,
    Return,
    RewardToGo,
    SegmentChain,
    SegmentTree,
    StateValues,
    StepLevel,
    ToGoLeaveOneOut,
)
from bilevel_rl.policy_gradient.credit.optimal_baseline import logit_score_norm
from bilevel_rl.policy_gradient.losses import Contrastive, MirrorDescent, PairwisePPO, PolicyGradient, Unified
from bilevel_rl.policy_gradient.losses.unified import itself, sampler

PROMPTS, SAMPLES = 12000, 4
G = torch.Generator().manual_seed(0)
THETA = torch.randn(
    3, 3, generator=G
).double()  # row 0: first token; rows 1, 2: second token after token 1, 2
REF = (THETA + 0.7 * torch.randn(3, 3, generator=G).double()).log_softmax(-1)
STEP_REWARD = torch.randn(3, 3, generator=G).double()  # of token a in row s
VALUE = torch.randn(3, generator=G).double()  # an arbitrary critic
TABLE = torch.randn(4096, generator=G).double()  # arbitrary values of states
GREEDY = 0.37


def exact(objective):
    theta = THETA.clone().requires_grad_()
    return torch.autograd.grad(objective(theta.log_softmax(-1)), theta)[0].flatten()


def expected(per_token):
    """Objective E[sum of per_token(law)[s, a]] by enumeration."""

    def objective(law):
        r = per_token(law)
        p = law.exp()
        value = (p * r).sum(-1)
        return (p[0] * (r[0] + torch.stack([0 * value[0], value[1], value[2]]))).sum()

    return objective


REWARD_GRADIENT = exact(expected(lambda law: STEP_REWARD))


def draw(shape, row):
    p = THETA.softmax(-1)[row].reshape(-1, 3)
    return torch.multinomial(p, 1, generator=G).reshape(shape)


def sample(tree=False):
    """PROMPTS groups of SAMPLES responses; in a tree, two first tokens with two continuations each."""
    n = PROMPTS * SAMPLES
    if tree:
        first = (
            draw((PROMPTS, 2), torch.zeros(PROMPTS, 2, dtype=torch.long)).repeat_interleave(2, 1).reshape(-1)
        )
    else:
        first = draw((n,), torch.zeros(n, dtype=torch.long))
    second = draw((n,), first.clamp(min=1))
    token = torch.stack([first, second], 1)
    row = torch.stack([torch.zeros_like(first), first.clamp(min=1)], 1)
    mask = torch.stack([torch.ones(n, dtype=torch.bool), first > 0], 1)
    law = THETA.log_softmax(-1)
    q = (law.exp() * STEP_REWARD).sum(-1)
    after_first = STEP_REWARD[0][first] + torch.where(first > 0, q[first], 0)
    start = (law[0].exp() * (STEP_REWARD[0] + torch.stack([0 * q[0], q[1], q[2]]))).sum()
    noise = 0.3 * torch.randn(n, 2, generator=G).double()
    leaf = torch.arange(n) % SAMPLES
    return Batch.make(
        mask=mask, reward=STEP_REWARD[row, token], group=torch.arange(PROMPTS).repeat_interleave(SAMPLES),
        logp=law[row, token], old=law[row, token], ref=REF[row, token], value=VALUE[row], value_high=VALUE[row],
        switch=torch.zeros_like(mask), turn=torch.arange(2).expand(n, 2),
        score_norm=logit_score_norm(THETA[row], token), baseline=torch.full((n,), GREEDY).double(),
        prefix_value=torch.stack([start.expand(n), after_first], 1) + noise,
        path=torch.stack([leaf // 2, leaf], 1), depth=torch.arange(2).expand(n, 2),
        state_key=row, memory={"state_values": {"value": TABLE, "seen": TABLE}}, extras={"row": row, "token": token},
    )  # fmt: skip


@pytest.fixture(scope="module")
def data():
    return sample()


def scores(batch):
    """[N, 2, 9]: gradient of each token's log-probability in the parameters."""
    row, token = batch.extras["row"], batch.extras["token"]
    p = THETA.softmax(-1)
    out = torch.zeros(len(batch), 2, 3, 3, dtype=torch.float64)
    delta = torch.nn.functional.one_hot(token, 3).double() - p[row]
    out.scatter_(2, row[..., None, None].expand(-1, -1, 1, 3), delta[:, :, None])
    return out.flatten(2)


def deviations(coefficient, batch, truth):
    """Largest distance from the truth of the mean gradient over groups, in standard errors."""
    per_response = (torch.where(batch.mask, coefficient, 0)[..., None] * scores(batch)).sum(1)
    groups = per_response.reshape(PROMPTS, SAMPLES, 9).mean(1)
    error = (groups.mean(0) - truth).abs()
    return (error / (groups.std(0) / PROMPTS**0.5).clamp(min=1e-12)).max().item()


CREDITS = [
    (LeaveOneOut(), 1.0),
    (Return(), 1.0),
    (Greedy(), 1.0),
    (GroupMean(), SAMPLES / (SAMPLES - 1)),
    (OptimalBaseline(), 1.0),
    (LengthBaseline(leave_one_out=True), 1.0),
    (RewardToGo(), 1.0),
    (GAE(gamma=1.0, lam=1.0), 1.0),
    (StepLevel(gamma=1.0, lam=1.0), 1.0),
    (Hierarchical(gamma=1.0, lam_turn=1.0), 1.0),
    (SegmentChain(interval=1, threshold=2.0), 1.0),
    (ToGoLeaveOneOut(), 1.0),
    (StateValues(), 1.0),
]


@pytest.mark.parametrize(("rule", "scale"), CREDITS, ids=[r.card.name for r, _ in CREDITS])
def test_credit_is_unbiased(rule, scale, data):
    assert deviations(scale * rule(data), data, REWARD_GRADIENT) < 4.5
    assert rule.card.effect is Effect.KEEPS or "unbiased" in rule.card.note or "keeps" in rule.card.note


def test_segment_tree_is_unbiased():
    """Two children a node: each level's leave-one-out scale is 2."""
    batch = sample(tree=True)
    assert deviations(2 * SegmentTree()(batch), batch, REWARD_GRADIENT) < 4.5


@pytest.mark.parametrize(
    "rule",
    [GroupNorm(), OptimalBaseline(leave_one_out=False), LengthBaseline(), GAE(gamma=1.0, lam=0.0)],
    ids=["group_norm", "in_sample", "opo", "td"],
)
def test_the_test_sees_bias(rule, data):
    assert deviations(rule(data), data, REWARD_GRADIENT) > 10


def coefficients(loss, batch):
    """What multiplies each token's score: minus N times the loss's gradient in logp."""
    logp = batch.logp.clone().requires_grad_()
    return -len(batch) * torch.autograd.grad(loss(batch.replace(logp=logp)), logp)[0]


BETA = 0.4
REGULARISED = exact(expected(lambda law: STEP_REWARD - BETA * (law - REF)))
LOSSES = [
    (PolicyGradient(), REWARD_GRADIENT),
    (Unified(itself, aggregate=sum_of_tokens), REWARD_GRADIENT),
    (Unified(sampler, aggregate=sum_of_tokens), REWARD_GRADIENT),
    (MirrorDescent(aggregate=sum_of_tokens), REWARD_GRADIENT),
    (PairwisePPO(), REWARD_GRADIENT),
    (Contrastive(BETA), REGULARISED),
]


@pytest.mark.parametrize(
    ("loss", "truth"), LOSSES, ids=[f"{x.card.name}{k}" for k, (x, _) in enumerate(LOSSES)]
)
def test_loss_is_unbiased_on_policy(loss, truth, data):
    batch = data.replace(advantage=LeaveOneOut()(data))
    assert deviations(coefficients(loss, batch), batch, truth) < 4.5


def test_the_regularised_truth_is_another_one(data):
    batch = data.replace(advantage=LeaveOneOut()(data))
    assert deviations(coefficients(Contrastive(BETA), batch), batch, REWARD_GRADIENT) > 10


def test_importance_sampling_is_unbiased_off_policy():
    """One-token responses drawn from the reference; the estimator corrects for it."""
    n = PROMPTS * SAMPLES
    token = torch.multinomial(REF[0].exp().expand(n, 3), 1, generator=G)[:, 0]
    law = THETA.log_softmax(-1)
    zeros = torch.zeros(n, dtype=torch.long)
    pad = torch.stack([torch.ones(n), torch.zeros(n)], 1).bool()
    batch = Batch.make(
        mask=pad, reward=STEP_REWARD[0][token], group=torch.arange(PROMPTS).repeat_interleave(SAMPLES),
        logp=law[0][token][:, None].expand(n, 2), old=REF[0][token][:, None].expand(n, 2),
        extras={"row": torch.stack([zeros, zeros], 1), "token": torch.stack([token, zeros], 1)},
    )  # fmt: skip
    batch = batch.replace(advantage=Return()(batch))
    truth = exact(lambda law: (law[0].exp() * STEP_REWARD[0]).sum())
    loss = Unified(sampler, aggregate=sum_of_tokens)
    assert deviations(coefficients(loss, batch), batch, truth) < 4.5
    assert deviations(coefficients(PolicyGradient(), batch), batch, truth) > 10
