"""Advantage alignment on the iterated prisoner's dilemma: the plain gradient defects, the aligned one cooperates."""

from __future__ import annotations

import pytest
import torch

from bilevel_rl.policy_gradient.batch import Batch
from bilevel_rl.policy_gradient.credit import Alignment
from bilevel_rl.policy_gradient.credit.gae import returns_to_go

# payoff to the row player: cooperate 0, defect 1
PAYOFF = torch.tensor([[0.6, 0.0], [1.0, 0.2]], dtype=torch.float64)


def play(policies, games, rounds, g):
    """Both memory-one policies [5, 2] (start, CC, CD, DC, DD: own move first) against each other."""
    state = [torch.zeros(games, dtype=torch.long) for _ in range(2)]
    seen, moves, rewards = ([[], []] for _ in range(3))
    for _ in range(rounds):
        move = [torch.multinomial(policies[i][state[i]], 1, generator=g)[:, 0] for i in range(2)]
        for i in range(2):
            seen[i].append(state[i])
            moves[i].append(move[i])
            rewards[i].append(PAYOFF[move[i], move[1 - i]])
            state[i] = 1 + 2 * move[i] + move[1 - i]
    return [[torch.stack(x, 1) for x in pair] for pair in (seen, moves, rewards)]


def relative(batch):
    """Return to go minus its mean over the games at the same round."""
    go = returns_to_go(batch, 0.9)
    return go - go.mean(0, keepdim=True)


def self_play(beta, steps=220, games=128, rounds=16):
    """Both agents learn; the mean payoff and the first agent's probabilities of cooperating at the end."""
    g = torch.Generator().manual_seed(0)
    theta = [(0.1 * torch.randn(5, 2, generator=g)).double().requires_grad_() for _ in range(2)]
    optimiser = torch.optim.Adam(theta, lr=0.1)
    rule, turn = Alignment(inner=relative, beta=beta, gamma=0.9), torch.arange(rounds).expand(games, rounds)
    for _ in range(steps):
        with torch.no_grad():
            seen, moves, rewards = play([t.softmax(-1) for t in theta], games, rounds, g)
            batches = [Batch.make(mask=torch.ones(games, rounds), reward=r, turn=turn) for r in rewards]
            own = [relative(b) for b in batches]
        loss = torch.zeros((), dtype=torch.float64)
        for i in range(2):
            credit = rule(batches[i].replace(other_advantage=own[1 - i]))
            loss = loss - (credit * theta[i].log_softmax(-1)[seen[i], moves[i]]).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    _, _, rewards = play([t.detach().softmax(-1) for t in theta], 1000, rounds, g)
    return rewards[0].mean().item(), theta[0].detach().softmax(-1)[:, 0].tolist()


def test_the_plain_gradient_learns_to_defect():
    payoff, cooperate = self_play(beta=0.0)
    assert payoff == pytest.approx(0.2, abs=0.05)  # both defect
    assert max(cooperate) < 0.25


def test_alignment_learns_to_cooperate_and_to_retaliate():
    payoff, cooperate = self_play(beta=1.0)
    start, after_cc, after_cd, _, _ = cooperate
    assert payoff > 0.4  # of 0.6 when both always cooperate
    assert start > 0.9
    assert after_cc > 0.85
    assert after_cd < 0.15
