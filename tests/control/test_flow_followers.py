"""Followers that flow: soft optima of any shape, reductions of their losses, and what a pull to a reference bounds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel_rl.control import Box, nets, replay
from bilevel_rl.control.environments import Bounded
from bilevel_rl.control.followers import CTRL, ACFlow
from bilevel_rl.control.followers.ac_flow import critic_weights, weighted_matching
from bilevel_rl.control.policies import diffusion, flow, guidance, latent
from bilevel_rl.control.policies.transport import wasserstein_bound
from bilevel_rl.control.problem import Transition
from bilevel_rl.errors import InvalidConfig

F32 = jnp.float32
LINE = Bounded(size=1)
NO_OBS = jnp.zeros(0)
GRID = np.linspace(-1, 1, 2001)


def two_hills(a):
    """Worth of an action in [-1, 1]: the right hill is higher, and no Gaussian has both."""
    return 0.3 * jnp.exp(-((a - 0.6) ** 2) / 0.02) + 0.2 * jnp.exp(-((a + 0.5) ** 2) / 0.02)


def boltzmann(tau):
    p = np.exp(np.asarray(two_hills(GRID)) / tau)
    return p / p.sum()


def trained(follower, tau, steps, batch=128, env=LINE, worth=lambda a: two_hills(a[:, 0])):
    """A follower of one decision, whose actions are drawn anew for every update."""

    def step(F, key):
        k_rows, k_learn = jax.random.split(key)
        action = jax.random.uniform(k_rows, (batch, env.size), F32, -1, 1)
        zeros, never = jnp.zeros((batch, env.size), F32), jnp.zeros(batch, bool)
        t = Transition(zeros, action, zeros, zeros[:, 0], jnp.zeros((batch, 0), F32), jnp.ones(batch, bool))
        rows = replay.Rows(t, jnp.zeros((batch, 0), F32), never, never)
        return follower.update(env, F, rows, worth(action), F32(0.9), F32(tau), k_learn), None

    F = follower.init(env, jax.random.key(1))
    return jax.jit(lambda F: jax.lax.scan(step, F, jax.random.split(jax.random.key(2), steps))[0])(F)


@pytest.mark.parametrize(
    "follower", [ACFlow(width=8, candidates=4), CTRL(width=8, steps=2)], ids=lambda follower: follower.name
)
def test_an_update_keeps_what_it_learns_and_draws_actions(follower):
    """By tracing alone: shapes and widths."""
    key = jax.random.key(0)
    before = jax.eval_shape(lambda: follower.init(LINE, key))
    after = jax.eval_shape(lambda: trained(follower, 0.15, 2, 8))
    assert jax.tree.structure(before) == jax.tree.structure(after)
    for one, other in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        assert one.dtype != jnp.float64
    act = lambda: follower.act(LINE, follower.init(LINE, key), jnp.zeros(1, F32), key)  # noqa: E731
    assert jax.eval_shape(act).shape == (1,)


@pytest.mark.slow
@pytest.mark.parametrize(
    "follower",
    [ACFlow(width=32, rate=3e-3, candidates=8), CTRL(width=32, rate=3e-3, steps=4)],
    ids=lambda follower: follower.name,
)
def test_it_finds_the_boltzmann_law_of_one_decision_with_both_its_hills(follower):
    tau, exact = 0.15, boltzmann(0.15)
    F = trained(follower, tau, 1000, 64)
    act = jax.jit(jax.vmap(lambda k: follower.act(LINE, F, jnp.zeros(1, F32), k)))
    drawn = np.asarray(act(jax.random.split(jax.random.key(3), 4000)))[:, 0]
    assert np.all(np.abs(drawn) <= 1)
    assert np.mean(drawn > 0.05) == pytest.approx(exact[GRID > 0.05].sum(), abs=0.08)
    expected = np.interp(np.linspace(0.05, 0.95, 19), np.cumsum(exact), GRID)
    found = np.quantile(drawn, np.linspace(0.05, 0.95, 19))
    # the uniform law, from which both begin, is .14 away
    assert np.abs(found - expected).mean() < 0.09
    assert np.abs(np.linspace(-0.9, 0.9, 19) - expected).mean() > 0.13
    branch = follower.drawn(LINE, F, jnp.zeros((3, 1), F32), 5, jax.random.key(4))
    assert branch.shape == (3, 5, 1)
    assert follower.mode(LINE, F, jnp.zeros(1, F32)).shape == (1,)


# -- AC-Flow ----------------------------------------------------------------------------------------------------------


def points(seed=0, n=64, m=2):
    keys = jax.random.split(jax.random.key(seed), 3)
    return [jax.random.normal(k, (n, m)) for k in keys]


def test_without_weights_and_pull_its_loss_is_pre_trainings():
    v, target, ref = points()
    loss = weighted_matching(v, target, critic_weights(jnp.zeros(64), 6.0), ref, 0.0)
    assert float(loss) == pytest.approx(float(jnp.mean(jnp.sum((v - target) ** 2, -1))), abs=1e-12)


def test_its_least_velocity_is_the_weighted_mean_and_the_references_under_a_strong_pull():
    _, target, ref = points()
    w = critic_weights(jax.random.normal(jax.random.key(9), (64,)), 6.0)
    for regular in (0.0, 0.7, 1e12):
        loss = lambda c, r=regular: weighted_matching(jnp.broadcast_to(c, (64, 2)), target, w, ref, r)  # noqa: E731
        found = -jax.grad(loss)(jnp.zeros(2)) / jax.hessian(lambda c, loss=loss: loss(c))(jnp.zeros(2))[0, 0]
        expected = (w @ target + regular * ref.sum(0)) / (w.sum() + 64 * regular)
        assert np.allclose(found, expected, atol=1e-9)
    assert np.allclose(found, ref.mean(0), atol=1e-9)


def test_what_is_taken_from_advantages_on_the_way_changes_no_minimiser():
    """Weights times any positive function of (z_t, t): the conditional weighted mean, on a joint law of few points."""
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(12)).reshape(3, 4)  # z_t by end
    velocity, Q = rng.standard_normal((3, 4)), rng.standard_normal(4)
    C = rng.standard_normal((3, 1))
    means = [(p * w * velocity).sum(1) / (p * w).sum(1) for w in (np.exp(Q), np.exp(Q - C))]
    assert np.abs(means[0] - means[1]).max() < 1e-12


def gaussian(mean, std):
    """The velocity of matching on N(mean, std^2)."""

    def v(z, t, obs):
        variance = (t * std) ** 2 + (1 - t) ** 2
        return mean + (t * std**2 - (1 - t)) / variance * (z - t * mean)

    return v


@pytest.mark.slow
@pytest.mark.parametrize(("mean", "std"), [
    *(pytest.param(*pair, marks=pytest.mark.slow) for pair in ((0.5, 1.0), (0.0, 0.6))), (-0.4, 1.5),
])  # fmt: skip
def test_the_wasserstein_distance_of_two_gaussians_is_within_its_bound(mean, std):
    """W2^2 = difference of means squared plus that of deviations squared; u = the flow of N(0, 1)."""
    noise = jax.random.normal(jax.random.key(0), (4000, 1))
    u, v = gaussian(0.0, 1.0), gaussian(mean, std)
    slope = lambda t: jnp.abs((2 * t - 1) / (t**2 + (1 - t) ** 2))  # noqa: E731
    bound = float(wasserstein_bound(v, u, noise, NO_OBS, slope))
    exact = np.hypot(mean, std - 1)
    assert exact < bound < 4 * exact
    worst = float(wasserstein_bound(v, u, noise, NO_OBS, 1.0))  # its largest slope throughout: a looser bound
    assert bound < worst


def test_the_bound_is_the_distance_where_flows_differ_by_a_shift():
    noise = jax.random.normal(jax.random.key(0), (10, 2))
    shift = jnp.array([0.3, -0.4])
    still = lambda z, t, obs: jnp.zeros_like(z)  # noqa: E731
    assert float(wasserstein_bound(lambda z, t, obs: shift, still, noise, NO_OBS, 0.0)) == pytest.approx(0.5, abs=1e-10)


@pytest.mark.slow
def test_a_pull_keeps_variance_that_the_critic_would_take():
    """On the plane, one high hill: without the pull the law gathers there; with it some of the broad law stays."""
    plane, top, obs = Bounded(size=2), jnp.array([0.6, -0.4]), jnp.zeros(2, F32)
    worth = lambda a: 0.3 * jnp.exp(-jnp.sum((a - top) ** 2, -1) / 0.1)  # noqa: E731
    broad = float(jnp.mean(worth(jax.random.uniform(jax.random.key(5), (4000, 2), minval=-1, maxval=1))))
    spreads = []
    for regular in (0.0, 3.0):
        follower = ACFlow(width=32, rate=3e-3, regular=regular)
        F = trained(follower, 0.05, 800, env=plane, worth=worth)
        act = jax.jit(jax.vmap(lambda k, f=follower, F=F: f.act(plane, F, obs, k)))
        drawn = np.asarray(act(jax.random.split(jax.random.key(3), 2000)))
        assert float(jnp.mean(worth(drawn))) > broad + 0.01
        spreads.append(drawn.std(0).sum())
    assert spreads[1] > spreads[0] + 0.1


def test_the_broad_flow_is_uniform_on_the_box():
    space = Box((-2.0,), (4.0,))
    z = jax.random.normal(jax.random.key(0), (4000, 1), F32)
    actions = np.sort(np.asarray(latent.act(space, z))[:, 0])
    assert np.abs(actions - np.linspace(-2, 4, 4000)).max() < 0.2
    inside = latent.act(space, 0.5 * z)
    assert np.allclose(latent.act(space, latent.back(space, inside)), inside, atol=1e-3)
    ends = jax.vmap(lambda z: flow.integrate(latent.still, z, NO_OBS, 100, "rk4"))(z[:20].astype(float))
    assert np.allclose(ends, z[:20], atol=1e-6)  # matching on N(0, I) carries every noise to itself


# -- conditional control ------------------------------------------------------------------------------------------------


def test_the_divergence_of_a_pushed_chain_is_half_the_sum_of_squared_controls():
    """Step by step, KL of N(mean + std c, std^2) from N(mean, std^2); with controls times sqrt(h), Girsanov's integral."""
    chain = guidance.Broad(5)
    control = lambda z, t, obs: jnp.sin(z + t)  # noqa: E731
    path = chain.pushed(control, jnp.array([0.3, -1.0]), NO_OBS, jax.random.key(0))
    total = 0.0
    for k in range(5):
        mean, std = chain.kernel(path.way[k], jnp.array(k), NO_OBS)
        moved = mean + std * control(path.way[k], k / 5, NO_OBS)
        total += float(jnp.sum((moved - mean) ** 2) / (2 * std**2))
    assert float(path.cost) == pytest.approx(total, abs=1e-10)
    assert float(chain.pushed(guidance.zero, path.way[0], NO_OBS, jax.random.key(0)).cost) == 0


def test_without_strength_the_chain_is_its_own_optimum():
    chain = guidance.Broad(4)
    pushed = lambda c: lambda z, t, obs: c[0] + c[1] * z  # noqa: E731
    loss = lambda c, key: guidance.shortfall(  # noqa: E731
        chain, pushed(c), lambda end, obs: -jnp.sum(end**2), 0.0, jnp.ones(1), NO_OBS, key
    )
    slopes = jax.vmap(lambda key: jax.grad(loss)(jnp.zeros(2), key))(jax.random.split(jax.random.key(0), 8))
    assert np.abs(slopes).max() == 0


def test_a_linear_likelihood_shifts_the_mean_of_a_gaussian_by_gamma_a_times_its_variance():
    """N(0, 1) and log p(y|z) = a z: constant controls are optimal, and E[z_K] = gamma a (1 - what z_0 keeps)."""
    chain, a, strength = guidance.Broad(6), 0.8, 1.5
    kappas = [float(chain.kernel(jnp.ones(1), jnp.array(k), NO_OBS)[0][0]) for k in range(6)]
    # backwards, the derivative of log p in z_k is gamma a times the kappas ahead; the control is std times it
    controls, ahead = [0.0] * 6, 1.0
    for k in reversed(range(6)):
        controls[k] = strength * a * ahead * (1 - kappas[k] ** 2) ** 0.5
        ahead *= kappas[k]
    table = jnp.array(controls)
    control = lambda z, t, obs: jnp.full_like(z, table[jnp.round(t * 6).astype(int)])  # noqa: E731
    starts = jax.random.normal(jax.random.key(0), (4000, 1))
    ends = jax.vmap(lambda s, k: chain.pushed(control, s, NO_OBS, k).end)(starts, jax.random.split(jax.random.key(1), 4000))
    assert float(ends.mean()) == pytest.approx(strength * a * (1 - ahead**2), abs=4.5 / 4000**0.5)
    assert ahead < 0.01
    # and no other constants do better: the exact derivative of the loss in them is 0 there
    def loss(c):
        push = lambda z, t, obs: jnp.full_like(z, c[jnp.round(t * 6).astype(int)])  # noqa: E731
        mean = chain.pushed(push, jnp.zeros(1), NO_OBS, jax.random.key(5))  # the derivative sees no noise: all is linear
        return mean.cost - strength * a * mean.end[0]

    assert np.abs(jax.grad(loss)(table)).max() < 1e-10


MEANS, STD, Y, NOISE, STRENGTH = np.array([-1.0, 1.0]), 0.3, 0.5, 0.8, 1.5
VP = diffusion.VariancePreserving()


def posterior():
    """.5 N(-1, .3^2) + .5 N(1, .3^2) times N(y = .5; z, .8^2)^gamma: weights, means and deviation, in closed form."""
    precision = 1 / STD**2 + STRENGTH / NOISE**2
    evidence = np.exp(-STRENGTH * 0.5 * (MEANS - Y) ** 2 / (NOISE**2 + STRENGTH * STD**2))
    return evidence / evidence.sum(), (MEANS / STD**2 + STRENGTH * Y / NOISE**2) / precision, precision**-0.5


def known(x, t):
    """Of a noised point: log weights of both components, means and variance of the clean one under each."""
    alpha, sigma = VP.alpha(t), VP.sigma(t)
    variance = (alpha * STD) ** 2 + sigma**2
    logs = -((x[0] - alpha * MEANS) ** 2) / (2 * variance)
    return logs, MEANS + alpha * STD**2 / variance * (x[0] - alpha * MEANS), STD**2 * sigma**2 / variance


def mean_noise(x, t, obs):
    logs, means, _ = known(x, t)
    return ((x[0] - VP.alpha(t) * (jax.nn.softmax(logs) @ means)) / VP.sigma(t))[None].astype(x.dtype)


def drawn_by(chain, control, n=4000):
    starts, keys = jax.random.normal(jax.random.key(2), (n, 1), F32), jax.random.split(jax.random.key(3), n)
    return np.asarray(jax.jit(jax.vmap(lambda s, k: chain.pushed(control, s, jnp.zeros(0, F32), k).end))(starts, keys))[:, 0]


def test_the_best_push_draws_from_the_exact_posterior_of_a_mixture():
    """c = std times the derivative of log E[p(y|end)^gamma | z], known for mixtures (Doob); without a push, the prior."""
    chain = guidance.Denoising(mean_noise, steps=100)

    def log_h(x, t):
        logs, means, variance = known(x, t)
        spread = NOISE**2 / STRENGTH + variance
        return jax.nn.logsumexp(jax.nn.log_softmax(logs) - (Y - means) ** 2 / (2 * spread) - 0.5 * jnp.log(spread))

    def best(z, t, obs):
        return (diffusion.ancestral(VP, t, t + 0.01) * jax.grad(log_h)(z, t)).astype(z.dtype)

    weights, means, std = posterior()
    prior, drawn = drawn_by(chain, guidance.zero), drawn_by(chain, best)
    assert np.mean(prior > 0) == pytest.approx(0.5, abs=0.04)
    assert np.mean(drawn > 0) == pytest.approx(weights[1], abs=0.03)
    assert drawn[drawn > 0].mean() == pytest.approx(means[1], abs=0.03)
    assert drawn[drawn > 0].std() == pytest.approx(std, abs=0.03)
    assert weights[1] > 0.85


@pytest.mark.slow
def test_a_learnt_push_comes_near_the_posterior():
    chain = guidance.Denoising(mean_noise, steps=16)
    log_p = lambda end, obs: -0.5 * (end[0] - Y) ** 2 / NOISE**2  # noqa: E731
    net = nets.Trained.begin(flow.Velocity.make(1, 0, 32, jax.random.key(0), last=0.01))

    def step(net, drawn):
        key, rate = drawn
        k_start, k_way = jax.random.split(key)
        starts = jax.random.normal(k_start, (128, 1), F32)

        def loss(v):
            each = lambda s, k: guidance.shortfall(chain, v, log_p, STRENGTH, s, jnp.zeros(0, F32), k)  # noqa: E731
            return jnp.mean(jax.vmap(each)(starts, jax.random.split(k_way, 128)))

        return net.descend(jax.grad(loss)(net.params), rate), None

    rates = jnp.linspace(5e-3, 2e-4, 500, dtype=F32)
    net, _ = jax.jit(lambda n: jax.lax.scan(step, n, (jax.random.split(jax.random.key(1), 500), rates)))(net)
    (_, weight), means, std = posterior()
    drawn = drawn_by(chain, net.params)
    assert np.mean(drawn > 0) == pytest.approx(weight, abs=0.09)  # .81 of .87 in 500 steps; .5 without a push
    assert drawn[drawn > 0].mean() == pytest.approx(means[1], abs=0.06)
    assert drawn[drawn > 0].std() == pytest.approx(std, abs=0.06)


def test_settings_that_are_not_allowed_are_named():
    for follower, words in (
        (ACFlow(candidates=1), "candidates"), (ACFlow(regular=-1.0), "regular"), (ACFlow(clip=0.0), "clip"),
        (CTRL(steps=0), "steps"), (ACFlow(warm_up=-1), "warm_up"),
    ):  # fmt: skip
        with pytest.raises(InvalidConfig, match=words):
            follower.check(LINE)
