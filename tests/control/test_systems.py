"""Followers from the literature: the identities that each must have, and what each is when its options are off."""

from __future__ import annotations

import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from worlds import Steer

from bilevel_rl.control import replay, solvers
from bilevel_rl.control.environments import Bounded, Maze, OpenLoop, Pendulum, Stakes
from bilevel_rl.control.followers import PMOE, SAC, SRL, STAC, AILBoost, Symphony, Usual
from bilevel_rl.control.followers.ail_boost import divergence_loss, weights
from bilevel_rl.control.followers.stac import LEAST, minimum
from bilevel_rl.control.followers.symphony import fading, quiet, rehae, rehe
from bilevel_rl.control.frequency import frequency_averaged_score, returns_by_frequency
from bilevel_rl.control.problem import Transition
from bilevel_rl.control.problems import PendulumImitation, PendulumShaping, PessimismChoice, TemperatureChoice
from bilevel_rl.errors import InvalidConfig, InvalidProblem
from bilevel_rl.loop import noise
from bilevel_rl.loop.solver import check_fits

F32 = jnp.float32
GAMMA, TAU = F32(0.9), F32(0.1)


def rows_in(environment, n, seed=0, terminated=False):
    """n transitions by random actions, and what they pay."""
    keys = jax.random.split(jax.random.key(seed), n)

    def one(key):
        k_reset, k_act, k_step = jax.random.split(key, 3)
        state, obs = environment.reset(k_reset)
        action = jax.random.uniform(k_act, (environment.action.size,), F32, -1.0, 1.0)
        found = environment.step(state, action, k_step)
        return Transition(obs, action, found.obs, found.reward, found.info, jnp.asarray(terminated))

    t = jax.jit(jax.vmap(one))(keys)
    never = jnp.zeros(n, bool)
    return replay.Rows(t, t.info, never, never), t.reward


def updates(follower, environment, F, rows, r, count=1, gamma=GAMMA, tau=TAU, seed=1):
    def step(F, key):
        return follower.update(environment, F, rows, r, gamma, tau, key), None

    run = jax.jit(lambda F: jax.lax.scan(step, F, jax.random.split(jax.random.key(seed), count))[0])
    return run(F)


def close(one, other, tolerance=1e-6):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


# -- what each is when its options are off --------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "plain"), [
    (STAC(width=8, beta=0.0, learnt_spread=False), SAC(width=8)),
    pytest.param(quiet(Symphony(width=8), critics=2), SAC(width=8, critics=2), marks=pytest.mark.slow),
], ids=["stac", "symphony"])  # fmt: skip
def test_without_its_options_it_is_sac(kind, plain):
    env = Bounded()
    rows, r = rows_in(env, 16)
    first, key = plain.init(env, jax.random.key(0)), jax.random.key(0)
    close(kind.init(env, key).actor, first.actor)
    a, b = (updates(one, env, one.init(env, key), rows, r, 3) for one in (kind, plain))
    close((a.actor, a.critics, a.target), (b.actor, b.critics, b.target))


@pytest.mark.slow
def test_one_expert_is_sac():
    env, one, plain = Bounded(), PMOE(width=8, experts=1), SAC(width=8)
    rows, r = rows_in(env, 16)
    F = plain.init(env, jax.random.key(0))
    W, b = F.actor.params.weights[-1], F.actor.params.biases[-1]
    wide = type(F.actor.params)((*F.actor.params.weights[:-1], jnp.pad(W, ((0, 0), (1, 0)))),
                                (*F.actor.params.biases[:-1], jnp.pad(b, (1, 0))))  # fmt: skip
    G = type(F)(type(F.actor).begin(wide), F.critics, F.target, None)
    a, b = updates(one, env, G, rows, r, 3), updates(plain, env, F, rows, r, 3)
    close(a.critics, b.critics)
    close(a.actor.params.weights[-1][:, 1:], b.actor.params.weights[-1], 1e-5)
    assert float(jnp.abs(a.actor.params.weights[-1][:, 0]).max()) == 0.0  # its weight is 1 and stays


@pytest.mark.slow
def test_a_plan_of_one_action_has_sacs_loss():
    env, follower = Bounded(), SRL(width=8, length=1)
    rows, _ = rows_in(env, 16)
    F = follower.init(env, jax.random.key(0))
    args = env, F, F.actor.params, F.critics.params, rows, TAU, jax.random.key(2)
    (mine, (logp, _)), (sacs, (same, _)) = follower.actor_loss(*args), SAC.actor_loss(follower, *args)
    close((mine, logp), (sacs, same))


def test_boosting_pays_sac_what_its_judge_says():
    env, follower = Bounded(), AILBoost(width=8, eta=0.0, shown=jnp.ones((5, 4), F32))
    rows, r = rows_in(env, 16)
    F, key = follower.init(env, jax.random.key(0)), jax.random.key(1)
    after = jax.jit(lambda F: follower.update(env, F, rows, r, GAMMA, TAU, key))(F)
    own = jnp.concatenate([rows.t.obs, rows.t.action], 1)
    paid = follower.judged(after.more.judge.params, own)
    plain = jax.jit(lambda F: SAC.update(follower, env, F, rows, paid, GAMMA, TAU, key))(F)
    close((after.actor, after.critics), (plain.actor, plain.critics))


def test_soft_policies_are_mirror_steps_from_the_uniform_one():
    """max E[Q] + tau H and max E[Q] - tau KL(., uniform) differ by tau log n: softmax(Q / tau) answers both."""
    Q, tau = np.array([0.3, -0.2, 0.9]), 0.4
    pi = np.exp(Q / tau) / np.exp(Q / tau).sum()
    rng = np.random.default_rng(0)
    for other in rng.dirichlet(np.ones(3), 20):
        soft = lambda p: p @ Q - tau * p @ np.log(p)  # noqa: E731
        mirror = lambda p: p @ Q - tau * p @ np.log(3 * p)  # noqa: E731
        assert soft(pi) >= soft(other)
        assert soft(other) - mirror(other) == pytest.approx(tau * np.log(3), abs=1e-12)


# -- STAC ------------------------------------------------------------------------------------------------------------


def test_the_least_loss_of_a_normal_critic_is_at_the_targets_mean_and_both_spreads():
    y, ahead = np.random.default_rng(0).normal(size=50), 0.7
    best = minimum(jnp.asarray(y), ahead)

    def loss(parts):
        return jnp.mean(parts[1] + ((y - parts[0]) ** 2 + ahead**2) / (2 * jnp.exp(2 * parts[1])))

    slope = jax.grad(loss)(jnp.array([best.mean, jnp.log(best.spread)]))
    np.testing.assert_allclose(slope, 0.0, atol=1e-6)


@pytest.mark.parametrize(("risk", "beta", "wanted"), [
    (0.5, 1.0, 0.5), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((0.0, 1.0, 1.0), (0.5, 0.0, 1.0))),
])  # fmt: skip
def test_pessimism_lowers_a_stake_by_its_risk_alone(risk, beta, wanted):
    """mu = c = 1, discount 0: the stake is 1 - beta sigma; where nothing is at risk the spread goes to 0."""
    env, follower = Stakes(risk=risk), STAC(width=32, rate=3e-3, beta=beta)

    def rows(key):
        k_a, k_step = jax.random.split(key)
        a = jax.random.uniform(k_a, (128, 1), F32, 0.0, 2.0)
        found = jax.vmap(lambda a, k: env.step(jnp.zeros((), F32), a, k))(a, jax.random.split(k_step, 128))
        ones, never = jnp.ones((128, 1), F32), jnp.zeros(128, bool)
        t = Transition(ones, a, ones, found.reward, found.info, never)
        return replay.Rows(t, t.info, never, never)

    def step(F, key):
        drawn = rows(jax.random.fold_in(key, 9))
        return follower.update(env, F, drawn, drawn.t.reward, F32(0.0), F32(0.01), key), None

    keys = jax.random.split(jax.random.key(1), 2000)
    F = jax.jit(lambda F: jax.lax.scan(step, F, keys)[0])(follower.init(env, jax.random.key(0)))
    stake = float(follower.mode(env, F, jnp.ones(1, F32))[0])
    assert stake == pytest.approx(wanted, abs=0.15)
    spread = follower.law_of(F.critics.params, jnp.ones((1, 1), F32), jnp.ones((1, 1), F32)).spread
    assert float(spread[0]) == pytest.approx(max(risk, LEAST), abs=0.1)


@pytest.mark.slow
def test_dropout_leaves_acting_alone():
    env, follower = Bounded(), STAC(width=8, dropout=0.5)
    rows, r = rows_in(env, 16)
    F, plain = follower.init(env, jax.random.key(0)), STAC(width=8)
    close(follower.out(env, F, rows.t.obs), plain.out(env, F, rows.t.obs))
    a, b = (updates(one, env, F, rows, r) for one in (follower, plain))
    assert float(jnp.abs(a.actor.params.weights[0] - b.actor.params.weights[0]).max()) > 0


# -- Symphony --------------------------------------------------------------------------------------------------------


def test_errors_count_squared_near_0_and_themselves_far_away():
    e = jnp.array([0.3, -0.1, 0.7])
    assert float(rehe(e)) == float(rehe(-e))
    assert float(rehae(e)) == -float(rehae(-e))
    assert float(rehe(jnp.array([1e-4]))) == pytest.approx(1e-8, rel=1e-4)
    assert float(rehe(jnp.array([50.0]))) == pytest.approx(50.0, rel=1e-6)
    assert float(rehae(jnp.array([-1e-4]))) == pytest.approx(-1e-8, rel=1e-4)


def test_a_replay_fades():
    p = fading(500)
    assert p.sum() == pytest.approx(1.0, abs=1e-12)
    assert (np.diff(p) >= 0).all()
    draws = 40_000
    ages = np.asarray(Symphony().ages(jnp.asarray(500), jnp.asarray(900), draws, jax.random.key(0)))
    assert ages.min() >= 0
    assert ages.max() < 500
    share = np.bincount(ages, minlength=500)[::-1].reshape(10, 50).sum(1) / draws
    np.testing.assert_allclose(share, p.reshape(10, 50).sum(1), atol=0.012)
    assert quiet(Symphony()).ages(500, 900, 8, jax.random.key(0)) is None


@pytest.mark.slow
def test_symphony_keeps_its_last_batch_and_raises_its_value():
    env, follower = Bounded(), Symphony(width=16, rate=3e-3)
    rows, _ = rows_in(env, 128, terminated=True)
    r = -jnp.sum((rows.t.action - 0.4) ** 2, 1)
    first = follower.init(env, jax.random.key(0))
    assert jax.tree.leaves(first.critics.params)[0].shape[0] == 4  # three of the value, one of the variance
    F = updates(follower, env, first, rows, r, 1500, tau=F32(0.01))
    assert float(F.more.value) > -0.3
    np.testing.assert_allclose(jax.vmap(lambda o: follower.mode(env, F, o))(rows.t.obs).mean(0), 0.4, atol=0.25)


# -- PMOE ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_only_the_best_expert_learns():
    env, many = Bounded(size=1), PMOE(width=8, experts=4)
    rows, _ = rows_in(env, 1)
    F = many.init(env, jax.random.key(0))

    def loss(bias):
        net = F.actor.params
        actor = type(net)(net.weights, (*net.biases[:-1], bias))
        return many.actor_loss(env, F, actor, F.critics.params, rows, TAU, jax.random.key(3))[0]

    slope = jax.grad(loss)(F.actor.params.biases[-1])[4:].reshape(4, 2)  # after the weights: two outputs each
    assert (np.abs(slope).sum(1) > 0).sum() == 1


@pytest.mark.slow
def test_both_ways_of_two_are_kept():
    """Two experts that begin on either side of 0 end at either optimum of a symmetric value.

    An expert that is seldom drawn is hardly taught and drifts, with some seeds to 0: this one keeps both well away from it,
    however the program is compiled.
    """
    env, many = Bounded(size=1), PMOE(width=16, rate=3e-3, experts=2)
    rows, _ = rows_in(env, 128, terminated=True)
    r = -jnp.minimum((rows.t.action[:, 0] - 0.6) ** 2, (rows.t.action[:, 0] + 0.6) ** 2) * 8
    first = many.init(env, jax.random.key(1))
    apart = lambda b: b.at[jnp.array([2, 4])].set(jnp.array([-0.5, 0.5], F32))  # noqa: E731
    first = eqx.tree_at(lambda f: f.actor.params.biases[-1], first, replace_fn=apart)
    F = updates(many, env, first, rows, r, 1500, tau=F32(0.05))
    log_w, mean, _ = many.law(env).opened(many.out(env, F, rows.t.obs[0]))
    means = np.tanh(np.asarray(mean[:, 0]))
    assert (means > 0.3).any()
    assert (means < -0.3).any()
    assert np.exp(log_w).sum() == pytest.approx(1.0, abs=1e-5)


# -- SRL -------------------------------------------------------------------------------------------------------------


def test_with_a_perfect_model_critics_are_asked_where_the_environment_goes():
    env = Bounded(noise=0.0)
    A, B = (jnp.asarray(M, F32) for M in env.matrices())
    exact = lambda v: v[:, :2] @ (A.T - jnp.eye(2)) + v[:, 2:] @ B.T  # noqa: E731
    actions = jax.random.uniform(jax.random.key(0), (3, 4, 2), F32, -1.0, 1.0)
    first = jax.random.normal(jax.random.key(1), (3, 2), F32)
    states, told = first, [first]
    for p in range(3):
        states = jax.vmap(lambda s, a: env.step(s, a, jax.random.key(0)).state)(states, actions[:, p])
        told.append(states)
    found = SRL(length=4).recalled(exact, first, actions)
    np.testing.assert_allclose(found, jnp.stack(told, 1), atol=1e-6)


@pytest.mark.slow
def test_a_plan_in_the_open_loop_is_the_plan_from_what_was_seen():
    env, follower = OpenLoop(Pendulum(), 3), SRL(width=8, length=3)
    F = follower.init(env, jax.random.key(0))
    state, obs = env.reset(jax.random.key(1))
    seen, memory = obs[:3], None
    for p in range(4):
        where, past, place = env.opened(obs)
        if p == 3:  # a new look
            seen, p = where, 0
        planner = F.actor.params
        begun = follower._begun(planner, seen / jnp.array([1.0, 1.0, 8.0]), 1)
        memory = begun if p == 0 else planner.step(memory, past[p - 1])
        np.testing.assert_allclose(follower.out(env, F, obs), planner.head(memory), atol=1e-6)
        assert int(jnp.argmax(place)) == p
        np.testing.assert_allclose(where, seen)
        found = env.step(state, jnp.array([0.5 + p], F32), jax.random.key(p))
        assert float(found.info[6]) == float(p == 0)
        state, obs = found.state, found.obs


def test_a_look_at_every_step_is_the_inner_environment():
    env, inner = OpenLoop(Pendulum(), 1), Pendulum()
    (state, _), (other, _) = env.reset(jax.random.key(0)), inner.reset(jax.random.key(0))
    push, key = jnp.ones(1, F32), jax.random.key(1)
    found, same = env.step(state, push, key), inner.step(other, push, key)
    np.testing.assert_array_equal(found.obs[:3], same.obs)
    assert float(found.reward) == float(same.reward)
    with pytest.raises(InvalidProblem, match="bounded Box"):
        OpenLoop(Stakes(), 2)
    assert OpenLoop(Maze(), 2).info_names[-1] == "from_start"


@pytest.mark.slow
def test_score_of_a_constant_is_the_constant_and_an_agent_that_repeats_is_worse_the_less_it_looks():
    assert frequency_averaged_score([3.0, 3.0], 0.0, 4.0) == 0.75
    with pytest.raises(InvalidConfig, match="high is above low"):
        frequency_averaged_score([1.0], 1.0, 1.0)
    env, follower = Bounded(noise=0.0), SAC(width=8)
    F = follower.init(env, jax.random.key(0))
    found = returns_by_frequency(env, follower, F, (1, 2), episodes=2, steps=5)
    assert found.shape == (2,)
    assert np.isfinite(found).all()


# -- AILBoost ---------------------------------------------------------------------------------------------------------


def test_learners_weights_sum_to_one_and_fall_by_the_same_share():
    w = weights(8, 0.3)
    assert w.sum() == pytest.approx(1.0, abs=1e-12)
    np.testing.assert_allclose(w[1:-1] / w[2:], 0.7, rtol=1e-12)
    assert weights(5, 1.0).tolist() == [0, 0, 0, 0, 1]


def test_rows_are_drawn_by_their_learners_weights():
    """Two finished learners of 100 rows and 40 rows of the third: shares (1 - eta)^2, eta (1 - eta), eta."""
    held, draws = jnp.asarray(240), 20_000
    drawn = lambda eta: np.asarray(AILBoost(rows=100, eta=eta).ages(held, held, draws, jax.random.key(0)))  # noqa: E731
    ages = drawn(0.3)
    share = np.histogram(ages, [0, 40, 140, 240])[0] / draws
    np.testing.assert_allclose(share, [0.3, 0.21, 0.49], atol=0.02)
    assert drawn(1.0).max() < 40
    alike = np.histogram(drawn(0.0), [0, 40, 140, 240])[0] / draws
    np.testing.assert_allclose(alike, [1 / 6, 5 / 12, 5 / 12], atol=0.02)


def test_the_judge_is_least_at_the_log_ratio_and_the_ensemble_comes_to_the_expert():
    expert, own = jnp.array([0.5, 0.3, 0.2]), jnp.array([0.2, 0.2, 0.6])
    best = jnp.log(expert / own)
    np.testing.assert_allclose(jax.grad(divergence_loss)(best, expert, own), 0.0, atol=1e-6)
    # a table: each learner is the best answer to the judge, the ensemble takes it in with weight eta
    ensemble, kl = np.array([0.02, 0.02, 0.96]), lambda p: float(p @ np.log(p / expert))
    before = kl(ensemble)
    for _ in range(200):
        learner = np.eye(3)[int(np.argmax(np.log(np.asarray(expert) / ensemble)))]
        ensemble = 0.95 * ensemble + 0.05 * learner
    assert kl(ensemble) < 0.01 < before


def test_it_asks_for_demonstrations():
    with pytest.raises(InvalidConfig, match="shows no expert"):
        solvers.PartialSGD(follower=AILBoost()).on(PendulumShaping())


@pytest.mark.slow
def test_it_keeps_actors_and_weighs_them():
    problem = PendulumImitation()
    follower = AILBoost(width=8, kept=2, every=2, rows=8, episodes=1).prepared(problem)
    assert follower.shown.shape == (200, 4)
    env = problem.environment
    rows, r = rows_in(env, 8)
    F = updates(follower, env, follower.init(env, jax.random.key(0)), rows, r, 5)
    assert int(F.more.learners) == 2
    np.testing.assert_allclose(follower.ensemble_weights(F), weights(2, 0.05))
    last = follower.member(F, -1)
    assert float(jnp.abs(last.actor.params.weights[0] - F.actor.params.weights[0]).max()) > 0


# -- by name on problems ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chosen", ["stac", "symphony", "srl", "pmoe"])
def test_a_follower_is_chosen_by_name_and_a_step_keeps_its_state(chosen):
    problem = jax.tree.map(jnp.asarray, Steer())
    kinds = {"stac": STAC, "symphony": Symphony, "srl": SRL, "pmoe": PMOE}
    usual = Usual(chosen=chosen, **{chosen: kinds[chosen](width=8)})
    solver = solvers.Covariance(follower=usual, chains=4, batch=8, capacity=64, recent=8).on(problem)
    assert usual.on(problem.environment).name == chosen
    solver = jax.tree.map(lambda v: jnp.asarray(v, float), solver)
    state = jax.eval_shape(lambda key: solver.init(problem, problem.x0, key), jax.random.key(0))
    step = lambda s, key: solver.step(problem, s, jnp.array(0), noise.uniforms(solver.draws(problem), key))  # noqa: E731
    after = jax.eval_shape(step, state, jax.random.key(0))
    assert jax.tree.structure(state) == jax.tree.structure(after)
    for a, b in zip(jax.tree.leaves(state.follower), jax.tree.leaves(after.follower), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        assert a.dtype != jnp.float64


@pytest.mark.parametrize("kind", [TemperatureChoice, PessimismChoice], ids=lambda kind: kind.name)
def test_settings_of_a_learner_have_the_known_best_value(kind):
    problem = kind()
    grid = jnp.linspace(*(float(b[0]) for b in problem.box()), 4001)
    values = jax.vmap(lambda v: problem.truth(v[None], problem.temperature()))(grid)
    assert float(grid[jnp.argmin(values)]) == pytest.approx(problem.best(), abs=2e-3)
    # the truth is the mean of the leader's utility under the stated law of stakes
    x, e = jnp.array([problem.best() + 0.1]), problem.environment
    _, tau = problem.follower_at(x, STAC(), problem.temperature())
    m = e.gain / e.drag if kind is TemperatureChoice else (e.gain - float(x[0]) * e.risk) / e.drag
    a = m + np.sqrt(float(tau) / e.drag) * np.polynomial.hermite_e.hermegauss(12)[0]
    w = np.polynomial.hermite_e.hermegauss(12)[1] / np.sqrt(2 * np.pi)
    zero = jnp.zeros(1)
    u = [float(problem.utility(x, Transition(zero, jnp.array([v]), zero, zero[0], zero[:0], zero[0] > 0))) for v in a]
    assert float(problem.truth(x, problem.temperature())) == pytest.approx(-w @ np.array(u), abs=1e-5)


def test_pessimism_needs_a_follower_that_has_it_and_a_solver_that_asks_for_outcomes():
    with pytest.raises(InvalidProblem, match=r"follower\.chosen stac"):
        check_fits(solvers.SPSA(), PessimismChoice())
    check_fits(solvers.SPSA(follower=Usual(chosen="stac")), PessimismChoice())
    with pytest.raises(InvalidProblem, match="settings are x"):
        check_fits(solvers.Covariance(follower=Usual(chosen="stac")), PessimismChoice())
