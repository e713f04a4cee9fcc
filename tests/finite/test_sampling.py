"""Draws against the exact laws they are drawn from."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from finite_instances import assert_mean, random_dense, random_policy

from bilevel_rl.finite import FiniteMDP
from bilevel_rl.finite.model import planning, sampling


@pytest.fixture(scope="module")
def episodic():
    """Four states, two actions, some transitions end the episode, an uneven start."""
    rng = np.random.default_rng(1)
    p = rng.standard_exponential((4, 2, 3))
    mdp = FiniteMDP.from_sparse(
        rng.integers(0, 5, (4, 2, 3)), p / p.sum(-1, keepdims=True), [0.7, 0.0, 0.1, 0.2], 0.8
    )
    assert mdp.episodic
    return mdp


N = 100_000


def onehot(index, size):
    return np.eye(size)[np.asarray(index)]


def test_choose_follows_the_row_and_never_leaves_it():
    p = jnp.array([0.0, 0.3, 0.0, 0.7, 0.0])
    u = jnp.concatenate([jnp.array([0.0, 1 - 1e-16]), jax.random.uniform(jax.random.key(0), (N,))])
    drawn = np.asarray(sampling.choose(jnp.broadcast_to(p, (len(u), 5)), u))
    assert set(drawn) == {1, 3}
    assert_mean(onehot(drawn, 5), p)


def test_first_states_follow_start(episodic):
    s = sampling.start_state(episodic, jax.random.uniform(jax.random.key(0), (N,)))
    assert_mean(onehot(s, 4), episodic.start)
    assert int(sampling.start_state(episodic, jnp.array(1 - 1e-16))) < 4


def test_next_states_follow_the_table_restarts_included(episodic):
    P = np.asarray(episodic.dense())
    u = jax.random.uniform(jax.random.key(1), (N,))
    for s in range(4):
        for a in range(2):
            at = jnp.full(N, s), jnp.full(N, a)
            s_next = sampling.next_state(episodic, *at, u)
            assert_mean(onehot(s_next, 4), P[s, a])
            p = sampling.transition_probability(episodic, *at, s_next)
            np.testing.assert_allclose(p, P[s, a][np.asarray(s_next)], atol=1e-12)


def test_restart_chain_stays_in_the_visitation(episodic):
    """Started from the visitation, one step later it is the visitation still, restarts at rate 1 - gamma."""
    pi = random_policy(0, 4, 2)
    d = planning.visitation(episodic, pi)
    u = jax.random.uniform(jax.random.key(2), (4, N))
    s = sampling.choose(jnp.broadcast_to(d, (N, 4)), u[0])
    a = sampling.choose(pi[s], u[1])
    onward, restart = sampling.continue_chain(episodic, sampling.next_state(episodic, s, a, u[2]), u[3])
    assert_mean(onehot(onward, 4), d)
    assert_mean(np.asarray(restart), 0.2)


def test_restart_chain_reaches_the_visitation_from_anywhere(episodic):
    pi = random_policy(0, 4, 2)

    def walk(s, key):
        u = jax.random.uniform(key, (3, s.shape[0]))
        s_next = sampling.next_state(episodic, s, sampling.choose(pi[s], u[0]), u[1])
        return sampling.continue_chain(episodic, s_next, u[2])[0], None

    s, _ = jax.lax.scan(walk, jnp.full(N // 4, 3), jax.random.split(jax.random.key(3), 80))
    assert_mean(onehot(s, 4), planning.visitation(episodic, pi))


def test_independent_draws_follow_the_visitation_and_count_their_steps(episodic):
    pi = random_policy(0, 4, 2)
    s, steps = sampling.visitation_draws(episodic, jnp.log(pi), jax.random.key(4), N // 4)
    assert_mean(onehot(s, 4), planning.visitation(episodic, pi))
    # the number of steps is geometric with mean gamma / (1 - gamma) and variance gamma / (1 - gamma)^2
    n = N // 4
    assert abs(int(steps) / n - 4) <= 4.5 * np.sqrt(0.8 / 0.04 / n)


def test_trajectories_have_the_law_of_the_enumeration():
    from bilevel_rl.finite.objectives.preference_likelihood import enumerate_trajectories

    mdp, _ = random_dense(2, 2, 2)
    pi = random_policy(1, 2, 2)
    p, s, a = enumerate_trajectories(mdp, pi, 3)
    assert float(p.sum()) == pytest.approx(1, abs=1e-12)
    key = jax.random.split(jax.random.key(5))
    drawn = sampling.trajectories(
        mdp, pi, jax.random.uniform(key[0], (N,)), jax.random.uniform(key[1], (N, 3, 2))
    )
    name = (np.asarray(drawn.s) * 2 + np.asarray(drawn.a)) @ [16, 4, 1]
    place = (np.asarray(s) * 2 + np.asarray(a)) @ [16, 4, 1]
    np.testing.assert_array_equal(place, np.arange(64))
    assert_mean(onehot(name, 64), p)


def test_visit_mean_averages_within_an_index():
    index, values = jnp.array([2, 0, 2, 2]), jnp.array([3.0, 5.0, 6.0, 0.0])
    summed = jnp.zeros(4).at[index].add(sampling.visit_mean(index, 4, values))
    np.testing.assert_allclose(summed, [5, 0, 3, 0])
    np.testing.assert_allclose(sampling.visit_mean(index[:1], 4, values[:1]), [3.0])


def test_counts_by_sorting_are_those_of_a_table():
    """Above `COUNT_TABLE` entries repeats are counted by sorting: to the same bits, with a mask and in a batch too."""
    index = jnp.asarray(np.random.default_rng(0).integers(0, 40, (3, 200)), jnp.int32)
    values, counted = jnp.linspace(-1.0, 1.0, 200), index % 3 > 0
    large = 10 * sampling.COUNT_TABLE
    for table, sort in (
        (sampling.visit_mean(index[0], 40, values), sampling.visit_mean(index[0], large, values)),
        (sampling.visit_mean(index[0], 40, values, counted[0]), sampling.visit_mean(index[0], large, values, counted[0])),
        (jax.vmap(lambda i: sampling.visit_mean(i, 40, values))(index),
         jax.vmap(lambda i: sampling.visit_mean(i, large, values))(index)),
    ):  # fmt: skip
        np.testing.assert_array_equal(table, sort)
    ends = jnp.array([large - 1, 0, large - 1])
    np.testing.assert_array_equal(sampling.visit_mean(ends, large, jnp.ones(3)), [0.5, 1.0, 0.5])
