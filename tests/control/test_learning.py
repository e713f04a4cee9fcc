"""Followers learn what they should, and estimators estimate it: against exact answers of worlds with one state."""

import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from worlds import ESTIMATORS, SMALL, Arms, Pay

from bilevel_rl.control import Box, evaluate, replay, walk
from bilevel_rl.control import estimators as E
from bilevel_rl.control.environments import LQG, Bounded
from bilevel_rl.control.estimators import Here, OneStep
from bilevel_rl.control.estimators.estimator import rewards
from bilevel_rl.control.estimators.heads import of_pairs
from bilevel_rl.control.estimators.means import Means
from bilevel_rl.control.followers import SAC, STAC, SoftQ, Usual
from bilevel_rl.control.problems import LQGShaping
from bilevel_rl.errors import InvalidConfig

F32 = jnp.float32


def here(problem, follower, tau):
    p = jax.tree.map(lambda v: jnp.asarray(v, F32), problem)
    gamma = jnp.asarray(p.discount_lower(), F32)
    return Here(p, p.environment, follower, jnp.asarray(p.x0, F32), jnp.asarray(tau, F32), F32(1), gamma, gamma, 1 - gamma)


def learn(problem, follower, tau, steps, kinds=(), chains=8, average=200):
    """A follower and estimators beside it, from the newest steps alone; estimates are averaged over the last moves."""
    at = here(problem, follower, tau)
    layout = replay.Layout(at.problem)
    F = follower.init(at.environment, jax.random.key(0))
    made = [kind(width=16, rate=1e-2, **({"horizon": 1} if kind.name == "reinforce" else {})) for kind in kinds]
    Hs = [one.init(at, F, chains, jax.random.key(1)) for one in made]

    def step(carry, key):
        F, Hs, chains = carry
        k_walk, k_other, k_learn, k_estimate = jax.random.split(key, 4)
        act = lambda obs, key: follower.act(at.environment, F, obs, key)  # noqa: E731
        chains, seen = walk.step(at.environment, chains, act, k_walk, at.cut)
        rows = layout.unpack(layout.pack(seen))
        Hs = [one.walk(at, H, F, rows, (k_walk, k_other))[0] for one, H in zip(made, Hs, strict=True)]
        F = follower.update(at.environment, F, rows, rewards(at, rows), at.lower, at.tau, k_learn)
        Hs = [one.learn(at, H, F, rows, (k_learn, k_other)) for one, H in zip(made, Hs, strict=True)]
        found = [one.estimate(at, H, F, rows, k_estimate) for one, H in zip(made, Hs, strict=True)]
        return (F, [H for H, _ in found], chains), [direction.g for _, direction in found]

    first = F, Hs, walk.begin(at.environment, chains, jax.random.key(2))
    (F, _, _), gs = jax.jit(lambda first: jax.lax.scan(step, first, jax.random.split(jax.random.key(3), steps)))(first)
    return F, [np.asarray(g[-average:].mean(0)) for g in gs]


def test_soft_q_learns_the_boltzmann_policy_and_estimators_the_exact_hyper_gradient():
    problem, tau = Pay(), 0.2
    F, found = learn(problem, SoftQ(width=16, rate=1e-2), tau, 2500, ESTIMATORS, average=1500)
    pi = jax.nn.softmax(SoftQ().out(problem.environment, F, jnp.ones(1, F32)))
    np.testing.assert_allclose(pi, jax.nn.softmax(problem.x0 / tau), atol=0.02)
    exact = -jax.grad(lambda x: problem.truth(x, tau) - problem.cost(x))(problem.x0)
    for kind, g in zip(ESTIMATORS, found, strict=True):
        # 1,500 moves of 8 chains: the loosest of them scatters by a hundredth
        assert np.linalg.norm(g - exact) < 0.06 * np.linalg.norm(exact) + 0.03, (kind.name, g, exact)


def test_means_forget_the_beginning_and_leave_optimisers_alone():
    """The mean of 1, ..., t with weights of the third power is 4/5 t; later it lags by (1 - eta)/eta."""
    begun = SoftQ(width=4).init(Pay().environment, jax.random.key(0))

    def at(v):
        numbers = jax.tree.map(lambda p: jnp.full_like(p, v), begun.online.params)
        return eqx.tree_at(lambda F: F.online.params, begun, numbers)

    means = Means.begin(at(1e6), begun.target)

    @jax.jit
    def after(means, v):
        return means.after(at(v), begun.target, 0.1)

    far = {}
    for t in range(1, 201):
        means = after(means, F32(t))
        far[t] = float(means.acting(at(F32(0))).online.params["V"].biases[-1][0])
    assert far[1] == 1.0  # of what was there before the first update nothing is left
    assert far[30] == pytest.approx(0.8 * 30, rel=0.05)
    assert far[200] == pytest.approx(200 - 0.9 / 0.1, rel=1e-3)
    acting = means.acting(begun)
    assert jax.tree.structure(acting) == jax.tree.structure(begun)
    assert acting.online.memory is begun.online.memory
    with pytest.raises(InvalidConfig, match="memory: got -1"):
        E.Covariance(memory=-1.0).check(Pay())


def test_one_step_ahead_is_the_derivative_through_a_policy_gradient_step():
    """A step theta + alpha E[grad log pi (q . x)], differentiated in x by JAX, for a critic that is any network."""
    problem, follower, alpha = Pay(), SoftQ(width=4), 1e-3
    at, one = here(problem, follower, 0.2), OneStep(width=4)
    env, obs = at.environment, jnp.ones((1, 1), F32)
    F, H = follower.init(env, jax.random.key(0)), one.init(at, None, 1, jax.random.key(1))
    q = of_pairs(env, H.heads.online.params, obs, jnp.eye(3, dtype=F32)[None])[0]  # [3, 1 + d]
    theta = F.online.params["log_pi"]

    def outcome(x):
        def paid(net):
            weight = jax.nn.softmax(theta(obs)[0]) * (q[:, 1:] @ x)
            return jnp.sum(weight * jax.nn.log_softmax(net(obs)[0]))

        ahead = jax.tree.map(lambda a, b: a + alpha * b, theta, jax.grad(paid)(theta))
        return jax.nn.softmax(ahead(obs)[0]) @ q[:, 0]

    exact = jax.jit(jax.grad(outcome))(at.x)
    t = jax.tree.map(lambda v: jnp.zeros((1, *v.shape), v.dtype), jax.eval_shape(problem.example, jax.random.key(0)))
    rows = replay.Rows(eqx.tree_at(lambda v: v.obs, t, obs), t.info, *(jnp.zeros(1, bool),) * 2)
    found = jax.jit(lambda F: one.estimate(at, H, F, rows, jax.random.key(2))[1].g)(F)
    assert float(found @ exact / jnp.linalg.norm(exact)) > 0.999


def test_a_time_limit_is_no_end():
    """A reward of 1 a step for ever is worth 10 at gamma = .9, whatever cuts the episode; an end at 2 steps is not."""

    class Steady(Pay):
        def reward(self, x, features):
            return 1.0 + 0.0 * x[0]

    def value(environment):
        follower = SoftQ(width=16, rate=1e-2)
        F, _ = learn(Steady(environment=environment, gamma=0.9), follower, 1e-3, 600)
        return float(F.online.params["V"](jnp.ones(1, F32))[0])

    assert value(Arms(length=2)) == pytest.approx(10.0, rel=0.1)
    assert value(Arms(length=2, ends=True)) < 2.5


def rows_of(law, n):
    """Transitions of a world with one state and free actions, paid by hand."""
    from bilevel_rl.control.problem import Transition

    key = jax.random.key(0)
    action = jax.vmap(lambda k: law.sample(jnp.zeros(law.outputs, F32), k)[0])(jax.random.split(key, n))
    zeros, never = jnp.zeros((n, 2), F32), jnp.zeros(n, bool)
    t = Transition(zeros, action, zeros, jnp.zeros(n, F32), jnp.zeros((n, 0), F32), jnp.ones(n, bool))
    return replay.Rows(t, jnp.zeros((n, 0), F32), never, never)


class Wide(Bounded):
    """The bounded world with actions that are not."""

    @property
    def action(self):
        return Box.everywhere(2)


@pytest.mark.parametrize("critics", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_sac_finds_the_soft_optimum_of_one_decision(critics):
    """r = -(a - .3)^2 / 2 under tau: normal with mean .3 and variance tau, as long as that is well inside the box."""
    env, follower, tau = Wide(), SAC(width=32, rate=3e-3, critics=critics), 0.04
    rows = rows_of(follower.law(env), 256)
    r = -0.5 * jnp.sum((rows.t.action - 0.3) ** 2, 1)

    def step(F, key):
        return follower.update(env, F, rows, r, F32(0.9), F32(tau), key), None

    F = follower.init(env, jax.random.key(1))
    F, _ = jax.jit(lambda F: jax.lax.scan(step, F, jax.random.split(jax.random.key(2), 1500)))(F)
    out = follower.out(env, F, jnp.zeros(2, F32))
    drawn = jax.vmap(lambda k: follower.law(env).sample(out, k)[0])(jax.random.split(jax.random.key(3), 2000))
    np.testing.assert_allclose(drawn.mean(0), 0.3, atol=0.08)
    np.testing.assert_allclose(drawn.std(0), tau**0.5, rtol=0.35)


@pytest.mark.parametrize(("environment", "count"), [(Bounded(), 1), (LQG(size=4, actions=4), 2)])
def test_sac_has_a_second_critic_where_actions_have_many_coordinates(environment, count):
    F = SAC(width=8).init(environment, jax.random.key(0))
    assert F.critics.params.biases[0].shape == (count, 8)
    F = SAC(width=8, critics=1).init(environment, jax.random.key(0))
    assert F.critics.params.biases[0].shape == (1, 8)


def test_critics_in_units_of_ten_are_critics_of_a_tenth_of_reward_and_temperature():
    """Adam knows no scale: r under tau in units of 10 is learnt as r / 10 under tau / 10 in units of 1."""
    env = Wide()
    one, ten = SAC(width=8, critics=2, unit=1.0), SAC(width=8, critics=2, unit=10.0)
    rows, F = rows_of(one.law(env), 16), one.init(env, jax.random.key(0))
    r = -0.5 * jnp.sum((rows.t.action - 0.3) ** 2, 1)

    @jax.jit
    def both(F):
        keys = jax.random.split(jax.random.key(1), 3)
        a, b = F, F
        for key in keys:
            a = one.update(env, a, rows, r / 10, F32(0.9), F32(0.01), key)
            b = ten.update(env, b, rows, r, F32(0.9), F32(0.1), key)
        return [(F.actor.params, F.critics.params, F.target) for F in (a, b)]

    for a, b in zip(*map(jax.tree.leaves, both(F)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_a_follower_that_plans_far_has_two_critics_in_units_of_its_horizon():
    far, near = (LQGShaping(gamma=gamma) for gamma in (0.98, 0.9))
    assert (SAC().prepared(near).critics, SAC().prepared(near).unit) == (0, 0)
    assert (SAC().prepared(far).critics, SAC().prepared(far).unit) == (2, pytest.approx(50))
    assert (SAC(critics=1, unit=3.0).prepared(far).critics, SAC(critics=1, unit=3.0).prepared(far).unit) == (1, 3)
    assert Usual().prepared(far).sac.unit == pytest.approx(50)
    # the first values are of the size of 1 in any unit
    F, G = (SAC(width=8, unit=unit).init(near.environment, jax.random.key(0)) for unit in (1.0, 50.0))
    np.testing.assert_allclose(F.critics.params.weights[-1], 50 * G.critics.params.weights[-1], rtol=1e-6)
    with pytest.raises(InvalidConfig, match="unit"):
        SAC(unit=-1.0).check(near.environment)
    with pytest.raises(InvalidConfig, match="unit"):
        STAC(unit=2.0).check(near.environment)


@pytest.mark.slow
def test_a_tuned_temperature_rises_while_the_entropy_is_below_its_aim():
    env, first = Bounded(), SAC(width=8, tuned=True)
    F, rows = first.init(env, jax.random.key(0)), rows_of(first.law(env), 16)

    @jax.jit
    def updated(entropy):
        follower = SAC(width=8, tuned=True, entropy=entropy)
        return follower.update(env, F, rows, jnp.zeros(16, F32), F32(0.9), F32(0.1), jax.random.key(1))

    for entropy, rises in ((5.0, True), (-20.0, False)):
        follower, after = first, updated(entropy)
        assert bool(after.log_tau.params > F.log_tau.params) is rises
        assert float(follower.temperature(after, 0.1)) == pytest.approx(float(jnp.exp(after.log_tau.params)))


def test_a_fresh_follower_scores_an_x_by_what_it_learns_under_it():
    """Paid for the last arm alone, it ends there: 5 steps of utility 1, and of reward 1, when greedy."""
    found = evaluate.fresh(
        Pay(), [0.0, 0.0, 1.0], follower=SoftQ(width=8, rate=1e-2), transitions=1600, seeds=2, episodes=3, steps=5, tau=0.1,
        **SMALL,
    )  # fmt: skip
    assert found.utility_greedy.tolist() == [5.0, 5.0]
    assert found.reward_greedy.tolist() == [5.0, 5.0]
    assert (found.utility <= 5.0).all()
    assert (found.steps, found.transitions) == (5, 1600)
    assert "medians of 2, sums over 5 steps" in str(found)
