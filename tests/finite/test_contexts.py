"""Contexts side by side, episodes unrolled in time, budgets: against what each is by definition."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from finite_instances import random_dense

from bilevel_rl.errors import InvalidProblem
from bilevel_rl.finite import FiniteMDP
from bilevel_rl.finite.feasible import softmax_budget, spend_on
from bilevel_rl.finite.model import planning, sampling
from bilevel_rl.finite.model.contexts import side_by_side
from bilevel_rl.finite.model.horizon import unrolled

optimum = jax.jit(planning.soft_optimal)
TAU = 0.3


visited = jax.jit(planning.visitation)


def test_each_context_is_solved_as_if_alone():
    parts = [random_dense(seed, states, 2, sparse=True) for seed, states in ((0, 3), (1, 5))]
    mu = np.array([0.2, 0.8])
    both = side_by_side([mdp for mdp, _ in parts], mu)
    rewards = jnp.concatenate([reward for _, reward in parts])
    plan, total, at = optimum(both, rewards, TAU), 0.0, 0
    for (mdp, reward), m in zip(parts, mu, strict=True):
        alone, here = optimum(mdp, reward, TAU), slice(at, at + mdp.n_states)
        np.testing.assert_allclose(plan.V[here], alone.V, atol=1e-11)
        np.testing.assert_allclose(plan.pi[here], alone.pi, atol=1e-11)
        d = visited(mdp, alone.pi)
        np.testing.assert_allclose(visited(both, plan.pi)[here], m * d, atol=1e-12)
        total, at = total + m * float(mdp.start @ alone.V), at + mdp.n_states
    assert float(both.start @ plan.V) == pytest.approx(total, abs=1e-11)
    assert both.successors.shape[2] == max(mdp.successors.shape[2] for mdp, _ in parts)


def test_a_restart_draws_a_new_context():
    episode = FiniteMDP.from_sparse([[[1]]], [[[1.0]]], [1.0], 0.5)  # one step, then another episode
    both = side_by_side([episode, episode], [0.25, 0.75])
    np.testing.assert_allclose(both.dense()[:, 0], [[0.25, 0.75]] * 2)


def test_contexts_must_be_alike():
    two, three = random_dense(0, 3, 2)[0], random_dense(0, 3, 3)[0]
    with pytest.raises(InvalidProblem, match="all alike in both"):
        side_by_side([two, three])
    with pytest.raises(InvalidProblem, match="at least one"):
        side_by_side([])
    with pytest.raises(InvalidProblem, match="one weight each"):
        side_by_side([two, two], [1.0])


def backward_induction(P, reward, steps, gamma):
    V = np.zeros(len(P))
    policies = []
    for _ in range(steps):
        Q = np.asarray(reward) + gamma * P @ V
        V = TAU * np.log(np.exp(Q / TAU).sum(1))
        policies.append(np.exp((Q - V[:, None]) / TAU))
    return V, policies[::-1]


@pytest.mark.parametrize("episodic", [False, True])
def test_unrolled_optimum_is_backward_induction(episodic):
    mdp, reward = random_dense(4, 3, 2, sparse=True)
    if episodic:
        to = np.asarray(mdp.successors).copy()
        to[1, 0] = 3
        mdp = FiniteMDP.from_sparse(to, mdp.probabilities, mdp.start, 0.8)
    V, policies = backward_induction(np.asarray(mdp.dense()), reward, 4, 0.8)
    long = unrolled(mdp, 4)
    paid = jnp.concatenate([jnp.tile(reward, (4, 1)), jnp.zeros((1, 2))])
    plan = optimum(long, paid, TAU)
    np.testing.assert_allclose(plan.V[:3], V, atol=1e-12)
    np.testing.assert_allclose(plan.pi[:12], np.concatenate(policies), atol=1e-12)
    assert float(plan.V[12]) == 0.0
    assert not long.episodic


def test_unrolled_keeps_the_ends():
    P = np.zeros((2, 1, 2))
    P[0, 0] = 0.5, 0.5
    P[1, 0, 1] = 1
    plain = FiniteMDP.from_dense(P, [1.0, 0.0], 0.9)
    ending = FiniteMDP.from_sparse(plain.successors, plain.probabilities, [1.0, 0.0], 0.9, [False, True])
    long = unrolled(ending, 3)
    V = planning.policy_value(long, jnp.where(long.ends, 0.0, 1.0)[:, None], jnp.ones((7, 1)))
    assert float(V[0]) == pytest.approx(1 + 0.45 + 0.45**2)
    with pytest.raises(InvalidProblem, match="at least one step"):
        unrolled(plain, 0)


def test_unrolled_memory_is_linear_in_states():
    sizes = [sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(unrolled(random_dense(0, 4, 2)[0], T)))
             for T in (50, 100, 200)]  # fmt: skip
    assert (sizes[2] - sizes[1]) == pytest.approx(2 * (sizes[1] - sizes[0]), rel=1e-6)


def test_episodes_of_samples_last_as_long():
    long = unrolled(random_dense(4, 3, 2)[0], 4)
    pi = jnp.full((13, 2), 0.5)
    u = jax.random.uniform(jax.random.key(0), (2, 200, 6, 2))
    s = sampling.trajectories(long, pi, u[0, :, 0, 0], u[1]).s
    np.testing.assert_array_equal(s[:, :4] // 3, np.tile(np.arange(4), (200, 1)))
    np.testing.assert_array_equal(s[:, 4:], 12)


def test_budget_is_never_overspent():
    w = jax.random.normal(jax.random.key(0), (7,)) * 3
    x = softmax_budget(w, 0.2)
    assert x.shape == (6,)
    assert float(x.min()) > 0
    assert float(x.sum()) < 0.2
    on = softmax_budget(spend_on(7, 2, logit=8.0), 0.2)
    assert int(jnp.argmax(on)) == 2
    assert float(on[2]) > 0.199
