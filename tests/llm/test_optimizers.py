"""Steps that treat both followers alike."""

from __future__ import annotations

import torch

from bilevel_rl.levels.coupled_adam import CoupledAdam


def gradients(k: int, n: int = 2):
    generator = torch.Generator().manual_seed(k)
    return [[torch.randn(3, 2, generator=generator), torch.randn(4, generator=generator)] for _ in range(n)]


def run(optimizer, groups, steps, grads_of):
    for k in range(steps):
        for parameters, grads in zip(groups, grads_of(k), strict=True):
            for p, g in zip(parameters, grads, strict=True):
                p.grad = g.clone()
        optimizer.step()


def fresh(n: int):
    return [[torch.ones(3, 2).requires_grad_(), torch.zeros(4).requires_grad_()] for _ in range(n)]


def test_with_one_follower_it_is_adam():
    (ours,), (theirs,) = fresh(1), fresh(1)
    run(CoupledAdam([ours], lr=0.01), [ours], 20, lambda k: gradients(k, 1))
    run(torch.optim.Adam(theirs, lr=0.01), [theirs], 20, lambda k: gradients(k, 1))
    for one, two in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, two)


def test_equal_gradients_keep_the_followers_equal():
    groups = fresh(2)
    run(CoupledAdam(groups, lr=0.01), groups, 10, lambda k: gradients(k, 1) * 2)
    for one, two in zip(*groups, strict=True):
        assert torch.equal(one, two)


def test_the_followers_difference_is_linear_in_the_difference_of_their_gradients():
    """One denominator for both: a tenth of the extra gradient is a tenth of the distance."""

    def distance(size):
        groups = fresh(2)

        def grads_of(k):
            common, extra = gradients(k)
            return [common, [c + size * e for c, e in zip(common, extra, strict=True)]]

        run(CoupledAdam(groups, lr=0.01), groups, 10, grads_of)
        return torch.cat([(a - b).detach().flatten() for a, b in zip(*groups, strict=True)])

    large, small = distance(1e-2), distance(1e-3)
    assert float((large / 10 - small).norm() / small.norm()) < 0.01


def test_a_follower_without_gradient_noise_is_not_stepped_by_rounding():
    groups = fresh(2)
    zero = [torch.zeros(3, 2), torch.zeros(4)]
    run(CoupledAdam(groups, lr=0.01), groups, 3, lambda k: [zero, zero])
    assert all(torch.equal(a, b) for a, b in zip(groups[0], fresh(1)[0], strict=True))
