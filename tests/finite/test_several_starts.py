"""Starts inside the solver: one stream of transitions, every start's value learnt along, the poor ones dropped."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel_rl.errors import InvalidConfig
from bilevel_rl.finite import oracles, solve
from bilevel_rl.finite.coupled import judging, several_starts
from bilevel_rl.finite.coupled.judging import Judge
from bilevel_rl.finite.coupled.state import Direct
from bilevel_rl.finite.learn import exploring
from bilevel_rl.finite.learn.coupled_critics import Pair
from bilevel_rl.finite.learn.race import FIRSTS, Race
from bilevel_rl.finite.problems import GoalPlacement, LeaderToy, PreferenceLearning, RandomMDP
from bilevel_rl.finite.solvers import CoupledPenalty

SMALL = GoalPlacement(rows=4, columns=4)
MOVING = RandomMDP(6, 2, 2, features=2, moving=True)


def after(race: Race, values, k: int, times: int = 1, x=None, span: float = 1.0) -> Race:
    """The race when these values were heard until iteration k, and judged there."""
    values = jnp.asarray(values, float)
    x = jnp.arange(len(values), dtype=float)[:, None] if x is None else jnp.asarray(x, float)
    for i in range(k - times + 1, k + 1):
        race = race.heard(values, jnp.array(float(i)))
    return race.judged(x, jnp.array([span]), jnp.array(float(k)), 100.0)


def test_starts_that_fall_behind_are_dropped_and_the_best_never():
    race = Race.begin(3, 6, jnp.arange(4))
    race = after(race, [0.0, -1.0, 1.0], 99, 99)
    assert race.alive.all()  # judged once: progress is not known yet
    race = after(race, [0.0, -1.0, 1.0], 150, 50)
    assert race.alive.all()  # no time to judge
    race = after(race, [0.0, -1.0, 1.0], 199, 49)
    assert race.alive.tolist() == [False, True, False]
    assert int(race.best) == 1
    assert after(race, [0.0, 5.0, 1.0], 399, 199).alive.tolist() == [False, True, False]


def test_a_start_that_gains_as_much_as_it_lacks_goes_on():
    race = after(Race.begin(2, 4, jnp.arange(4)), [2.0, 0.0], 99, 99)
    race = after(race, [1.0, 0.0], 199, 100)
    assert race.alive.all()


def test_planned_values_drop_nothing_before_starts_are_halved():
    race, x, span = Race.begin(4, 4, jnp.arange(4)), jnp.arange(4.0)[:, None], jnp.ones(1)
    alive = []
    for k in (99, 199, 399):
        race = race.told(jnp.array([3.0, 0.0, 1.0, 2.0])).judged(x, span, jnp.array(float(k)), 100.0, forecasts=False)
        alive.append(race.alive.tolist())
    assert alive == [[True] * 4, [True] * 4, [False, True, True, False]]


def test_of_two_in_one_place_the_better_one_goes_on():
    race = after(Race.begin(3, 6, jnp.arange(4)), [0.0, -0.1, -0.2], 99, 99, x=[[0.5], [0.5], [0.9]])
    race = eqx.tree_at(lambda r: r.spread, race, jnp.full(3, 100.0))  # their values can't be told apart
    race = after(race, [0.0, -0.1, -0.2], 199, 1, x=[[0.5], [0.505], [0.9]])
    assert race.alive.tolist() == [False, True, True]


def test_at_most_half_go_on_from_the_third_judgement_and_half_of_those_from_each_later_one():
    race = eqx.tree_at(lambda r: r.spread, Race.begin(8, 8, jnp.arange(4)), jnp.full(8, 1e9))  # nothing can be told apart
    left = []
    for k in (99, 199, 399, 799, 1599, 3199):
        race = eqx.tree_at(lambda r: r.spread, after(race, jnp.arange(8.0)[::-1], k), jnp.full(8, 1e9))
        left.append(int(race.alive.sum()))
    assert left == [8, 8, 4, 2, 1, 1]
    assert bool(race.alive[7])  # the lowest


def test_what_the_chains_gain_corrects_a_value_as_surely_as_their_number():
    """A critic that flatters one start by 1 is found out by its chains, and dropped when they are sure of it."""
    race, scatter = Race.begin(2, 4, jnp.arange(4)), np.random.default_rng(0).normal(size=(800, 2))
    for k in range(800):
        race = race.heard(jnp.array([-1.0, -0.5]), jnp.array(float(k)), jnp.array([1.0, 0.0]) + scatter[k])
        unsure = race.noise * 4 / (k + 8)
    np.testing.assert_allclose(race.value, [-1.0, -0.5], atol=0.01)
    np.testing.assert_allclose(race.f, [0.0, -0.5], atol=3 * float(jnp.sqrt(jnp.max(unsure))))
    assert int(race.best) == 1
    race = eqx.tree_at(lambda r: (r.times, r.before), race, (jnp.array(1), race.f))
    known = race.judged(jnp.array([[0.0], [1.0]]), jnp.ones(1), jnp.array(799.0), 100.0)
    assert known.alive.tolist() == [False, True]
    wild = eqx.tree_at(lambda r: r.noise, race, 100 * race.noise).judged(
        jnp.array([[0.0], [1.0]]), jnp.ones(1), jnp.array(799.0), 100.0
    )
    assert wild.alive.all()


def counted(it) -> Judge:
    """A judge that has seen a million tries of each pair, in the shares that are true."""
    judge = Judge.begin(it, it.x0, jnp.arange(it.mdp.n_states), 32)
    return eqx.tree_at(lambda j: (j.seen, j.begins), judge, (1e6 * it.mdp.dense().ravel(), it.mdp.start))


def test_starts_are_worth_what_planning_on_the_counts_says():
    x = jnp.array([[0.3, 0.35], [0.9, 0.2]])
    worth = eqx.filter_jit(lambda judge, x: judge.values(SMALL, x, 0.05))(counted(SMALL), x)
    exact = jax.jit(jax.vmap(lambda x: oracles.hyper_objective(SMALL, x, 0.05)))(x)
    np.testing.assert_allclose(worth, exact, atol=1e-10)
    blind = eqx.filter_jit(lambda judge, x: judge.values(SMALL, x, 0.05))(
        Judge.begin(SMALL, SMALL.x0, jnp.arange(16), 32), x
    )
    np.testing.assert_allclose(blind, 0.05 * jnp.sum(x**2, axis=1))  # nothing seen, nobody goes anywhere: what x costs


def test_plans_are_made_while_iterations_double_and_the_best_x_of_all_is_kept():
    judge, now = counted(SMALL), jnp.array([5.0, 6.0])
    heard = eqx.filter_jit(lambda judge, x, alive, k: judge.heard(SMALL, x, alive, now, k, 0.05, 150.0))
    x, both = jnp.array([[0.3, 0.35], [0.9, 0.2]]), jnp.array([True, True])
    for k in (100, 150, 200, 298, 300):
        assert (heard(judge, x, both, jnp.array(k))[1] == now).all()
    for k in (149, 177, 211, 251, 299, 599):
        judge, f = heard(judge, x, both, jnp.array(k))
        np.testing.assert_allclose(judge.x, x[int(jnp.argmin(f))])
    assert f[1] < f[0] < 0
    judge, f = heard(judge, jnp.array([[0.3, 0.35], [0.0, 1.0]]), jnp.array([True, False]), jnp.array(599))
    np.testing.assert_allclose(judge.x, x[1])  # where the start that was dropped had been


def test_what_cannot_be_counted_is_judged_by_critics():
    assert judging.suits(SMALL)
    assert not judging.suits(MOVING)
    assert not judging.suits(PreferenceLearning())  # f is no mean over visits
    assert not judging.suits(GoalPlacement(rows=30, columns=30))  # 900 squared times 4 counts


def test_chains_are_shared_out_and_change_hands_at_restarts_or_when_their_start_is_dropped():
    race = Race.begin(3, 6, jnp.arange(4))
    assert race.owner.tolist() == [0, 1, 2, 0, 1, 2]
    np.testing.assert_allclose(race.share, 1.0)
    onward = jnp.arange(10, 16)
    same = race.dealt(jnp.zeros(6, bool), onward)
    assert same.owner.tolist() == race.owner.tolist()
    assert same.met == 4
    moved = race.dealt(jnp.arange(6) == 1, onward)
    assert moved.owner.tolist() == [0, 2, 2, 0, 1, 2]
    assert moved.firsts[4] == 11  # its first state is remembered, in the next place of the ring
    two = eqx.tree_at(lambda r: r.alive, race, jnp.array([True, False, True])).dealt(jnp.zeros(6, bool), onward)
    assert 1 not in two.owner.tolist()
    np.testing.assert_allclose(jnp.where(two.alive, two.share, 0).sum(), 2.0)
    assert (two.firsts == race.firsts).all()
    assert race.firsts.shape == (FIRSTS,)


@pytest.mark.slow
@pytest.mark.parametrize(
    "it", [LeaderToy(), *(pytest.param(it, marks=pytest.mark.slow) for it in (SMALL, PreferenceLearning(), MOVING))]
)
def test_one_stream_serves_all_starts_whatever_the_problem(it):
    """Ends finite, with as many samples as one start takes where f is linear; x is that of the best start."""
    solver = CoupledPenalty(starts=3, chains=6, hold=2.0, memory=256, replay=8)
    trace = solve(it, solver, iterations=6, record_every=6, runs=2, evaluate=False)
    assert (trace.status == 0).all()
    if it.objective.linear:
        assert trace["samples"][0, -1] == 6 * 12
    state = jax.tree.map(lambda v: v[0], trace.state)
    assert state.each.x.shape == (3, it.x0.shape[0])
    if state.judge is None:
        assert bool(jnp.any(jnp.all(state.each.x == state.x, axis=1)))
    else:  # nothing is planned in six iterations
        assert (state.x == it.x0).all()
        assert state.judge.seen.sum() == 6 * 12
    assert len(np.unique(np.asarray(state.each.x), axis=0)) == 3


@pytest.mark.slow
def test_a_start_learns_as_one_alone_would_from_the_same_transitions():
    """f by the counts, and by every start's critic, agrees with the oracle's at the x they stand for."""
    solver = CoupledPenalty(starts=4, hold=1e9)  # x held: critics arrive
    trace = solve(SMALL, solver, iterations=2400, record_every=2400, evaluate=False)
    state = jax.tree.map(lambda v: v[0], trace.state)
    exact = jax.jit(jax.vmap(lambda x: oracles.hyper_objective(SMALL, x, 0.05)))(state.each.x)
    np.testing.assert_allclose(state.race.value, exact, atol=0.01)
    # and so do their critics, which judge where nothing can be counted
    w, every = 0.05 * solver.scales.at(2400).w, jnp.arange(16)  # the start's law is uniform
    critic = lambda one: several_starts.learnt_value(  # noqa: E731
        SMALL, one, SMALL.mdp, Pair(one.Q, one.D, w, 0.05), Direct(), every
    )
    np.testing.assert_allclose(jax.jit(jax.vmap(critic))(state.each), exact, atol=0.06)


@pytest.mark.slow
def test_resumed_runs_have_the_same_bits(tmp_path):
    solver = CoupledPenalty(starts=3, chains=6, hold=5.0)
    whole = solve(SMALL, solver, iterations=40, record_every=10, runs=2, evaluate=False)
    solve(SMALL, solver, iterations=20, record_every=10, runs=2, evaluate=False, folder=tmp_path / "r")
    again = solve(SMALL, solver, iterations=40, record_every=10, runs=2, evaluate=False, folder=tmp_path / "r", resume=True)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.all(a == b)), whole.state, again.state))


def test_a_ladder_explores_from_greedy_to_uniform():
    """Chain n of N takes the follower's action unless it acts at random, which it does with probability n/N."""
    mdp = RandomMDP(3, 4, 2).mdp
    greedy = lambda s: jnp.eye(4)[jnp.zeros_like(s)]  # noqa: E731
    at, u = jnp.zeros(5, jnp.int32), jax.random.uniform(jax.random.key(0), (4000, 5))
    a = jax.vmap(lambda u: exploring.Ladder().action(mdp, at, greedy, u))(u)
    share = np.asarray([(a == i).mean(0) for i in range(4)])
    n = np.arange(1, 6) / 5
    np.testing.assert_allclose(share[0], 1 - 0.75 * n, atol=0.035)
    np.testing.assert_allclose(share[1:], np.broadcast_to(n / 4, (3, 5)), atol=0.035)


def test_more_starts_than_chains_are_refused():
    with pytest.raises(InvalidConfig, match="starts"):
        solve(SMALL, CoupledPenalty(starts=17), iterations=1)


@pytest.mark.slow
def test_leaves_the_basin_in_which_x0_lies():
    """From a corner where descent ends on a plateau, eight starts find the optimum with the samples of one."""
    it = GoalPlacement(x0=(1.0, 0.0), width=0.15)
    best = oracles.brute_force(it, 0.05).value
    trace = solve(it, CoupledPenalty(starts=8), iterations=4000, record_every=4000, runs=4)
    assert trace["samples"][0, -1] == 128_000
    assert (trace["objective"][:, -1] <= best + 0.05 * abs(best)).all()
