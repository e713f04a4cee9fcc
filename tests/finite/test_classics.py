"""Inverse RL and reward shaping: the identities that define them, and that solving them does what they are for."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from finite_instances import assert_mean

from bilevel_rl.errors import InvalidProblem
from bilevel_rl.finite import oracles, solve
from bilevel_rl.finite.checks import check_problem
from bilevel_rl.finite.model import planning
from bilevel_rl.finite.objectives import DemonstrationLikelihood
from bilevel_rl.finite.objectives.demonstration_likelihood import demonstrations
from bilevel_rl.finite.problems import InverseRL, LakeShaping, TaxiShaping
from bilevel_rl.finite.solvers import ExactDescent


@pytest.mark.slow
def test_a_found_reward_explains_the_expert():
    """Most of what a uniform follower leaves unexplained is explained, and never more than the expert's own entropy."""
    it = InverseRL(episodes=None, regulariser=0.0)
    floor = float(it.entropy_of_expert())
    trace = solve(it, ExactDescent(step_size=0.004, tau=0.02), iterations=300, record_every=300)
    before, after = trace["objective"][0, 0], trace["objective"][0, -1]
    assert before == pytest.approx(np.log(4))
    assert floor <= after < floor + 0.4 * (before - floor)


def test_hyper_gradient_is_the_advantage_of_the_demonstrations():
    r"""$-\tau\nabla f$ is the mean over demonstrations of $\nabla_x Q - \nabla_x V$, by hand."""
    it = InverseRL(episodes=None, regulariser=0.0)
    x = 0.1 * jax.random.normal(jax.random.key(0), (16,))
    pi, got = jax.jit(lambda x: (oracles.lower_optimum(it, x, 0.1).pi, oracles.hyper_gradient(it, x, 0.1)))(x)
    n = it.objective.shares
    P = np.asarray(it.mdp.dense())
    resolvent = np.linalg.inv(np.eye(16) - 0.9 * np.einsum("sa,sat->st", pi, P))
    # d Q / d x and d V / d x by hand; log pi = (Q - V) / tau
    dV = resolvent
    dQ = np.eye(16)[:, None, :] + 0.9 * P @ dV
    want = -np.einsum("sa,sad->d", np.asarray(n), dQ - dV[:, None, :]) / 0.1
    np.testing.assert_allclose(got, want, atol=1e-10)


def test_a_constant_explains_nothing():
    """A constant in every state cannot be seen in what the follower does; a reward in one state can."""
    it = InverseRL()
    x = 0.1 * jax.random.normal(jax.random.key(0), (16,))
    objective = jax.jit(lambda x: it.objective.value(jnp.zeros(16), oracles.lower_optimum(it, x, 0.1).pi, it))
    assert float(objective(x + 0.7)) == pytest.approx(float(objective(x)), abs=1e-10)
    assert abs(float(objective(x.at[0].add(0.7))) - float(objective(x))) > 1e-6


@pytest.mark.slow
def test_demonstrations_are_the_experts_visits():
    it = InverseRL()
    mdp, pi = it.mdp, it.expert
    exact = demonstrations(mdp, pi, None, 1)
    assert float(exact.sum()) == pytest.approx(1.0)
    first = demonstrations(mdp, pi, 4000, 1)
    assert float(first.sum()) == 4000
    np.testing.assert_allclose(first[0] / 4000, pi[0], atol=0.04)
    np.testing.assert_array_equal(demonstrations(mdp, pi, 5, 7, seed=3), demonstrations(mdp, pi, 5, 7, seed=3))
    with pytest.raises(InvalidProblem, match="Count the demonstrations"):
        DemonstrationLikelihood(np.zeros((2, 2)))
    with pytest.raises(InvalidProblem, match="4x4"):
        InverseRL(size="5x5")


@pytest.mark.slow
def test_drawn_pairs_give_unbiased_gradients():
    it = InverseRL(batch=3, regulariser=0.2)
    x = jnp.ones(16)
    pi = jnp.tile(jnp.array([[0.1, 0.2, 0.3, 0.4]]), (16, 1))
    u = jax.random.uniform(jax.random.key(0), (4000, 3))
    got = jax.vmap(lambda u: it.objective.sample(x, pi, it, u))(u)
    want = jax.grad(lambda t: it.objective.value(x, jax.nn.softmax(t), it))(jnp.log(pi))
    assert_mean(got.value, it.objective.value(x, pi, it), "value")
    assert_mean(got.grad_theta, want, "grad_theta")
    np.testing.assert_allclose(got.grad_x[0], 0.4)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "step", "share"), [(LakeShaping, 2.0, 0.4),
                                                     pytest.param(TaxiShaping, 10.0, 0.1, marks=pytest.mark.slow)],
                         ids=lambda v: getattr(v, "name", None))  # fmt: skip
def test_shaping_raises_the_true_return(kind, step, share):
    it = kind()
    trace = solve(it, ExactDescent(step_size=step, tau=it.temperature()), iterations=60, record_every=60)
    before, after = trace["objective"][0, 0], trace["objective"][0, -1]
    hard = planning.hard_optimal(it.mdp, it.base)
    best = -float(it.objective.value(jnp.zeros_like(it.x0), hard.pi, it))
    assert -before < -after <= best + 1e-9  # nothing beats the optimum of the true reward
    assert (before - after) > share * (before + best)  # and shaping gains much of what entropy cost


@pytest.mark.parametrize(
    "kind", [InverseRL, pytest.param(LakeShaping, marks=pytest.mark.slow)], ids=lambda kind: kind.name
)
def test_classics_are_well_posed(kind):
    check_problem(kind())
