"""Flows and denoising against laws whose velocity, score and density are known: Gaussians, on both paths."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel_rl.control import Box, Discrete, nets
from bilevel_rl.control.policies import Diffusion, Flow, diffusion, flow
from bilevel_rl.errors import InvalidConfig, InvalidProblem

MEAN, STD = np.array([0.7, -0.3]), np.array([0.5, 2.0])
NO_OBS = jnp.zeros(0)
PATHS = (diffusion.Straight(), diffusion.VariancePreserving())


def moments(path, t):
    """Mean and variance of noised N(MEAN, STD^2)."""
    return path.alpha(t) * MEAN, (path.alpha(t) * STD) ** 2 + path.sigma(t) ** 2


def score(path, x, t):
    mean, variance = moments(path, t)
    return -(x - mean) / variance


def straight(x, t, obs):
    """The velocity that matching learns on N(MEAN, STD^2): E[a - eps | x]."""
    mean, variance = moments(PATHS[0], t)
    return MEAN + (t * STD**2 - (1 - t)) / variance * (x - mean)


def normal(x):
    return -0.5 * np.sum(((x - MEAN) / STD) ** 2 + np.log(2 * np.pi * STD**2))


def test_the_flow_of_a_gaussian_stretches_its_noise_and_knows_its_density():
    noise = jnp.array([1.3, -0.4])
    end = flow.integrate(straight, noise, NO_OBS, 200, "rk4")
    assert np.allclose(end, MEAN + STD * noise, atol=1e-8)
    assert float(flow.log_density(straight, end, NO_OBS, 200)) == pytest.approx(normal(np.asarray(end)), abs=1e-8)


@pytest.mark.parametrize(("rule", "order"), [("euler", 1), ("midpoint", 2), ("rk4", 4)])
def test_rules_have_their_order(rule, order):
    noise, exact = jnp.array([1.3, -0.4]), MEAN + STD * np.array([1.3, -0.4])
    errors = [np.abs(flow.integrate(straight, noise, NO_OBS, n, rule) - exact).max() for n in (80, 160)]
    assert np.log2(errors[0] / errors[1]) > order - 0.25  # the midpoint's leading error cancels on a Gaussian: 3


def test_straight_paths_are_followed_exactly_in_one_step():
    target = jnp.array([2.0, -1.0])
    to_it = lambda a, t, obs: (target - a) / (1 - t)  # noqa: E731
    assert np.allclose(flow.integrate(to_it, jnp.array([5.0, 5.0]), NO_OBS, 1), target, atol=1e-14)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: type(path).__name__)
def test_score_noise_and_velocity_are_one_function(path):
    x, t = jnp.array([0.4, 1.1]), jnp.array(0.6)
    s = score(path, x, t)
    v = diffusion.velocity_of_score(path, s, x, t)
    assert np.allclose(diffusion.score_of_velocity(path, v, x, t), s, atol=1e-10)
    assert np.allclose(diffusion.score_of_noise(path, -path.sigma(t) * s, t), s, atol=1e-12)
    if isinstance(path, diffusion.Straight):
        assert np.allclose(v, straight(x, t, NO_OBS), atol=1e-10)
    # the law that the velocity moves: d/dt of mean and variance are those of the path
    mean, variance = (jax.jvp(lambda t, i=i: moments(path, t)[i], (t,), (jnp.ones(()),)) for i in (0, 1))
    slope = jax.jacfwd(lambda x: diffusion.velocity_of_score(path, score(path, x, t), x, t))(x)
    at_mean = diffusion.velocity_of_score(path, score(path, mean[0], t), mean[0], t)
    assert np.allclose(at_mean, mean[1], atol=1e-10)
    assert np.allclose(2 * jnp.diagonal(slope) * variance[0], variance[1], atol=1e-10)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: type(path).__name__)
def test_every_stochastic_way_has_the_laws_of_the_flow(path):
    """d variance/dt = 2 slope variance + g^2, with the slope of the drift: the noise put in is what the score takes out."""
    t = jnp.array(0.45)
    variance, rate = jax.jvp(lambda t: moments(path, t)[1], (t,), (jnp.ones(()),))
    slope = jnp.diagonal(jax.jacfwd(lambda x: diffusion.drift(path, score(path, x, t), x, t))(jnp.zeros(2)))
    assert np.allclose(2 * slope * variance + path.diffusion(t) ** 2, rate, atol=1e-10)


def test_denoising_draws_from_the_law_whose_noise_it_knows():
    law = Diffusion(Box.everywhere(2), steps=200)
    net = lambda x, t, obs: (-law.path.sigma(t) * score(law.path, x, t)).astype(x.dtype)  # noqa: E731
    n = 4000
    keys = jax.random.split(jax.random.key(0), n)
    drawn = np.asarray(jax.jit(jax.vmap(lambda k: law.sample(net, NO_OBS, k)))(keys))
    assert np.all(np.abs(drawn.mean(0) - MEAN) < 4.5 * STD / np.sqrt(n) + 0.01)
    assert np.all(np.abs(drawn.std(0) / STD - 1) < 4.5 / np.sqrt(2 * n) + 0.02)
    a = jnp.asarray(MEAN + 0.5 * STD)
    assert float(law.log_prob(net, NO_OBS, a, steps=400)) == pytest.approx(normal(np.asarray(a)), abs=2e-2)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: type(path).__name__)
def test_long_steps_are_exact_where_the_action_is_known(path):
    """One action alone: the noise in x is known, and x' has the law of noised actions at the later time."""
    action, t, ahead = jnp.array([0.3, -2.0]), jnp.array(0.3), jnp.array(0.8)
    eps, z = jnp.array([0.7, 1.1]), jnp.array([-1.0, 0.4])
    x = path.noised(action, eps, t)
    assert np.allclose(diffusion.denoised(path, eps, x, t, ahead, 0.0, z), path.noised(action, eps, ahead), atol=1e-10)
    s = diffusion.ancestral(path, t, ahead)
    found = diffusion.denoised(path, eps, x, t, ahead, s, z)
    rest = jnp.sqrt(path.sigma(ahead) ** 2 - s**2)
    assert np.allclose(found, path.alpha(ahead) * action + rest * eps + s * z, atol=1e-10)


def test_a_step_of_a_stochastic_way_has_a_gaussian_density():
    grid = np.linspace(-8, 8, 4001)
    p = np.exp(jax.vmap(lambda y: diffusion.step_log_prob(jnp.array([0.3]), y[None], jnp.array([2.0]), 0.8, 0.25))(grid))
    assert np.trapezoid(p, grid) == pytest.approx(1, abs=1e-6)
    assert np.trapezoid(p * grid, grid) == pytest.approx(0.3 + 0.25 * 2.0, abs=1e-6)
    assert np.trapezoid(p * (grid - 0.8) ** 2, grid) == pytest.approx(0.25 * 0.8**2, abs=1e-6)


def test_the_matching_loss_is_least_at_the_conditional_mean():
    """Its gradient along any other direction is 0 there, within its own scatter."""
    keys = jax.random.split(jax.random.key(1), 400)
    targets = lambda k: MEAN + STD * jax.random.normal(k, (64, 2))  # noqa: E731
    bent = lambda c: lambda x, t, obs: straight(x, t, obs) + c[0] + c[1] * x * t  # noqa: E731

    def slope(key):
        k_target, k_loss = jax.random.split(key)
        loss = lambda c: flow.matching_loss(bent(c), targets(k_target), jnp.zeros((64, 0)), k_loss)  # noqa: E731
        return jax.grad(loss)(jnp.zeros(2))

    slopes = np.asarray(jax.jit(jax.vmap(slope))(keys))
    assert np.all(np.abs(slopes.mean(0)) < 4.5 * slopes.std(0) / 20)
    assert np.all(slopes.std(0) > 0)


@pytest.mark.parametrize("kind", [Flow, pytest.param(Diffusion, marks=pytest.mark.slow)])
def test_a_network_learns_two_actions_at_once_from_what_is_seen(kind):
    """In state s the data say -.6 or .6 + .2 s, which no Gaussian can hold. The density says the same as the samples."""
    law = kind(Box((-2.0,), (2.0,)), steps=16)
    net = nets.Trained.begin(law.network(1, 48, jax.random.key(0)))

    def fit(net, key):
        k_obs, k_side, k_noise, k_loss = jax.random.split(key, 4)
        obs = jax.random.uniform(k_obs, (128, 1), jnp.float32, -1, 1)
        side = jax.random.bernoulli(k_side, 0.5, (128, 1)).astype(jnp.float32)
        action = 2 * (1.2 * side - 0.6 + 0.2 * obs * side) + 0.1 * jax.random.normal(k_noise, (128, 1), jnp.float32)
        slope = jax.grad(lambda v: law.loss(v, obs, action, k_loss))(net.params)
        return net.descend(slope, 3e-3), None

    net, _ = jax.jit(lambda net: jax.lax.scan(fit, net, jax.random.split(jax.random.key(1), 1000)))(net)
    keys = jax.random.split(jax.random.key(2), 2000)
    for s in (-1.0, 1.0):
        obs = jnp.array([s], jnp.float32)
        drawn = np.asarray(jax.jit(jax.vmap(lambda k, obs=obs: law.sample(net.params, obs, k)))(keys))[:, 0] / 2
        assert abs(np.mean(drawn > 0) - 0.5) < 0.12
        assert np.median(drawn[drawn > 0]) == pytest.approx(0.6 + 0.2 * s, abs=0.06)
        assert np.median(drawn[drawn < 0]) == pytest.approx(-0.6, abs=0.06)
        grid = jnp.linspace(-1, 1, 201, dtype=jnp.float32)
        density = np.exp(jax.jit(jax.vmap(lambda a, obs=obs: law.log_prob(net.params, obs, 2 * a[None], 32)))(grid))
        assert np.trapezoid(density, grid) == pytest.approx(1, abs=0.05)
        assert np.trapezoid(density * (grid > 0), grid) == pytest.approx(np.mean(drawn > 0), abs=0.08)


@pytest.mark.parametrize(
    "law", [Flow(Box((-2.0, 0.0), (2.0, 1.0))), Flow(Box.everywhere(2)), Diffusion(Box((-1.0,), (3.0,)))]
)
def test_actions_keep_to_their_box_and_come_back_from_their_code(law):
    net, obs = law.network(3, 8, jax.random.key(0), last=20.0), jnp.ones(3, jnp.float32)
    for action in (law.sample(net, obs, jax.random.key(1)), law.mode(net, obs)):
        assert action.shape == (law.size,)
        assert action.dtype == jnp.float32
        assert np.all((action >= np.array(law.space.low) - 1e-6) & (action <= np.array(law.space.high) + 1e-6))
        assert np.allclose(law.decoded(law.encoded(action)), action, atol=1e-6)
    assert np.allclose(law.mode(net, obs), law.mode(net, obs))


def test_chunks_are_actions_in_a_row():
    space = flow.chunked(Box((-1.0, 0.0), (1.0, 4.0)), 3)
    assert space.size == 6
    assert Flow(space).decoded(jnp.array([0.0, 0.0, 2.0, 1.0, -1.0, -1.0])).tolist() == [0, 2, 1, 4, -1, 0]


def test_flow_policies_that_are_not_allowed_are_named():
    with pytest.raises(InvalidProblem, match="must be a Box"):
        Flow(Discrete(3))
    with pytest.raises(InvalidConfig, match="at least 1 step"):
        Diffusion(Box((-1.0,), (1.0,)), steps=0)
    with pytest.raises(InvalidConfig, match="euler, midpoint, rk4"):
        Flow(Box((-1.0,), (1.0,)), rule="heun")
    with pytest.raises(InvalidConfig, match="at least 1 action"):
        flow.chunked(Box((-1.0,), (1.0,)), 0)
    with pytest.raises(InvalidConfig, match="0 < low"):
        diffusion.VariancePreserving(low=2.0, high=1.0)
