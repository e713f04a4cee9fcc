"""Linear-quadratic followers: against brute force and simulation, and the published values of their two problems."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel_rl.cli import main
from bilevel_rl.errors import InvalidProblem
from bilevel_rl.finite import oracles, solve
from bilevel_rl.finite.checks import check_problem
from bilevel_rl.finite.model.linear_quadratic import (
    LinearQuadratic,
    expected_bump,
    expected_quadratic,
    moments,
    soft_optimal,
)
from bilevel_rl.finite.problems import LinearLeader, ThermalControl
from bilevel_rl.finite.solvers import ExactDescent, PenaltyActorCritic
from bilevel_rl.loop.solver import check_fits


def small(seed=0):
    rng = np.random.default_rng(seed)
    A, B = (jnp.asarray(0.6 * rng.normal(size=shape)) for shape in ((2, 2), (2, 1)))
    return LinearQuadratic(
        A, B, jnp.eye(2), 0.5 * jnp.eye(1), 0.1 * jnp.eye(2), jnp.array([1.0, -0.5]), 0.2 * jnp.eye(2), 0.9
    )


def test_riccati_is_value_iteration():
    lq, P = small(), np.eye(2)
    A, B = np.asarray(lq.A), np.asarray(lq.B)
    for _ in range(3000):
        K = 0.9 * np.linalg.solve(0.5 + 0.9 * B.T @ P @ B, B.T @ P @ A)
        P = np.eye(2) + 0.9 * A.T @ P @ (A - B @ K)
    policy = soft_optimal(lq, 0.3)
    np.testing.assert_allclose(policy.P, P, atol=1e-11)
    np.testing.assert_allclose(policy.K, K, atol=1e-11)
    np.testing.assert_allclose(policy.covariance, 0.15 * np.linalg.inv(0.5 + 0.9 * B.T @ P @ B), atol=1e-12)


def test_moments_and_expectations_are_those_of_simulated_states():
    lq, n, T = small(), 40_000, 6
    policy = soft_optimal(lq, 0.3)
    at = moments(lq, policy, T)
    rng = np.random.default_rng(1)
    s = rng.normal(size=(n, 2)) @ np.sqrt(0.2 * np.eye(2)) + np.asarray(lq.mean)
    M, centre, width = jnp.array([[2.0, 0.3], [0.3, 1.0]]), jnp.array([0.2, 0.1]), jnp.diag(jnp.array([0.3, 0.5]))
    quadratic, bump = expected_quadratic(at, M), expected_bump(at, centre, width)
    for t in range(T):
        away = s - np.asarray(centre)
        for values, exact in (
            (np.einsum("ni,ij,nj->n", s, M, s), quadratic[t]),
            (np.exp(-np.einsum("ni,ij,nj->n", away, np.linalg.inv(width), away) / 2), bump[t]),
        ):
            assert abs(values.mean() - float(exact)) < 4.5 * values.std() / np.sqrt(n)
        a = -s @ np.asarray(policy.K).T + rng.normal(size=(n, 1)) * np.sqrt(np.asarray(policy.covariance))
        s = s @ np.asarray(lq.A).T + a @ np.asarray(lq.B).T + np.sqrt(0.1) * rng.normal(size=(n, 2))


@functools.cache
def compiled(kind):
    """A problem, and its hyper-objective with gradient as one program."""
    it = kind()
    return it, jax.jit(lambda x: (oracles.hyper_objective(it, x, 0.1), oracles.hyper_gradient(it, x, 0.1)))


@pytest.mark.parametrize(("kind", "at", "value", "digits"), [
    (ThermalControl, [0.5] * 8, 261.96, 0.005), (LinearLeader, [-9.683, -10.25], -3.40, 0.005),
], ids=["thermal_control", "linear_leader"])  # fmt: skip
def test_published_values(kind, at, value, digits):
    _, graded = compiled(kind)
    assert float(graded(jnp.array(at))[0]) == pytest.approx(value, abs=digits)


@pytest.mark.parametrize(
    "kind", [pytest.param(ThermalControl, marks=pytest.mark.slow), LinearLeader], ids=lambda kind: kind.name
)
def test_problems_are_well_posed_and_gradients_are_derivatives(kind):
    it, graded = compiled(kind)
    check_problem(it)
    x = it.x0 * 0.9
    central = jnp.stack([(graded(x + e)[0] - graded(x - e)[0]) / 2e-5 for e in 1e-5 * jnp.eye(len(x))])
    np.testing.assert_allclose(graded(x)[1], central, atol=1e-6, rtol=1e-6)


@pytest.mark.slow
def test_exact_descent_beats_what_was_learnt():
    """The study's best is 196 after 2,000 iterations."""
    trace = solve(ThermalControl(), ExactDescent(step_size=0.005, tau=0.1), iterations=200, record_every=200)
    assert trace["objective"][0, 0] == pytest.approx(261.96, abs=0.005)
    assert trace["objective"][0, -1] < 196


def test_solvers_that_need_an_mdp_say_so(capsys):
    with pytest.raises(InvalidProblem, match="needs a finite MDP"):
        check_fits(PenaltyActorCritic(), ThermalControl())
    with pytest.raises(InvalidProblem, match="without a table"):
        ThermalControl().reward(jnp.zeros(8))
    assert main(["check", "linear_leader"]) == 0
    assert "closed form" in capsys.readouterr().out
