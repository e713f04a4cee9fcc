"""A table seen through observations is the table: its steps, its rewards, its exact values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel_rl.control import check_environment
from bilevel_rl.errors import InvalidProblem
from bilevel_rl.finite import oracles
from bilevel_rl.finite.problems import GoalPlacement, TaxDesign
from bilevel_rl.finite.problems.probes import TwoState
from bilevel_rl.judged import Judged, NeuralGoalPlacement


def test_steps_have_the_table_s_probabilities():
    problem = NeuralGoalPlacement(rows=3, columns=3)
    mdp, env, n = problem.table.mdp, problem.environment, 4000
    check_environment(env)
    step = jax.jit(jax.vmap(lambda k: env.step(jnp.array(4, jnp.int32), jnp.array(1, jnp.int32), k).state))
    seen = np.bincount(np.asarray(step(jax.random.split(jax.random.key(0), n))), minlength=9) / n
    exact = np.asarray(mdp.dense()[4, 1])
    assert (np.abs(seen - exact) <= 4.5 * np.sqrt(exact * (1 - exact) / n) + 1e-12).all()


def test_rewards_utilities_and_values_are_the_table_s():
    problem = NeuralGoalPlacement(rows=3, columns=3)
    table, x = problem.table, jnp.array([0.4, 0.7])
    features = jnp.array([5.0, 2.0])
    assert float(problem.reward(x, features)) == pytest.approx(float(table.reward(x)[5, 2]))
    assert float(problem.truth(x, 0.05)) == float(oracles.hyper_objective(table, x, 0.05))
    t = problem.example(jax.random.key(0))
    s, a = t.info.astype(int)
    assert float(problem.utility(x, t)) == pytest.approx(float(table.objective.bonus(x)[s, min(int(a), 0)]))
    assert t.obs.tolist() == np.eye(9)[int(s)].tolist()


def test_coordinates_are_between_minus_one_and_one():
    seen = NeuralGoalPlacement(rows=3, columns=3, observed="coordinates").environment.seen
    assert seen.shape == (9, 2)
    assert (float(seen.min()), float(seen.max())) == (-1.0, 1.0)


def test_what_a_neural_follower_cannot_be_judged_on_is_refused():
    with pytest.raises(InvalidProblem, match="Take 'one_hot'"):
        Judged(TwoState(), "coordinates")
    with pytest.raises(InvalidProblem, match="no table"):
        Judged(TaxDesign())
    assert Judged(GoalPlacement()).discount_factor() == 0.95
