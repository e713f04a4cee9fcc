"""A leader that acts: the follower's MDP against enumeration, its derivatives, and what samples say of them."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from finite_instances import assert_mean, thinned

from bilevel_rl.errors import InvalidProblem
from bilevel_rl.finite import BilevelProblem, oracles
from bilevel_rl.finite.checks import check_problem
from bilevel_rl.finite.model import planning, sampling
from bilevel_rl.finite.model.game import Game
from bilevel_rl.finite.objectives import LeaderReturn, VisitationUtility
from bilevel_rl.finite.problems import LeaderToy
from bilevel_rl.finite.solvers import ExactPenalty
from bilevel_rl.finite.solvers.exact_penalty import ExactPenaltyState, Tables
from bilevel_rl.loop import noise
from bilevel_rl.schedules import PowerDecay, TimeScales

S, B, A = 3, 2, 2


def tables(seed=0):
    rng = np.random.default_rng(seed)
    P = rng.standard_exponential((S, B, A, S))
    return P / P.sum(-1, keepdims=True), rng.normal(size=(S, B, A)), np.array([0.5, 0.3, 0.2])


class RandomGame(BilevelProblem):
    """x is the logit of the leader's second action in each state."""

    name = "random_game"

    def __init__(self, observed: bool, linear: bool = False):
        P, r, start = tables()
        self.game = Game.from_dense(P, start, 0.8, observed)
        self.pay, self.mdp = jnp.asarray(r), self.game.mdp
        Z = self.mdp.n_states
        u = np.random.default_rng(3).normal(size=(Z, A))
        self.objective = VisitationUtility(u, 0.1) if linear else LeaderReturn(u, 6, 0.9, 3)
        self.x0 = jnp.array([0.4, -0.2, 0.7])

    game: Game
    pay: jax.Array

    def leader(self, x):
        return jnp.stack([1 - jax.nn.sigmoid(x), jax.nn.sigmoid(x)], 1)

    def reward(self, x):
        return self.game.table(self.pay, self.leader(x))

    def transitions(self, x):
        return self.game.under(self.leader(x))

    @property
    def moves_start(self):
        return self.game.observed

    def temperature(self):
        return 0.3


def test_observed_game_is_the_product():
    P, _, start = tables()
    it = RandomGame(observed=True)
    phi = np.asarray(it.leader(it.x0))
    mdp = it.transitions(it.x0)
    want = np.einsum("sbat,tc->sbatc", P, phi).reshape(S * B, A, S * B)
    np.testing.assert_allclose(mdp.dense(), want, atol=1e-14)
    np.testing.assert_allclose(mdp.start, (start[:, None] * phi).ravel(), atol=1e-14)
    u = (jnp.arange(40_000) + 0.5) / 40_000
    law = np.bincount(sampling.start_state(mdp, u), minlength=S * B) / 40_000
    np.testing.assert_allclose(law, mdp.start, atol=1e-4)


def test_simultaneous_game_is_the_mean():
    P, r, start = tables()
    it = RandomGame(observed=False)
    phi = np.asarray(it.leader(it.x0))
    np.testing.assert_allclose(it.transitions(it.x0).dense(), np.einsum("sb,sbat->sat", phi, P), atol=1e-14)
    np.testing.assert_allclose(it.reward(it.x0), np.einsum("sb,sba->sa", phi, r), atol=1e-14)
    np.testing.assert_allclose(it.transitions(it.x0).start, start)


@pytest.mark.slow
def test_seeing_the_leader_can_only_help_the_follower():
    values = [float(planning.expected_return(it.transitions(it.x0), it.reward(it.x0),
                                             oracles.lower_optimum(it, it.x0, 0.01).pi))
              for it in (RandomGame(True), RandomGame(False))]  # fmt: skip
    assert values[0] > values[1] + 0.01


def test_leader_return_is_the_sum_over_paths():
    it = RandomGame(observed=False)
    objective = LeaderReturn(it.objective.utility, horizon=4, discount=1.0)
    pi = jnp.array([[0.3, 0.7], [0.6, 0.4], [0.5, 0.5]])
    mdp = it.transitions(it.x0)
    P, u, want = np.asarray(mdp.dense()), np.asarray(objective.utility), 0.0
    for path in itertools.product(range(S), range(A), repeat=4):
        s, a = path[::2], path[1::2]
        p = float(mdp.start[s[0]])
        for t in range(4):
            p *= float(pi[s[t], a[t]]) * (P[s[t], a[t], s[t + 1]] if t < 3 else 1)
        want -= p * sum(u[s[t], a[t]] for t in range(4))
    assert float(objective.value(it.x0, pi, it)) == pytest.approx(want, abs=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("observed", [True, False])
def test_games_are_well_posed(observed):
    check_problem(RandomGame(observed))


@pytest.mark.parametrize("observed", thinned([True, False], {True}))
def test_derivatives(observed):
    it = RandomGame(observed)
    objective = jax.jit(lambda x: oracles.hyper_objective(it, x, 0.3))
    central = jnp.stack([(objective(it.x0 + e) - objective(it.x0 - e)) / 2e-5 for e in 1e-5 * jnp.eye(3)])
    np.testing.assert_allclose(oracles.hyper_gradient(it, it.x0, 0.3), central, atol=1e-8)


@pytest.mark.parametrize("observed", thinned([True, False], {True}))
def test_samples_of_the_leaders_return_are_unbiased(observed):
    it = RandomGame(observed)
    pi = jnp.tile(jnp.array([[0.3, 0.7]]), (it.mdp.n_states, 1))
    draws = noise.uniforms(noise.Times(20_000, it.objective.draws(it)), jax.random.key(5))
    got = jax.jit(jax.vmap(lambda u: it.objective.sample(it.x0, pi, it, u)))(draws)
    want = jax.grad(lambda x, t: it.objective.value(x, jax.nn.softmax(t), it), argnums=(0, 1))(it.x0, jnp.log(pi))
    assert_mean(got.value, it.objective.value(it.x0, pi, it), "value")
    assert_mean(got.grad_x, want[0], "grad_x")
    assert_mean(got.grad_theta, want[1], "grad_theta")
    assert int(got.transitions[0]) == 18


@pytest.mark.slow
@pytest.mark.parametrize("linear", thinned([True, False], {True}))
def test_expected_single_loop_sees_the_start_move(linear):
    """At exact followers one step of the paper's loop moves x along the penalty's hyper-gradient, start included."""
    it = RandomGame(observed=True, linear=linear)
    w, tau, zeta = 0.5, 0.3, 1e-3
    tiny = PowerDecay(1e-12, 0.0)
    one = ExactPenalty(TimeScales(PowerDecay(zeta, 0.0), tiny, tiny, PowerDecay(w, 0.0), PowerDecay(tau, 0.0)))
    mdp, r = it.transitions(it.x0), it.reward(it.x0)
    pi, pi_l = oracles.lower_optimum(it, it.x0, tau).pi, oracles.penalised_policy(it, it.x0, w, tau)
    r_l = r + (0.2 * w * it.objective.bonus(it.x0) if linear else 0.0)
    f, f_l = (Tables(jnp.log(p), planning.policy_value(mdp, q, p, tau)) for p, q in ((pi, r), (pi_l, r_l)))
    state = ExactPenaltyState(it.x0, jnp.zeros((), int), f, f_l)
    moved = jax.jit(one.step)(it, state, jnp.array(0), jnp.zeros(0))
    want = oracles.penalty_hyper_gradient(it, it.x0, w, tau)
    np.testing.assert_allclose((it.x0 - moved.x) / zeta, want, atol=1e-7)
    # without the start's term the direction would be another
    lost = 0.2 / w * jax.grad(lambda x: jnp.dot(it.transitions(x).start, f.V - f_l.V))(it.x0)
    assert float(jnp.linalg.norm(lost)) > 1e-3


@pytest.mark.parametrize("observed", thinned([True, False], {True}))
def test_ends_of_a_game_stay_ends(observed):
    P = np.zeros((2, 2, 1, 2))
    P[0, 0, 0, 0] = P[0, 1, 0, 1] = P[1, :, :, 1] = 1
    game = Game.from_dense(P, [1.0, 0.0], 0.9, observed, ends=[False, True])
    mdp = game.under(jnp.array([[0.7, 0.3], [0.2, 0.8]]))
    np.testing.assert_allclose(mdp.dense().sum(-1), 1, atol=1e-14)
    np.testing.assert_array_equal(mdp.ends, np.repeat([False, True], 2 if observed else 1))
    V = planning.policy_value(mdp, jnp.where(mdp.ends, 0.0, 1.0)[:, None], jnp.ones((mdp.n_states, 1)))
    assert float(mdp.start @ V) == pytest.approx(1 / (1 - 0.9 * 0.7))


OPTIMA = [(1.0, 0.99, -27.26, 0.158), (2.0, 1.0, -59.48, 0.491)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("gain", "discount", "best", "at"), thinned(OPTIMA, OPTIMA[1:])
)
def test_published_optima_of_the_toy(gain, discount, best, at):
    it = LeaderToy(gain, leader_discount=discount)
    found = oracles.brute_force(it, it.temperature(), points=25, polish=2)
    assert found.value == pytest.approx(best, abs=0.005)
    assert float(jax.nn.sigmoid(found.x[0])) == pytest.approx(at, abs=0.0005)


@pytest.mark.slow
def test_toy_whose_follower_sees_the_leader():
    check_problem(LeaderToy(observed=True), thorough=False)
    seen, hidden = LeaderToy(observed=True), LeaderToy()
    assert seen.mdp.n_states == 6
    one, other = (float(oracles.hyper_objective(it, jnp.array([-1.5]), 0.05)) for it in (seen, hidden))
    assert abs(one - other) > 0.01


def test_wrong_games_are_refused():
    with pytest.raises(InvalidProblem, match=r"must be \[S, B, A, S\]"):
        Game.from_dense(np.ones((2, 2, 2)))
    with pytest.raises(InvalidProblem, match="LeaderReturn"):
        LeaderReturn(jnp.zeros(2), discount=1.5)
