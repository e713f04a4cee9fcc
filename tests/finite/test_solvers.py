"""Every solver on every problem; probes that each break one part; what is counted is what was drawn."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from finite_instances import make_small as make

from bilevel_rl.errors import InvalidProblem
from bilevel_rl.finite import oracles, requirements, solve
from bilevel_rl.finite.closed_form import ClosedFormProblem
from bilevel_rl.finite.model import planning
from bilevel_rl.finite.problems import ALL as PROBLEMS
from bilevel_rl.finite.problems import Incentives, PreferenceLearning, RandomMDP
from bilevel_rl.finite.problems.probes import (
    Bandit,
    CriticOnly,
    EnergyBandit,
    Irrelevant,
    MovingKernel,
    PolicyIndependent,
    Stationary,
    TwoState,
)  # fmt: skip
from bilevel_rl.finite.solver import check_fits
from bilevel_rl.finite.solvers import ALL as SOLVERS
from bilevel_rl.finite.solvers import (
    F2SA,
    HPGD,
    BoltzmannCovariance,
    ExactDescent,
    ExactPenalty,
    FiniteDifference,
    NestedPenalty,
    PartialSGD,
    PenaltyActorCritic,
)  # fmt: skip
from bilevel_rl.loop import noise
from bilevel_rl.schedules import PowerDecay, TimeScales

COUNTED = {  # transitions an iteration, without those of the objective
    PenaltyActorCritic: lambda it, d: 2 * 3,
    PartialSGD: lambda it, d: 3,
    NestedPenalty: lambda it, d: 2 * 3 * 4,
    FiniteDifference: lambda it, d: 2 * 3 * 4,
    F2SA: lambda it, d: 2 * 3 * 5,
    HPGD: lambda it, d: 2 * 3 * 4,
    BoltzmannCovariance: lambda it, d: 2 * 3 * 4,
    **{kind: (lambda it, d: 0) for kind in SOLVERS if kind().draws(RandomMDP()) == 0 or kind.name == "zero_order"},
}


@functools.cache
def instance(kind):
    return kind()


def upper_draws(it, kind) -> int:
    """Transitions that the objective's own samples take in one iteration."""
    if it.objective.linear or not COUNTED[kind](it, 0):
        return 0
    once = {PartialSGD: 1, NestedPenalty: 4, FiniteDifference: 2, F2SA: 5}.get(kind, 1)
    draws = it.objective.draws(it)
    u = noise.fill(draws, jnp.full(noise.size(draws), 0.5))
    pi = jnp.full((it.mdp.n_states, it.mdp.n_actions), 1 / it.mdp.n_actions)
    return once * int(it.objective.sample(it.x0, pi, it, u).transitions)


# each solver on a problem of each kind (episodes and payments for those that sample; preferences; a moving kernel), each
# problem with the paper's solver
PAIRS = [(s, p) for s in SOLVERS for p in PROBLEMS if p.name in {"preference_learning", "moving_kernel"} or (
    p.name == "frozen_lake" and s().draws(RandomMDP())
)] + [(PenaltyActorCritic, p) for p in PROBLEMS if not issubclass(p, ClosedFormProblem)]  # fmt: skip


def thin(solver, problem) -> bool:
    """The cut of every run: each solver on the moving kernel, the paper's also on episodes."""
    return problem.name == "moving_kernel" or (solver is PenaltyActorCritic and problem.name == "frozen_lake")


@pytest.mark.parametrize(
    ("solver", "problem"),
    [
        pytest.param(*pair, marks=[] if thin(*pair) else pytest.mark.slow)
        for pair in sorted(set(PAIRS), key=lambda pair: (pair[0].name, pair[1].name))
    ],
    ids=lambda kind: kind.name,
)
def test_every_solver_steps_on_every_problem(solver, problem):
    it, one = instance(problem), make(solver)
    if requirements.unmet(one.requires, it):
        with pytest.raises(InvalidProblem):
            check_fits(one, it)
        return
    check_fits(one, it)
    state = one.init(it, it.x0, jax.random.key(0))
    step = jax.jit(lambda state, k, z: one.step(it, state, k, z))
    for k in range(3):
        new = step(state, jnp.array(k), noise.uniforms(one.draws(it), jax.random.key(k)))
        assert jax.tree.structure(new) == jax.tree.structure(state)
        for old, leaf in zip(jax.tree.leaves(state), jax.tree.leaves(new), strict=True):
            assert (old.shape, old.dtype) == (leaf.shape, leaf.dtype)
            assert bool(jnp.all(jnp.isfinite(leaf)))
        used = int(new.samples - state.samples)
        if solver in COUNTED:
            assert used == COUNTED[solver](it, len(it.x0)) + upper_draws(it, solver)
        else:
            assert used > 0
        state = new
    np.testing.assert_allclose(it.project(state.x), state.x, atol=1e-12)
    if (low_high := it.box()) is not None:
        assert bool(jnp.all((state.x >= low_high[0]) & (state.x <= low_high[1])))


def test_two_sided_differences_count_every_point():
    it = instance(RandomMDP)
    one = FiniteDifference(inner=4, chains=3, perturbation="two_sided")
    u = noise.fill(one.draws(it), jnp.full(noise.size(one.draws(it)), 0.4))
    state = jax.jit(one.step)(it, one.init(it, it.x0, jax.random.key(0)), jnp.array(0), u)
    assert int(state.samples) == 2 * 3 * 4 * len(it.x0)


@pytest.mark.parametrize(
    ("kind", "options"),
    [(PenaltyActorCritic, {"chains": 4}), pytest.param(FiniteDifference, {"inner": 2, "chains": 2}, marks=pytest.mark.slow)],
)
def test_x_stays_feasible_under_huge_steps(kind, options):
    one = kind(scales=TimeScales.constant_entropy(zeta=1e4), **options)
    trace = solve(instance(RandomMDP), one, iterations=5, record_every=1, evaluate=False)
    assert np.abs(trace.x).max() <= 1
    assert np.abs(np.diff(trace.x, axis=1)).max() > 0.5


CALM = TimeScales(PowerDecay(0.3, 0.6), PowerDecay(1.0, 0.4), PowerDecay(0.5, 0.3), PowerDecay(0.2, 0.1), PowerDecay(0.5))
FAST = TimeScales(PowerDecay(1.0, 0.2), PowerDecay(1.0), PowerDecay(0.5), PowerDecay(0.1, 0.2), PowerDecay(0.5))
QUICK = {
    "penalty_actor_critic": PenaltyActorCritic(scales=CALM, chains=16, common_noise=True),
    "exact_penalty": ExactPenalty(scales=FAST),
    "exact_descent": ExactDescent(step_size=0.3, tau=0.5),
    "nested_penalty": NestedPenalty(scales=CALM, chains=16, inner=20),
    "finite_difference": FiniteDifference(scales=FAST, chains=16, inner=50, perturbation="two_sided"),
}
STEPS = {"nested_penalty": 300, "finite_difference": 200}
SETTLES = [  # one part each: response, non-linear objective, critic, cancellation, visitation, kernel
    ("penalty_actor_critic", CriticOnly, 0.1), ("penalty_actor_critic", PolicyIndependent, 0.15),
    ("penalty_actor_critic", Irrelevant, 1e-2), ("penalty_actor_critic", EnergyBandit, 0.1),
    ("penalty_actor_critic", TwoState, 0.25), ("penalty_actor_critic", MovingKernel, 0.3),
    ("exact_penalty", EnergyBandit, 0.05), ("exact_penalty", TwoState, 0.05), ("exact_penalty", MovingKernel, 0.05),
    ("exact_descent", Bandit, 1e-6), ("exact_descent", MovingKernel, 1e-6),
    ("nested_penalty", TwoState, 0.25), ("finite_difference", TwoState, 0.25), ("finite_difference", MovingKernel, 0.3),
]  # fmt: skip


def stationary(it, tau=0.5):
    """Where the known gradient vanishes, by descent along it from x0."""
    @jax.jit
    def descended(x):
        x = jax.lax.fori_loop(0, 4000, lambda _, x: it.project(x - 0.2 * it.known_gradient(x, tau)), x)
        return x, jnp.max(jnp.abs(it.known_gradient(x, tau)))

    x, left = descended(it.x0)
    assert left < 1e-6
    return np.asarray(x)


THIN = {("penalty_actor_critic", EnergyBandit)}


@pytest.mark.parametrize(
    ("solver", "probe", "tolerance"),
    [pytest.param(*row, marks=[] if row[:2] in THIN else pytest.mark.slow) for row in SETTLES],
    ids=lambda v: getattr(v, "name", v),
)
def test_probes_are_solved(solver, probe, tolerance):
    """x ends where the gradient that is known in closed form is zero, far from where it began."""
    it = instance(probe)
    goal = stationary(it)
    assert np.abs(np.asarray(it.x0) - goal).max() > max(2 * tolerance, 0.3)
    steps = STEPS.get(solver, 3000)
    trace = solve(it, QUICK[solver], iterations=steps, runs=4, record_every=steps, evaluate=False)
    np.testing.assert_allclose(trace.x[:, -1].mean(0), goal, atol=tolerance)


@pytest.mark.slow
def test_critic_learns_the_known_value_and_the_policy_stays_even():
    it = CriticOnly()
    still = TimeScales(PowerDecay(1e-9), PowerDecay(0.1, 0.5), PowerDecay(0.5, 0.5), PowerDecay(1.0), PowerDecay(0.5))
    trace = solve(it, PenaltyActorCritic(scales=still, chains=32, reward_bound=3.0), iterations=4000, record_every=4000,
                  evaluate=False)  # fmt: skip
    f = trace.state.follower
    np.testing.assert_allclose(f.V[0], it.known_value(it.x0, 0.5), atol=0.05)
    np.testing.assert_allclose(jax.nn.softmax(f.theta[0]), 0.5, atol=0.06)


@pytest.mark.slow
def test_follower_learns_the_regularised_optimum():
    """At fixed x the actor rests at softmax(Q*/tau), not at a deterministic policy."""
    it = TwoState()
    still = TimeScales(PowerDecay(1e-9), PowerDecay(1.0, 0.5), PowerDecay(0.5, 0.4), PowerDecay(1.0), PowerDecay(0.5))
    trace = solve(it, PenaltyActorCritic(scales=still, chains=32), iterations=4000, record_every=4000,
                  evaluate=False)  # fmt: skip
    pi = jax.nn.softmax(trace.state.follower.theta[0])
    np.testing.assert_allclose(pi, oracles.lower_optimum(it, it.x0, 0.5).pi, atol=0.03)
    exact = solve(it, ExactPenalty(scales=still), iterations=4000, record_every=4000, evaluate=False).state
    np.testing.assert_allclose(
        jax.nn.softmax(exact.follower.theta[0]), oracles.lower_optimum(it, it.x0, 0.5).pi, atol=1e-4
    )
    np.testing.assert_allclose(
        jax.nn.softmax(exact.follower_l.theta[0]), oracles.penalised_policy(it, it.x0, 1.0, 0.5), atol=1e-4
    )


@pytest.mark.slow
def test_a_stationary_start_is_left_on_no_side():
    it = Stationary()
    trace = solve(it, PenaltyActorCritic(scales=CALM, chains=4), iterations=200, runs=64, record_every=200,
                  evaluate=False)  # fmt: skip
    x = trace.x[:, -1, 0]
    assert np.abs(x).max() > 1e-6  # noise there is
    assert abs(x.mean()) <= 4.5 * x.std(ddof=1) / 8


@pytest.mark.slow
def test_partial_sgd_ignores_the_response():
    """By design: it settles where the partial gradient vanishes, which is not where the problem's solution is."""
    it = instance(TwoState)
    trace = solve(it, PartialSGD(scales=CALM, chains=16), iterations=1000, record_every=1000, evaluate=False)
    assert abs(trace.x[0, -1, 0]) < 0.02  # the cost's own minimum
    assert stationary(it)[0] > 0.3


@pytest.mark.slow
def test_infinitely_many_chains_are_the_exact_loop():
    """With 1,000 chains the sampled loop follows the exact one: x after 60 iterations, on average over runs."""
    it = RandomMDP(4, 2, 3, features=2)
    scales = TimeScales(PowerDecay(0.05), PowerDecay(1.0), PowerDecay(0.5), PowerDecay(1.0), PowerDecay(0.3))
    many = PenaltyActorCritic(scales=scales, chains=1000, common_noise=True)
    sampled = solve(it, many, iterations=60, runs=16, record_every=60, evaluate=False).x[:, -1]
    exact = solve(it, ExactPenalty(scales=scales), iterations=60, record_every=60, evaluate=False).x[0, -1]
    moved = np.abs(exact - it.x0).max()
    assert moved > 0.3
    np.testing.assert_allclose(sampled.mean(0), exact, atol=0.2 * moved)


@pytest.mark.slow
def test_independent_sampling_counts_the_walks():
    it = RandomMDP(4, 2, 3, features=2)
    one = PenaltyActorCritic(chains=50, sampling="iid")
    trace = solve(it, one, iterations=20, record_every=20, evaluate=False)
    # mean gamma / (1 - gamma) = 9 steps of walking and one more for each of 2 x 50 x 20 transitions
    n, used = 2 * 50 * 20, int(trace["samples"][0, -1])
    assert abs(used / n - 10) <= 4.5 * np.sqrt(0.9 / 0.01 / n)


@pytest.mark.slow
def test_large_sparse_problem_runs_without_its_tables():
    it = RandomMDP(100_000, 3, 2, features=2)
    trace = solve(it, PenaltyActorCritic(chains=8), iterations=20, record_every=20, evaluate=False)
    assert np.isfinite(trace.x).all()
    assert int(trace["samples"][0, -1]) == 320


@pytest.mark.slow
def test_exact_descent_improves_the_incentives():
    from bilevel_rl.finite.problems import FrozenLake

    it = FrozenLake()
    assert isinstance(it, Incentives)
    trace = solve(it, ExactDescent(step_size=0.3, tau=0.02), iterations=60, record_every=60)
    assert trace["objective"][0, -1] < trace["objective"][0, 0] - 0.2
    assert planning.DENSE_LIMIT >= it.mdp.n_states


@pytest.mark.slow
def test_preferences_beyond_enumeration_are_solved_without_grading():
    it = PreferenceLearning(states=6, horizon=5)
    trace = solve(it, PenaltyActorCritic(chains=2), iterations=3, record_every=3, evaluate=False)
    assert np.isfinite(trace.x).all()
