"""The controller of tau, on a policy whose KL answers with a lag."""

import math

import pytest

from bilevel_rl.levels.kl_controller import KlController


def kls(gain, lag=0.05, steps=400):
    """KLs of a policy that moves a part `lag` of the way to where tau would take it, KL = 1 / tau^2, an iteration."""
    controller, kl, seen = KlController(target=2.0, rate=0.05, gain=gain), 0.0, []
    for _ in range(steps):
        tau = 0.5 * controller.factor
        kl += lag * (min(1 / tau**2, 40.0) - kl)
        controller.see(kl)
        seen.append(kl)
    return seen


def test_the_share_in_proportion_damps_the_swing_and_the_sum_takes_the_kl_to_its_target():
    with_it, without = kls(1.0), kls(0.0)
    assert with_it[-1] == pytest.approx(2.0, rel=1e-3)
    assert max(without) > 3.0  # the sum alone overshoots by half
    assert max(with_it) < 2.5


def test_one_error_that_is_out_of_proportion_moves_tau_by_at_most_what_is_said():
    controller = KlController(target=2.0, rate=0.1)
    controller.see(1e9)
    assert controller.factor == pytest.approx(math.exp(1.1))
    again = KlController(target=2.0, rate=0.1)
    again.restore(controller.state())
    assert again.factor == controller.factor
