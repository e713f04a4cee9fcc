"""Two levels on stored data: what x does to the data, which solvers run where, and that mixtures leave what is harmful."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float

from bilevel_rl.control import Environment, nets
from bilevel_rl.control.offline import tabular
from bilevel_rl.control.offline.bank import Bank
from bilevel_rl.control.offline.learners import BC, IQL, TD3BC
from bilevel_rl.control.offline.two_levels import OfflineProblem
from bilevel_rl.control.problems import (
    PendulumMixture,
    PendulumOfflinePreferences,
    PendulumShaping,
)
from bilevel_rl.control.solvers import LIRPG, SPSA, Covariance, OfflineBC, OfflineIQL
from bilevel_rl.errors import InvalidConfig, InvalidProblem
from bilevel_rl.loop import noise, solve
from bilevel_rl.loop.solver import check_fits

SMALL = {"inner": 2, "batch": 8}


@pytest.fixture(scope="module")
def mixture():
    return PendulumMixture()


@pytest.fixture(scope="module")
def preferences():
    return PendulumOfflinePreferences()


banked = jax.jit(lambda problem, x: problem.bank_at(x))


def test_shares_weigh_each_sources_mean_loss(mixture):
    x = jnp.array([0.5, -1.0, 0.2])
    bank = banked(mixture, x.astype(jnp.float32))
    losses = np.random.default_rng(0).normal(size=bank.rows)
    source, weight = np.asarray(bank.source), np.asarray(bank.weight, float)
    means = [losses[source == i].mean() for i in range(3)]
    np.testing.assert_allclose((weight * losses).sum() / weight.sum(), jax.nn.softmax(x) @ np.array(means), rtol=1e-5)


def test_rewards_of_stored_rows_follow_x(preferences):
    x = jnp.array([1.0, 0.5, 0.0, -2.0], jnp.float32)
    bank = banked(nets.narrow(preferences), x)
    t = jax.tree.map(lambda v: v[7], bank.t)
    cos, sin, speed = (float(v) for v in t.next_obs)
    phi = np.array([cos, -(speed**2) / 8, sin * speed / 8, cos * speed**2 / 8])
    np.testing.assert_allclose(bank.reward[7], phi @ np.asarray(x), rtol=1e-5)
    np.testing.assert_allclose(bank.to_go[7] - bank.to_go[8], bank.reward[7], rtol=1e-3)


def test_preferred_segments_are_mostly_the_better_ones_and_pieces_of_episodes(preferences):
    t = preferences.segment
    assert t.obs.shape == (20, 2, 20, 3)
    np.testing.assert_array_equal(t.obs[:, :, 1:], t.next_obs[:, :, :-1])
    ahead = np.asarray(t.reward).sum(2)
    assert np.mean(ahead[:, 0] > ahead[:, 1]) > 0.7


def test_solvers_and_problems_that_do_not_fit_say_so(mixture, preferences):
    for kind in (SPSA, Covariance, LIRPG):
        with pytest.raises(InvalidProblem, match="this problem has stored data alone"):
            check_fits(kind(), mixture)
    with pytest.raises(InvalidConfig, match="which has no stored data"):
        check_fits(OfflineIQL(), PendulumShaping())
    with pytest.raises(InvalidConfig, match="whose policy has no likelihood"):
        check_fits(OfflineIQL(learner=TD3BC()), preferences)


LEARNERS = [(OfflineBC, BC(width=8)), (OfflineIQL, IQL(width=8)), (OfflineBC, TD3BC(width=8))]


@pytest.mark.parametrize(("kind", "learner"), LEARNERS)
def test_a_step_keeps_shapes_and_widths_and_counts_rows(mixture, kind, learner):
    problem, solver = jax.tree.map(jnp.asarray, mixture), kind(learner=learner, **SMALL)
    state = jax.eval_shape(lambda key: solver.init(problem, problem.x0, key), jax.random.key(0))
    step = lambda s, key: solver.step(problem, s, jnp.array(0), noise.uniforms(solver.draws(problem), key))  # noqa: E731
    after = jax.eval_shape(step, state, jax.random.key(0))
    for (path, one), other in zip(jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(after), strict=True):
        name = jax.tree_util.keystr(path)
        assert (one.shape, one.dtype) == (other.shape, other.dtype), name
        assert one.dtype != jnp.float64 or not ("learnt" in name or "evaluated" in name), f"{name} is wide"


class Choice(OfflineProblem):
    """A chain whose data come from two sources: one always goes left, one right; the leader wants to see right."""

    x0: Float[Array, " d"]
    environment: Environment
    bank: Bank
    held: Bank
    pays: bool = eqx.field(static=True)

    name = "choice"
    asks_likelihood = True

    def __init__(self, pays: bool):
        self.environment, self.pays = tabular.chain(), pays
        data = tabular.covered(self.environment, 40)
        self.bank = self.held = eqx.tree_at(lambda b: b.source, Bank.of(data), jnp.asarray(data.action))
        self.x0 = jnp.zeros(1 if pays else 2)

    def discount_lower(self):
        return 0.5

    def features(self, t):
        return t.action[None].astype(jnp.float32)  # 1 for right

    def reward(self, x, features):
        return x[0] * features[0] if self.pays else features[0]

    def shares(self, x):
        return None if self.pays else jax.nn.softmax(x)

    def outcome(self, x, judged):
        right = self.held.t.action == 1
        return -jnp.sum(right * judged.log_prob(self.held.t.obs, self.held.t.action)) / jnp.sum(right)


@pytest.mark.slow
def test_a_mixture_moves_to_the_source_that_the_leader_wants():
    """Cloning makes right as likely as its share, so f is -log of the share: what x does is known."""
    solver = OfflineBC(learner=BC(width=16, rate=1e-2), inner=100, batch=64)
    trace = solve(Choice(pays=False), solver, iterations=25, runs=2, seed=1, record_every=25)
    shares = np.asarray(jax.nn.softmax(trace.x[:, -1]))
    assert (shares[:, 1] > 0.75).all()
    np.testing.assert_allclose(trace["outcome"][:, -1], np.log(shares[:, 1]), atol=0.2)
    assert trace["samples"][0, -1] == 25 * 2 * 100 * 64


class Bent(Choice):
    """x costs by itself, far more steeply in one coordinate, and nothing else matters."""

    name = "bent"

    def outcome(self, x, judged):
        return 0.0 * jnp.sum(judged.log_prob(self.held.t.obs[:1], self.held.t.action[:1]))

    def cost(self, x):
        return 50 * (x[0] - 0.7) ** 2 + 0.5 * (x[1] + 0.4) ** 2


def test_what_x_costs_by_itself_is_differentiated():
    """By differences along random signs, or by plain steps, the steep coordinate would drown the other."""
    solver = OfflineBC(learner=BC(width=4), inner=1, batch=2, first=0.0)
    trace = solve(Bent(pays=False), solver, iterations=20, runs=1, seed=1, record_every=20)
    np.testing.assert_allclose(trace.x[0, -1], [0.7, -0.4], atol=0.01)


@pytest.mark.slow
def test_a_reward_is_learnt_under_which_what_was_shown_is_likely():
    solver = OfflineIQL(learner=IQL(width=16, rate=1e-2, polyak=0.1), inner=100, batch=64)
    trace = solve(Choice(pays=True), solver, iterations=25, runs=2, seed=1, record_every=25)
    assert (trace.x[:, -1, 0] > 0.3).all()
