"""The five sequences: values, checks, and the paper's conditions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bilevel_rl.errors import InvalidConfig
from bilevel_rl.schedules import PowerDecay, TimeScales

SEQUENCES = ("zeta", "alpha", "beta", "w", "tau")


@given(st.floats(1e-6, 1e3), st.floats(0, 2), st.integers(0, 10**6), st.floats(0, 1))
def test_power_decay_is_its_formula_and_never_increases(initial, power, k, floor):
    sequence = PowerDecay(initial, power, floor)
    want = max(initial / (k + 1) ** power, floor)
    assert sequence(k) == pytest.approx(want, rel=1e-12)
    assert sequence(k + 1) <= sequence(k)


def test_arrays_of_iterations():
    np.testing.assert_allclose(PowerDecay(1.0, 0.5)(np.array([0, 3, 8])), [1, 1 / 2, 1 / 3])


@pytest.mark.parametrize(
    ("make", "powers"),
    [
        (TimeScales.attenuating, (9 / 10, 1 / 2, 1 / 2, 3 / 20, 1 / 20)),
        (TimeScales.constant_entropy, (2 / 3, 2 / 3, 2 / 3, 1 / 6, 0)),
    ],
)
def test_exponents_of_the_two_variants(make, powers):
    scales = make()
    assert tuple(getattr(scales, name).power for name in SEQUENCES) == powers
    assert scales.at(0)._fields == SEQUENCES


@pytest.mark.parametrize("name", SEQUENCES)
@pytest.mark.parametrize(
    "bad",
    [
        PowerDecay(0.0),
        PowerDecay(-1.0),
        PowerDecay(float("nan")),
        PowerDecay(1.0, -0.1),
        PowerDecay(1.0, 0.0, -1.0),
    ],
)
def test_a_bad_sequence_is_named(name, bad):
    scales = TimeScales(**{name: bad})
    with pytest.raises(InvalidConfig, match=rf"TimeScales\.{name}\."):
        scales.check()


def test_the_theorys_order_holds_for_small_enough_actors():
    scales = TimeScales.attenuating(zeta=0.01, alpha=0.02, beta=0.5)
    assert scales.broken_constraints(discount=0.95) == []


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"zeta": PowerDecay(0.01, 0.3)}, "zeta must fall faster than alpha"),
        ({"alpha": PowerDecay(0.02, 0.4)}, "alpha must stay at or below beta"),
        ({"w": PowerDecay(1.0, 0.6)}, "beta must fall faster than w"),
        ({"tau": PowerDecay(0.05, 0.4)}, "w must fall faster than tau"),
        ({"alpha": PowerDecay(0.4, 0.5)}, "of the order of 1 - gamma"),
    ],
)
def test_each_broken_condition_is_named_alone(change, named):
    good = {n: getattr(TimeScales.attenuating(zeta=0.01, alpha=0.02, beta=0.5), n) for n in SEQUENCES}
    broken = TimeScales(**(good | change)).broken_constraints(discount=0.95)
    assert len(broken) == 1, broken
    assert named in broken[0]


def test_smoothness_bounds_alpha_over_tau():
    scales = TimeScales.attenuating(zeta=0.01, alpha=0.02, beta=0.5, tau=0.05)
    assert scales.broken_constraints(smoothness=2.0) == []
    (sentence,) = scales.broken_constraints(smoothness=5.0)
    assert "1/L_V = 0.2" in sentence


def test_steady_critics_keep_their_steps_and_the_paper_s_ratio_of_actors_to_critics():
    scales = TimeScales.steady_critics(discount=0.9)
    for k in (0, 10**6):
        now = scales.at(k)
        assert now.alpha / now.beta == pytest.approx(1 - 0.9)
        assert now.beta == scales.beta.initial
    assert scales.at(10**6).zeta < 1e-3 * scales.at(0).zeta
    # what it gives up is named: the paper wants critics to fall faster than w
    assert any("beta must fall faster than w" in sentence for sentence in scales.broken_constraints(0.9))
    # and what is divided by w need not grow
    assert TimeScales.steady_critics(discount=0.9, w_power=0.0).w(10**6) == scales.w.initial
