"""Laws of actions: densities integrate to one, and say of a sample what drawing it said."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel_rl.control import Box, Discrete
from bilevel_rl.control.policies import Categorical, Cut, ExpertMixture, Gaussian, Squashed

LAWS = (
    Categorical(Discrete(4)), Gaussian(Box.everywhere(2)), Squashed(Box((-2.0, 1.0), (2.0, 5.0))),
    ExpertMixture(Box((-2.0, 1.0), (2.0, 5.0)), experts=3), ExpertMixture(Box.everywhere(2), experts=2),
)  # fmt: skip
INSIDE = jnp.array([0.1, -0.2, -0.8, -1.0], jnp.float32)  # a cut Gaussian's likelihood is that of draws that were not cut


@pytest.mark.parametrize("law", LAWS, ids=lambda law: f"{type(law).__name__}{getattr(law, 'experts', '')}")
def test_a_sample_has_the_log_probability_that_drawing_it_gave(law):
    out = 0.5 * jax.random.normal(jax.random.key(0), (law.outputs,), jnp.float32)
    action, said = law.sample(out, jax.random.key(1))
    assert float(law.log_prob(out, action)) == pytest.approx(float(said), abs=2e-4)
    assert said.dtype == jnp.float32


def test_a_cut_gaussian_is_one_inside_its_box_and_keeps_its_draws_there():
    law = Cut(Box((-2.0, 1.0), (2.0, 5.0)))
    keys = jax.random.split(jax.random.key(0), 4000)
    drawn, said = jax.vmap(lambda k: law.sample(INSIDE, k))(keys)
    inside = (drawn > jnp.array([-2.0, 1.0])).all(1) & (drawn < jnp.array([2.0, 5.0])).all(1)
    assert float(inside.mean()) > 0.9
    again = jax.vmap(lambda a: law.log_prob(INSIDE, a))(drawn)
    np.testing.assert_allclose(again[inside], said[inside], atol=2e-4)
    wide = jnp.array([0.1, -0.2, 2.0, 2.0], jnp.float32)
    drawn = jax.vmap(lambda k: law.sample(wide, k)[0])(keys)
    assert float(jnp.mean(drawn[:, 0] == 2.0)) > 0.1
    assert float(jnp.mean(drawn[:, 0] == -2.0)) > 0.1
    assert float(jnp.max(jnp.abs(law.encoded(drawn)))) == 1.0
    # symmetric around its mean where nothing is cut: no third moment, which the squashed law has
    narrow = jnp.array([0.0, -0.7, -0.7, -0.7], jnp.float32)
    u = np.asarray(jax.vmap(lambda k: law.encoded(law.sample(narrow, k)[0]))(keys), float)
    skewed = lambda v: float(((v - v.mean()) ** 3).mean() / v.std() ** 3)  # noqa: E731
    tanh = Squashed(law.space)
    other = np.asarray(jax.vmap(lambda k: tanh.encoded(tanh.sample(narrow, k)[0]))(keys), float)
    error = (6 / 4000) ** 0.5  # of a Gaussian's sample skewness
    assert abs(skewed(u[:, 1])) < 4.5 * error
    assert skewed(other[:, 1]) > 4.5 * error


@pytest.mark.parametrize("out", [[0.0, 0.0], [1.5, -0.5], [-0.3, 0.1]])
def test_squashed_densities_integrate_to_one_and_have_the_mass_of_their_samples(out):
    law, out = Squashed(Box((-3.0,), (1.0,))), jnp.array(out, jnp.float32)
    # in units of the half width, 2
    grid = np.linspace(-1, 1, 40_001)[1:-1].astype(np.float32)
    density = np.exp(jax.vmap(lambda u: law.log_prob(out, 2 * u - 1))(grid[:, None]))
    assert np.trapezoid(density, grid) == pytest.approx(1.0, abs=2e-3)
    drawn = jax.vmap(lambda k: law.sample(out, k)[0])(jax.random.split(jax.random.key(0), 4000))
    below = np.trapezoid(density[grid < 0.2], grid[grid < 0.2])
    share = float(np.mean((drawn + 1) / 2 < 0.2))
    assert abs(share - below) < 4.5 * np.sqrt(below * (1 - below) / 4000)


@pytest.mark.slow
def test_a_mixture_integrates_to_one_and_with_one_expert_is_its_law():
    law, out = ExpertMixture(Box((-1.0,), (1.0,)), experts=2), jnp.array([0.3, -0.2, 1.0, -0.3, -0.8, 0.1], jnp.float32)
    grid = np.linspace(-1, 1, 40_001)[1:-1].astype(np.float32)
    density = np.exp(jax.vmap(lambda u: law.log_prob(out, u))(grid[:, None]))
    assert np.trapezoid(density, grid) == pytest.approx(1.0, abs=2e-3)
    alone, one = Squashed(Box((-1.0,), (1.0,))), ExpertMixture(Box((-1.0,), (1.0,)), experts=1)
    (a, said), (b, same) = alone.sample(out[2:4], jax.random.key(3)), one.sample(out[1:4], jax.random.key(3))
    np.testing.assert_allclose([a[0], said], [b[0], same], rtol=1e-6)
    np.testing.assert_allclose(one.mode(out[1:4]), alone.mode(out[2:4]), rtol=1e-6)


def test_greedy_actions_are_the_middle_of_the_law_and_stay_in_the_box():
    law = Squashed(Box((-2.0,), (2.0,)))
    assert float(law.mode(jnp.array([0.0, 3.0]))[0]) == 0.0
    assert float(law.mode(jnp.array([50.0, 0.0]))[0]) == 2.0
    assert int(Categorical(Discrete(3)).mode(jnp.array([0.0, 2.0, 1.0]))) == 1
