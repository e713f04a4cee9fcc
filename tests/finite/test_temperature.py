"""A solver that is told no temperature takes the follower's own from the problem; what is stated is kept, bit for bit."""

from __future__ import annotations

import dataclasses

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import lambertw

from bilevel_rl.errors import InvalidProblem
from bilevel_rl.finite import BilevelProblem, FiniteMDP, solve, solvers
from bilevel_rl.finite.checks import check_problem
from bilevel_rl.finite.objectives import VisitationUtility
from bilevel_rl.finite.problems import GoalPlacement
from bilevel_rl.finite.solvers import CoupledPenalty, ExactDescent, ExactQuasiNewton
from bilevel_rl.launch import options
from bilevel_rl.launch.execute import RunAsk, prepare
from bilevel_rl.launch.load import Target, find_solver
from bilevel_rl.loop.searching import search
from bilevel_rl.loop.settings import has_temperature, temperature, with_options
from bilevel_rl.schedules import TEMPERATURE, Unstated


class Pricing(BilevelProblem):
    r"""A buyer who values a good at half a unit meets a price x; the seller maximises what is taken in.

    With $\tau = .05$ of a unit the best price is $\tau\,(1 + W(e^{9}))$ by Lambert's W, in whatever unit.
    """

    unit: float = eqx.field(static=True)
    graded_at: float = eqx.field(static=True)

    def __init__(self, unit: float = 100.0, graded_at: float = 5.0):
        self.unit, self.graded_at = unit, graded_at
        self.mdp = FiniteMDP.from_dense(np.ones((1, 2, 1)), discount=0.9)
        self.objective = VisitationUtility(jnp.zeros((1, 2)), payments=jnp.array([[[0.0, -1.0]]]))
        self.x0 = jnp.array([0.3 * unit])

    def reward(self, x):
        return jnp.array([[0.0, 1.0]]) * (0.5 * self.unit - x[0])

    def box(self):
        return jnp.zeros(1), jnp.full(1, self.unit)

    def temperature(self):
        return self.graded_at


class Separate(Pricing):
    """Graded without a temperature; the follower has one."""

    own: float = eqx.field(static=True)

    def __init__(self, own: float):
        super().__init__(graded_at=0.0)
        self.own = own

    def follower_temperature(self):
        return self.own


BEST = 5 * (1 + lambertw(np.exp(9.0)).real)


def test_the_best_price_is_that_of_the_docstring():
    prices = np.linspace(0, 100, 100_001)
    income = prices / (1 + np.exp((prices - 50) / 5))
    assert abs(prices[np.argmax(income)] - BEST) < 1e-3


@pytest.mark.parametrize(
    ("solver", "iterations", "within"),
    [(ExactDescent(step_size=5.0), 100, 1e-6), pytest.param(ExactQuasiNewton(), 40, 1e-4, marks=pytest.mark.slow),
     pytest.param(CoupledPenalty(), 8000, 0.4, marks=pytest.mark.slow)],
    ids=lambda value: getattr(value, "name", None),
)
def test_other_units_are_right_by_default(solver, iterations, within):
    trace = solve(Pricing(), solver, iterations=iterations)
    assert abs(float(trace.x[0, -1, 0]) - BEST) < within


@pytest.mark.parametrize("kind", [kind for kind in solvers.ALL if has_temperature(kind())], ids=lambda kind: kind.name)
def test_every_solver_takes_what_it_is_not_told_and_keeps_what_it_is(kind):
    solver = kind()
    assert temperature(solver.on(Pricing()), 0) == 5.0
    path = "tau" if hasattr(solver, "tau") else "scales.tau.initial"
    assert temperature(with_options(solver, {path: 0.05}).on(Pricing()), 0) == 0.05
    if path != "tau":  # the other numbers of the sequence are the solver's
        on = solver.on(Pricing()).scales
        assert on.tau.power == solver.scales.tau.power
        assert on.w == solver.scales.w


def test_a_grade_of_zero_leaves_the_follower_a_temperature():
    assert temperature(ExactDescent().on(Pricing(graded_at=0.0)), 0) == 0.05
    assert temperature(ExactDescent().on(Separate(5.0)), 0) == 5.0
    assert "its follower's own 5" in Separate(5.0).described()[0]
    for own in (0.0, -1.0, float("nan"), "warm"):
        with pytest.raises(InvalidProblem, match=r"follower_temperature\(\): got .*it must be a finite number above 0"):
            check_problem(Separate(own), thorough=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    "solver", [ExactDescent(), pytest.param(CoupledPenalty(), marks=pytest.mark.slow)], ids=lambda solver: solver.name
)
def test_where_the_temperature_is_the_old_default_nothing_moves(solver):
    path = "tau" if hasattr(solver, "tau") else "scales.tau.initial"
    problem = GoalPlacement(rows=3, columns=3)
    told, untold = (
        solve(problem, one, iterations=20) for one in (with_options(solver, {path: 0.05}), solver)
    )
    np.testing.assert_array_equal(told.x, untold.x)


@pytest.mark.slow
def test_a_search_takes_it_too():
    told, untold = (
        search(Pricing(), one, starts=2, iterations=40, seed=1).x for one in (ExactDescent(tau=5.0), ExactDescent())
    )
    np.testing.assert_array_equal(told, untold)


def test_a_run_records_the_number_that_it_took():
    target = Target("pricing", make=Pricing)
    ready = prepare(RunAsk(target, find_solver("exact_descent"), iterations=1, search=False))
    assert ready.config["solver_options"]["tau"] == 5.0
    assert not isinstance(ready.config["solver_options"]["tau"], Unstated)
    ready = prepare(RunAsk(target, find_solver("coupled_penalty"), iterations=1, search=False))
    assert ready.config["solver_options"]["scales"]["tau"]["initial"] == 5.0
    assert dataclasses.asdict(ready.solver.scales.tau)["initial"] == 5.0
    told = RunAsk(target, find_solver("exact_descent"), solver_options={"tau": 0.05}, iterations=1, search=False)
    assert prepare(told).config["solver_options"]["tau"] == 0.05


def test_a_number_stated_on_the_command_line_is_stated_though_it_is_the_default():
    kind = options.as_dataclass("solver", options.options_of(ExactDescent))
    assert isinstance(options.parse("test", kind, []).tau, Unstated)
    assert not isinstance(options.parse("test", kind, ["--tau", "0.05"]).tau, Unstated)


def test_caches_do_not_take_it_for_the_number():
    assert {TEMPERATURE: "told nothing"}.get(0.05) is None
