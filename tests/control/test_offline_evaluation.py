"""The value of a policy from stored rows, against the exact one of a table, and what it forgets: nothing to forget."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel_rl.control.offline import tabular
from bilevel_rl.control.offline.bank import Bank, Minibatch
from bilevel_rl.control.offline.evaluation import Features, evaluated
from bilevel_rl.control.problem import Transition

GAMMA, EYE = 0.9, jnp.eye(4)


def every_transition(table):
    """All (s, a, s') of a table, each weighed as often as uniform actions meet it."""
    P, r = np.asarray(table.P, float), np.asarray(table.r, float)
    s, a, after = (v.ravel() for v in np.meshgrid(np.arange(4), np.arange(2), np.arange(4), indexing="ij"))
    n = len(s)
    t = Transition(EYE[s], jnp.asarray(a), EYE[after], jnp.asarray(r[s, a]), jnp.zeros((n, 0)), jnp.zeros(n, bool))
    return Minibatch(t, t.reward, t.reward, t.action, jnp.asarray(P[s, a, after]), jnp.ones(n, bool), None)


def exact(table, policy):
    """V of a deterministic policy [S]."""
    P, r = np.asarray(table.P, float), np.asarray(table.r, float)
    at = np.arange(4), policy
    return np.linalg.solve(np.eye(4) - GAMMA * P[at], r[at])


@pytest.mark.parametrize("policy", [[1, 1, 1, 1], [0, 0, 0, 0], [0, 1, 0, 1]])
def test_with_every_transition_it_is_the_exact_value(policy):
    """Though none of these policies made the rows."""
    table = tabular.chain()
    chosen = jnp.asarray(policy)
    acts = lambda obs: jax.nn.one_hot(chosen[jnp.argmax(obs, -1)], 2, dtype=obs.dtype)  # noqa: E731
    V = evaluated(Features(table, 64), every_transition(table), acts, GAMMA, ridge=1e-9)
    np.testing.assert_allclose(V(EYE), exact(table, np.array(policy)), atol=2e-5)  # P has 32 bits


def test_with_rows_that_chance_gave_it_is_near():
    table = tabular.chain()
    bank = Bank.of(tabular.covered(table, 300))
    acts = lambda obs: jnp.stack([jnp.zeros_like(obs[:, 0]), jnp.ones_like(obs[:, 0])], 1)  # noqa: E731
    V = jax.jit(lambda bank: evaluated(Features(table, 64), bank, acts, GAMMA)(EYE.astype(jnp.float32)))(bank)
    np.testing.assert_allclose(V, exact(table, np.ones(4, int)), rtol=0.06)


def test_rows_that_weigh_nothing_say_nothing():
    table = tabular.chain()
    rows = every_transition(table)
    lie = Minibatch(rows.t, rows.reward.at[0].set(50.0), rows.to_go, rows.next_action, rows.weight.at[0].set(0.0),
                    rows.inside, None)  # fmt: skip
    truth = Minibatch(rows.t, rows.reward, rows.to_go, rows.next_action, rows.weight.at[0].set(0.0), rows.inside, None)
    acts = lambda obs: jnp.stack([jnp.ones_like(obs[:, 0]), jnp.zeros_like(obs[:, 0])], 1)  # noqa: E731
    one, other = (evaluated(Features(table, 64), b, acts, GAMMA)(EYE) for b in (lie, truth))
    np.testing.assert_allclose(one, other, atol=1e-12)
