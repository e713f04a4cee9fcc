"""A population whose members meet each other: its equilibrium, the leader's gradient through it, and what learns it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from jaxtyping import Array, Float

from bilevel_rl.errors import InvalidConfig, InvalidProblem
from bilevel_rl.finite import FiniteMDP, mean_field, oracles, solve
from bilevel_rl.finite.checks import check_problem
from bilevel_rl.finite.mean_field import MeanFieldProblem, flow
from bilevel_rl.finite.model import planning
from bilevel_rl.finite.objectives import VisitationUtility
from bilevel_rl.finite.problems import Braess, RoutingGame
from bilevel_rl.finite.solvers import CoupledPenalty, ExactDescent, ExactPenalty
from bilevel_rl.loop.solver import check_fits

TAU = 0.02


class Crowded(MeanFieldProblem):
    """Two places that are worth less the more are there, the first also less for those who are in the second."""

    name = "crowded"

    def __init__(self):
        self.mdp = FiniteMDP.from_dense([[[0.9, 0.1], [0.1, 0.9]]] * 2, start=[0.7, 0.3], discount=0.8)
        self.objective = VisitationUtility(jnp.array([0.0, 1.0]), weight=0.1)
        self.x0 = jnp.array([0.2])

    def reward_among(self, x, mu: Float[Array, "S A"]):
        here = mu.sum(1)
        first = jnp.stack([-here[0] - 0.8 * here[1] + mu[1, 0], x[0] - 0.5 * here[1]])
        return jnp.broadcast_to(first[:, None], (2, 2)) + 0.1 * jnp.arange(2)


def valued(it, tau):
    """The hyper-objective of one number, compiled once."""
    f = jax.jit(lambda x: oracles.hyper_objective(it, x[None], tau))
    return lambda x: float(f(jnp.asarray(x, float)))


def hours_by_logit(toll: float, tau: float, discount: float = 0.5) -> float:
    """Braess's network without an MDP: two logits and the traffic they make, solved for by SciPy."""

    def choices(shares):
        by_a, bridge = 1 / (1 + np.exp(-np.asarray(shares)))
        narrow, other = 2 / 3 * by_a, 2 / 3 * (1 - by_a + by_a * bridge)
        # after a road, hours and entropy are counted alike; the temperature of the second choice is discounted
        on, later = -(0.0 + toll + other), -0.75
        second = discount * tau
        after = second * np.logaddexp(on / second, later / second)
        up, down = -narrow + after, -0.75 - other
        return np.array([up - down, 0.0]) / tau + np.array([0.0, (on - later) / second]), (narrow, other, by_a, bridge)

    root = scipy.optimize.root(lambda z: choices(z)[0] - z, np.zeros(2), tol=1e-13)
    narrow, other, by_a, bridge = choices(root.x)[1]
    assert np.abs(choices(root.x)[0] - root.x).max() < 1e-9
    by_b = 1 - by_a
    return by_a * narrow + by_a * (1 - bridge) * 0.75 + by_b * 0.75 + (by_b + by_a * bridge) * other


@pytest.mark.slow
@pytest.mark.parametrize(("it", "tau"), [(Crowded(), 0.05), *((Braess(temperature=t), t) for t in (TAU, 0.002))])
def test_an_equilibrium_is_the_answer_to_itself_and_nobody_gains_by_leaving(it, tau):
    found = it.equilibrium(it.x0, tau)
    assert float(found.residual) < 1e-9
    again = jax.jit(lambda mu: flow(it.mdp, planning.soft_optimal(it.mdp, it.reward_among(it.x0, mu), tau).pi))(found.mu)
    np.testing.assert_allclose(again, found.mu, atol=1e-9)
    np.testing.assert_allclose(found.mu.sum(), 1.0, atol=1e-9)


@pytest.mark.parametrize(("it", "tau"), [(Crowded(), 0.05), pytest.param(Braess(), TAU, marks=pytest.mark.slow)])
def test_the_hyper_gradient_is_that_of_central_differences(it, tau):
    """At equilibria that answer themselves: others have no value. One program gives value and slope."""
    both, x = jax.jit(jax.value_and_grad(lambda x: oracles.hyper_objective(it, x, tau))), it.x0 + 0.1
    (ahead, _), (behind, _), (_, slope) = both(x + 1e-5), both(x - 1e-5), both(x)
    assert mean_field.REFUSED <= 1e-9
    np.testing.assert_allclose(slope[0], (ahead - behind) / 2e-5, rtol=1e-5, equal_nan=False)


@pytest.mark.slow
@pytest.mark.parametrize(("it", "tau"), [(Crowded(), 0.05), pytest.param(Braess(), TAU, marks=pytest.mark.slow)])
def test_one_follower_in_a_population_that_is_held_has_the_leaders_gradient(it, tau):
    """With kappa at its fixed point the held problem's hyper-gradient is that of the whole game: no second derivative."""
    x = it.x0 + 0.1
    mu = it.equilibrium(x, tau).mu

    def answer(kappa):
        r, utility = it.reward_among(x, mu), it.held(x, mu, kappa).objective.utility
        # B' lambda, by the derivative of the optimal flow in the reward
        return jax.jvp(lambda r: flow(it.mdp, planning.soft_optimal(it.mdp, r, tau).pi), (r,), (-utility,))[1]

    @jax.jit
    def settled(kappa):  # damped: the interaction is strong
        return jax.lax.fori_loop(0, 400, lambda _, kappa: kappa + 0.05 * (answer(kappa) - kappa), kappa)

    kappa = settled(jnp.zeros_like(mu))
    np.testing.assert_allclose(settled(kappa), kappa, atol=1e-5)

    @jax.jit
    def both(x):
        return oracles.hyper_gradient(it.held(x, mu, kappa), x, tau), oracles.hyper_gradient(it, x, tau)

    np.testing.assert_allclose(*both(x), rtol=1e-3)


@pytest.mark.slow
def test_braess_paradox_and_the_toll_that_undoes_it():
    """Hours with and without a toll, by the equilibrium and by two logits; the best toll of Wardrop's limit is 3/8."""
    for tau in (TAU, 0.002):
        f = valued(Braess(temperature=tau), tau)
        for toll in (0.0, 0.2, 0.375, 0.6):
            np.testing.assert_allclose(f(toll), hours_by_logit(toll, tau), rtol=1e-8)
        best, second = (
            scipy.optimize.minimize_scalar(g, bounds=(0.3, 0.45), method="bounded", options={"xatol": 1e-7})
            for g in (f, lambda x, tau=tau: hours_by_logit(x, tau))
        )
        np.testing.assert_allclose(best.x, second.x, atol=1e-4)
    assert abs(f(0.0) - 4 / 3) < 1e-6  # the last one is cold: 80 minutes
    assert abs(f(0.375) - 64.6875 / 60) < 1e-4
    assert abs(best.x - 0.375) < 2e-3


@pytest.mark.parametrize("tolled", [(0, 3), (4,)], ids=["marginal cost", "shortcut"])
def test_at_the_best_traffic_all_three_ways_cost_drivers_the_same(tolled):
    """Wardrop's equilibrium by hand: 9/16 on narrow roads, 2/16 on the shortcut, under Pigou's tolls and under its own."""
    it, traffic = RoutingGame(tolled=tolled), np.array([9, 7, 7, 9, 2]) / 16
    mu = np.zeros(it.road.shape)
    for s, a in zip(*np.nonzero(np.asarray(it.road) < 5), strict=True):
        late = it.state_names[s] == "b (2)"  # who comes over the shortcut
        share = (2 if late else 7) / 16 if it.road[s, a] == 3 else traffic[it.road[s, a]]
        mu[s, a] = (1 - it.mdp.discount) * it.scale[s] * share
    mu = jnp.asarray(mu)
    np.testing.assert_allclose(it.traffic(mu), traffic)
    paid = -np.asarray(it.reward_among(jnp.full(len(tolled), 3 / 8), mu) * it.scale[:, None])
    cost = {int(road): value for road, value in zip(np.ravel(it.road), np.ravel(paid), strict=True)}
    ways = [sum(cost[road] for road in way) for way in ((0, 2), (1, 3), (0, 4, 3))]
    np.testing.assert_allclose(ways, 1.5 if len(tolled) > 1 else 1.125)
    assert float(it.objective.of(it.x0, mu, it)) == pytest.approx(64.6875 / 60)


@pytest.mark.slow
def test_tolls_by_marginal_cost_reach_the_same_hours():
    """Pigou: both narrow roads at m q = 3/8 do what the shortcut's toll does."""
    it = RoutingGame(tolled=(0, 3), temperature=0.002, x0=0.375)
    assert abs(float(jax.jit(lambda x: oracles.hyper_objective(it, x, 0.002))(it.x0)) - 64.6875 / 60) < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("game", [Crowded, pytest.param(Braess, marks=pytest.mark.slow)])
def test_games_pass_their_check(game):
    check_problem(game())


class Spoilt(Crowded):
    def reward_among(self, x, mu):
        return jnp.sqrt(x[0] - 0.2) * super().reward_among(x, mu)  # no derivative at x0


def test_the_quick_check_looks_at_a_games_reward_and_solves_for_no_equilibrium(monkeypatch):
    """It comes before a solver can refuse the game, and compiling an equilibrium takes seconds."""

    def asked(*_):
        raise AssertionError("an equilibrium was asked for")

    monkeypatch.setattr("bilevel_rl.finite.mean_field._fixed_point", asked)
    check_problem(Crowded(), thorough=False)
    with pytest.raises(InvalidProblem, match="NaN or infinity at x0"):
        check_problem(Spoilt(), thorough=False)


def test_games_are_refused_in_words():
    with pytest.raises(InvalidProblem, match="coupled_penalty"):
        check_fits(ExactPenalty(), Crowded())
    with pytest.raises(InvalidConfig, match="population"):
        check_fits(CoupledPenalty(starts=2), Crowded())
    with pytest.raises(InvalidProblem, match="temperature above 0"):
        oracles.hyper_objective(Braess(), Braess().x0, 0)
    with pytest.raises(InvalidProblem, match="circles"):
        RoutingGame(roads=(("s", "a", 1.0, 0.0), ("a", "s", 1.0, 0.0), ("a", "t", 1.0, 0.0)), tolled=(0,))
    with pytest.raises(InvalidProblem, match="no road leaves"):
        RoutingGame(roads=(("s", "a", 1.0, 0.0), ("s", "t", 1.0, 0.0)), tolled=(0,))


@pytest.mark.slow
def test_coupled_penalty_learns_the_toll_from_transitions_alone():
    it, best = Braess(), 1.0781292  # at a toll of .3864
    trace = solve(it, CoupledPenalty(), iterations=1000, record_every=1000, runs=3)
    assert (trace.status == 0).all()
    assert trace["samples"][0, -1] == 32_000
    assert (trace["objective"][:, 0] > 1.32).all()
    assert (trace["objective"][:, -1] < best + 0.05 * (1.327 - best)).all()
    assert (trace["lower_gap"][:, -1] < 0.1).all()  # what a driver gains by leaving the tracked policy, of 1.1 hours
    exact = solve(it, ExactDescent(step_size=0.2), iterations=60, record_every=60)
    assert exact["objective"][0, -1] < best + 1e-4
