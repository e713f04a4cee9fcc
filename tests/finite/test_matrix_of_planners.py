"""Every planner on every shape, size, discount and temperature, certified by products that share no code with it.

A value whose Bellman residual is e is off by at most e / (1 - gamma): the residual is computed here with scipy.sparse from
the raw tables. That covers what no second solver reaches; closed forms and backward induction are in
`test_exact_answers`. All MDPs of one size have the same shapes of arrays, so that each planner is compiled once.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
from finite_instances import thinned
from scipy.special import logsumexp

from bilevel_rl.finite import FiniteMDP
from bilevel_rl.finite.model import planning

A, K = 3, 2
SHAPES = ("corridor", "ring", "tree", "grid", "random", "unrolled", "unreachable", "restarts")
SIZES, DISCOUNTS, TEMPERATURES = (10, 100, 1_000, 10_000, 100_000), (0.0, 0.9, 0.99, 0.999, 0.9999), (0, 1e-4, 0.05, 5.0)


class Case(NamedTuple):
    """An MDP, its rewards, and the same transitions as one sparse matrix [S A, S]."""

    mdp: FiniteMDP
    reward: np.ndarray
    P: scipy.sparse.csr_matrix
    offered: np.ndarray
    over: np.ndarray


def successors(shape: str, S: int) -> np.ndarray:
    """[S, A, K]: where an action leads, and where it slips to."""
    s, rng = np.arange(S), np.random.default_rng(7)
    wide = max(1, int(np.sqrt(S)))
    moves = {
        "corridor": [np.minimum(s + 1, S - 1), np.maximum(s - 1, 0), s],
        "ring": [(s + 1) % S, (s - 1) % S, s],
        "tree": [np.minimum(2 * s + 1, S - 1), np.minimum(2 * s + 2, S - 1), np.maximum((s - 1) // 2, 0)],
        "grid": [np.minimum(s + (s % wide < wide - 1), S - 1), np.minimum(s + wide, S - 1), np.maximum(s - wide, 0)],
        "random": [rng.integers(0, S, S) for _ in range(A)],
        "unrolled": [np.minimum((s // 5 + 1) * 5 + rng.integers(0, 5, S), S - 1) for _ in range(A)],
        # the second half leads to the first, and nothing leads back
        "unreachable": [np.minimum(s + 1, S // 2 - 1) * (s < S // 2) + (s >= S // 2) * (s // 2), s // 2, s // 3],
        "restarts": [np.minimum(s + 1, S), np.maximum(s - 1, 0), np.where(s % 7 == 6, S, s)],
    }[shape]  # fmt: skip
    first = np.stack(moves, axis=1)
    return np.stack([first, np.roll(first, 1, axis=1)], axis=-1)


@functools.cache
def case(shape: str, S: int, discount: float, marked: bool) -> Case:
    """`marked`: the last state is an end, and every third state offers two actions."""
    rng = np.random.default_rng(3)
    to, p = successors(shape, S), np.broadcast_to([0.8, 0.2], (S, A, K)).copy()
    p[::2] = [1.0, 0.0]
    start = np.zeros(S)
    start[: max(1, S // 10)] = 1
    reward, offered, over = rng.uniform(-1, 1, (S, A)), np.ones((S, A), bool), np.zeros(S, bool)
    if marked:
        to[-1], over[-1] = S - 1, True
        offered[::3, 1] = False
    mdp = FiniteMDP.from_sparse(
        to, p, start / start.sum(), discount, over if marked else None, offered if marked else None
    )
    restart = scipy.sparse.csr_matrix(np.asarray(mdp.start)[None])
    bare = scipy.sparse.csr_matrix((p.ravel(), (np.repeat(np.arange(S * A), K), to.ravel())), shape=(S * A, S + 1))
    P = bare[:, :S] + (bare[:, S:] @ restart if bare[:, S:].nnz else 0 * bare[:, :S])
    return Case(mdp, reward, P.tocsr(), offered, over)


soft = jax.jit(planning.soft_optimal)
hard = jax.jit(planning.hard_optimal)
evaluated = jax.jit(planning.policy_value)
visits = jax.jit(planning.visitation)


def certify(it: Case, tau: float) -> None:
    """The optimum, and the uniform policy's value and visitation, each by the equation that defines it."""
    S, gamma = it.over.size, float(it.mdp.discount)
    reward = jnp.asarray(it.reward)

    def ahead(V):
        return np.where(it.offered, np.where(it.over[:, None], 0.0, it.reward) + gamma * (it.P @ V).reshape(S, A), -np.inf)

    plan = hard(it.mdp, reward) if tau == 0 else soft(it.mdp, reward, tau)
    V, pi = np.asarray(plan.V), np.asarray(plan.pi)
    Q = ahead(V)
    best = Q.max(1) if tau == 0 else tau * logsumexp(Q / tau, axis=1)
    scale = 1 + tau + np.abs(V).max()
    assert np.abs(np.where(it.over, 0.0, best) - V).max() <= 1e-11 * scale
    assert (pi[~it.offered] == 0).all()
    np.testing.assert_allclose(pi.sum(1), 1.0, atol=1e-12)
    if tau == 0:  # no weight on an action that is worse
        assert np.where(pi > 1e-6, Q.max(1, keepdims=True) - Q, 0.0).max() <= 1e-8 * scale
    even = it.offered / it.offered.sum(1, keepdims=True)
    W = np.asarray(evaluated(it.mdp, reward, jnp.asarray(even)))
    mean = np.where(it.over, 0.0, np.sum(even * np.where(it.offered, ahead(W), 0.0), 1))
    assert np.abs(mean - W).max() <= 1e-11 * (1 + np.abs(W).max())
    assert (W <= V + 1e-9 * scale).all()
    d = np.asarray(visits(it.mdp, jnp.asarray(even)))
    start = np.asarray(it.mdp.start)
    assert np.abs((1 - gamma) * start + gamma * (it.P.T @ (d[:, None] * even).ravel()) - d).sum() <= 1e-11
    assert abs(d.sum() - 1) <= 1e-9
    earned = np.sum(np.where(it.over, 0.0, d) * np.sum(even * np.where(it.offered, it.reward, 0.0), 1))
    assert abs(earned - (1 - gamma) * start @ W) <= 1e-9


@pytest.mark.parametrize("marked", thinned([False, True], {True}), ids=["plain", "ends and action sets"])
@pytest.mark.parametrize("shape", SHAPES)
def test_planners_are_certified(shape, marked):
    """The thin cut: small, and all corners of discount and temperature."""
    for discount in (0.0, 0.9, 0.9999):
        for tau in (0, 1e-4, 5.0):
            certify(case(shape, 30, discount, marked), tau)


@pytest.mark.parametrize("shape", thinned(["corridor", "tree", "random", "restarts"], {"random"}))
def test_planners_are_certified_above_the_dense_limit(shape):
    certify(case(shape, planning.DENSE_LIMIT + 76, 0.999, False), 0.05)


@pytest.mark.slow
@pytest.mark.parametrize("marked", [False, True], ids=["plain", "ends and action sets"])
@pytest.mark.parametrize("S", SIZES)
@pytest.mark.parametrize("shape", SHAPES)
def test_planners_are_certified_everywhere(shape, S, marked):
    for discount in DISCOUNTS:
        for tau in TEMPERATURES:
            certify(case(shape, S, discount, marked), tau)
