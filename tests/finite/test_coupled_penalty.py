"""The recommended solver: its four estimators, its critics' fixed points, replay, and what it refuses."""

from __future__ import annotations

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from finite_instances import assert_mean, thinned

from bilevel_rl.errors import InvalidConfig
from bilevel_rl.finite import BilevelProblem, FiniteMDP, estimators, oracles, solve
from bilevel_rl.finite.coupled import pieces
from bilevel_rl.finite.estimators import Lesson, Passage
from bilevel_rl.finite.learn import exploring
from bilevel_rl.finite.learn.coupled_critics import Pair, level_error
from bilevel_rl.finite.learn.replay import Replay
from bilevel_rl.finite.model import planning, sampling
from bilevel_rl.finite.objectives import VisitationUtility
from bilevel_rl.finite.problems import FrozenLake, GoalDistribution, GoalPlacement, LeaderToy, RandomMDP
from bilevel_rl.finite.solvers.coupled_penalty import CoupledPenalty
from bilevel_rl.loop import noise
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
        mdp, reward = problem.transitions(x), problem.reward(x)
        return planning.action_value(
            mdp, reward, mdp.ongoing(planning.policy_value(mdp, reward, plan.pi, tau))
        )

    return {
        "Q": plan.Q, "D": (shifted.Q - plan.Q) / scale, "C": (1 - d_l / d) / scale, "G": jax.jacfwd(action_value)(x),
    }  # fmt: skip


def knowing(solver, problem, state, tables):
    """The state with exact tables, and levels of zero, for which they are the fixed points."""
    carry = state.estimate
    if solver.estimator == "ratio_critic":
        carry = tables["C"]
    elif solver.estimator in ("gradient_critic", "doubly_robust"):
        first = tables["C"] if solver.estimator == "doubly_robust" else carry[0]
        carry = (first, dataclasses.replace(carry[1], G=tables["G"]))
    return dataclasses.replace(state, Q=tables["Q"], D=tables["D"], estimate=carry)


def directions(problem, solver, tables, steps: int, runs: int, seed: int = 0):
    """x's direction at every step of stationary chains: [runs, steps, d]."""

    def run(key):
        state = knowing(solver, problem, solver.init(problem, problem.x0, key), tables)

        def body(state, k):
            u = noise.uniforms(solver.draws(problem), jax.random.fold_in(key, k))
            state = solver.step(problem, state, k, u)
            return state, state.direction

        return jax.lax.scan(body, state, jnp.arange(steps))[1]

    return eqx.filter_jit(jax.vmap(run))(jax.random.split(jax.random.key(seed), runs))


class Episode(BilevelProblem):
    """A corridor with an end: x pays for the actions before it, and the end has a reward that nobody may count."""

    name = "episode"

    def __init__(self):
        P = np.zeros((3, 2, 3))
        P[[0, 1], 0, [1, 2]] = P[[0, 1], 1, [0, 1]] = 0.8
        P[[0, 1], 0, [0, 1]] = P[[0, 1], 1, [1, 2]] = 0.2
        P[2, :, 2] = 1
        plain = FiniteMDP.from_dense(P)
        self.mdp = FiniteMDP.from_sparse(
            plain.successors, plain.probabilities, [0.7, 0.3, 0.0], 0.8, ends=[False, False, True]
        )
        self.objective = VisitationUtility(jnp.array([[0.0, 1.0], [2.0, 0.0], [0.0, 0.0]]), weight=0.1)
        self.x0 = jnp.array([0.3, -0.1, 0.2, 0.5])

    def reward(self, x):
        return jnp.concatenate([x.reshape(2, 2), jnp.full((1, 2), 0.7)])


class Toll(BilevelProblem):
    """Two roads, the first worth .3; the leader pays x for the second and wants it taken."""

    name = "toll"

    def __init__(self, discount: float):
        self.mdp = FiniteMDP.from_dense([[[1.0, 0.0], [0.0, 1.0]]] * 2, discount=discount)
        self.objective = VisitationUtility(jnp.array([0.0, 1.0]), weight=0.2)
        self.x0 = jnp.array([0.1])

    def reward(self, x):
        return jnp.stack([jnp.full(2, 0.3), jnp.full(2, x[0])])

    def box(self):
        return jnp.array([0.0]), jnp.array([1.0])


class MovingStart(RandomMDP):
    """A random MDP in which x tilts the kernel and the first states."""

    name = "moving_start"
    moves_start = True

    def transitions(self, x):
        mdp = super().transitions(x)
        return mdp.with_start(jax.nn.softmax(jnp.log(self.mdp.start) + jnp.arange(4) * x[0]))


PROBLEMS = {
    "goal": lambda: GoalPlacement(rows=2, columns=3, discount=0.8, target=(1.0, 0.5)),
    "payments": lambda: FrozenLake(temperature=0.3),
    "moving": lambda: RandomMDP(4, 2, 3, features=2, largest=1.0, moving=True),
    "moving start": lambda: MovingStart(4, 2, 3, features=2, largest=1.0, moving=True),
    "ends": Episode,
    "many dimensions": lambda: GoalDistribution(2, 3, discount=0.8),
}
QUICK = {("ends", "doubly_robust")}


@pytest.mark.parametrize(
    ("name", "estimator"),
    [
        pytest.param(name, estimator, marks=() if (name, estimator) in QUICK else pytest.mark.slow)
        for name in PROBLEMS for estimator in ESTIMATORS
    ],
)  # fmt: skip
def test_with_exact_critics_the_estimate_is_the_penalty_hyper_gradient_on_average(name, estimator):
    """At a fixed x, against the oracle: every estimator, with ends, kernels and starts that x moves, many dimensions."""
    problem = PROBLEMS[name]()
    w, tau = 0.5, 0.3
    # a wide clip: the products of ratios must be the true ones here
    solver = CoupledPenalty(frozen(w, tau), hold=0.0, clip=50.0, chains=16, estimator=estimator, replay=0)
    tables, exact = jax.jit(
        lambda: (exact_tables(problem, w, tau), oracles.penalty_hyper_gradient(problem, problem.x0, w, tau))
    )()
    found = directions(problem, solver, tables, steps=500, runs=32)[
        :, 100:
    ]  # the first steps reach the visitation
    assert_mean(found.mean(1), exact, f"{name}, {estimator}")


@pytest.mark.slow
@pytest.mark.parametrize("estimator", thinned(["ratio_critic", "gradient_critic"], {"ratio_critic"}))
def test_the_critics_learn_their_fixed_points(estimator):
    problem = GoalPlacement(rows=2, columns=2, discount=0.8, slip=0.2)
    w, tau = 0.5, 0.3
    scales = dataclasses.replace(frozen(w, tau), beta=PowerDecay(1.0, 0.7))
    solver = CoupledPenalty(scales, chains=32, estimator=estimator, replay=64)
    tables = exact_tables(problem, w, tau)
    state = solve(problem, solver, iterations=8000, record_every=8000, runs=1, evaluate=False).state
    above = state.levels[0] / (1 - problem.mdp.discount)
    learnt_tables = {"Q": state.Q + above[0], "D": state.D + above[1]}
    if estimator == "ratio_critic":
        learnt_tables["C"] = state.estimate
    else:
        gradients = state.estimate[1]
        learnt_tables["G"] = gradients.G + gradients.level / (1 - problem.mdp.discount)
    for name, table in learnt_tables.items():
        learnt, exact = np.asarray(table[0]), np.asarray(tables[name])
        assert np.abs(learnt - exact).max() < 0.06 * max(1.0, np.abs(exact).max()), name


@pytest.mark.slow
def test_levels_of_any_size_leave_the_fixed_points_where_they_are():
    """Exact tables less m/(1 - gamma) make no error on average, whatever m: with ends too, whose value is -m/(1 - gamma)."""
    problem, w, tau = Episode(), 0.5, 0.3
    tables, mdp, x = exact_tables(problem, w, tau), problem.mdp, problem.x0
    levels = jnp.array([0.7, -0.4])
    below = levels / (1 - mdp.discount)
    solver = CoupledPenalty(frozen(w, tau), replay=0)
    state = solver.init(problem, x, jax.random.key(0))
    state = dataclasses.replace(state, Q=tables["Q"] - below[0], D=tables["D"] - below[1], levels=levels)
    pair = Pair(state.Q, state.D, (1 - mdp.discount) * w, tau)
    # every successor of every pair, weighed by its probability: the exact mean of the errors
    s, a, k = (v.ravel() for v in jnp.meshgrid(*map(jnp.arange, mdp.successors.shape), indexing="ij"))
    errors = jax.jit(lambda seen: pieces.errors(problem, x, state, pair, None, seen))(
        jnp.stack([s, a, mdp.successors[s, a, k]])
    )
    for error in (errors.Q, errors.D):
        mean = jnp.zeros((3, 2)).at[s, a].add(mdp.probabilities[s, a, k] * error)
        np.testing.assert_allclose(mean[:2], 0.0, atol=1e-9)  # in the end itself nothing is looked up


class FarHome(BilevelProblem):
    """A corridor of six cells whose last leads to an end, worth 1; the leader pays for steps to the right."""

    name = "far_home"

    def __init__(self, discount: float):
        S = 7
        P = np.zeros((S, 2, S))
        for s in range(S - 1):
            P[s, 0, max(s - 1, 0)] = P[s, 1, s + 1] = 1
        P[S - 1, :, S - 1] = 1
        plain = FiniteMDP.from_dense(P)
        self.mdp = FiniteMDP.from_sparse(
            plain.successors, plain.probabilities, np.eye(S)[0], discount, ends=np.arange(S) == S - 1
        )
        self.objective = VisitationUtility(jnp.eye(S)[3], weight=0.1)
        self.x0 = jnp.array([0.1])

    def reward(self, x):
        home = jnp.zeros((7, 2)).at[5, 1].set(1.0)
        return home + x[0] * jnp.zeros((7, 2)).at[:6, 1].set(0.01)


@pytest.mark.parametrize("estimator", ["ratio_critic", "doubly_robust"])
def test_tables_stay_bounded_where_episodes_end_and_the_horizon_is_long(estimator):
    """A plain step of a level overshoots by the share of ends times the horizon: tables grew to 1e40 on four rooms."""
    solver = CoupledPenalty(frozen(0.01, 0.01, beta=1.0), hold=1e9, estimator=estimator)
    state = solve(FarHome(0.99), solver, iterations=600, record_every=600, runs=1, evaluate=False).state
    exact = planning.soft_optimal(FarHome(0.99).mdp, FarHome(0.99).reward(FarHome(0.99).x0), 0.01).Q
    learnt = state.Q[0] + state.levels[0, 0] / 0.01
    np.testing.assert_allclose(learnt[:6], exact[:6], atol=0.02)
    assert float(jnp.abs(state.D[0, :6] + state.levels[0, 1] / 0.01).max()) < 5


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_a_level_that_is_off_is_seen_as_off_by_that_much_whatever_the_share_of_ends(share):
    mdp, off, n = FarHome(0.99).mdp, 0.3, 10
    ending = jnp.arange(n) < share * n
    s, s_next = jnp.where(ending, 5, 2), jnp.where(ending, 6, 3)
    errors = -off * jnp.where(ending, 1 / (1 - mdp.discount), 1.0)  # of tables that are right but for their level
    waiting = jnp.full(4, 6)  # at an end: whatever stands there counts for nothing
    seen = level_error(mdp, *(jnp.append(v, waiting) for v in (s, s_next)), jnp.append(errors, jnp.full(4, 1e6)))
    np.testing.assert_allclose(seen, -off, rtol=0.0101)  # but for 1 - gamma


def test_followers_do_not_differ_at_an_end():
    solver, mdp = CoupledPenalty(), FarHome(0.99).mdp
    s, a = jnp.array([2, 6]), jnp.array([1, 1])
    log_q = pieces.likelier(mdp, s, a, jnp.array([[0.5, 0.5]] * 2), jnp.array([[0.25, 0.75]] * 2), solver.clip)
    np.testing.assert_allclose(log_q, [np.log(1.5), 0.0])


def test_explorers_begin_anew_after_an_end_and_long_before_only_seldom():
    walk, mdp = exploring.Wanderers(), FarHome(0.99).mdp
    n, key = 2000, jax.random.key(0)

    def step(at, key):
        seen, onward = walk.step(mdp, at, at, None, jax.random.uniform(key, (3, n)))
        return onward, (seen, onward)

    _, (seen, onward) = jax.lax.scan(step, jnp.zeros(n, jnp.int32), jax.random.split(key, 40))
    ended = seen[:, 2] == 6
    assert not bool((seen[:, 0] == 6).any())  # no step is spent at the end
    assert bool((onward[ended] == 0).all())
    assert 0 < float(ended.mean()) < 0.1
    late = float((onward != seen[:, 2])[~ended & (seen[:, 2] != 0)].mean())
    assert 0 < late < 0.003  # a tenth of 1 - gamma: an end that is never met stops no walk for ever


@pytest.mark.slow
def test_a_horizon_of_a_thousand_steps_is_no_harder_than_one_of_ten():
    """The docs' toll at a discount of .999: without levels every run ends at x = 1, the corner."""
    problem = Toll(0.999)
    exact = oracles.brute_force(problem, problem.temperature(), points=101).x[0]
    trace = solve(
        problem, CoupledPenalty(), iterations=750, record_every=750, runs=5, evaluate=False
    )  # 24,000 transitions
    assert 0.4 < exact < 0.7
    np.testing.assert_allclose(trace.x[:, -1, 0], exact, atol=0.06)


class LogitPricing(BilevelProblem):
    """A customer worth .5 buys at price x or leaves; what the seller takes is greatest at a price known in closed form."""

    name = "logit_pricing"

    def __init__(self):
        self.mdp = FiniteMDP.from_dense([[[1.0], [1.0]]], discount=0.0)
        self.objective = VisitationUtility(np.zeros((1, 2)), payments=-np.array([[[1.0, 0.0]]]))
        self.x0 = jnp.array([0.2])

    def reward(self, x):
        return jnp.stack([0.5 - x[0], 0.0 * x[0]])[None]

    def box(self):
        return jnp.zeros(1), jnp.ones(1)


@pytest.mark.slow
def test_the_bias_of_the_penalty_falls_to_less_than_two_per_cent_of_a_price_known_in_closed_form():
    tau = 0.05
    exact = tau * (1 + scipy.special.lambertw(np.exp(0.5 / tau - 1)).real)  # .4024
    trace = solve(
        LogitPricing(), CoupledPenalty(), iterations=4000, record_every=4000, runs=5, evaluate=False
    )
    assert abs(trace.x[:, -1, 0].mean() - exact) < 0.02 * exact


def test_wanderers_are_never_put_anywhere_and_take_every_action():
    """Each goes on from where it came, but for restarts at the rate 1 - gamma, and the chains' places do not matter."""
    mdp = GoalPlacement(rows=2, columns=3, discount=0.9).mdp
    walk, n = exploring.Wanderers(), 4000
    u = jax.random.uniform(jax.random.key(0), (3, n))
    at = walk.init(mdp, u[0])
    (s, a, s_next), onward = walk.step(mdp, jnp.zeros(n, jnp.int32), at, None, u)
    assert (s == at).all()
    assert np.isclose(np.bincount(a, minlength=4) / n, 0.25, atol=0.03).all()
    again = np.asarray(u[2] < 1 - mdp.discount)
    assert (np.asarray(onward)[~again] == np.asarray(s_next)[~again]).all()
    elsewhere, _ = walk.step(mdp, jnp.ones(n, jnp.int32), at, None, u)
    assert (elsewhere == jnp.stack([s, a, s_next])).all()


@pytest.mark.slow
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
    assert (
        float(jnp.abs((pi_l - pi) - (exact - oracles.lower_optimum(problem, problem.x0, tau).pi)).max())
        < 0.25 * moved
    )


@pytest.mark.slow
def test_noise_does_not_grow_as_the_penalty_tightens():
    problem = GoalPlacement(rows=2, columns=3, discount=0.8, target=(1.0, 0.5))
    spread = []
    for w in (0.5, 0.005):
        solver = CoupledPenalty(frozen(w, 0.3), hold=0.0, chains=16, estimator="doubly_robust", replay=0)
        spread.append(float(directions(problem, solver, exact_tables(problem, w, 0.3), 200, 8).std()))
    assert spread[1] < 1.2 * spread[0]


def test_x_stays_while_held_and_samples_are_counted():
    problem = GoalPlacement(rows=2, columns=2)
    trace = solve(problem, CoupledPenalty(hold=5.0, chains=3), iterations=6, record_every=1, evaluate=False)
    assert np.array_equal(trace.x[0, 5], np.asarray(problem.x0))
    assert not np.array_equal(trace.x[0, 6], np.asarray(problem.x0))
    assert trace["samples"][0].tolist() == [0, 6, 12, 18, 24, 30, 36]  # 3 on the chains and 3 that explore


@pytest.mark.parametrize(("explore", "count"), [("extra", 36), pytest.param("none", 18, marks=pytest.mark.slow)])
def test_samples_are_counted_however_it_explores(explore, count):
    solver = CoupledPenalty(explore=explore, chains=3)
    trace = solve(GoalPlacement(rows=2, columns=2), solver, iterations=6, record_every=6, evaluate=False)
    assert trace["samples"][0, -1] == count


def test_replay_overwrites_the_oldest_and_draws_only_what_is_there():
    memory = Replay.empty(4, 2)
    for i in range(3):
        batch = jnp.array([10 * i, 10 * i + 1])
        memory = memory.extend(jnp.stack([batch, batch + 100, batch + 200]))
    assert sorted(memory.table[0].tolist()) == [10, 11, 20, 21]
    young = Replay.empty(100, 2).extend(jnp.array([[7, 8], [0, 1], [5, 6]]))
    drawn, likelihood = young.draw(jnp.linspace(0, 0.999, 50))
    assert set(map(tuple, drawn.T.tolist())) == {(7, 0, 5), (8, 1, 6)}
    assert likelihood is None


def test_replayed_transitions_of_another_x_weigh_as_the_present_one_draws_them():
    """Drawn under one x and weighed for another, they have the other's mean: an average over next states of any function."""
    it = LeaderToy()
    then, now = it.transitions(jnp.array([-1.0])), it.transitions(jnp.array([1.0]))
    n, state, action = 40_000, 1, 2  # left, from where the leader sends home or lets go right
    s, a = jnp.full(n, state, jnp.int32), jnp.full(n, action, jnp.int32)
    drawn = jnp.stack([s, a, sampling.next_state(then, s, a, jax.random.uniform(jax.random.key(0), (n,)))])
    memory = Replay.empty(n, n, moving=True).extend(drawn, sampling.transition_probability(then, *drawn))
    past, likelihood = memory.draw(jnp.linspace(0, 1, n, endpoint=False))
    likelier = sampling.transition_probability(now, *past) / likelihood
    value = jnp.arange(3.0)
    exact = float(now.dense()[state, action] @ value)
    assert abs(float(then.dense()[state, action] @ value) - exact) > 0.5  # the two x differ
    assert_mean(likelier * value[past[2]], exact)


@pytest.mark.slow
def test_what_a_sample_of_f_draws_teaches_the_critics_too():
    """With as good as no chain the critics still learn: the trajectories of f feed them, and the memory holds them."""
    it = LeaderToy(trajectories=2, horizon=20)
    solver = CoupledPenalty(
        frozen(0.1, 0.05, 0.5), chains=2, explore="none", replay=8, memory=1000, estimator="ratio_critic"
    )
    state = solver.init(it, it.x0, jax.random.key(0))
    new = solver.step(it, state, 0, noise.uniforms(solver.draws(it), jax.random.key(1)))
    assert int(new.samples) == 2 + 2 * 20  # counted once
    assert int(new.replay.count) == 2 + 2 * 19  # the last step of a trajectory has no end that was seen
    s, a, s_next = (np.asarray(v)[: int(new.replay.count)] for v in new.replay.table)
    assert (np.asarray(it.transitions(it.x0).dense())[s, a, s_next] > 0).all()


@pytest.mark.slow
def test_the_direction_is_no_longer_than_the_bound():
    it = LeaderToy(trajectories=2, horizon=20)
    both = [
        CoupledPenalty(frozen(0.1, 0.05, 0.5), bound=bound, chains=4, estimator="ratio_critic")
        for bound in (1e6, 0.05)
    ]
    # twelve runs each: the leader's trajectories say nothing in most of them
    state = solve(it, both, iterations=20, record_every=20, runs=12, evaluate=False).state
    longest = jnp.linalg.norm(state.direction, axis=-1).reshape(2, 12).max(1)
    assert longest[0] > 0.05 + 1e-9
    np.testing.assert_allclose(longest[1], 0.05)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"chains": 0}, "chains"), ({"momentum": 1.0}, "momentum"), ({"hold": -1.0}, "hold"), ({"clip": 0.0}, "clip"),
        ({"bound": 0.0}, "bound"), ({"reach": 0.0}, "reach"),
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


@pytest.mark.parametrize("name", ["gradient_critic", "doubly_robust"])
def test_a_step_of_the_gradient_critic_copies_no_table(name):
    """Its cost does not depend on the number of states: the table is changed where it is."""
    S, A, d, N, B = 20_000, 2, 2, 16, 64
    problem = RandomMDP(S, A, 3, features=d)
    estimator = estimators.NAMED[name](3.0, True)
    arrays, rest = eqx.partition(problem, eqx.is_array)

    def steps(carry, arrays, keys):
        problem = eqx.combine(arrays, rest)

        def one(carry, key):
            u = jax.random.uniform(key, (6, B))
            s, a, s_next = ((u[i] * n).astype(int) for i, n in enumerate((S, A, S)))
            pi = jnp.stack([u[3], 1 - u[3]], 1)
            lesson = Lesson(s, a, s_next, pi, u[4], None)
            seen = Passage(s[:N], a[:N], s_next[:N], s_next[:N], u[5, :N] < 0.1, pi[:N], pi[:N, ::-1], u[4, :N])
            carry, says = estimator.step(problem, problem.x0, carry, seen, lesson, 0.1, 0.1)
            return carry, says.terms

        return jax.lax.scan(one, carry, keys)

    carry = estimator.init(problem, problem.x0, N)
    made = jax.jit(steps, donate_argnums=0).lower(carry, arrays, jax.random.split(jax.random.key(0), 4)).compile()
    assert made.memory_analysis().temp_size_in_bytes < 8 * S * A, "the table is d times as large"


@pytest.mark.parametrize("push", [0.5, 2.0])
def test_an_answer_that_the_followers_own_law_all_but_excludes_has_a_value(push):
    """Probabilities of e^-1000: the mean of exp over pi is 0 in double precision, its logarithm is not."""
    pair = Pair(jnp.array([[0.0, -1.0]]), jnp.array([[0.0, push]]), jnp.array(0.9), jnp.array(1e-3))
    _, delta = pair.values()
    assert float(delta[0]) == pytest.approx(max(0.0, 0.9 * push - 1.0) / 0.9, abs=2e-3)
