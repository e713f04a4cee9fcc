"""Advantage weighted matching: pre-training, the clipped surrogate and every weighting, by hand."""

import pytest
import torch

from bilevel_rl.errors import InvalidConfig
from bilevel_rl.policy_gradient.batch import Batch
from bilevel_rl.policy_gradient.losses import AdvantageMatching, Clipped
from bilevel_rl.policy_gradient.losses.advantage_matching import WEIGHTINGS, surrogate
from bilevel_rl.policy_gradient.regularizers import VelocityGap

N, T = 6, 3


def uniform(seed, *shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def samples(error, advantage, old=None, time=None):
    """N samples with T pairs of time and noise each."""
    return Batch.make(
        mask=torch.ones(N, T), reward=torch.zeros(N, dtype=torch.float64), group=torch.zeros(N, dtype=torch.long),
        advantage=advantage.expand(N, T), matching_error=error, matching_error_old=error.detach() if old is None else old,
        matching_time=uniform(2, N, T) if time is None else time, velocity_gap=uniform(3, N, T),
    )  # fmt: skip


def test_with_advantage_one_its_gradient_is_that_of_pre_training():
    error = uniform(0, N, T).requires_grad_()
    one = torch.ones(N, 1, dtype=torch.float64)
    loss = AdvantageMatching(weighting="uniform", advantage_clip=1.0)(samples(error, one))
    (found,) = torch.autograd.grad(loss, error)
    (expected,) = torch.autograd.grad(error.mean(), error)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_old_and_new_alike_have_ratio_one_and_the_weighted_gradient(weighting):
    error, advantage, time = uniform(0, N, T).requires_grad_(), 2 * uniform(1, N, 1) - 1, uniform(2, N, T)
    loss = AdvantageMatching(weighting=weighting)(samples(error, advantage))
    assert float(loss.detach()) == pytest.approx(float(-(advantage / 5).mean()), abs=1e-12)
    (found,) = torch.autograd.grad(loss, error)
    (expected,) = torch.autograd.grad((-advantage / 5 * surrogate(error, time, weighting)).mean(), error)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_generalised_huber_with_power_one_is_t():
    error, time = uniform(0, N, T), uniform(2, N, T)
    assert (surrogate(error, time, "ghuber", 1.0) - surrogate(error, time, "t")).abs().max() < 1e-10
    assert (surrogate(error, time, "t2") - time * surrogate(error, time, "t")).abs().max() < 1e-12


def test_it_is_the_clipped_surrogate_on_what_stands_for_log_probabilities():
    error, old, advantage = 2 * uniform(0, N, T), uniform(4, N, T), 2 * uniform(1, N, 1) - 1
    batch = samples(error, advantage, old)
    logp, logp_old = (surrogate(e, batch.get("matching_time"), "t") for e in (error, old))
    ours = AdvantageMatching(weighting="t", clip=0.2, advantage_clip=1.0)(batch)
    theirs = Clipped(aggregate=AdvantageMatching().aggregate)(batch.replace(logp=logp, old=logp_old))
    assert float(ours) == pytest.approx(float(theirs), abs=1e-12)
    # one ratio of the mean over times
    first = AdvantageMatching(weighting="t", clip=1.0, advantage_clip=1.0, order="sum_first")(batch)
    ratio = (logp - logp_old).mean(1).exp()
    expected = -torch.minimum(ratio * advantage[:, 0], ratio.clamp(0, 2) * advantage[:, 0]).mean()
    assert float(first) == pytest.approx(float(expected), abs=1e-12)


def test_advantages_are_clipped_and_scaled():
    error = uniform(0, N, T)
    far, at = (torch.full((N, 1), v, dtype=torch.float64) for v in (50.0, 5.0))
    loss = AdvantageMatching(advantage_max=2.0)
    assert float(loss(samples(error, far))) == pytest.approx(float(loss(samples(error, at))))
    assert float(loss(samples(error, far))) == pytest.approx(-2.0)


def test_the_pull_to_a_reference_is_the_mean_gap():
    batch = samples(uniform(0, N, T), torch.zeros(N, 1, dtype=torch.float64))
    assert float(VelocityGap()(batch)) == pytest.approx(float(batch.get("velocity_gap").mean()))


@pytest.mark.parametrize(
    ("options", "words"),
    [({"weighting": "cubic"}, "t2, huber, ghuber"), ({"order": "mean"}, "exp_first"), ({"clip": 2.0}, "clip in")],
)
def test_matching_options_that_are_not_allowed_are_named(options, words):
    with pytest.raises(InvalidConfig, match=words):
        AdvantageMatching(**options)
