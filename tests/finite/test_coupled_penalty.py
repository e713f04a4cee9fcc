"""The recommended solver: its four estimators, its critics' fixed points, replay, and what it refuses."""

from __future__ import annotations

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from finite_instances import assert_mean

from bilevel_rl.errors import InvalidConfig
from bilevel_rl.finite import oracles, solve
from bilevel_rl.finite.learn.replay import Replay
from bilevel_rl.finite.model import planning, sampling
from bilevel_rl.finite.problems import FrozenLake, GoalPlacement, LeaderToy, RandomMDP
from bilevel_rl.finite.solvers.coupled_penalty import CoupledPenalty
from bilevel_rl.schedules import PowerDecay, TimeScales

ESTIMATORS = ("ratio_critic", "likelihood_ratio", "gradient_critic", "doubly_robust")
STILL = 1e-14  # steps that change nothing a float32-sized test could see


def frozen(w: float, tau: float, beta: float = STILL) -> TimeScales:
    """Sequences under which x, and by default the critics, stay."""
    return TimeScales(*(PowerDecay(v) for v in (STILL, 1.0, beta, w, tau)))


def exact_tables(problem, w: float, tau: float) -> dict[str, jnp.ndarray]:
    """Q, D, C, G at their fixed points, from oracles: independent of the solver's own recursions."""
    x, mdp = problem.x0, problem.transitions(problem.x0)
    scale = (1 - float(mdp.discount)) * w
    plan = oracles.lower_optimum(problem, x, tau)
    shifted = planning.soft_optimal(mdp, problem.reward(x) + scale * problem.objective.bonus(x), tau)
    d, d_l = planning.visitation(mdp, plan.pi), planning.visitation(mdp, shifted.pi)

    def action_value(x):
        return planning.action_value(mdp, problem.reward(x), planning.policy_value(mdp, problem.reward(x), plan.pi))

    return {
        "Q": plan.Q, "D": (shifted.Q - plan.Q) / scale, "C": (1 - d_l / d) / scale, "G": jax.jacfwd(action_value)(x),
    }  # fmt: skip


def directions(problem, solver, tables, steps: int, runs: int, seed: int = 0):
    """x's direction at every step of stationary chains: [runs, steps, d]."""

    def run(key):
        state = solver.init(problem, problem.x0, key)
        known = {name: table for name, table in tables.items() if getattr(state, name) is not None}
        state = dataclasses.replace(state, **known)

        def body(state, k):
            noise = jax.random.uniform(jax.random.fold_in(key, k), (solver.draws(problem),))
            state = solver.step(problem, state, k, noise)
            return state, state.direction

        return jax.lax.scan(body, state, jnp.arange(steps))[1]

    return eqx.filter_jit(jax.vmap(run))(jax.random.split(jax.random.key(seed), runs))


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("name", ["goal", "payments", "moving"])
def test_with_exact_critics_the_estimate_is_the_penalty_hyper_gradient_on_average(estimator, name):
    problem = {
        "goal": lambda: GoalPlacement(rows=2, columns=3, discount=0.8, target=(1.0, 0.5)),
        "payments": lambda: FrozenLake(temperature=0.3),
        "moving": lambda: RandomMDP(4, 2, 3, features=2, largest=1.0, moving=True),
    }[name]()
    if name == "moving" and estimator in ("gradient_critic", "doubly_robust"):
        with pytest.raises(InvalidConfig, match="ratio_critic"):
            CoupledPenalty(estimator=estimator).check(problem)
        return
    w, tau = 0.5, 0.3
    # a wide clip: the products of ratios must be the true ones here
    solver = CoupledPenalty(frozen(w, tau), hold=0.0, clip=50.0, chains=16, estimator=estimator, replay=0)
    tables = exact_tables(problem, w, tau)
    found = directions(problem, solver, tables, steps=500, runs=32)[:, 100:]  # the first steps reach the visitation
    exact = oracles.penalty_hyper_gradient(problem, problem.x0, w, tau)
    assert_mean(found.mean(1), exact, f"{name}, {estimator}")


@pytest.mark.parametrize("estimator", ["ratio_critic", "gradient_critic"])
def test_the_critics_learn_their_fixed_points(estimator):
    problem = GoalPlacement(rows=2, columns=2, discount=0.8, slip=0.2)
    w, tau = 0.5, 0.3
    scales = dataclasses.replace(frozen(w, tau), beta=PowerDecay(1.0, 0.7))
    solver = CoupledPenalty(scales, chains=32, estimator=estimator, replay=64)
    tables = exact_tables(problem, w, tau)
    state = solve(problem, solver, iterations=8000, record_every=8000, runs=1, evaluate=False).state
    for name in ("Q", "D") + (("C",) if estimator == "ratio_critic" else ("G",)):
        learnt, exact = np.asarray(getattr(state, name)[0]), np.asarray(tables[name])
        assert np.abs(learnt - exact).max() < 0.06 * max(1.0, np.abs(exact).max()), name


def test_an_objective_that_is_not_linear_in_the_visitation_moves_the_penalised_follower_as_the_oracle_says():
    problem = RandomMDP(4, 2, 3, features=2, largest=10.0, objective="energy")
    w, tau = 0.3, 0.5
    scales = dataclasses.replace(frozen(w, tau), beta=PowerDecay(1.0, 0.7))
    solver = CoupledPenalty(scales, chains=64, replay=128)
    state = solve(problem, solver, iterations=6000, record_every=6000, evaluate=False).state
    pi, pi_l = solver.policies(problem, jax.tree.map(lambda v: v[0], state), jnp.array(6000))
    exact = oracles.penalised_policy(problem, problem.x0, w, tau)
    moved = float(jnp.abs(exact - oracles.lower_optimum(problem, problem.x0, tau).pi).max())
    assert moved > 0.01, "the instance must tell the two followers apart"
    assert float(jnp.abs((pi_l - pi) - (exact - oracles.lower_optimum(problem, problem.x0, tau).pi)).max()) < 0.25 * moved


def test_noise_does_not_grow_as_the_penalty_tightens():
    problem = GoalPlacement(rows=2, columns=3, discount=0.8, target=(1.0, 0.5))
    spread = []
    for w in (0.5, 0.005):
        solver = CoupledPenalty(frozen(w, 0.3), hold=0.0, chains=16, replay=0)
        spread.append(float(directions(problem, solver, exact_tables(problem, w, 0.3), 200, 8).std()))
    assert spread[1] < 1.2 * spread[0]


def test_x_stays_while_held_and_samples_are_counted():
    problem = GoalPlacement(rows=2, columns=2)
    trace = solve(problem, CoupledPenalty(hold=5.0, chains=3), iterations=6, record_every=1, evaluate=False)
    assert np.array_equal(trace.x[0, 5], np.asarray(problem.x0))
    assert not np.array_equal(trace.x[0, 6], np.asarray(problem.x0))
    assert trace["samples"][0].tolist() == [0, 6, 12, 18, 24, 30, 36]  # 3 on the chains and 3 beside them
    alone = solve(problem, CoupledPenalty(explore="none", chains=3), iterations=6, record_every=6, evaluate=False)
    assert alone["samples"][0, -1] == 18


def test_replay_overwrites_the_oldest_and_draws_only_what_is_there():
    mdp = GoalPlacement(rows=2, columns=2).mdp
    memory = Replay.empty(4, 2)
    for i in range(3):
        batch = jnp.array([10 * i, 10 * i + 1])
        memory = memory.extend(mdp, jnp.stack([batch, batch + 100, batch + 200]))
    assert sorted(memory.table[0].tolist()) == [10, 11, 20, 21]
    young = Replay.empty(100, 2).extend(mdp, jnp.array([[7, 8], [0, 1], [5, 6]]))
    drawn, likelier = young.draw(mdp, jnp.linspace(0, 0.999, 50))
    assert set(map(tuple, drawn.T.tolist())) == {(7, 0, 5), (8, 1, 6)}
    assert likelier is None


def test_replayed_transitions_of_another_x_weigh_as_the_present_one_draws_them():
    """Drawn under one x and weighed for another, they have the other's mean: an average over next states of any function."""
    it = LeaderToy()
    then, now = it.transitions(jnp.array([-1.0])), it.transitions(jnp.array([1.0]))
    n, state, action = 40_000, 1, 2  # left, from where the leader sends home or lets go right
    s, a = jnp.full(n, state, jnp.int32), jnp.full(n, action, jnp.int32)
    drawn = jnp.stack([s, a, sampling.next_state(then, s, a, jax.random.uniform(jax.random.key(0), (n,)))])
    memory = Replay.empty(n, n, moving=True).extend(then, drawn)
    past, likelier = memory.draw(now, jnp.linspace(0, 1, n, endpoint=False))
    value = jnp.arange(3.0)
    exact = float(now.dense()[state, action] @ value)
    assert abs(float(then.dense()[state, action] @ value) - exact) > 0.5  # the two x differ
    assert_mean(likelier * value[past[2]], exact)


def test_what_a_sample_of_f_draws_teaches_the_critics_too():
    """With as good as no chain the critics still learn: the trajectories of f feed them, and the memory holds them."""
    it = LeaderToy(trajectories=2, horizon=20)
    solver = CoupledPenalty(
        frozen(0.1, 0.05, 0.5), chains=2, explore="none", replay=8, memory=1000, estimator="ratio_critic"
    )
    state = solver.init(it, it.x0, jax.random.key(0))
    new = solver.step(it, state, 0, jax.random.uniform(jax.random.key(1), (solver.draws(it),)))
    assert int(new.samples) == 2 + 2 * 20  # counted once
    assert int(new.replay.count) == 2 + 2 * 19  # the last step of a trajectory has no end that was seen
    s, a, s_next = (np.asarray(v)[: int(new.replay.count)] for v in new.replay.table)
    assert (np.asarray(it.transitions(it.x0).dense())[s, a, s_next] > 0).all()


def test_the_direction_is_no_longer_than_the_bound():
    it = LeaderToy(trajectories=2, horizon=20)
    lengths = []
    for bound in (1e6, 0.05):
        solver = CoupledPenalty(frozen(0.1, 0.05, 0.5), bound=bound, chains=4, estimator="ratio_critic")
        state = solver.init(it, it.x0, jax.random.key(0))
        for k in range(20):
            u = jax.random.uniform(jax.random.key(k), (solver.draws(it),))
            state = solver.step(it, state, k, u)
        lengths.append(float(jnp.linalg.norm(state.direction)))
    assert lengths[0] > 0.05 >= lengths[1] > 0


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"chains": 0}, "chains"), ({"momentum": 1.0}, "momentum"), ({"hold": -1.0}, "hold"), ({"clip": 0.0}, "clip"),
        ({"bound": 0.0}, "bound"),
        ({"replay": -1}, "replay"),
        ({"scales": TimeScales(w=PowerDecay(0.0))}, "w.initial"),
    ],
)  # fmt: skip
def test_wrong_options_are_refused_before_any_work(options, word):
    with pytest.raises(InvalidConfig, match=word):
        solve(GoalPlacement(rows=2, columns=2), CoupledPenalty(**options), iterations=1)


@pytest.mark.parametrize(("option", "value"), [("estimator", "magic"), ("explore", "some")])
def test_unknown_words_are_refused_with_the_known_ones(option, value):
    solver = CoupledPenalty()
    object.__setattr__(solver, option, value)  # past the type checks that are on in tests only
    with pytest.raises(InvalidConfig, match=option):
        solver.check(GoalPlacement(rows=2, columns=2))
