"""The estimators of the hyper-gradient on a neural policy whose 32,768 completions are enumerated."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "llm"))

import llm_instances as tiny

from bilevel_rl.llm.config import Config
from bilevel_rl.llm.trainer import BilevelTrainer


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def collect(estimator, w, steps, moves=True, start=None, seed=0):
    """Hyper-gradients of a run in which x stays where it is, [steps, 8], and the instance with its reference."""
    problem = tiny.BagInstance(0)
    reference = problem.log_law(problem.policy)
    config = Config(
        steps=steps, estimator=estimator, w=w, tau=tiny.TAU, alpha=2e-3, objective={"gold": 1.0}, clip_norm=0.0,
        x_penalty=tiny.LAMBDA, prompts_per_step=1, group=128, max_new_tokens=problem.length, kl_estimator="k1",
        common_numbers="none", seed=seed,
        recipe="credit=to_go_leave_one_out(tokens=False), loss=clipped(aggregate=sum_of_tokens)",
    )  # fmt: skip
    trainer = BilevelTrainer(
        config, problem.policy, tiny.BagReward(problem.x0), [[problem.vocabulary]], gold=problem.gold
    )
    found = []
    trainer.descend = lambda hyper, zeta, k: found.append(torch.cat([a + b for a, b in zip(*hyper, strict=True)])) or {}
    if not moves:
        trainer.apply = lambda *_: {}
    if start is not None:
        start(trainer.roles)
    trainer.train()
    return torch.stack(found).double(), problem, reference


def apart(roles):
    """Two policies that differ a little."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in roles.parameters("policy_l").values():
            p.add_(0.02 * torch.randn(p.shape, generator=generator))


@pytest.mark.slow
def test_shared_and_paired_have_the_same_mean():
    """Same two policies, no learning: the means of 150 steps differ by less than 4.5 standard errors."""
    steps = 150
    shared, problem, _ = collect("shared", 0.3, steps, moves=False, start=apart)
    paired, *_ = collect("paired", 0.3, steps, moves=False, start=apart, seed=1)
    error = ((shared.var(0) + paired.var(0)) / steps).sqrt()
    assert ((shared.mean(0) - paired.mean(0)).abs() / error).max() < 4.5
    assert (shared.mean(0) - 2 * tiny.LAMBDA * problem.x0).norm() > 5 * error.norm()  # there is something to agree on
    assert shared.var(0).sum() < paired.var(0).sum() / 4


def test_the_enumerated_hyper_gradient_is_that_of_central_differences():
    problem = tiny.BagInstance(0)
    reference, h = problem.log_law(problem.policy), 1e-5
    x = problem.x0.double()
    steps = h * torch.eye(8, dtype=torch.double)
    differences = torch.stack(
        [(problem.phi(reference, x + e) - problem.phi(reference, x - e)) / (2 * h) for e in steps]
    )
    exact = problem.hyper_gradient(reference, x)
    torch.testing.assert_close(exact, differences, atol=1e-8, rtol=1e-6)
    for w, bound in ((0.3, 0.25), (0.03, 0.025), (0.003, 0.0025)):
        assert (problem.penalty_gradient(reference, x, w) - exact).norm() < bound * exact.norm()


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["shared", "tilted"])
def test_learned_followers_give_the_exact_hyper_gradient(estimator):
    """w = .03, both policies learning: the mean of the last 400 steps is within 5 % of the exact hyper-gradient."""
    found, problem, reference = collect(estimator, 0.03, 800)
    exact = problem.hyper_gradient(reference, problem.x0)
    sampled = found[400:]
    assert (sampled.mean(0) - exact).norm() < 0.05 * exact.norm()
    assert sampled.var(0).sum().sqrt() < 0.2 * exact.norm()
