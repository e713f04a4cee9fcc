"""Certainty equivalence: what it counts, what it finds, whom it refuses."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel_rl.errors import InvalidConfig
from bilevel_rl.finite import FiniteMDP, oracles, solve
from bilevel_rl.finite.learn.counts import Counts
from bilevel_rl.finite.model import linear, sampling
from bilevel_rl.finite.problems import FrozenLake, GoalPlacement, RandomMDP
from bilevel_rl.finite.solvers import CertaintyEquivalence, ExactQuasiNewton
from bilevel_rl.loop import starts

SMALL = RandomMDP(6, 3, 3, features=3, discount=0.8)


def ended(it, solver, iterations, **options):
    trace = solve(it, solver, iterations=iterations, record_every=iterations, **options)
    assert (trace.status == 0).all()
    return trace


def test_counts_are_the_transitions_and_their_shares_the_kernel():
    solver = CertaintyEquivalence(chains=8, length=256)
    trace = ended(SMALL, solver, 20, seed=3, evaluate=False)
    counts = np.asarray(jax.tree.map(lambda v: v[0], trace.state.counts).dense())
    assert counts.sum() == trace["samples"][0, -1] == 20 * 8 * 256
    tried = counts.sum(-1)
    assert tried.min() > 200  # the action tried least is taken often enough
    P = np.asarray(SMALL.mdp.dense())
    error = np.sqrt(np.maximum(P * (1 - P), 1e-12) / tried[..., None])
    assert (np.abs(counts / tried[..., None] - P) <= 5 * error + 1e-9).all()
    begins = np.asarray(trace.state.begins[0])
    rho = np.asarray(SMALL.mdp.start)
    assert np.abs(begins / begins.sum() - rho).max() < 5 * np.sqrt(0.25 / begins.sum())


@pytest.mark.slow
def test_model_with_all_successors_is_the_exact_problem_in_the_limit():
    """With the true kernel for counts the model's hyper-objective and gradient are the oracles'."""
    counts = Counts(jnp.arange(6 * 3 * 6), 1e6 * SMALL.mdp.dense().ravel(), None, 6, 3)
    model = eqx.tree_at(lambda p: p.mdp, SMALL, counts.model(SMALL.mdp, SMALL.mdp.start))
    x = SMALL.x0 + 0.3
    for of in (oracles.hyper_objective, oracles.hyper_gradient):
        np.testing.assert_allclose(of(model, x, 0.1), of(SMALL, x, 0.1), rtol=1e-9)


@pytest.mark.slow
def test_reaches_the_global_optimum_of_goal_placement_from_few_samples():
    it = GoalPlacement()
    best = oracles.brute_force(it, 0.05).value
    trace = ended(it, CertaintyEquivalence(chains=16, length=64), 24, runs=4)
    assert trace["samples"][0, -1] <= 25_000
    assert (trace["objective"][:, -1] <= best + 0.02 * abs(best)).all()


@pytest.mark.slow
def test_follows_a_non_linear_objective_and_states_that_end():
    for it in (RandomMDP(6, 3, 3, features=2, discount=0.8, objective="energy"), FrozenLake()):
        tau = it.temperature()
        exact = ended(it, ExactQuasiNewton(tau=tau), 60)["objective"][0, -1]
        trace = ended(it, CertaintyEquivalence(tau=tau, chains=16, length=256), 20, runs=3)
        started = float(oracles.hyper_objective(it, it.x0, tau))
        # a run may leave the basin on the first, poor models
        assert np.median(trace["objective"][:, -1]) <= exact + 0.1 * (started - exact) + 1e-3


@pytest.mark.slow
def test_more_starts_cost_no_more_samples_and_end_no_worse_by_the_model():
    one, many = (ended(SMALL, CertaintyEquivalence(chains=4, length=32, descents=3, starts=n), 4, seed=1) for n in (1, 6))
    assert one["samples"][0, -1] == many["samples"][0, -1]
    assert many.state.climbers.f.shape == (1, 6)
    assert float(many.state.climbers.f[0].min()) <= float(many.state.climbers.f[0, 0])


def test_starts_are_the_first_the_structured_and_random_ones():
    it = GoalPlacement()
    drawn = starts.points(it, 5, jax.random.key(0), first=it.x0 + 0.1)
    assert drawn.shape == (5, it.x0.shape[0])
    np.testing.assert_allclose(drawn[0], it.project(it.x0 + 0.1))
    low, high = it.box()
    assert ((drawn >= low) & (drawn <= high)).all()
    assert len(np.unique(np.asarray(drawn), axis=0)) == 5


def test_layouts_compare_by_their_numbers():
    """Problems that hold one are compared when programs are looked up; arrays have no truth value."""
    one, same, other = FrozenLake().layout(), FrozenLake().layout(), GoalPlacement().layout()
    assert one == same
    assert hash(one) == hash(same)
    assert one != other


@pytest.mark.slow
def test_policy_it_tracks_is_the_answer_on_its_model():
    trace = ended(SMALL, CertaintyEquivalence(chains=16, length=512), 20)
    x = jnp.asarray(trace.x[0, -1])
    state = jax.tree.map(lambda v: v[0], trace.state)
    pi = CertaintyEquivalence().tracked(SMALL, state, 0)
    assert float(oracles.lower_gap(SMALL, x, pi, 0.05)) < 1e-2


@pytest.mark.parametrize(
    ("options", "said"),
    [({"explore": 0.0}, "explore"), ({"descents": 1}, "descents"), ({"starts": 0}, "starts"), ({"length": 0}, "length"),
     ({"memory": 0}, "memory"), ({"tau": 0.0}, "tau"), ({"chains": 0}, "chains")],
)  # fmt: skip
def test_settings_out_of_range_are_refused(options, said):
    with pytest.raises(InvalidConfig, match=said):
        solve(SMALL, CertaintyEquivalence(**options), iterations=1)


@pytest.mark.slow
def test_a_kernel_that_x_moves_is_the_exact_one_in_the_limit_with_its_derivative():
    """Drawn under two x, weighed for a third: hyper-objective and hyper-gradient are the oracles'."""
    it = RandomMDP(4, 2, 2, features=2, discount=0.8, moving=True)
    counts = Counts.empty(4, 2, 10**6, moving=True)
    for x in (it.x0, it.x0 + 0.5):
        mdp = it.transitions(x)
        P = np.asarray(mdp.dense()).reshape(8, 4)
        # every transition as often as it is likely: a sample without noise
        p, s_next = np.nonzero(P)
        many = np.round(P[p, s_next] * 4000).astype(int)
        p, s_next = jnp.asarray(np.repeat(p, many)), jnp.asarray(np.repeat(s_next, many))
        counts = counts.plus(p // 2, p % 2, s_next, sampling.transition_probability(mdp, p // 2, p % 2, s_next))
    model = eqx.tree_at(lambda p: p.mdp, it, counts.model(it.mdp, it.mdp.start))
    x = it.x0 - 0.3
    np.testing.assert_allclose(model.transitions(x).dense(), it.transitions(x).dense(), atol=2e-3)
    np.testing.assert_allclose(oracles.hyper_objective(model, x, 0.1), oracles.hyper_objective(it, x, 0.1), rtol=1e-2)
    slope = oracles.hyper_gradient(it, x, 0.1)
    np.testing.assert_allclose(oracles.hyper_gradient(model, x, 0.1), slope, rtol=2e-2, atol=2e-3)


@pytest.mark.slow
def test_it_descends_where_x_moves_the_kernel():
    it = RandomMDP(6, 3, 3, features=2, discount=0.8, moving=True)
    exact = ended(it, ExactQuasiNewton(tau=0.05), 60)["objective"][0, -1]
    trace = ended(it, CertaintyEquivalence(chains=16, length=256), 12, runs=3)
    started = float(oracles.hyper_objective(it, it.x0, 0.05))
    assert np.median(trace["objective"][:, -1]) <= exact + 0.1 * (started - exact) + 1e-3


@pytest.mark.slow
def test_counts_with_room_for_all_are_exact_and_with_less_keep_the_most_frequent():
    rng = np.random.default_rng(0)
    s, a = rng.integers(0, 3, 600), rng.integers(0, 2, 600)
    s_next = np.where(rng.uniform(size=600) < 0.6, 1, rng.integers(0, 3, 600))
    exact = np.zeros((3, 2, 3))
    np.add.at(exact, (s, a, s_next), 1)
    batch = [jnp.asarray(v) for v in (s, a, s_next)]
    full = Counts.empty(3, 2, 100).plus(*(v[:300] for v in batch)).plus(*(v[300:] for v in batch))
    np.testing.assert_array_equal(full.dense(), exact)
    np.testing.assert_array_equal(full.tried, exact.sum(-1))
    few = np.asarray(Counts.empty(3, 2, 6).plus(*batch).dense())
    assert (few[few > 0] == exact[few > 0]).all()
    assert (few > 0).sum() == 6
    assert (few.argmax(-1) == 1).all()


@pytest.mark.slow
def test_the_model_in_rows_is_the_dense_one_in_every_way_it_is_asked():
    """Products, adjoints, matrices and sparse factors of the counted MDP are those of its dense twin."""
    rng = np.random.default_rng(1)
    s, a, s_next = (jnp.asarray(rng.integers(0, n, 40)) for n in (7, 2, 7))
    model = Counts.empty(7, 2, 64).plus(s, a, s_next).model(RandomMDP(7, 2, 2).mdp, jnp.ones(7))
    twin = FiniteMDP.from_dense(np.asarray(model.dense()), np.full(7, 1 / 7), float(model.discount))
    assert float(model.untried.sum()) > 0  # one pair at least was never tried, and stays
    v, mu, pi = jnp.asarray(rng.normal(size=7)), jnp.asarray(rng.uniform(size=(7, 2))), jnp.full((7, 2), 0.5)
    r = jnp.asarray(rng.normal(size=(7, 2, 7)))
    asked = jax.jit(lambda mdp: (mdp.expect(v), mdp.flow(mu), mdp.under(pi), mdp.mean_reward(r)))
    for one, other in zip(asked(model), asked(twin), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-12)
    for transpose in (False, True):
        sparse = linear.solved(model, pi, v, transpose, dense=False).v
        np.testing.assert_allclose(sparse, linear.solved(twin, pi, v, transpose, dense=True).v, rtol=1e-9, atol=1e-10)


def test_memory_is_that_of_the_transitions_seen_and_not_of_the_states():
    sizes = []
    for states in (1_000, 100_000):
        counts = Counts.empty(states, 2, 500).plus(jnp.array([states - 2]), jnp.array([1]), jnp.array([states - 1]))
        assert float(counts.tried[states - 2, 1]) == 1.0
        sizes.append(counts.seen.nbytes + counts.key.nbytes)
    assert sizes[1] == sizes[0] == 500 * 16
