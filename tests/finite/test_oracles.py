"""Exact answers three ways: implicit differentiation, central differences, an explicit linear system."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from finite_instances import random_policy, thinned
from scipy import stats

from bilevel_rl.finite import oracles
from bilevel_rl.finite.objectives import PolicyEnergy
from bilevel_rl.finite.problems import PROBES, GoalPlacement, PreferenceLearning, RandomMDP

TAU = 0.2


@functools.cache
def problem(name: str):
    return {
        "visitation": lambda: RandomMDP(5, 2, 3, features=2),
        "per state": lambda: RandomMDP(4, 2, 3, features="states"),
        "energy": lambda: RandomMDP(5, 2, 3, features=2, objective="energy"),
        "moving": lambda: RandomMDP(5, 2, 3, features=2, moving=True),
        "moving energy": lambda: RandomMDP(5, 2, 3, features=2, moving=True, objective="energy"),
        "preferences": PreferenceLearning,
    }[name]()


EVERY = ("visitation", "per state", "energy", "moving", "moving energy", "preferences")


@functools.cache
def compiled(name: str):
    it = problem(name)
    return jax.jit(lambda x: oracles.hyper_objective(it, x, TAU)), jax.jit(lambda x: oracles.hyper_gradient(it, x, TAU))


def central(f, x, step=1e-4):
    """Fourth-order central differences."""
    e = np.eye(len(x)) * step
    g = [(8 * (f(x + v) - f(x - v)) - (f(x + 2 * v) - f(x - 2 * v))) / (12 * step) for v in e]
    return np.array(g, float)


@pytest.mark.parametrize("name", thinned(EVERY, {"moving energy"}))
def test_hyper_gradient_is_central_differences(name):
    f, g = compiled(name)
    x = problem(name).x0 + 0.1
    np.testing.assert_allclose(g(x), central(f, x), rtol=1e-8, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", thinned(["visitation", "energy", "moving"], {"moving"}))
def test_hyper_gradient_is_the_explicit_implicit_system(name):
    """grad Phi = grad_x f - [d2L/dx dtheta] [d2L/dtheta2]^+ grad_theta f with L = J_tau(x, softmax theta)."""
    it = problem(name)
    x = it.x0 + 0.1
    S, A = it.mdp.n_states, it.mdp.n_actions
    theta = (oracles.lower_optimum(it, x, TAU).Q / TAU).ravel()

    def J(x, theta):
        return oracles.lower_return(it, x, jax.nn.softmax(theta.reshape(S, A)), TAU)

    def f(x, theta):
        return it.objective.value(x, jax.nn.softmax(theta.reshape(S, A)), it)

    assert float(jnp.max(jnp.abs(jax.grad(J, 1)(x, theta)))) < 1e-10
    H = jax.jit(jax.jacfwd(jax.grad(J, 1), 1))(x, theta)
    cross = jax.jit(jax.jacfwd(jax.grad(J, 1), 0))(x, theta)  # [SA, d]
    g_x, g_theta = jax.grad(f, (0, 1))(x, theta)
    # the constants added to a state's logits are the null space of H: a pseudo-inverse leaves them alone
    response = -np.linalg.pinv(np.asarray(H), rcond=1e-10) @ np.asarray(cross)
    np.testing.assert_allclose(compiled(name)[1](x), g_x + np.asarray(g_theta) @ response, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("probe", [
    p if p.name in ("moving_kernel", "bandit") else pytest.param(p, marks=pytest.mark.slow) for p in PROBES
], ids=lambda probe: probe.name)  # fmt: skip
def test_probes_know_their_hyper_gradient(probe):
    it = probe()
    gradient = jax.jit(lambda x: oracles.hyper_gradient(it, x, 0.4))
    for shift in (0.0, 0.3, -0.4):
        x = it.x0 + shift
        np.testing.assert_allclose(gradient(x), it.known_gradient(x, 0.4), atol=1e-10)


@pytest.mark.parametrize("name", thinned(EVERY, {"visitation"}))
def test_penalised_policy_is_stationary(name):
    it = problem(name)
    x, w = it.x0 + 0.1, 0.3
    pi = jax.jit(lambda x: oracles.penalised_policy(it, x, w, TAU))(x)

    @jax.jit
    def slope(logits):
        return jax.grad(
            lambda t: oracles.lower_return(it, x, jax.nn.softmax(t), TAU)
            - w * it.objective.value(x, jax.nn.softmax(t), it)
        )(logits)

    at_optimum, away = slope(jnp.log(pi)), slope(jnp.log(random_policy(0, *pi.shape)))
    assert float(jnp.max(jnp.abs(at_optimum))) < 1e-8 < float(jnp.max(jnp.abs(away)))


@pytest.mark.parametrize("name", thinned(EVERY, {"visitation"}))
def test_penalty_bias_falls_linearly_in_w(name):
    """|grad Phi_w - grad Phi| = O(w): the slope of its logarithm against log w is 1."""
    it = problem(name)
    x = it.x0 + 0.1
    exact = compiled(name)[1](x)
    ws = np.array([0.01, 0.005, 0.002, 0.001]) if name != "preferences" else np.array([0.08, 0.04, 0.02, 0.01])
    penalty = jax.jit(lambda w: oracles.penalty_hyper_gradient(it, x, w, TAU))
    bias = np.array([np.linalg.norm(penalty(jnp.asarray(w)) - exact) for w in ws])
    assert bias[-1] < 0.05 * np.linalg.norm(exact)
    assert stats.linregress(np.log(ws), np.log(bias)).slope == pytest.approx(1, abs=0.05)


@pytest.mark.slow
def test_temperature_of_the_penalty_gradient_is_the_one_asked_for():
    """Where x moves the transitions the entropy counts: at another temperature than the problem's, too."""
    it = problem("moving")
    assert abs(it.temperature() - 0.4) > 0.1
    exact = oracles.hyper_gradient(it, it.x0, 0.4)
    np.testing.assert_allclose(oracles.penalty_hyper_gradient(it, it.x0, 1e-5, 0.4), exact, rtol=1e-3)


def test_lower_gap_is_zero_at_the_optimum_and_positive_elsewhere():
    it = problem("moving")
    pi = oracles.lower_optimum(it, it.x0, TAU).pi
    assert float(oracles.lower_gap(it, it.x0, pi, TAU)) == pytest.approx(0, abs=1e-10)
    assert float(oracles.lower_gap(it, it.x0, random_policy(0, *pi.shape), TAU)) > 1e-3


def test_unregularised_hyper_objective_is_the_limit():
    it = problem("visitation")
    assert float(oracles.hyper_objective(it, it.x0, 0)) == pytest.approx(
        float(oracles.hyper_objective(it, it.x0, 1e-3)), abs=1e-4
    )


@pytest.mark.slow
def test_optimum_of_the_default_instance():
    found = oracles.brute_force(GoalPlacement(), 0.05, points=21)
    assert found.value == pytest.approx(-0.636, abs=1e-3)
    np.testing.assert_allclose(found.x, [0.74, 0.56], atol=0.01)
    assert found.value <= found.grid_value


def test_energy_of_a_mixed_policy():
    it, pi = problem("energy"), jnp.array([[0.5, 0.5], [1.0, 0.0]])
    assert float(PolicyEnergy(2.0).value(jnp.ones(3), pi, it)) == pytest.approx(3 + (0.25 + 0.5) / 2)
    weighted = PolicyEnergy(0.0, jnp.array([2.0, 1.0]))
    assert float(weighted.value(jnp.ones(3), pi, it)) == pytest.approx(2 * 0.25 + 0.5)
