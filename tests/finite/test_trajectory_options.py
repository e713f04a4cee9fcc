"""Options of the solvers that learn from trajectories: streams of episodes, baselines, holds, warm starts."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from finite_instances import TAU, TINY, point, problem, thinned

from bilevel_rl.errors import InvalidConfig
from bilevel_rl.finite import BilevelProblem, FiniteMDP, oracles, solve
from bilevel_rl.finite.learn import rollouts
from bilevel_rl.finite.model import planning
from bilevel_rl.finite.objectives import VisitationUtility
from bilevel_rl.finite.solvers import AMD, HPGD, BoltzmannCovariance, ZeroOrder
from bilevel_rl.finite.solvers.boltzmann_covariance import CovarianceState
from bilevel_rl.finite.solvers.hpgd import HPGDState
from bilevel_rl.loop import noise
from bilevel_rl.schedules import PowerDecay, TimeScales

FIXED = TimeScales(*(PowerDecay(v) for v in (TINY, 1.0, 1e-12, 1.0, TAU)))


class Corridor(BilevelProblem):
    """0 - 1 - over; action 0 goes on, action 1 stays, each with probability .7, else the other; x is the reward."""

    name = "corridor"

    def __init__(self):
        P = np.zeros((3, 2, 3))
        for s in (0, 1):
            P[s, 0, [s + 1, s]] = P[s, 1, [s, s + 1]] = 0.7, 0.3
        P[2, :, 2] = 1
        plain = FiniteMDP.from_dense(P, [0.8, 0.2, 0.0], 0.9)
        self.mdp = FiniteMDP.from_sparse(
            plain.successors, plain.probabilities, plain.start, 0.9, ends=[False, False, True]
        )
        self.objective = VisitationUtility(jnp.array([[0.0, 1.0], [2.0, 0.0], [0.0, 0.0]]))
        self.x0 = jnp.array([0.3, -0.1, 0.2, 0.5])

    def reward(self, x):
        return jnp.concatenate([x.reshape(2, 2), jnp.zeros((1, 2))])

    def temperature(self):
        return TAU


def tables(it, x):
    mdp, plan = it.transitions(x), oracles.lower_optimum(it, x, TAU)
    u = jnp.broadcast_to(it.objective.bonus(x), plan.Q.shape)
    return plan.Q, planning.action_value(mdp, u, planning.policy_value(mdp, u, plan.pi))


def directions(it, one, state, n: int):
    step = jax.jit(lambda z: (state.x - one.step(it, state, jnp.array(0), z).x) / TINY)
    u = noise.uniforms(noise.Times(n, one.draws(it)), jax.random.key(3))
    return np.asarray(jax.lax.map(step, u, batch_size=200))


def stream(T: int, N: int, episode: int):
    it = Corridor()
    pi = oracles.lower_optimum(it, it.x0, TAU).pi
    u = noise.uniforms(rollouts.draws(N, T, episode), jax.random.key(0))
    return it, pi, rollouts.draw(it.mdp, pi, u, episode)


def test_a_stream_is_episodes_one_after_the_other():
    it, _, seen = stream(400, 3, episode=4)
    s, s_next, t, last = (np.asarray(v) for v in (seen.s, seen.s_next, seen.t, rollouts.last(seen)))
    assert (s != 2).all()  # nothing is spent where all is over
    assert (s_next == 2).any()
    np.testing.assert_array_equal(last[:, :-1], (s_next[:, :-1] == 2) | (t[:, :-1] == 3))
    np.testing.assert_array_equal(s[:, 1:][~last[:, :-1]], s_next[:, :-1][~last[:, :-1]])
    np.testing.assert_array_equal(t[:, 1:], np.where(last[:, :-1], 0, t[:, :-1] + 1))
    begins = s[np.asarray(rollouts.first(seen))]
    assert abs((begins == 0).mean() - 0.8) < 4.5 * 0.4 / np.sqrt(begins.size)


def test_traces_exchange_the_sums_episode_by_episode():
    _, _, seen = stream(60, 3, episode=5)
    u = jax.random.normal(jax.random.key(1), (2, 3, 60))
    returns = rollouts.returns_to_go(u[1], 0.9, rollouts.last(seen))
    traces = rollouts.traces(u[0], 0.9, rollouts.first(seen))
    np.testing.assert_allclose(jnp.sum(u[0] * returns), jnp.sum(traces * u[1]), rtol=1e-12)
    ahead = np.asarray(rollouts.following(returns, seen))
    np.testing.assert_allclose(returns, u[1] + 0.9 * ahead, rtol=1e-12)
    assert (ahead[np.asarray(rollouts.last(seen))] == 0).all()


def test_sarsa_on_a_stream_rests_at_the_value():
    it, pi, seen = stream(
        4000, 4, episode=3
    )  # cut short of the end: the value goes on where the episode did not
    u = it.objective.bonus_at(it.x0, seen.s.ravel(), seen.a.ravel()).reshape(seen.s.shape)
    Q_u = rollouts.sarsa(jnp.zeros((3, 2)), pi, seen, u, 0.9, 1.0, 200)
    np.testing.assert_allclose(Q_u, tables(it, it.x0)[1], atol=0.1)


@pytest.mark.parametrize("kind", thinned([BoltzmannCovariance, HPGD], {HPGD}), ids=lambda kind: kind.name)
def test_streams_give_the_hyper_gradient(kind):
    """The ratio of sums and the cut ends leave a bias of one over the episodes; there are hundreds."""
    it = Corridor()
    one = kind(FIXED, clip=1e9, trajectories=4, horizon=500, episode=200, passes=1, explore="none")
    state = (CovarianceState if kind is BoltzmannCovariance else HPGDState)(
        it.x0, jnp.zeros((), int), *tables(it, it.x0)
    )
    if kind is HPGD:
        state = HPGDState(it.x0, state.samples, state.Q, None)
    g, exact = directions(it, one, state, 1000), np.asarray(oracles.hyper_gradient(it, it.x0, TAU))
    noise = np.sqrt((g.std(0) ** 2).sum() / len(g))
    assert np.linalg.norm(g.mean(0) - exact) < 0.03 * np.linalg.norm(exact) + 4.5 * noise
    assert 4.5 * noise < 0.1 * np.linalg.norm(exact)


@pytest.mark.slow
def test_a_baseline_of_other_visits_takes_variance_and_no_mean():
    it = problem("moving")
    x = point(it)
    state = CovarianceState(x, jnp.zeros((), int), *tables(it, x))
    spread = {}
    for baseline in ("none", "visits"):
        one = BoltzmannCovariance(
            FIXED, clip=1e9, trajectories=4, horizon=60, passes=1, explore="none", baseline=baseline
        )
        g = directions(it, one, state, 3000)
        spread[baseline] = np.sqrt((g.std(0) ** 2).sum())
    exact = oracles.hyper_gradient(it, x, TAU)
    np.testing.assert_allclose(
        g.mean(0), exact, atol=0.02 * float(jnp.linalg.norm(exact)) + 4.5 * spread["visits"] / 54
    )
    assert spread["visits"] < 0.5 * spread["none"]


def test_weights_less_those_of_other_visits():
    """By the definition: each visit's return less the mean of the other visits of its state."""
    _, _, seen = stream(20, 2, episode=6)
    c, q = jax.random.normal(jax.random.key(2), (2, 2, 20))
    s, flat = np.asarray(seen.s).ravel(), np.asarray(q).ravel()
    others = [np.flatnonzero((s == s[i]) & (np.arange(s.size) != i)) for i in range(s.size)]
    want = sum(c.ravel()[i] * (flat[i] - (flat[o].mean() if o.size else 0.0)) for i, o in enumerate(others))
    np.testing.assert_allclose(jnp.sum(rollouts.less_others(c, seen, 3) * q), want, rtol=1e-10)


def test_the_table_is_used_before_or_after_it_learns():
    it = problem("visitation")
    x = point(it)
    Q, Q_u = tables(it, x)
    fast = TimeScales(*(PowerDecay(v) for v in (0.1, 1.0, 0.5, 1.0, TAU)))
    few = {"trajectories": 2, "horizon": 20, "follower": "soft_vi"}
    use, learn = (BoltzmannCovariance(fast, order=order, **few) for order in ("use", "learn"))
    u = noise.uniforms(use.draws(it), jax.random.key(5))
    start = CovarianceState(x, jnp.zeros((), int), Q, jnp.zeros_like(Q_u))
    first, second = (jax.jit(one.step)(it, start, jnp.array(0), u) for one in (use, learn))
    np.testing.assert_array_equal(first.Q_u, second.Q_u)
    assert not np.allclose(first.x, second.x)
    # used after: the same as using, before it learns, a table that has learnt already
    again = jax.jit(use.step)(it, CovarianceState(x, start.samples, Q, second.Q_u), jnp.array(0), u)
    np.testing.assert_allclose(second.x, again.x, atol=1e-12)


@pytest.mark.slow
def test_warm_solves_give_what_cold_ones_give():
    it = problem("visitation")
    cold, warm = (
        solve(it, ZeroOrder(PowerDecay(0.05), PowerDecay(0.1, 1.0), TAU, warm=w), iterations=20, runs=2).x
        for w in (False, True)
    )
    np.testing.assert_allclose(cold, warm, atol=1e-6)
    assert not np.allclose(cold[:, 0], cold[:, -1])


@pytest.mark.parametrize(
    "one",
    [AMD(0.1, TAU, hold=3.0, clip=0.01), pytest.param(HPGD(hold=3.0, trajectories=2, horizon=10), marks=pytest.mark.slow)],
)
def test_x_is_held_and_steps_are_clipped(one):
    it = problem("visitation")
    x = solve(it, one, iterations=8, record_every=1).x[0]
    np.testing.assert_array_equal(x[:4], np.broadcast_to(x[0], x[:4].shape))
    moved = np.linalg.norm(np.diff(x, axis=0), axis=1)[3:]
    assert (moved > 0).all()
    assert (moved <= 0.1 * (0.01 if isinstance(one, AMD) else 1.0) + 1e-12).all()


@pytest.mark.parametrize(
    ("one", "field"),
    [(HPGD(episode=1), "hpgd.episode"), (HPGD(sweeps=0), "hpgd.sweeps"), (HPGD(hold=-1.0), "hpgd.hold"),
     (AMD(clip=0.0), "amd.clip"), (AMD(hold=-1.0), "amd.hold")],
)  # fmt: skip
def test_trajectory_options_that_are_not_allowed_are_refused_by_name(one, field):
    with pytest.raises(InvalidConfig, match=field):
        solve(Corridor(), one, iterations=10**9)
