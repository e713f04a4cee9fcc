"""Full coverage of a small MDP: every learner whose form allows it finds the best action of every state."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel_rl.control import nets
from bilevel_rl.control.offline import learners as L
from bilevel_rl.control.offline import parts, tabular
from bilevel_rl.control.offline.bank import Bank
from bilevel_rl.control.offline.learner import learn

GAMMA, OBS = 0.9, jnp.eye(4, dtype=jnp.float32)
SIZE = {"width": 32, "rate": 3e-3}
FAST = {"polyak": 0.05, **SIZE}
CAREFUL = {"samples": 8, "best": 2, "warm": 0.0, "conservative": 0.0, **FAST}
TABLES = {  # for numbered actions; ODICE's values are those of the luckiest next state, so its table does not slip
    "iql": (L.IQL(expectile=0.9, beta=5.0, **FAST), 0.1, 1.0),
    "odice": (L.ODICE(weight=0.6, **FAST), 0.0, 0.1),
    "pa_rl": (L.PARL(steps=0, **CAREFUL), 0.1, 1.0),
    "decision_mamba": (L.DecisionMamba(width=16, states=4, context=3, rate=1e-2), 0.0, 1.0),
}
LOTTERIES = {
    "td3_bc": L.TD3BC(alpha=20.0, **FAST),
    "rebrac": L.ReBRAC(actor_beta=0.01, critic_beta=0.0, **FAST),
    "fql": L.FQL(alpha=0.01, **FAST),
    "a2pr": L.A2PR(alpha=20.0, **FAST),
    "decoupled_chunking": L.DecoupledChunking(long=2, distil=0.8, **FAST),
    "pa_rl": L.PARL(steps=3, **CAREFUL),
}


def learnt(learner, table, unit=1.0, updates=1500, actions=None, share=1.0):
    bank, env = Bank.of(tabular.covered(table, 200, actions=actions, share=share), unit), nets.narrow(table)

    def whole(key):
        F = learner.init(env, bank.facts, key)
        F = learn(learner, env, bank, F, updates, 128, jnp.float32(GAMMA), key)
        return F, jax.vmap(lambda obs: learner.act(env, F, learner.recall(env, F), obs, key)[0])(OBS)

    F, actions = jax.jit(whole)(jax.random.key(0))
    return F, tabular.chosen(table, actions)


def test_the_exact_answer_looks_ahead_where_one_step_does_not():
    table = tabular.chain()
    V, best = tabular.optimal(table, GAMMA)
    assert best.tolist() == [1, 1, 1, 1]
    assert tabular.optimal(table, 0.0)[1].tolist() == [0, 0, 0, 1]
    P, r = np.asarray(table.P, float), np.asarray(table.r, float)
    right = np.linalg.solve(np.eye(4) - GAMMA * P[:, 1], r[:, 1])
    np.testing.assert_allclose(V, right, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLES)
def test_learners_of_numbered_actions_find_the_best_policy(name):
    learner, slip, unit = TABLES[name]
    table = tabular.chain(slip=slip)
    updates = 500 if name == "decision_mamba" else 1500
    assert learnt(learner, table, unit, updates)[1].tolist() == tabular.optimal(table, GAMMA)[1].tolist()


@pytest.mark.slow
@pytest.mark.parametrize("name", LOTTERIES)
def test_learners_of_vectors_find_the_best_policy(name):
    table = tabular.chain(lottery=True)
    assert learnt(LOTTERIES[name], table)[1].tolist() == tabular.optimal(table, GAMMA)[1].tolist()


@pytest.mark.slow
def test_odice_recovers_the_best_values():
    """With two actions alike, lambda = 2/3 makes the residual of the better one 0, where the other's is below -2."""
    table = tabular.chain(slip=0.0)
    F, _ = learnt(L.ODICE(weight=2 / 3, **FAST), table, unit=0.02, updates=3000)
    found = 0.02 * parts.state_values(nets.narrow(table), F.V.params, OBS)
    np.testing.assert_allclose(found, tabular.optimal(table, GAMMA)[0], rtol=0.05)


@pytest.mark.slow
def test_direct_advantage_takes_one_step_of_policy_improvement():
    """From uniform actions: the minimiser of the regression on their own advantages, found on a grid of log odds."""
    table, beta = tabular.chain(), 0.5
    P, r = np.asarray(table.P, float), np.asarray(table.r, float)
    V = np.linalg.solve(np.eye(4) - GAMMA * P.mean(1), r.mean(1))
    A = r + GAMMA * P @ V - V[:, None]
    odds = np.linspace(-6, 6, 2401)
    ratios = np.log(2) - np.log1p(np.exp([odds, -odds]))  # log pi / pi_0 of both actions
    losses = ((beta * ratios[None] - A[:, :, None]) ** 2).sum(1)
    F, chosen = learnt(L.DirectAdvantage(beta=beta, **FAST), table, updates=3000)
    assert chosen.tolist() == A.argmax(1).tolist()
    logits = F.actor.params.net(OBS)
    np.testing.assert_allclose(beta * (logits[:, 1] - logits[:, 0]), beta * odds[losses.argmin(1)], atol=0.12)


@pytest.mark.slow
def test_direct_advantages_second_step_finds_the_best_policy():
    """From uniform actions the first step still goes left at the left end; from data of that policy the second does not."""
    table, best = tabular.chain(), tabular.optimal(tabular.chain(), GAMMA)[1]
    learner = L.DirectAdvantage(beta=0.2, **FAST)  # strong enough to turn odds of 6 to 1 for the left
    first = learnt(learner, table, updates=3000)[1]
    assert first.tolist() == [0, 1, 1, 1] != best.tolist()
    assert learnt(learner, table, updates=3000, actions=first, share=0.7)[1].tolist() == best.tolist()


@pytest.mark.slow
def test_cloning_finds_the_data_whatever_they_earned():
    table = tabular.chain()
    F, _ = learnt(L.BC(**SIZE), table, updates=300)
    np.testing.assert_allclose(jax.nn.softmax(F.actor.params.net(OBS)), 0.5, atol=0.08)


@pytest.mark.parametrize("lottery", [pytest.param(False, marks=pytest.mark.slow), True])
def test_cloning_finds_the_best_policy_where_the_data_are_its(lottery):
    """All that cloning can recover: every state is covered by the starts, in each the best action alone."""
    table = tabular.chain(lottery=lottery)
    best = tabular.optimal(table, GAMMA)[1]
    assert learnt(L.BC(**SIZE), table, updates=200, actions=best)[1].tolist() == best.tolist()


def test_every_learner_is_compared_with_the_exact_answer_somewhere():
    assert {"bc", "direct_advantage", *TABLES, *LOTTERIES} == {kind.name for kind in L.ALL}
