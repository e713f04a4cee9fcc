"""Quasi-Newton descent: known optima, bounds, searches that fail, and one run among many."""

from __future__ import annotations

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from finite_instances import thinned

from bilevel_rl.cli import main
from bilevel_rl.errors import InvalidConfig
from bilevel_rl.finite import oracles, solve
from bilevel_rl.finite.closed_form import ClosedFormProblem
from bilevel_rl.finite.multistart import search, starting_points
from bilevel_rl.finite.problems import (
    FourRooms,
    GoalPlacement,
    LinearLeader,
    OneGoalFourRooms,
    RandomMDP,
    ThermalControl,
)
from bilevel_rl.finite.solvers import ExactDescent, ExactQuasiNewton
from bilevel_rl.loop import checkpoint


class Given(ClosedFormProblem):
    """A closed form that the test writes; tau is added to it, so that a change of temperature shows."""

    bounds: tuple | None
    kind: str = eqx.field(static=True)

    name = "given"

    def __init__(self, kind: str, x0, bounds=None):
        self.mdp = self.objective = None
        self.kind, self.x0, self.bounds = kind, jnp.asarray(x0, float), bounds

    def hyper_objective(self, x, tau):
        return FORMS[self.kind](x) * (1 + tau)

    def box(self):
        return self.bounds

    def temperature(self):
        return 0.05


@jax.custom_jvp
def _lying(x):
    return jnp.sum(x**2)


@_lying.defjvp
def _(x, v):
    return _lying(*x), -2 * jnp.dot(x[0], v[0])


RNG = np.random.default_rng(0)
ROOT = RNG.normal(size=(4, 4))
CURVED, PULL = ROOT @ ROOT.T + 0.1 * np.eye(4), RNG.normal(size=4)
FORMS = {
    "rosenbrock": lambda x: jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2),
    "quadratic": lambda x: x @ CURVED @ x / 2 - PULL @ x,
    "narrow": lambda x: jnp.sum(jnp.logspace(0, 4, 6) * (x - 1) ** 2) / 2,
    "ball": lambda x: -jnp.log(1 - x[0] ** 2) - 3 * x[0],  # NaN outside (-1, 1)
    "flat": lambda x: jnp.zeros(()) * x[0],
    "lying": _lying,
}
ROUNDING = 1e-13  # a step that changes nothing may change the last digits
ONE = ExactQuasiNewton()


def ended(it, one=ONE, iterations=100, **options):
    trace = solve(it, one, iterations=iterations, record_every=iterations, **options)
    assert (trace.status == 0).all()
    return trace


@pytest.mark.slow
def test_the_goal_is_placed_where_brute_force_places_it():
    it = GoalPlacement()
    best = oracles.brute_force(it, it.temperature(), points=11)
    trace = solve(it, ONE, iterations=25, record_every=1)
    assert trace["objective"][0, -1] == pytest.approx(best.value, abs=1e-10)
    assert (np.diff(trace["objective"]) <= ROUNDING).all()
    assert trace["objective"][0, 0] - best.value > 0.5


@pytest.mark.slow
@pytest.mark.parametrize(("it", "tau", "step", "best"), [
    (ThermalControl(), 0.1, 1e-3, 162.503255),
    (LinearLeader(), 0.1, 1e-3, -11.309047),
], ids=["thermal_control", "linear_leader"])  # fmt: skip
def test_closed_forms_reach_the_best_known_from_most_starts(it, tau, step, best):
    starts = starting_points(it, 6)
    trace = ended(it, ExactQuasiNewton(step, tau), 40, runs=6, x0=starts)
    values = trace["objective"][:, -1]
    assert values.min() == pytest.approx(best, abs=1e-5)
    assert (values < best + 1e-4 * abs(best)).sum() >= 5
    low, high = it.box()
    assert ((trace.x >= np.asarray(low)) & (trace.x <= np.asarray(high))).all()


@pytest.mark.slow
def test_four_rooms_best_known_from_a_structured_start():
    it = FourRooms()
    trace = ended(it, ExactQuasiNewton(10.0, 0.001), 100, x0=it.start_at((3, 5), logit=2.0))
    assert trace["objective"][0, -1] < -1.168


def test_a_curved_valley_without_bounds():
    trace = solve(Given("rosenbrock", [-1.2, 1.0, -0.5, 0.8]), ONE, iterations=80, record_every=1)
    np.testing.assert_allclose(trace.x[0, -1], 1.0, atol=1e-6)
    assert (np.diff(trace["objective"]) <= ROUNDING).all()


def test_bounds_cut_the_valley():
    """x_1 <= .5: the best is (.5, .25), where the first bound holds."""
    it = Given("rosenbrock", [-1.2, 1.0], (jnp.full(2, -2.0), jnp.array([0.5, 2.0])))
    trace = ended(it)
    np.testing.assert_allclose(trace.x[0, -1], [0.5, 0.25], atol=1e-7)
    assert trace.x[0, -1, 0] == 0.5


@pytest.mark.parametrize("half", thinned([0.2, 0.6, 5.0], {0.6}))
def test_a_quadratic_in_a_box_ends_where_enumeration_of_its_faces_says(half):
    """Each coordinate low, high or free: the best feasible stationary point of all 3^4 faces."""
    best = np.inf
    for face in itertools.product((-half, half, None), repeat=4):
        free = np.array([v is None for v in face])
        x = np.array([0.0 if v is None else v for v in face])
        if free.any():
            x[free] = np.linalg.solve(CURVED[np.ix_(free, free)], (PULL - CURVED @ x)[free])
        if np.abs(x).max() <= half + 1e-12:
            best = min(best, (x @ CURVED @ x / 2 - PULL @ x) * 1.05)
    bounds = (jnp.full(4, -half), jnp.full(4, half))
    starts = half * jnp.asarray(RNG.uniform(-1, 1, (5, 4)))
    values = ended(Given("quadratic", np.zeros(4), bounds), runs=5, x0=starts)["objective"][:, -1]
    np.testing.assert_allclose(values, best, rtol=1e-9)


@pytest.mark.slow
def test_condition_numbers_do_not_matter_as_they_do_to_descent():
    """Curvatures from 1 to 10,000: descent is bound to 1/10,000 of the way an iteration."""
    it = Given("narrow", np.zeros(6))
    slow = ended(it, ExactDescent(1e-4 / 1.05), 60)
    fast = ended(it, ONE, 60)
    assert slow["objective"][0, -1] > 0.1
    assert fast["objective"][0, -1] < 1e-12


# -- searches that meet trouble ---------------------------------------------------------------------------------------


def test_trials_that_are_not_finite_are_too_long():
    """2x / (1 - x^2) = 3; the first trial lies far outside of where the logarithm is defined."""
    it = Given("ball", [-0.5])
    trace = ended(it, ExactQuasiNewton(step_size=100.0))
    assert trace.x[0, -1, 0] == pytest.approx((np.sqrt(10) - 1) / 3, abs=1e-7)


@pytest.mark.parametrize("kind", thinned(["flat", "lying"], {"lying"}))
def test_where_no_step_helps_x_stays_and_nothing_more_is_tried(kind):
    """Nowhere to go, or a derivative of the wrong sign (which `solve` itself would refuse)."""
    it = Given(kind, [0.3, -0.2])
    state = ONE.init(it, it.x0, jax.random.key(0))
    for k in range(3):
        state = ONE.step(it, state, k, jnp.zeros(0))
        np.testing.assert_array_equal(state.x, it.x0)
        assert bool(state.settled) == (k > 0)  # the first only evaluates
        assert float(state.f) == pytest.approx(float(oracles.hyper_objective(it, it.x0, 0.05)))


def test_a_search_that_fails_forgets_the_pairs_and_the_next_takes_the_gradient():
    it, one = Given("quadratic", np.ones(4)), ExactQuasiNewton(step_size=0.01, trials=1)
    state = one.step(it, one.init(it, it.x0, jax.random.key(0)), 0, jnp.zeros(0))
    # one pair that claims next to no curvature: its direction is far too long for a single trial
    state = eqx.tree_at(lambda s: (s.S, s.Y), state, (state.S.at[-1].set(1e6), state.Y.at[-1].set(1.0)))
    failed = one.step(it, state, 1, jnp.zeros(0))
    np.testing.assert_array_equal(failed.x, state.x)
    assert not bool(failed.settled)
    assert not np.asarray(failed.S).any()
    again = one.step(it, failed, 2, jnp.zeros(0))
    np.testing.assert_allclose(again.x, failed.x - 0.01 * failed.g, rtol=1e-12)
    assert again.f < failed.f


@pytest.mark.slow
def test_another_temperature_evaluates_anew():
    it = Given("rosenbrock", [-1.2, 1.0])
    state = ONE.init(it, it.x0, jax.random.key(0))
    for k in range(7):
        state = ONE.step(it, state, k, jnp.zeros(0))
    hot = eqx.tree_at(lambda one: one.tau, ONE, 4.0)
    new = hot.step(it, state, 7, jnp.zeros(0))
    assert np.asarray(state.S).any(1).sum() >= 3
    assert not np.asarray(new.S).any()
    np.testing.assert_array_equal(new.x, state.x)
    assert float(new.f) == pytest.approx(float(oracles.hyper_objective(it, new.x, 4.0)), rel=1e-12)
    assert hot.step(it, new, 8, jnp.zeros(0)).f < new.f


@pytest.mark.slow
def test_the_objective_never_rises_on_plateaus_with_cliffs():
    it = OneGoalFourRooms(temperature=0.005)
    trace = solve(it, ExactQuasiNewton(100.0, 0.005), iterations=12, runs=2, record_every=1,
                  x0=jnp.stack([it.x0, it.start_at((3, 5), logit=2.0)]))  # fmt: skip
    assert (np.diff(trace["objective"]) <= ROUNDING).all()
    assert (trace["objective"][:, -1] < trace["objective"][:, 0] - 0.05).all()


# -- one run among many -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "it", [LinearLeader(), pytest.param(GoalPlacement(rows=3, columns=3), marks=pytest.mark.slow)], ids=lambda it: it.name
)
def test_a_batch_is_its_members_bit_for_bit(it):
    starts = starting_points(it, 5, seed=2)
    options = {"iterations": 12, "record_every": 4}
    together = solve(it, ONE, runs=5, x0=starts, **options)
    for i in (0, 3):
        alone = solve(it, ONE, x0=starts[i], **options)
        np.testing.assert_array_equal(together.x[i], alone.x[0])
        for a, b in zip(jax.tree.leaves(together.state), jax.tree.leaves(alone.state), strict=True):
            np.testing.assert_array_equal(np.asarray(a)[i], np.asarray(b)[0])


@pytest.mark.slow
def test_resumed_quasi_newton_is_uninterrupted(tmp_path, monkeypatch):
    it = RandomMDP(5, 2, 3, features=3)
    options = {"iterations": 12, "record_every": 3, "runs": 2}
    whole = solve(it, ONE, **options)
    monkeypatch.setattr(checkpoint, "SECONDS", 0.0)

    def stop(k, _):
        if k == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        solve(it, ONE, folder=tmp_path / "run", on_record=stop, **options)
    resumed = solve(it, ONE, folder=tmp_path / "run", resume=True, **options)
    np.testing.assert_array_equal(whole.x, resumed.x)
    for a, b in zip(jax.tree.leaves(whole.state), jax.tree.leaves(resumed.state), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_a_search_that_cools_is_graded_at_its_own_temperature():
    it = GoalPlacement()
    found = search(it, ONE, starts=8, iterations=240, continuation=4.0)
    assert found.value == pytest.approx(
        float(oracles.hyper_objective(it, jnp.asarray(found.x), 0.05)), rel=1e-12
    )
    assert found.value < -0.63


@pytest.mark.slow
def test_it_is_run_by_name(tmp_path, capsys):
    words = ["linear_leader", "exact_quasi_newton", "--solver.tau", "0.1", "--solver.step-size", "0.001"]
    assert main(["search", *words, "--starts", "4", "--iterations", "120", "--out", str(tmp_path / "s")]) == 0
    assert "-11.309" in capsys.readouterr().out


BAD = {"step_size": 0.0, "tau": -1.0, "memory": 0, "trials": 0}


@pytest.mark.parametrize("field", BAD)
def test_settings_that_are_not_allowed_are_refused_by_name(field):
    with pytest.raises(InvalidConfig, match=rf"exact_quasi_newton\.{field}: got .* Change {field}"):
        solve(GoalPlacement(), ExactQuasiNewton(**{field: BAD[field]}), iterations=10**9)
