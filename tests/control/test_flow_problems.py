"""Composition and guidance: identities of composed flows, and x as a weight or a strength on problems by name."""

from types import SimpleNamespace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel_rl.control import Box, estimators, nets, problems, solvers
from bilevel_rl.control.environments import Bounded
from bilevel_rl.control.estimators import Here, heads
from bilevel_rl.control.estimators.covariance import Carried
from bilevel_rl.control.followers import ACFlow, GivenFlow
from bilevel_rl.control.leader import Leader
from bilevel_rl.control.policies import Flow, composition, diffusion
from bilevel_rl.control.problem import ControlProblem
from bilevel_rl.errors import InvalidConfig, InvalidProblem
from bilevel_rl.loop import solve
from bilevel_rl.loop.solver import check_fits
from bilevel_rl.schedules import PowerDecay

NO_OBS = jnp.zeros(0)
PATH = diffusion.Straight()


def gaussian(mean, std):
    """The velocity of matching on N(mean, std^2), any leading axes."""

    def v(z, t, obs):
        t = t[..., None]
        variance = (t * std) ** 2 + (1 - t) ** 2
        return mean + (t * std**2 - (1 - t)) / variance * (z - t * mean)

    return v


@pytest.mark.slow
def test_blends_at_the_ends_are_the_parents_bit_for_bit():
    law = Flow(Box((-1.0,), (1.0,)))
    first, second = (law.network(2, 16, jax.random.key(i)) for i in (0, 1))
    obs, key = jnp.ones(2, jnp.float32), jax.random.key(5)
    for w, parent in ((1.0, first), (0.0, second)):
        blend = composition.Blend(first, second, w)
        assert law.sample(blend, obs, key).tolist() == law.sample(parent, obs, key).tolist()
    assert law.sample(composition.Blend(first, second, 0.5), obs, key).tolist() not in (
        law.sample(first, obs, key).tolist(), law.sample(second, obs, key).tolist(),
    )  # fmt: skip


def test_the_error_of_a_blend_is_a_convex_parabola_whose_least_point_beats_both_parents():
    """Parents that are off on either side of the truth, at points of N(.2, .5^2) on the way."""
    truth, one, two = gaussian(0.2, 0.5), gaussian(0.6, 0.5), gaussian(-0.5, 0.7)
    k_x, k_t = jax.random.split(jax.random.key(0))
    x, t = jax.random.normal(k_x, (400, 1)), jax.random.uniform(k_t, (400,))
    says = lambda v: v(x, t, NO_OBS)  # noqa: E731
    errors = composition.squared_error(says(one), says(two), says(truth))
    for w in (-0.5, 0.0, 0.3, 1.0, 1.7):
        direct = jnp.mean(jnp.sum((says(composition.Blend(one, two, w)) - says(truth)) ** 2, -1))
        assert float(errors(w)) == pytest.approx(float(direct), abs=1e-10)
    assert float(errors.curve) > 0
    assert 0 < float(errors.least) < 1
    assert float(errors(errors.least)) < min(float(errors(0.0)), float(errors(1.0)))


def test_both_is_the_product_of_gaussians_where_the_path_ends():
    """Scores at the end add up to the product's; N(.6, .5^2) times N(-.5, .7^2)."""
    parents, t, x = [gaussian(0.6, 0.5), gaussian(-0.5, 0.7)], jnp.array(1 - 1e-9), jnp.array([0.4])
    v = composition.both(PATH, parents)(x, t, NO_OBS)
    precision = 1 / 0.25 + 1 / 0.49
    centre = (0.6 / 0.25 - 0.5 / 0.49) / precision
    found = diffusion.score_of_velocity(PATH, v, x, t)
    assert float(found[0]) == pytest.approx(-precision * (0.4 - centre), rel=1e-5)


def test_either_is_the_mixtures_flow():
    """Velocities weighted by posterior shares: those of matching on .3 N(.6, .5^2) + .7 N(-.5, .7^2)."""
    laws, shares = [(0.6, 0.5), (-0.5, 0.7)], [0.3, 0.7]

    def log_density(mean, std):
        def log_p(x, t, obs):
            variance = (t * std) ** 2 + (1 - t) ** 2
            return -0.5 * (x[0] - t * mean) ** 2 / variance - 0.5 * jnp.log(variance)

        return log_p

    v = composition.either([gaussian(*law) for law in laws], [log_density(*law) for law in laws], shares)
    x, t = jnp.array([0.4]), jnp.array(0.7)
    score = jax.grad(
        lambda x: jax.nn.logsumexp(jnp.stack([log_density(*law)(x, t, NO_OBS) for law in laws]) + jnp.log(jnp.array(shares)))
    )(x)
    assert float(v(x, t, NO_OBS)[0]) == pytest.approx(float(diffusion.velocity_of_score(PATH, score, x, t)[0]), abs=1e-10)


def test_compositions_that_are_none_are_named():
    one = gaussian(0.0, 1.0)
    with pytest.raises(InvalidConfig, match="at least two"):
        composition.both(PATH, [one])
    with pytest.raises(InvalidConfig, match="sum to one"):
        composition.either([one, one], [one, one], [0.5, 0.7])


# -- x moves the policy -----------------------------------------------------------------------------------------------


class Line(Bounded):
    """Actions without bounds."""

    @property
    def action(self):
        return Box.everywhere(self.size)


class Lean(ControlProblem):
    """One decision: a ~ N(x / 4, 1/4), which is N(0, 1/4) tilted by x a. The leader wants a near .3."""

    x0: jax.Array = (0.0,)
    environment: Line = Line(size=1)
    tilts = True
    name = "lean"

    def discount_lower(self):
        return 0.0

    def temperature(self):
        return 1.0

    def follower_at(self, x, follower, tau):
        # the noise halved and shifted, exact in one step
        return GivenFlow(velocity=Shrink(x), steps=1), tau

    def features(self, t):
        return t.action

    def reward(self, x, features):
        return x[0] * features[0]

    def utility(self, x, t):
        return -((t.action[0] - 0.3) ** 2)


class Shrink(eqx.Module):
    x: jax.Array

    def __call__(self, a, t, obs):
        return self.x / 4 - a / 2


@pytest.mark.parametrize(
    ("kind", "w"), [(estimators.Covariance, 1.0), (estimators.TiltedActions, 0.02)], ids=lambda v: getattr(v, "name", "")
)
def test_estimators_of_a_tilt_are_the_derivative_of_the_mean_utility(kind, w, monkeypatch):
    """d/dx E[-(a - .3)^2] = (.3 - x/4) / 2 = .15 at 0; critics are told the truth, so that nothing but means scatters."""
    p = nets.narrow(jax.tree.map(jnp.asarray, Lean()))
    f32 = lambda v: jnp.asarray(v, jnp.float32)  # noqa: E731
    given = p.follower_at(f32(p.x0), None, None)[0]
    here = Here(p, p.environment, given, f32(p.x0), f32(1), f32(w), f32(0), f32(0), f32(1))
    told = lambda env, net, obs, actions: jnp.concatenate([-((actions - 0.3) ** 2), actions], -1)  # noqa: E731
    monkeypatch.setattr(heads, "of_pairs", told)
    one, n = kind(width=8, actions=64), 2000
    recent = SimpleNamespace(t=SimpleNamespace(obs=jnp.zeros((n, 1), jnp.float32)))
    H = Carried(heads.begin(here.environment, 2, 8, jax.random.key(0)))
    _, found = one.estimate(here, H, (), recent, jax.random.key(1))
    # the product of both deviations has a standard deviation of .35; the tilt at w = .02 is off by some hundredths
    assert float(found.g[0]) == pytest.approx(0.15, abs=4.5 * 0.35 / (64 * n) ** 0.5 + (0.01 if w < 1 else 0))
    assert found.pull.shape == (n, 64, 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", [solvers.TiltedPair, solvers.Covariance, solvers.Trajectory], ids=lambda kind: kind.name
)
def test_x_moves_a_given_policy_to_where_the_leader_wants_it(kind):
    """E a = x / 4 = .3 at the optimum."""
    solver = kind(
        estimator=type(kind().estimator)(width=16, actions=16, rate=1e-2), chains=16, batch=64, capacity=4096, recent=64,
        leader=Leader(zeta=PowerDecay(5.0, 0.5), hold=100.0, drift=0.0),
    )  # fmt: skip
    trace = solve(Lean(), solver, iterations=600, runs=2, record_every=600)
    assert np.abs(np.asarray(trace.x[:, -1, 0]) - 1.2).max() < 0.35


def test_pairs_that_would_have_to_learn_are_refused():
    for kind in (solvers.CoupledPair, solvers.PenaltyActorCritic, solvers.LIRPG):
        with pytest.raises(InvalidProblem, match="nothing learns here"):
            Lean().accept(kind())
    for kind in (solvers.TiltedPair, solvers.Covariance, solvers.SPSA):
        Lean().accept(kind())


def test_means_are_refused_where_the_newest_networks_are_what_counts():
    with pytest.raises(InvalidConfig, match=r"one_step.memory: got 1; this kind takes the newest networks"):
        estimators.OneStep(memory=1.0).check(Lean())


def test_steps_of_a_policy_without_a_likelihood_are_refused():
    with pytest.raises(InvalidConfig, match="ac_flow, which does not say how likely an action is"):
        check_fits(solvers.LIRPG(follower=ACFlow()), problems.BoundedShaping())
    check_fits(solvers.Covariance(follower=ACFlow()), problems.BoundedShaping())


@pytest.mark.slow
def test_pendulum_is_better_composed_and_guided_than_not():
    """Both problems by name: a blend beats both parents, and guidance the log."""
    from bilevel_rl.control import evaluate

    for kind, worse in ((problems.PendulumComposition, (0.0, 1.0)), (problems.PendulumGuidance, (0.0,))):
        problem = kind()
        problem.check()
        made, solver = jax.tree.map(jnp.asarray, problem), solvers.PartialSGD().on(problem)
        score = lambda x, p=made, s=solver: float(  # noqa: E731
            evaluate.episode_sums(p, s, jnp.array([x]), (), 32, 200, jax.random.key(0), greedy=False)[0]
        )
        middle = 0.5 if kind is problems.PendulumComposition else 3.0
        assert all(score(middle) > score(x) + 10 for x in worse)


def test_starts_outside_are_named():
    with pytest.raises(InvalidProblem, match="from 0 to 1"):
        problems.PendulumComposition(x0=(1.5,)).check(thorough=False)
    with pytest.raises(InvalidProblem, match="one number"):
        problems.PendulumGuidance(x0=(0.5, 0.5)).check(thorough=False)
