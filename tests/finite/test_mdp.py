"""The MDP itself: representations agree, tables are the environment's, draws follow the table."""

from __future__ import annotations

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.envs.toy_text.cliffwalking import CliffWalkingEnv
from gymnasium.envs.toy_text.frozen_lake import FrozenLakeEnv
from gymnasium.envs.toy_text.taxi import TaxiEnv
from hypothesis import given, settings
from hypothesis import strategies as st

from bilevel_rl.errors import InvalidProblem
from bilevel_rl.finite import FiniteMDP, gymnasium_rewards
from bilevel_rl.finite.model.mdp import _alias_table


def dense(seed: int, S: int, A: int):
    rng = np.random.default_rng(seed)
    P = rng.standard_exponential((S, A, S)) * (rng.uniform(size=(S, A, S)) < 0.6)
    P[..., 0] += P.sum(-1) == 0
    return P / P.sum(-1, keepdims=True)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([(1, 1), (4, 3)]))
def test_dense_goes_in_and_comes_out(seed, size):
    S, A = size
    P = dense(seed, S, A)
    mdp = FiniteMDP.from_dense(P, discount=0.5)
    np.testing.assert_allclose(mdp.dense(), P, atol=1e-15)
    v = np.random.default_rng(seed).normal(size=S)
    np.testing.assert_allclose(mdp.expect(jnp.asarray(v)), P @ v, atol=1e-12)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6))
def test_flow_is_the_adjoint_of_expect_with_restarts(seed):
    rng = np.random.default_rng(seed)
    S, A, K = 4, 2, 3
    successors = rng.integers(0, S + 1, (S, A, K))  # S restarts
    p = rng.standard_exponential((S, A, K))
    start = rng.standard_exponential(S)
    mdp = FiniteMDP.from_sparse(successors, p / p.sum(-1, keepdims=True), start / start.sum(), 0.9)
    v, mu = jnp.asarray(rng.normal(size=S)), jnp.asarray(rng.normal(size=(S, A)))
    assert float(jnp.sum(mu * mdp.expect(v)) - jnp.dot(mdp.flow(mu), v)) == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose(mdp.dense().sum(-1), 1, atol=1e-12)
    np.testing.assert_allclose(mdp.dense() @ v, mdp.expect(v), atol=1e-12)
    pi = jnp.full((S, A), 1 / A)
    np.testing.assert_allclose(mdp.under(pi), jnp.mean(mdp.dense(), 1), atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12).filter(lambda p: sum(p) > 1e-3))
def test_alias_table_holds_the_distribution(weights):
    p = np.array(weights) / np.sum(weights)
    keep, alias = _alias_table(p)
    assert (keep >= 0).all()
    assert (keep <= 1 + 1e-12).all()
    back = keep / len(p)
    np.add.at(back, alias, (1 - keep) / len(p))
    np.testing.assert_allclose(back, p, atol=1e-12)


def test_file_round_trip(tmp_path):
    mdp = FiniteMDP.from_dense(dense(3, 4, 2), discount=0.7)
    mdp.save(tmp_path / "mdp.npz")
    again = FiniteMDP.load(tmp_path / "mdp.npz")
    for one, two in zip(jax.tree.leaves(mdp), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(one, two)
    np.savez(tmp_path / "dense.npz", P=dense(3, 4, 2), discount=0.7)
    np.testing.assert_allclose(FiniteMDP.load(tmp_path / "dense.npz").dense(), mdp.dense())


@pytest.mark.parametrize("make", [FrozenLakeEnv, CliffWalkingEnv, TaxiEnv])
def test_gymnasium_table_is_what_the_environment_does(make):
    """Steps of the simulator itself: successors have positive probability, rewards have the table's mean."""
    env = make()
    mdp, rewards = FiniteMDP.from_gymnasium(env, 0.9), np.asarray(gymnasium_rewards(env))
    P = np.asarray(mdp.dense())
    np.testing.assert_allclose(P.sum(-1), 1, atol=1e-12)
    rng = np.random.default_rng(0)
    s, _ = env.reset(seed=1)
    assert mdp.start[s] > 0
    counts, paid = {}, {}
    for _ in range(3000):
        a = int(rng.integers(mdp.n_actions))
        s_next, r, done, _, _ = env.step(a)
        if done:
            restart = np.asarray(mdp.successors[s, a]) == mdp.n_states
            assert mdp.probabilities[s, a][restart].sum() > 0
            s_next, _ = env.reset()
        assert P[s, a, s_next] > 0
        counts.setdefault((s, a), []).append(s_next)
        paid.setdefault((s, a), []).append(r)
        s = s_next
    (s, a), seen = max(counts.items(), key=lambda item: len(item[1]))
    assert len(seen) >= 15
    for s_next in set(seen):
        p = P[s, a, s_next]
        assert abs(seen.count(s_next) / len(seen) - p) <= 4.5 * np.sqrt(p * (1 - p) / len(seen)) + 1e-12
    for key, values in paid.items():
        if len(set(values)) == 1 and len(values) > 5:
            spread = 3 / len(values)  # a rare other outcome may be unseen
            assert abs(values[0] - rewards[key]) <= spread * np.abs(rewards).max() + 1e-9
    env.close()


def test_gymnasium_id_and_frozen_lake_known_value():
    """The best success rate on the slippery 4x4 lake is 14/17 as gamma -> 1 (value iteration in fractions)."""
    from bilevel_rl.finite.model import planning

    mdp = FiniteMDP.from_gymnasium("FrozenLake-v1", discount=0.99, map_name="4x4")
    assert mdp.n_states == 16
    assert mdp.episodic
    # without restarts: an absorbing copy of the environment, its ends absorbed in a state of no reward
    absorbing = mdp.successors, mdp.probabilities
    S = 17
    succ = np.where(np.asarray(absorbing[0]) == 16, 16, np.asarray(absorbing[0]))
    succ = np.concatenate([succ, np.full((1, *succ.shape[1:]), 16)])
    prob = np.concatenate([np.asarray(absorbing[1]), np.eye(succ.shape[2])[[0]][None].repeat(4, 1).reshape(1, 4, -1)])
    one = FiniteMDP.from_sparse(succ, prob, np.eye(S)[0], 1 - 1e-6)
    reward = jnp.concatenate([gymnasium_rewards(gymnasium.make("FrozenLake-v1")), jnp.zeros((1, 4))])
    V = planning.hard_optimal(one, reward).V
    assert float(V[0]) == pytest.approx(14 / 17, abs=1e-4)


def test_large_sparse_costs_linear_memory():
    S = 200_000
    successors = np.stack([(np.arange(S) + 1) % S, np.arange(S)], -1)[:, None]
    mdp = FiniteMDP.from_sparse(successors, np.full((S, 1, 2), 0.5))
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(mdp)) < 60 * S


@pytest.mark.parametrize("block", [1, 3, 100])
def test_blocks_of_rows_are_the_table(block):
    rng = np.random.default_rng(0)
    S, A, K = 7, 2, 3
    successors, p = rng.integers(0, S + 1, (S, A, K)), rng.standard_exponential((S, A, K))
    p /= p.sum(-1, keepdims=True)
    allowed, ends = rng.uniform(size=(S, A)) < 0.7, np.arange(S) == 4
    allowed[:, 0], successors[4] = True, 4
    asked = []

    def rows(s):
        asked.append(len(s))
        return successors[s], p[s]

    given = {"start": np.arange(1, S + 1) / 28, "discount": 0.8, "ends": ends, "allowed": allowed}
    made = FiniteMDP.from_blocks(rows, S, **given, block=block)
    assert (sum(asked), max(asked)) == (S, min(block, S))
    jax.tree.map(np.testing.assert_array_equal, made, FiniteMDP.from_sparse(successors, p, **given))


@pytest.mark.parametrize(("rows", "said"), [
    (lambda s: (np.zeros((len(s), 1, 1 + s[0]), int), np.ones((len(s), 1, 1 + s[0]))),
     r"states from 2 on: got shape \(2, 1, 3\); successors must be \[B, A, K\] = \[2, 1, 1\]"),
    (lambda s: (np.zeros((len(s), 1, 1), int), (1.0 - 0.5 * (s == 3))[:, None, None]),
     r"states from 2 on: probabilities\[1, 0\]: got a row that sums to 0.5"),
    (lambda s: (np.full((len(s), 1, 1), 9), np.ones((len(s), 1, 1))), r"from 0 on: successors: got int64 in \[9, 9\]"),
    (lambda s: (np.zeros(len(s), int), np.ones(len(s))), r"states from 0 on: successors: got shapes \(2,\)"),
])  # fmt: skip
def test_a_block_that_is_wrong_is_named(rows, said):
    with pytest.raises(InvalidProblem, match=said):
        FiniteMDP.from_blocks(rows, 5, block=2)
    with pytest.raises(InvalidProblem, match="states=0, block="):
        FiniteMDP.from_blocks(rows, 0)
