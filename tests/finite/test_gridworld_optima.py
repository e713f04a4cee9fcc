"""What the paper's GridWorld experiment is graded by: committed optima against the oracle, and what regularisation costs."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from finite_instances import thinned

from bilevel_rl.experiments import gridworld
from bilevel_rl.finite import oracles
from bilevel_rl.finite.model import planning
from bilevel_rl.finite.problems.subsidy import Subsidy

OPTIMA = json.loads((Path(__file__).parents[2] / "benchmarks/results/gridworld_optima.json").read_text())["optima"]


@pytest.mark.parametrize("name", thinned(list(OPTIMA), {"position"}))
def test_committed_optima_are_what_the_oracle_says(name):
    problem, known = gridworld.problems()[name], OPTIMA[name]
    for x, tau, value in (
        (known["x"], 0, known["value"]), (known["regularised"]["x"], 0.05, known["regularised"]["value"]),
        (problem.x0, 0, known["start"]["unregularised"]),
    ):  # fmt: skip
        assert float(oracles.hyper_objective(problem, jnp.asarray(x), tau)) == pytest.approx(value, abs=2e-6)
    assert known["value"] <= float(oracles.hyper_objective(problem, jnp.asarray(known["regularised"]["x"]), 0))


@pytest.mark.slow
def test_the_unregularised_objective_is_the_limit_of_the_regularised_one_on_the_grid():
    """At random positions and at the optimum: |Phi_tau - Phi| falls to nothing as tau does, ties included."""
    problem = gridworld.problems()["position"]
    xs = np.random.default_rng(0).uniform(size=(3, 2))
    for x in [*xs, np.array([0.5, 0.5])]:  # in the middle of the grid, a symmetric goal: many ties
        plan = oracles.lower_optimum(problem, jnp.asarray(x), 0)
        soft = oracles.lower_optimum(problem, jnp.asarray(x), 1e-5)
        limit, near = (float(problem.objective.value(jnp.asarray(x), p.pi, problem)) for p in (plan, soft))
        assert near == pytest.approx(limit, abs=2e-3)
    assert float((plan.pi.max(-1) < 0.999).mean()) > 0.05  # there were ties


@pytest.mark.slow
def test_regularisation_costs_something_on_the_subsidy():
    """Brute force: the best x at tau = .2 and .5, judged without regularisation, loses at least 5 and 10 %."""
    problem = Subsidy()
    xs = jnp.linspace(1.0, 1.6, 151)[:, None]

    @jax.jit
    def values(tau):
        return jax.lax.map(lambda x: oracles.hyper_objective(problem, x, tau), xs)

    hard = np.asarray(jax.jit(lambda: jax.lax.map(lambda x: oracles.hyper_objective(problem, x, 0), xs))())
    assert hard.min() == pytest.approx(OPTIMA["subsidy"]["value"], abs=2e-3)
    lost = [1 - hard[int(np.argmin(values(tau)))] / hard.min() for tau in (0.5, 0.2, 0.05)]
    assert lost[0] > 0.1
    assert lost[1] > 0.05
    assert lost[2] < 0.03


@pytest.mark.slow
def test_the_limit_policy_is_unregularised_optimal():
    problem = Subsidy()
    mdp, reward = problem.mdp, problem.reward(jnp.array([1.2]))
    plan = planning.hard_optimal(mdp, reward)
    np.testing.assert_allclose(planning.policy_value(mdp, reward, plan.pi), plan.V, atol=1e-9)
