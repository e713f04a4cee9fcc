"""Values, visitations and optimal policies against enumeration, identities and limits."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from finite_instances import deterministic_policies, random_dense, random_policy, value_by_powers
from hypothesis import given, settings
from hypothesis import strategies as st

from bilevel_rl.finite import FiniteMDP
from bilevel_rl.finite.model import planning

SEEDS = st.integers(0, 10**6)
few = settings(max_examples=15, deadline=None)
value = jax.jit(planning.policy_value)
visits = jax.jit(planning.visitation)
optimum = jax.jit(planning.soft_optimal)
returns = jax.jit(planning.expected_return)


@few
@given(SEEDS)
def test_value_is_the_sum_of_discounted_rewards(seed):
    mdp, reward = random_dense(seed)
    pi = random_policy(seed)
    regularised = np.asarray(reward) + 0.3 * np.asarray(planning.entropy(pi))[:, None]
    want = value_by_powers(np.asarray(mdp.dense()), regularised, 0.8, np.asarray(pi))
    np.testing.assert_allclose(value(mdp, reward, pi, 0.3), want, atol=1e-10)


@few
@given(SEEDS)
def test_visitation_is_a_distribution_and_gives_the_same_return(seed):
    mdp, reward = random_dense(seed, sparse=True)
    pi, tau = random_policy(seed), 0.2
    d = visits(mdp, pi)
    assert float(d.sum()) == pytest.approx(1, abs=1e-12)
    assert float(d.min()) >= -1e-15
    flow = 0.2 * mdp.start + 0.8 * mdp.flow(d[:, None] * pi)  # d is where the restart chain stays
    np.testing.assert_allclose(d, flow, atol=1e-12)
    by_visits = jnp.sum(d * (jnp.sum(pi * reward, -1) + tau * planning.entropy(pi))) / 0.2
    assert float(by_visits) == pytest.approx(float(returns(mdp, reward, pi, tau)), abs=1e-11)


@few
@given(SEEDS)
def test_policy_gradient_theorem_is_automatic_differentiation(seed):
    mdp, reward = random_dense(seed)
    pi, tau = random_policy(seed), 0.2
    gradient = jax.grad(lambda logits: returns(mdp, reward, jax.nn.softmax(logits), tau))(jnp.log(pi))
    V = value(mdp, reward, pi, tau)
    advantage = planning.action_value(mdp, reward, V) - tau * jnp.log(pi) - V[:, None]
    d = visits(mdp, pi)
    np.testing.assert_allclose(gradient, d[:, None] * pi * advantage / 0.2, atol=1e-11)


@few
@given(SEEDS, st.floats(-5, 5))
def test_constants_and_potentials_change_no_policy(seed, constant):
    mdp, reward = random_dense(seed)
    plan = optimum(mdp, reward, 0.1)
    potential = jnp.asarray(np.random.default_rng(seed).normal(size=3))
    shaped = reward + 0.8 * mdp.expect(potential) - potential[:, None]
    moved, by_shape = optimum(mdp, reward + constant, 0.1), optimum(mdp, shaped, 0.1)
    np.testing.assert_allclose(moved.V, plan.V + constant / 0.2, atol=1e-9)
    np.testing.assert_allclose(moved.pi, plan.pi, atol=1e-9)
    np.testing.assert_allclose(by_shape.V, plan.V - potential, atol=1e-9)
    np.testing.assert_allclose(by_shape.pi, plan.pi, atol=1e-9)


@few
@given(SEEDS, st.permutations(range(3)))
def test_names_of_states_do_not_matter(seed, order):
    mdp, reward = random_dense(seed)
    order = np.array(order)
    P = np.asarray(mdp.dense())[order][:, :, order]
    renamed = FiniteMDP.from_dense(P, np.asarray(mdp.start)[order], 0.8)
    one, two = optimum(mdp, reward, 0.1), optimum(renamed, reward[order], 0.1)
    np.testing.assert_allclose(two.V, one.V[order], atol=1e-10)
    np.testing.assert_allclose(visits(renamed, two.pi), visits(mdp, one.pi)[order], atol=1e-10)


@few
@given(SEEDS)
def test_soft_optimum_satisfies_its_equation_and_beats_other_policies(seed):
    mdp, reward = random_dense(seed)
    plan = optimum(mdp, reward, 0.3)
    np.testing.assert_allclose(plan.V, planning.soft_value(planning.action_value(mdp, reward, plan.V), 0.3), atol=1e-11)
    np.testing.assert_allclose(value(mdp, reward, plan.pi, 0.3), plan.V, atol=1e-10)
    for other in range(5):
        assert np.all(value(mdp, reward, random_policy(other), 0.3) <= plan.V + 1e-10)
    swept = planning.value_iteration(mdp, reward, 0.3, 1e-13)
    np.testing.assert_allclose(swept.V, plan.V, atol=1e-10)


@few
@given(SEEDS)
def test_hard_optimum_is_the_best_of_all_deterministic_policies(seed):
    mdp, reward = random_dense(seed, sparse=True)
    P = np.asarray(mdp.dense())
    every = [value_by_powers(P, np.asarray(reward), 0.8, pi, 200) for pi in deterministic_policies(3, 2)]
    np.testing.assert_allclose(planning.hard_optimal(mdp, reward).V, np.max(every, 0), atol=1e-8)


@pytest.mark.slow
def test_hard_policy_is_the_limit_of_the_soft_one_with_ties():
    """Two ways to the same pay: one leads through a state with a free choice, so the limit prefers it, by its entropy."""
    # state 0: action 0 -> 1, action 1 -> 2; both return to 0; in 1 both actions do the same, in 2 one is bad
    P = np.zeros((3, 2, 3))
    P[0, 0, 1] = P[0, 1, 2] = P[1, :, 0] = P[2, :, 0] = 1
    mdp = FiniteMDP.from_dense(P, discount=0.9)
    reward = jnp.array([[0.0, 0.0], [1.0, 1.0], [1.0, -1.0]])
    limit = planning.hard_optimal(mdp, reward)
    for tau, tolerance in ((1e-2, 1e-6), (1e-3, 1e-9)):
        np.testing.assert_allclose(limit.pi, optimum(mdp, reward, tau).pi, atol=tolerance)
    p = float(limit.pi[0, 0])
    assert 0.5 < p < 1
    # closed form: log(p / (1 - p)) is the entropy ahead that only action 0 has, gamma log 2
    assert np.log(p / (1 - p)) == pytest.approx(0.9 * np.log(2), abs=1e-9)


@few
@given(SEEDS)
def test_hard_policy_is_the_limit_of_the_soft_one(seed):
    mdp, reward = random_dense(seed, sparse=True)
    hard = planning.hard_optimal(mdp, reward)
    gap = jnp.sort(hard.Q, -1)
    if float(jnp.min(gap[:, 1] - gap[:, 0])) > 0.02:  # no near ties at the temperature below
        np.testing.assert_allclose(hard.pi, optimum(mdp, reward, 1e-3).pi, atol=1e-6)


@pytest.mark.slow
def test_iterative_solves_agree_with_dense_ones(monkeypatch):
    """From a uniform start too, where the visitation's system breaks BiCGSTAB down unless it is started again."""
    rng = np.random.default_rng(0)
    S = 60
    p = rng.standard_exponential((S, 2, 4))
    mdp = FiniteMDP.from_sparse(rng.integers(0, S + 1, (S, 2, 4)), p / p.sum(-1, keepdims=True), discount=0.95)
    reward = jnp.asarray(rng.normal(size=(S, 2)))
    weights = jnp.asarray(rng.normal(size=S))

    def everything():
        plan = planning.soft_optimal(mdp, reward, 0.1)
        d = planning.visitation(mdp, plan.pi)
        slope = jax.grad(lambda r: jnp.dot(weights, planning.visitation(mdp, planning.soft_optimal(mdp, r, 0.1).pi)))
        return plan.V, d, slope(reward)

    exact = everything()
    monkeypatch.setattr(planning, "DENSE_LIMIT", 10)
    for name, one, two in zip(("V", "d", "gradient"), exact, everything(), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-8, atol=1e-10, err_msg=name)


def test_batched_solves_are_their_members_bit_for_bit():
    many = jax.tree.map(lambda *v: jnp.stack(v), *[random_dense(seed)[0] for seed in range(4)])
    pis = jnp.stack([random_policy(seed) for seed in range(4)])
    together = jax.jit(jax.vmap(planning.visitation))(many, pis)
    for i in range(4):
        np.testing.assert_array_equal(together[i], visits(jax.tree.map(lambda v, i=i: v[i], many), pis[i]))


@pytest.mark.slow
def test_many_batched_factorisations_at_once_do_not_wait_for_each_other():
    """Several batched solves that the compiler may run side by side: with jnp.linalg.solve this hung on two cores."""
    A = jnp.eye(30) + 0.01 * jax.random.normal(jax.random.key(0), (6, 64, 30, 30))
    b = jnp.ones((64, 30))

    @jax.jit
    def run(A):
        def body(_, v):
            return sum(jax.vmap(planning.dense_solve)(A[i], v) for i in range(6)) / 6

        return jax.lax.fori_loop(0, 30, body, b)

    assert bool(jnp.all(jnp.isfinite(run(A))))
