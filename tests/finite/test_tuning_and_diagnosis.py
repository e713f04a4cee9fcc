"""Plan, sweep and diagnose: what they measure is what is there, what they choose is the best of what they tried."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel_rl.errors import InvalidConfig, InvalidProblem
from bilevel_rl.finite import oracles, solve
from bilevel_rl.finite.diagnose import diagnose
from bilevel_rl.finite.problems import GoalPlacement
from bilevel_rl.finite.solvers import CoupledPenalty, ExactDescent, PenaltyActorCritic
from bilevel_rl.finite.tuning import (
    iterations_for,
    plan,
    samples_per_iteration,
    smoothness,
    sweep,
    with_options,
)

SMALL = GoalPlacement(rows=3, columns=3, discount=0.8)


@pytest.mark.slow
def test_power_iteration_finds_the_largest_curvature():
    pi = jnp.full((9, 4), 0.25)

    def value(theta):
        return oracles.lower_return(SMALL, SMALL.x0, jax.nn.softmax(theta.reshape(9, 4)), 0.05)

    exact = np.abs(np.linalg.eigvalsh(np.asarray(jax.hessian(value)(jnp.zeros(36))))).max()
    assert float(smoothness(SMALL, SMALL.x0, pi, 0.05, iterations=300)) == pytest.approx(exact, rel=1e-3)


@pytest.mark.slow
def test_a_plan_measures_the_hyper_gradient_and_keeps_the_paper_s_constraints():
    proposal = plan(SMALL, CoupledPenalty(), iterations=1000, pilot=600)
    scales = proposal.scales
    exact = oracles.penalty_hyper_gradient(SMALL, SMALL.x0, scales.w.initial, SMALL.temperature())
    assert proposal.gradient == pytest.approx(float(jnp.linalg.norm(exact)), rel=0.5)
    assert scales.alpha.initial / scales.tau.initial * proposal.smoothness * (1 - 0.8) <= 1 + 1e-9
    assert proposal.smoothness <= proposal.smoothness_theory
    assert proposal.width == pytest.approx(2**0.5)
    step = scales.zeta.initial * (proposal.gradient + proposal.noise)
    assert step <= 0.02 * proposal.width * (1 + 1e-9)
    assert {row[0] for row in proposal.rows()} >= {"zeta_0", "alpha_0", "beta_0", "w_0", "tau_0"}


def test_a_plan_needs_sequences():
    with pytest.raises(InvalidConfig, match="sequences"):
        plan(SMALL, ExactDescent())


def test_options_are_dotted_paths_and_unknown_ones_are_named():
    solver = with_options(CoupledPenalty(), {"scales.w.power": 0.1, "chains": 4})
    assert (solver.scales.w.power, solver.chains) == (0.1, 4)
    with pytest.raises(InvalidConfig, match="Did you mean 'zeta'"):
        with_options(solver, {"scales.zet.initial": 1.0})


@pytest.mark.slow
def test_a_sweep_chooses_the_setting_that_separate_runs_rank_first():
    grid = {"scales.zeta.initial": [1e-9, 0.3], "chains": [2, 4]}
    found = sweep(SMALL, CoupledPenalty(hold=20.0), grid, samples=1600, runs=3)
    assert len(found.settings) == len(found.scores) == 4
    scores = []
    for setting in found.settings:
        solver = with_options(CoupledPenalty(hold=20.0), setting)
        count = iterations_for(SMALL, solver, 1600)
        assert count * samples_per_iteration(SMALL, solver) <= 1600
        trace = solve(SMALL, solver, iterations=count, record_every=count, runs=3, seed=1000)
        scores.append(np.mean(np.sort(trace["objective"][:, -1])))  # 25 % of three runs trims nobody
    assert np.allclose(scores, found.scores, atol=1e-12)
    assert found.best == int(np.argmin(scores))
    assert found.to_json()["chosen"] == found.settings[found.best]


def test_a_sweep_of_nothing_and_a_budget_below_one_iteration_are_refused():
    with pytest.raises(InvalidConfig, match="at least one field"):
        sweep(SMALL, CoupledPenalty(), {}, samples=100)
    with pytest.raises(InvalidConfig, match="one iteration draws 32"):
        iterations_for(SMALL, CoupledPenalty(), 31)
    assert iterations_for(SMALL, ExactDescent(), 10, otherwise=77) == 77


def test_a_diagnosis_finds_the_slope_of_the_bias_and_dominance():
    found = diagnose(GoalPlacement(rows=2, columns=2, discount=0.8), tau=(1.6, 0.8), ascent=50)
    assert abs(found.w_slope.value - 1) < 0.05
    assert found.dominance > 0
    assert found.suboptimality[-1] < found.suboptimality[0]


@pytest.mark.slow
def test_a_diagnosis_counts_the_dimensions_that_logits_leave_free():
    warm = type("Warm", (GoalPlacement,), {"temperature": lambda self: 0.5})(rows=2, columns=3, discount=0.8)
    curved = diagnose(warm, ascent=5)
    assert curved.null_dimension == 6  # one a state
    assert curved.singular_value > 1e-4


@pytest.mark.slow
def test_the_rate_is_that_of_the_solver_s_runs():
    found = diagnose(SMALL, PenaltyActorCritic(chains=4), iterations=200, runs=3, ascent=5)
    trace = solve(SMALL, PenaltyActorCritic(chains=4), iterations=200, runs=3)
    assert np.allclose(found.gradient_norm_squared, (trace["gradient_norm"] ** 2).mean(0))
    assert found.theory_rate == pytest.approx(-0.1)
    assert {row[0] for row in found.rows()} >= {"rate of |grad Phi|^2", "gradient dominance"}


def test_a_reward_made_of_steps_is_refused_before_the_run():
    class Steps(GoalPlacement):
        def reward(self, x):
            return jnp.broadcast_to(jnp.round(20 * jnp.sum(x)), (9, 4)) * 1.0

        def reward_at(self, x, s, a):
            return self.reward(x)[s, a]

    with pytest.raises(InvalidProblem, match=r"derivative of zero; the reward must be differentiable"):
        solve(Steps(rows=3, columns=3), ExactDescent(), iterations=1)
