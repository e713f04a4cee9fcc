"""Learners from data: identities in 64 bits, reductions to their neighbours, closed forms."""

from __future__ import annotations

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from bilevel_rl.control.environments import Pendulum
from bilevel_rl.control.offline import parts, protocol, tabular, twin
from bilevel_rl.control.offline.bank import Bank, Facts, Minibatch, draw
from bilevel_rl.control.offline.data import OfflineData, StoredEpisode
from bilevel_rl.control.offline.learner import learn
from bilevel_rl.control.offline.learners import (
    a2pr,
    decision_mamba,
    decoupled_chunking,
    direct_advantage,
    fql,
    odice,
    pa_rl,
    td3_bc,
)
from bilevel_rl.control.offline.learners import rebrac as rebrac_
from bilevel_rl.control.problem import Transition

ENV = Pendulum()
KEY, NO = jax.random.key(0), jnp.asarray(False)
wide = partial(jax.tree.map, lambda v: v.astype(jnp.float64) if jnp.issubdtype(v.dtype, jnp.floating) else v)


def some(shape, seed, scale=1.0):
    return scale * jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def batch(B=16, steps=(), inside=None, terminated=None):
    """Random rows of Pendulum in 64 bits."""
    n = (B, *steps)
    never = jnp.zeros(n, bool) if terminated is None else terminated
    action = jnp.clip(some((*n, 1), 1), -2, 2)
    t = Transition(some((*n, 3), 0), action, some((*n, 3), 2), some(n, 3), jnp.zeros((*n, 0)), never)
    one = jnp.ones(())
    facts = Facts(jnp.min(t.reward), jnp.max(t.reward), one, 10 * one, one, NO)
    w = jnp.asarray(np.random.default_rng(4).uniform(0.5, 1.5, n))
    return Minibatch(t, t.reward, some(n, 5), jnp.clip(some((*n, 1), 6), -2, 2), w,
                     jnp.ones(n, bool) if inside is None else inside, facts)  # fmt: skip


def networks(kind=None):
    F = twin.begin(ENV, 8, KEY, **({} if kind is None else {"kind": kind}))
    return wide(F.actor.params), wide(F.critics.params)


V = wide(parts.state_net(ENV, 8, jax.random.key(3)))
SLOW = wide(parts.state_net(ENV, 8, jax.random.key(4)))


# -- ODICE ---------------------------------------------------------------------------------------------------------------


def test_odices_backward_gradient_is_made_orthogonal():
    g_0, g_f, g_b = odice.gradients(ENV, V, SLOW, batch(), 0.9)
    kept = odice.projected(g_b, g_f)
    assert abs(float(jnp.vdot(kept, g_f))) < 1e-10 * float(jnp.vdot(g_b, g_b) + 1)
    assert abs(float(jnp.vdot(g_b, g_f))) > 1e-3  # it was not before
    whole = ravel_pytree(odice.orthogonal_gradient(ENV, V, SLOW, batch(), 0.9, 0.7, 0.5))[0]
    np.testing.assert_allclose(whole, 0.3 * g_0 + 0.7 * (g_f + 0.5 * kept), atol=1e-12)


def test_odice_without_the_orthogonal_part_is_a_semi_gradient():
    def semi(V):
        after = jax.lax.stop_gradient(parts.state_values(ENV, SLOW, batch().t.next_obs))
        excess = batch().reward + 0.9 * after - parts.state_values(ENV, V, batch().t.obs)
        mean = partial(parts.weighted_mean, batch().weight)
        return 0.3 * mean(parts.state_values(ENV, V, batch().t.obs)) + 0.7 * mean(odice.conjugate(excess))

    found = odice.orthogonal_gradient(ENV, V, SLOW, batch(), 0.9, 0.7, 0.0)
    np.testing.assert_allclose(ravel_pytree(found)[0], ravel_pytree(jax.grad(semi)(V))[0], atol=1e-12)


def test_odices_conjugate_is_that_of_the_chi_squared_divergence_and_nothing_gained_weighs_nothing():
    u, w = jnp.linspace(-5, 5, 41), jnp.linspace(0, 20, 200_001)
    best = jnp.max(u[:, None] * w - (w - 1) ** 2, 1)  # sup over densities w >= 0
    np.testing.assert_allclose(odice.conjugate(u), best, atol=1e-8)
    np.testing.assert_array_equal(odice.policy_weight(jnp.array([-1.0, 0.0, 0.5, 1e9])), [0.0, 0.0, 0.5, 100.0])


# -- TD3+BC, ReBRAC, A2PR ------------------------------------------------------------------------------------------------


def slopes(loss, actor):
    return ravel_pytree(jax.grad(loss)(actor))[0]


def test_rebrac_with_one_penalty_is_td3_bc():
    actor, Q = networks()
    for pair in (
        (rebrac_.regularised_loss(ENV, actor, Q, batch(), 2.5, 1.0), td3_bc.actor_loss(ENV, actor, Q, batch(), 2.5)),
        (rebrac_.regularised_target(ENV, actor, Q, batch(), 0.9, 0.0, KEY), twin.target(ENV, actor, Q, batch(), 0.9, KEY)),
    ):
        np.testing.assert_allclose(*pair, atol=1e-12)
    paid = rebrac_.regularised_target(ENV, actor, Q, batch(), 0.9, 0.3, KEY) - twin.target(ENV, actor, Q, batch(), 0.9, KEY)
    away = twin.smoothed(ENV, actor, batch().t.next_obs, KEY) - batch().next_action / 2
    np.testing.assert_allclose(paid, -0.9 * 0.3 * jnp.sum(away**2, -1), atol=1e-12)


def test_a2pr_without_its_guide_is_td3_and_with_the_datas_actions_td3_bc():
    actor, Q = networks()
    low = jnp.full(16, -1e9)  # every action has an advantage over this

    def guided(pi, mask, suggested, V=low):
        return a2pr.guided_loss(ENV, Q, batch(), parts.steered(ENV, pi, batch().t.obs), suggested, V, 2.5, mask)

    data = batch().t.action / 2
    plain = lambda pi: twin.improvement(ENV, Q, batch(), parts.steered(ENV, pi, batch().t.obs), 2.5)  # noqa: E731
    np.testing.assert_allclose(slopes(lambda pi: guided(pi, 0.0, data), actor), slopes(plain, actor), atol=1e-12)
    cloning = lambda pi: td3_bc.actor_loss(ENV, pi, Q, batch(), 2.5)  # noqa: E731
    np.testing.assert_allclose(slopes(lambda pi: guided(pi, 1.0, data), actor), slopes(cloning, actor), atol=1e-12)
    none = slopes(lambda pi: guided(pi, 1.0, data, -low), actor)  # no action has an advantage
    np.testing.assert_allclose(none, slopes(plain, actor), atol=1e-12)


def test_a2prs_guide_is_never_worse_than_the_data():
    _, Q = networks()
    suggested = jnp.clip(some((16, 1), 9), -1, 1)
    found, q = a2pr.better(ENV, Q, batch(), suggested)
    value = lambda a: jnp.min(parts.values(ENV, Q, batch().t.obs, a), 0)  # noqa: E731
    np.testing.assert_allclose(value(found), q, atol=1e-12)
    assert bool(jnp.all(q >= value(batch().t.action / 2)))
    assert len({float(v) for v in (found - suggested)[:, 0]}) > 1  # some of each


# -- PA-RL ---------------------------------------------------------------------------------------------------------------


def quadratic(top):
    return lambda code: -jnp.sum((code - top) ** 2, -1)


def test_pa_rl_finds_the_top_of_a_concave_critic_inside_the_box():
    top = jnp.array([[0.3], [0.9], [2.0], [-5.0]])  # two of them outside
    draws = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (8, 4, 1)))
    found = pa_rl.improved(quadratic(top), draws, 4, 200, 0.1, True)
    np.testing.assert_allclose(found, jnp.clip(top, -1, 1), atol=1e-6)


def test_pa_rl_is_never_worse_than_the_best_draw_and_without_steps_is_that():
    _, Q = networks()
    value = lambda a: jnp.min(parts.values(ENV, Q, batch().t.obs, a), 0)  # noqa: E731
    draws = jnp.asarray(np.random.default_rng(1).uniform(-1, 1, (8, 16, 1)))
    best = jnp.max(jax.vmap(value)(draws), 0)
    wild = pa_rl.improved(value, draws, 3, 5, 50.0, True)  # steps that overshoot
    assert bool(jnp.all(value(wild) >= best))
    none = pa_rl.improved(value, draws, 3, 0, 0.1, True)
    np.testing.assert_array_equal(value(none), best)


@pytest.mark.parametrize(("policy", "env"), [
    pytest.param("soft", ENV, marks=pytest.mark.slow), ("flow", ENV), ("diffusion", ENV), ("soft", tabular.chain()),
])  # fmt: skip
def test_pa_rl_asks_every_class_of_policies_for_the_same_two_things(policy, env):
    learner = pa_rl.PARL(policy=policy, width=8, samples=4, best=2, steps=1)
    learner.check(env)
    pi = learner._made(env, KEY)
    obs = jnp.zeros((5, env.observation.size), jnp.float32)
    code = learner.sample(env, pi, obs, KEY)
    assert code.shape == (5, parts.code_size(env.action))
    loss = lambda pi: learner.loss(env, pi, obs, code, jnp.ones(5), KEY)  # noqa: E731
    assert float(jnp.max(jnp.abs(ravel_pytree(jax.grad(loss)(pi))[0]))) > 0


# -- direct advantage ----------------------------------------------------------------------------------------------------


def normalised_advantages(beta):
    """Base policy [S, A] and advantages with E e^{A/beta} = 1 in each state."""
    rng = np.random.default_rng(0)
    base = jnp.asarray(rng.dirichlet(np.ones(3), 4))
    raw = jnp.asarray(rng.normal(size=(4, 3)))
    return base, raw - beta * jnp.log(jnp.sum(base * jnp.exp(raw / beta), 1, keepdims=True))


def expected_loss(logits, base, A, beta):
    ratio = jax.nn.log_softmax(logits) - jnp.log(base)
    return direct_advantage.regression(ratio.ravel(), A.ravel(), beta, base.ravel())


def test_direct_advantages_minimiser_is_the_tilted_policy():
    base, A = normalised_advantages(0.7)
    tilted = jnp.log(base) + A / 0.7
    assert float(expected_loss(tilted, base, A, 0.7)) < 1e-20
    slope = jax.grad(lambda logits: expected_loss(logits, base, A, 0.7))
    np.testing.assert_allclose(slope(tilted), 0, atol=1e-10)
    assert float(jnp.max(jnp.abs(slope(jnp.log(base))))) > 1e-3


def test_a_number_for_each_state_moves_direct_advantages_minimiser():
    base, A = normalised_advantages(0.7)
    shifted = A + jnp.array([[1.0], [-1.0], [2.0], [0.5]])
    slope = jax.grad(lambda logits: expected_loss(logits, base, shifted, 0.7))(jnp.log(base) + A / 0.7)
    assert float(jnp.max(jnp.abs(slope))) > 1e-3


def test_direct_advantages_own_are_centred_by_the_value_of_the_data():
    """All transitions of a table, each as often as uniform actions meet it: a number added to V in a state shows."""
    table = tabular.chain()
    P, r = np.asarray(table.P, float), np.asarray(table.r, float)
    V = np.linalg.solve(np.eye(4) - 0.9 * P.mean(1), r.mean(1))
    s, a, after = (v.ravel() for v in np.meshgrid(np.arange(4), np.arange(2), np.arange(4), indexing="ij"))
    eye, n = jnp.eye(4), len(s)
    t = Transition(eye[s], jnp.asarray(a), eye[after], jnp.asarray(r[s, a]), jnp.zeros((n, 0)), jnp.zeros(n, bool))
    w = P[s, a, after] / 2
    b = Minibatch(t, t.reward, t.reward, t.action, jnp.asarray(w), jnp.ones(n, bool), None)
    centre = lambda V: np.bincount(s, w * direct_advantage.advantage(table, lambda v: v @ V[:, None], b, 0.9))  # noqa: E731
    np.testing.assert_allclose(centre(jnp.asarray(V)), 0, atol=1e-6)  # P has 32 bits
    moved = centre(jnp.asarray(V).at[2].add(1.0))
    assert np.abs(moved[2] + 1 - 0.9 * P.mean(1)[2, 2]) < 1e-6


def test_direct_advantage_stays_with_the_data_as_beta_grows():
    base, A = normalised_advantages(1.0)
    for beta, size in ((1e2, 2e-2), (1e4, 2e-4)):
        step = jax.grad(lambda logits, beta=beta: expected_loss(logits, base, A, beta) / beta**2)(jnp.log(base))
        assert float(jnp.max(jnp.abs(step))) < size


# -- flows ---------------------------------------------------------------------------------------------------------------


def test_fql_without_a_critics_slope_follows_the_flow():
    _, Q = networks()
    flat = jax.tree.map(jnp.zeros_like, Q)
    net = wide(parts.nets.MLP.make((4, 8, 8, 1), KEY))
    z, target = some((16, 1), 7), some((16, 1), 8, 0.1)
    loss = lambda pi, Q: fql.distilled_loss(ENV, pi, Q, batch(), z, target, 3.0)  # noqa: E731

    def distance(pi):
        out = pi(jnp.concatenate([parts.scaled(ENV, batch().t.obs), z], -1))
        return 3.0 * parts.weighted_mean(batch().weight, jnp.sum((out - target) ** 2, -1))

    np.testing.assert_allclose(slopes(lambda pi: loss(pi, flat), net), slopes(distance, net), atol=1e-12)
    assert float(jnp.max(jnp.abs(slopes(lambda pi: loss(pi, Q), net) - slopes(distance, net)))) > 1e-3


# -- chunks --------------------------------------------------------------------------------------------------------------


def by_hand(b, row, h, gamma, V):
    """The target of one row, step by step."""
    low, high = (float(v) for v in decoupled_chunking.bounds(b.facts, gamma))
    total, i = 0.0, 0
    while i < h and bool(b.inside[row, i]):
        total += gamma**i * float(b.reward[row, i])
        i += 1
    if not bool(b.t.terminated[row, i - 1]):
        total += gamma**i * (low + (high - low) * float(V(b.t.next_obs[row, i - 1][None])[0]))
    return min(max((total - low) / (high - low), 0.0), 1.0)


@pytest.mark.slow
def test_chunks_targets_stop_where_their_episode_does():
    inside = jnp.arange(5) < jnp.asarray([5, 3, 1, 4, 5, 2] * 2)[:, None]
    ends = (jnp.arange(12)[:, None] % 2 == 0) & (jnp.sum(inside, 1, keepdims=True) - 1 == jnp.arange(5))
    b = batch(12, (5,), inside, ends)
    value = lambda obs: jax.nn.sigmoid(obs[:, 0])  # noqa: E731
    y = decoupled_chunking.chunk_target(b, 4, 0.9, value)
    np.testing.assert_allclose(y, [by_hand(b, i, 4, 0.9, value) for i in range(12)], atol=1e-12)
    assert bool(jnp.all((y >= 0) & (y <= 1)))


def test_values_lie_between_none_and_one_reward_where_the_end_alone_is_paid():
    one = jnp.ones(())
    facts = Facts(0 * one, 2 * one, one, one, one, NO)
    assert [float(v) for v in decoupled_chunking.bounds(facts, 0.9)] == pytest.approx([0, 20])
    assert [float(v) for v in decoupled_chunking.bounds(facts._replace(once=~NO), 0.9)] == [0, 2]
    four = np.zeros((4, 1)), np.zeros((3, 1))
    paid = [StoredEpisode(*four, np.array([0.0, 0.0, 1.0]), True), StoredEpisode(*four, np.zeros(3), False)]
    assert bool(Bank.of(OfflineData.of("line", paid)).facts.once)
    paid += [StoredEpisode(np.zeros((3, 1)), np.zeros((2, 1)), np.array([0.5, 0.0]), True)]
    assert not bool(Bank.of(OfflineData.of("line", paid)).facts.once)


def test_chunks_at_one_half_fit_the_mean_and_one_step_is_the_one_step_target():
    y = jnp.asarray(np.random.default_rng(0).uniform(0.1, 0.9, 400))
    slope = jax.grad(lambda logit, kappa: jnp.mean(decoupled_chunking.logistic(jnp.full(400, logit), y, kappa)))
    mean = jnp.log(jnp.mean(y)) - jnp.log(1 - jnp.mean(y))
    assert abs(float(slope(mean, 0.5))) < 1e-10
    assert float(slope(mean, 0.9)) < -1e-2  # above one half values above the mean weigh more
    b = batch(6, (2,))
    low, high = decoupled_chunking.bounds(b.facts, 0.9)
    value = lambda obs: jax.nn.sigmoid(obs[:, 0])  # noqa: E731
    one = b.reward[:, 0] + 0.9 * (low + (high - low) * value(b.t.next_obs[:, 0]))
    np.testing.assert_allclose(
        decoupled_chunking.chunk_target(b, 1, 0.9, value), jnp.clip((one - low) / (high - low), 0, 1), atol=1e-12
    )


def test_equal_chunks_are_ordinary_q_chunking():
    """With h = h_a there is nothing to distil: the short critic's fixed point is the long one, whatever the expectile."""
    learner = decoupled_chunking.DecoupledChunking(long=3, short=3, width=8, samples=6, flow_steps=2)
    rows = batch(16, (3,), jnp.arange(3) < jnp.asarray([3, 2] * 8)[:, None])
    F = jax.jit(lambda: learner.init(ENV, rows.facts, KEY))()
    Q = jax.tree.map(lambda v: jnp.stack([v[0], v[0]]), wide(F.long.params))  # twins alike: their smaller one is either
    obs, weight = rows.t.obs[:, 0], rows.weight[:, 0]
    code = (rows.t.action / 2 * rows.inside[..., None]).reshape(16, -1)
    q = jax.nn.sigmoid(parts.values(ENV, Q, obs, code)[0])
    for kappa in (0.2, 0.5, 0.9):
        lost = lambda Q, k=kappa: decoupled_chunking.logistic_loss(ENV, Q, obs, code, q, weight, k)  # noqa: E731
        assert float(jnp.max(jnp.abs(ravel_pytree(jax.jit(jax.grad(lost))(Q))[0]))) < 1e-12


@pytest.mark.slow
def test_with_equal_chunks_value_and_actions_are_those_of_the_critic_of_whole_ones():
    learner = decoupled_chunking.DecoupledChunking(long=3, short=3, width=8, samples=6, flow_steps=2)
    rows = batch(16, (3,), jnp.arange(3) < jnp.asarray([3, 2] * 8)[:, None])
    F = learner.init(ENV, rows.facts, KEY)
    code = (rows.t.action / 2 * rows.inside[..., None]).reshape(16, -1)
    F = eqx.tree_at(lambda F: (F.short.params, F.slow_short, F.slow_long), F, (F.long.params, F.long.params, F.long.params))
    swapped = eqx.tree_at(lambda F: F.slow_short, F, F.slow_long)
    small = parts.nets.narrow(rows)
    after = jax.jit(lambda F: learner.update(ENV, F, small, jnp.float32(0.9), jnp.array(0), KEY))(F)

    def chunked(V):
        now = jax.nn.sigmoid(jnp.min(parts.values(ENV, F.slow_long, small.t.obs[:, 0], code.astype(jnp.float32)), 0))
        fit = decoupled_chunking.logistic(parts.state_values(ENV, V, small.t.obs[:, 0]), now, learner.value)
        return parts.weighted_mean(small.weight[:, 0], fit)

    V = F.V.descend(jax.grad(chunked)(F.V.params), learner.rate).params
    np.testing.assert_allclose(ravel_pytree(after.V.params)[0], ravel_pytree(V)[0], atol=1e-6)
    one = jnp.zeros(3, jnp.float32)
    np.testing.assert_array_equal(learner.best(ENV, F, one, KEY), learner.best(ENV, swapped, one, KEY))


def test_one_step_chunks_learn_their_value_as_iql_does():
    """The logistic loss has the expectile loss's derivative, taken in the logit."""
    logit, y = some((40,), 0), jax.nn.sigmoid(some((40,), 1))
    for kappa in (0.1, 0.5, 0.9):
        found = jax.vmap(jax.grad(lambda v, y, k=kappa: decoupled_chunking.logistic(v, y, k)))(logit, y)
        of_iql = jax.vmap(jax.grad(lambda q, y, k=kappa: parts.expectile_loss(y - q, k)))(jax.nn.sigmoid(logit), y)
        np.testing.assert_allclose(found, of_iql, atol=1e-12)


@pytest.mark.slow
def test_longer_chunks_need_fewer_rounds_along_a_chain():
    """Reward at the end of a chain of 12: rounds of exact updates until the first state knows of it."""
    obs = jnp.eye(12)
    t = Transition(obs, jnp.zeros((12, 1)), jnp.roll(obs, -1, 0), jnp.zeros(12), jnp.zeros((12, 0)), jnp.arange(12) == 11)
    r = (jnp.arange(12) == 11).astype(float)
    rounds = []
    for h in (1, 3, 6):
        at = jnp.minimum(jnp.arange(12)[:, None] + jnp.arange(h), 11)
        inside = jnp.arange(12)[:, None] + jnp.arange(h) < 12
        pick = lambda v, at=at: v[at]  # noqa: E731
        one = jnp.ones(())
        facts = Facts(0 * one, one, one, one, one, NO)
        b = Minibatch(jax.tree.map(pick, t), pick(r), pick(r), pick(t.action), pick(r), inside, facts)
        swept = jax.jit(lambda V, b=b, h=h: decoupled_chunking.chunk_target(b, h, 0.9, lambda obs: obs @ V))
        V, count = jnp.zeros(12), 0
        while float(V[0]) == 0:
            V, count = swept(V), count + 1
        rounds.append(count)
    assert rounds == [12, 4, 2]


# -- Decision Mamba ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_associative_scan_is_the_recurrence():
    layer = wide(decision_mamba.Selective.make(6, 4, KEY))
    a, b = layer.coefficients(some((17, 6), 0))
    _, slow = jax.lax.scan(lambda h, ab: (ab[0] * h + ab[1],) * 2, jnp.zeros((6, 4)), (a, b))
    np.testing.assert_allclose(jax.jit(decision_mamba.recurrence)(a, b), slow, atol=1e-12)
    assert bool(jnp.all((a > 0) & (a < 1)))  # it forgets


def tiny():
    return wide(decision_mamba.Model.make(3, 1, 8, 4, 2, KEY))


def test_decision_mamba_does_not_see_the_future():
    net = tiny()
    model, to_go, obs, code = jax.jit(net.__call__), some((6, 1), 0), some((6, 3), 1), some((6, 1), 2)
    action, later = model(to_go, obs, code)
    for changed in ((to_go.at[3].add(1.0), obs, code), (to_go, obs.at[3].add(1.0), code), (to_go, obs, code.at[3].add(1.0))):
        other, ahead = model(*changed)
        np.testing.assert_array_equal(other[:3], action[:3])
        np.testing.assert_array_equal(ahead[:3], later[:3])
        assert bool(jnp.any(ahead[3:] != later[3:]))
    np.testing.assert_array_equal(model(to_go, obs, code.at[3].add(1.0))[0][3], action[3])  # nor the action it is to give


@pytest.mark.slow
def test_decision_mambas_targets_without_evolution_are_the_data():
    model, last = tiny(), jax.tree.map(lambda v: v + 0.1, tiny())
    to_go, obs, code, after = some((4, 6, 1), 0), some((4, 6, 3), 1), some((4, 6, 1), 2, 0.3), some((4, 6, 4), 3)
    weight = jnp.ones((4, 6))
    evolving = jax.jit(
        lambda beta, last: decision_mamba.evolving_loss(ENV, model, last, to_go, obs, code, after, weight, beta, 0.0)
    )
    loss = lambda beta, last=last: evolving(beta, last)  # noqa: E731
    said = jax.jit(lambda: jnp.tanh(jax.vmap(model)(to_go, obs, code)[0]))()
    np.testing.assert_allclose(loss(0.0), jnp.mean((said - code) ** 2), atol=1e-12)
    assert abs(float(loss(0.0)) - float(loss(0.5))) > 1e-6
    assert float(loss(1.0, model)) < 1e-20  # its own words


@pytest.mark.slow
def test_decision_mamba_returns_more_where_more_is_asked():
    """Three decisions that pay 0, .5 or 1 each, all tried: what comes rises with what is asked."""
    table = tabular.Lottery(jnp.ones((1, 3, 1)), jnp.array([[0.0, 0.5, 1.0]]), steps=3)
    learner = decision_mamba.DecisionMamba(width=16, states=4, context=3, rate=1e-2)
    env, bank = parts.nets.narrow(table), Bank.of(tabular.covered(table, 300))

    def returns(key):
        F = learner.init(env, bank.facts, key)
        F = learn(learner, env, bank, F, 300, 32, jnp.float32(0.9), key)
        asked = jnp.array([0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0], jnp.float32)
        got = lambda goal: protocol.play(learner, env, eqx.tree_at(lambda F: F.goal, F, goal), 1, key)[0]  # noqa: E731
        return jax.vmap(got)(asked)

    found = np.asarray(jax.jit(returns)(KEY))
    assert np.all(np.diff(found) >= 0)
    np.testing.assert_allclose(found, np.arange(7) / 2, atol=0.5)


# -- what all of them share ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_weights_of_rows_are_as_good_as_rows():
    """A row that counts twice is two rows."""
    pi = wide(parts.Soft.make(ENV, 8, KEY))
    b = batch(8)
    index = jnp.asarray([0, 0, 1, 2, 3, 4, 5, 6, 7])
    ones = jnp.ones(9)
    twice = Minibatch(jax.tree.map(lambda v: v[index], b.t), b.reward[index], b.to_go[index], b.next_action[index], ones,
                      b.inside[index], b.facts)  # fmt: skip
    double = Minibatch(b.t, b.reward, b.to_go, b.next_action, jnp.ones(8).at[0].set(2.0), b.inside, b.facts)
    np.testing.assert_allclose(parts.cloning_loss(ENV, pi, twice), parts.cloning_loss(ENV, pi, double), atol=1e-12)


def test_a_soft_policys_density_integrates_to_one():
    pi = wide(parts.Soft.make(ENV, 8, KEY))
    grid = jnp.linspace(-12, 12, 4001)[:, None]
    density = jnp.exp(parts.log_likelihood(ENV, pi, jnp.broadcast_to(jnp.array([0.5, 0.1, 2.0]), (4001, 3)), grid))
    assert abs(float(jnp.sum(density) * 24 / 4000 / 2) - 1) < 1e-6  # in units of the half width, 2


@pytest.mark.slow
def test_banks_draw_every_row_alike():
    data = tabular.covered(tabular.chain(), episodes=5)
    bank = Bank.of(data)
    rows = jax.jit(lambda key: draw(bank.weighed(jnp.arange(100.0)), 20_000, 1, key).weight)(KEY)
    counts = np.bincount(np.asarray(rows).astype(int), minlength=100)
    assert abs(counts - 200).max() < 5 * 200**0.5
