"""Laws of actions: densities integrate to one, and say of a sample what drawing it said."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel_rl.control import Box, Discrete
from bilevel_rl.control.policies import Categorical, Gaussian, Squashed

LAWS = (Categorical(Discrete(4)), Gaussian(Box.everywhere(2)), Squashed(Box((-2.0, 1.0), (2.0, 5.0))))


@pytest.mark.parametrize("law", LAWS, ids=lambda law: type(law).__name__)
def test_a_sample_has_the_log_probability_that_drawing_it_gave(law):
    out = 0.5 * jax.random.normal(jax.random.key(0), (law.outputs,), jnp.float32)
    action, said = law.sample(out, jax.random.key(1))
    assert float(law.log_prob(out, action)) == pytest.approx(float(said), abs=2e-4)
    assert said.dtype == jnp.float32


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


def test_greedy_actions_are_the_middle_of_the_law_and_stay_in_the_box():
    law = Squashed(Box((-2.0,), (2.0,)))
    assert float(law.mode(jnp.array([0.0, 3.0]))[0]) == 0.0
    assert float(law.mode(jnp.array([50.0, 0.0]))[0]) == 2.0
    assert int(Categorical(Discrete(3)).mode(jnp.array([0.0, 2.0, 1.0]))) == 1
