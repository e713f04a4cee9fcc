"""Reward weights as the upper variable: a single-loop bi-level run on shared samples beats fixed weights.

Twelve answers with three reward terms; the lower level answers optimally for b . R - tau KL, the upper level wants the
gold score, which no single term is. All laws are enumerable, so both are graded exactly.
"""

from __future__ import annotations

import torch

from bilevel_rl.policy_gradient.aggregate import sum_of_tokens
from bilevel_rl.policy_gradient.batch import Batch
from bilevel_rl.policy_gradient.credit import LeaveOneOut
from bilevel_rl.policy_gradient.logs import log_ratio
from bilevel_rl.policy_gradient.losses import Unified
from bilevel_rl.policy_gradient.recipe import Recipe
from bilevel_rl.policy_gradient.regularizers.kl import KLReward
from bilevel_rl.policy_gradient.steps import Adam
from bilevel_rl.schedules import PowerDecay

ARMS, TERMS, TAU, W, RIDGE, ROWS = 12, 3, 0.5, 0.1, 0.05, 256
G = torch.Generator().manual_seed(4)
REF = (0.5 * torch.randn(ARMS, generator=G)).double().log_softmax(0)
REWARD = torch.randn(ARMS, TERMS, generator=G).double()
GOLD = (
    REWARD @ torch.tensor([1.0, -0.7, 0.2], dtype=torch.float64)
    + 0.3 * torch.randn(ARMS, generator=G).double()
)


def hyper_objective(b):
    """Exact f(b, pi*(b)) = - E gold + ridge |b|^2."""
    return -(REF + REWARD @ b / TAU).softmax(0) @ GOLD + RIDGE * b @ b


def best():
    b = torch.ones(TERMS, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([b], lr=0.05)
    for _ in range(500):
        optimiser.zero_grad()
        hyper_objective(b).backward()
        optimiser.step()
    return b.detach()


def bilevel(iterations=450):
    """theta and theta^L learn from the same samples of theta; b descends the shared-rollout hyper-gradient."""
    recipe = Recipe(credit=LeaveOneOut(), loss=Unified(aggregate=sum_of_tokens))
    actor, leader = Adam(PowerDecay(0.1, 0.3)), Adam(PowerDecay(0.05, 0.3))
    theta = {"t": REF.clone()}
    follower = {"t": REF.clone()}
    b = {"b": torch.ones(TERMS, dtype=torch.float64)}
    states = [actor.init(theta), actor.init(follower), leader.init(b)]
    for k in range(iterations):
        law, law_l = (p["t"].log_softmax(0) for p in (theta, follower))
        token = torch.multinomial(
            law.exp(), ROWS, replacement=True, generator=torch.Generator().manual_seed(k)
        )

        def learn(p, step, state, reward, own, token=token, law=law):
            """One step on samples of theta, with the KL reward of the policy's own log-probabilities."""
            base = Batch.make(
                mask=torch.ones(ROWS, 1), reward=reward, group=torch.zeros(ROWS).long(),
                old=own[token][:, None], ref=REF[token][:, None],
            )  # fmt: skip
            ready = recipe.prepare(base.replace(reward=KLReward(TAU)(base)))
            leaf = p["t"].detach().requires_grad_()
            seen = ready.replace(old=law[token][:, None], logp=leaf.log_softmax(0)[token][:, None])
            (gradient,) = torch.autograd.grad(recipe.objective(seen)[0], leaf)
            return step.step(state, p, {"t": gradient})

        pay = REWARD[token] @ b["b"]
        theta, states[0] = learn(theta, actor, states[0], pay, law)
        follower, states[1] = learn(follower, actor, states[1], pay + W * GOLD[token], law_l)
        c = (1 - log_ratio(law_l, law)[token].clamp(-3, 3).exp()) / W
        gradient = 2 * RIDGE * b["b"] + ((c - c.mean())[:, None] * REWARD[token]).mean(0)
        b, states[2] = leader.step(states[2], b, {"b": gradient})
    return b["b"]


def test_learned_weights_beat_fixed_ones_and_come_near_the_best():
    fixed = hyper_objective(torch.ones(TERMS, dtype=torch.float64)).item()
    optimum = hyper_objective(best()).item()
    learned = hyper_objective(bilevel()).item()
    assert fixed - optimum > 0.3
    assert (fixed - learned) / (fixed - optimum) > 0.95
