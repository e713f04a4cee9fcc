"""Every sampled estimator against its exact mean, at fixed x and fixed followers, within 4.5 standard errors."""

from __future__ import annotations

import dataclasses
import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from finite_instances import assert_mean, random_policy, thinned

from bilevel_rl.finite import oracles
from bilevel_rl.finite.learn import followers
from bilevel_rl.finite.learn.followers import Follower
from bilevel_rl.finite.model import planning, sampling
from bilevel_rl.finite.objectives import PreferenceLikelihood
from bilevel_rl.finite.problems import FrozenLake, PreferenceLearning, RandomMDP
from bilevel_rl.finite.solvers.exact_penalty import ExactPenalty, ExactPenaltyState, Tables
from bilevel_rl.finite.solvers.finite_difference import DifferenceState, FiniteDifference
from bilevel_rl.finite.solvers.partial_sgd import PartialSGD, PartialState
from bilevel_rl.finite.solvers.penalty_actor_critic import PenaltyActorCritic, PenaltyState
from bilevel_rl.loop import noise
from bilevel_rl.schedules import PowerDecay, TimeScales

N = 40_000


class MovingPreferences(PreferenceLearning):
    """Preferences in an MDP whose kernel x tilts as well."""

    def transitions(self, x):
        tilted = self.mdp.probabilities * jnp.exp(x[0] * jnp.array([0.5, -0.5, 0.2]))
        return self.mdp.with_probabilities(tilted / jnp.sum(tilted, -1, keepdims=True))


@functools.cache
def problem(name: str):
    return {
        "visitation": lambda: RandomMDP(4, 2, 3, features=2, largest=10.0),
        "energy": lambda: RandomMDP(4, 2, 3, features=2, largest=10.0, objective="energy"),
        "moving": lambda: RandomMDP(4, 2, 3, features=2, largest=10.0, moving=True),
        "payments": FrozenLake,
        "preferences": lambda: PreferenceLearning(pairs=3),
        "moving preferences": lambda: MovingPreferences(pairs=3),
    }[name]()


def uniforms(seed: int, n: int, width: int):
    return jax.random.uniform(jax.random.key(seed), (n, width))


def follower_at(it, x, pi, u, V=None) -> Follower:
    """A follower of policy pi whose one chain is drawn from its visitation, by the uniform number u."""
    d = planning.visitation(it.transitions(x), pi)
    V = jnp.linspace(-0.5, 0.5, len(d)) if V is None else V
    return Follower(jnp.log(pi), V, sampling.choose(d[None], u[None]))


@pytest.mark.parametrize(
    "name", thinned(["visitation", "energy", "moving", "payments", "preferences"], {"moving"})
)
def test_one_transition_of_the_paper_s_algorithm_is_its_expectation_on_average(name):
    """The plain D, both critics' G and both actors' F: one sampled step against the exact model-based one."""
    it = problem(name)
    S, A, x = it.mdp.n_states, it.mdp.n_actions, 0.5 * it.x0 + 0.1
    pi, pi_l = random_policy(1, S, A), random_policy(2, S, A)
    # D reads the critics after their update: a tiny beta keeps them where they are (x's kernel needs them)
    scales = TimeScales(*(PowerDecay(v) for v in (1e-3, 0.5, 1e-9, 0.7, 0.3)))
    one = PenaltyActorCritic(scales=scales, chains=1, reward_bound=100.0)

    @jax.jit
    def sampled(z):
        state = PenaltyState(
            x, jnp.zeros((), int), follower_at(it, x, pi, z[0]), follower_at(it, x, pi_l, z[1])
        )
        return one.step(it, state, jnp.array(0), noise.fill(one.draws(it), z[2:]))

    many = jax.lax.map(sampled, uniforms(3, N, 2 + noise.size(one.draws(it))), batch_size=1000)
    V = jnp.linspace(-0.5, 0.5, S)
    state = ExactPenaltyState(x, jnp.zeros((), int), Tables(jnp.log(pi), V), Tables(jnp.log(pi_l), V))
    exact = jax.jit(ExactPenalty(scales=scales, per_state=False).step)(it, state, jnp.array(0), jnp.zeros(0))

    assert_mean((many.x - x) / 1e-3, (exact.x - x) / 1e-3, "x")
    for label, drawn, mean in (
        ("follower", many.follower, exact.follower), ("follower_l", many.follower_l, exact.follower_l),
    ):  # fmt: skip
        assert_mean((drawn.V - V) / 1e-9, (mean.V - V) / 1e-9, f"{label}.V")
        start = jnp.log(pi if label == "follower" else pi_l)
        assert_mean(drawn.theta - start, mean.theta - start, f"{label}.theta")


@pytest.mark.slow
@pytest.mark.parametrize("name", thinned(["visitation", "moving", "payments"], {"moving"}))
def test_mean_directions_are_the_gradients_at_these_followers(name):
    """With the followers' true values as critics: D is the oracle's penalty gradient, F that of what the actors maximise."""
    it = problem(name)
    S, A, x, w = it.mdp.n_states, it.mdp.n_actions, 0.5 * it.x0 + 0.1, 0.7
    tau, gamma = it.temperature(), it.mdp.discount
    pi, pi_l = random_policy(1, S, A), random_policy(2, S, A)
    mdp, r = it.transitions(x), it.reward(x)
    V = planning.policy_value(mdp, r, pi, tau)
    V_l = planning.policy_value(mdp, r + (1 - gamma) * w * it.objective.bonus(x), pi_l, tau)
    scales = TimeScales(*(PowerDecay(v) for v in (1e-4, 1e-4, 1e-12, w, tau)))
    state = ExactPenaltyState(x, jnp.zeros((), int), Tables(jnp.log(pi), V), Tables(jnp.log(pi_l), V_l))
    state = ExactPenalty(scales=scales, per_state=False).step(it, state, jnp.array(0), jnp.zeros(0))
    moved = state.x

    def lagrangian(logits, w):
        pi = jax.nn.softmax(logits)
        return oracles.lower_return(it, x, pi, tau) - w * it.objective.value(x, pi, it)

    # the actors' directions are (1 - gamma) times the gradient of what they maximise: J_tau, and J_tau - w f
    for tables, start, weight in ((state.follower, pi, 0.0), (state.follower_l, pi_l, w)):
        gradient = (1 - gamma) * jax.grad(lagrangian)(jnp.log(start), weight)
        np.testing.assert_allclose((tables.theta - jnp.log(start)) / 1e-4, gradient, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose((x - moved) / 1e-4, oracles.penalty_estimate(it, x, pi, pi_l, w), rtol=1e-6, atol=1e-8)


def test_values_are_where_the_critics_rest():
    it = problem("visitation")
    x, S, A = it.x0, it.mdp.n_states, it.mdp.n_actions
    pi = random_policy(1, S, A)
    V = jax.jit(lambda pi: planning.policy_value(it.mdp, it.reward(x), pi, 0.3))(pi)
    now = TimeScales(*(PowerDecay(v) for v in (0.1, 0.5, 0.1, 1.0, 0.3))).at(0)

    @jax.jit
    def learnt(z):
        seen, f, _ = followers.draw(it.mdp, follower_at(it, x, pi, z[0], V), z[1:, None])
        return followers.learn(f, seen, it.reward_at(x, seen.s, seen.a), now, it.mdp.discount, 1e9).V

    assert_mean(jax.vmap(learnt)(uniforms(5, N, 4)), V, "critic")
    far = learnt(uniforms(5, 1, 4)[0]) - V
    assert float(jnp.max(jnp.abs(far))) > 1e-3  # one transition does move it


@pytest.mark.parametrize("name", thinned(["preferences", "moving preferences"], {"preferences"}))
@pytest.mark.parametrize("pairs", thinned([1, 3], {3}))
def test_sampled_preferences_are_unbiased(name, pairs):
    """Value, g_x and g_theta; for one pair the baseline is a constant, for more it is the other pairs."""
    it = problem(name)
    it = eqx.tree_at(
        lambda p: p.objective, it,
        PreferenceLikelihood(it.objective.gold, it.objective.horizon, pairs, it.objective.regulariser),
    )  # fmt: skip
    x, pi = jnp.array([0.8, -0.4]), random_policy(3, 3, 2)
    draws = it.objective.draws(it)
    sampled = jax.jit(jax.vmap(lambda z: it.objective.sample(x, pi, it, noise.fill(draws, z))))
    drawn = sampled(uniforms(6, N, noise.size(draws)))
    value, (g_x, g_theta) = jax.jit(
        jax.value_and_grad(lambda x, logits: it.objective.value(x, jax.nn.softmax(logits), it), (0, 1))
    )(x, jnp.log(pi))
    assert_mean(drawn.value, value, "value")
    assert_mean(drawn.grad_x, g_x, "g_x")
    assert_mean(drawn.grad_theta, g_theta, "g_theta")
    assert set(np.asarray(drawn.transitions)) == {2 * pairs * it.objective.horizon}


@pytest.mark.slow
@pytest.mark.parametrize("name", thinned(["visitation", "moving", "payments", "preferences"], {"moving"}))
def test_partial_sgd_follows_the_partial_gradient(name):
    it = problem(name)
    x, S, A = 0.5 * it.x0 + 0.1, it.mdp.n_states, it.mdp.n_actions
    pi = random_policy(1, S, A)
    mdp, objective = it.transitions(x), it.objective
    V_u = planning.policy_value(mdp, jnp.broadcast_to(objective.bonus(x), (S, A)), pi) if objective.linear else jnp.zeros(S)
    scales = TimeScales(*(PowerDecay(v) for v in (1e-3, 1e-12, 1e-12, 1.0, 0.3)))
    one = PartialSGD(scales=scales, chains=1)

    @jax.jit
    def moved(z):
        state = PartialState(x, jnp.zeros((), int), follower_at(it, x, pi, z[0]), V_u)
        return (x - one.step(it, state, jnp.array(0), noise.fill(one.draws(it), z[1:])).x) / 1e-3

    exact = jax.grad(lambda x: objective.value(x, pi, it))(x)
    assert_mean(jax.lax.map(moved, uniforms(7, N, 1 + noise.size(one.draws(it))), batch_size=1000), exact, "g_x")


@pytest.mark.slow
@pytest.mark.parametrize("perturbation", ["two_sided", "simultaneous", "one_sided"])
@pytest.mark.parametrize("name", ["payments", "preferences"])
def test_finite_differences_have_the_mean_of_the_exact_difference(name, perturbation):
    """At a follower that does not learn: differences of the exact f of that policy, one or all coordinates at once."""
    it = problem(name)
    x, S, A = 0.5 * it.x0 + 0.1, it.mdp.n_states, it.mdp.n_actions
    pi, radius = random_policy(1, S, A), 0.2
    scales = TimeScales(*(PowerDecay(v) for v in (1e-3, 0.0, 0.0, 1.0, 0.3)))
    one = FiniteDifference(scales=scales, radius=PowerDecay(radius), chains=1, inner=2, perturbation=perturbation)

    @jax.jit
    def moved(z):
        state = DifferenceState(x, jnp.zeros((), int), follower_at(it, x, pi, z[0]))
        return (x - one.step(it, state, jnp.array(0), noise.fill(one.draws(it), z[1:])).x) / 1e-3

    def f(x):
        return float(it.objective.value(x, pi, it))

    two_sided = np.array([(f(x + e) - f(x - e)) / (2 * radius) for e in radius * np.eye(2)])
    both = [(f(x + e) - f(x - e)) / (2 * e) for e in radius * np.array([[1, 1], [1, -1]])]
    one_sided = np.array([(f(x + e) - f(x)) / radius for e in radius * np.eye(2)])
    exact = {"two_sided": two_sided, "one_sided": one_sided, "simultaneous": np.mean(both, 0)}[perturbation]
    assert_mean(jax.lax.map(moved, uniforms(8, N, 1 + noise.size(one.draws(it))), batch_size=1000), exact, "difference")


@pytest.mark.slow
def test_simultaneous_perturbation_measures_the_response_of_the_follower():
    """With a follower that has time to answer, the difference is that of the hyper-objective: closed form, a bandit."""
    from bilevel_rl.finite.problems.probes import Bandit

    it = Bandit()
    scales = TimeScales(*(PowerDecay(v) for v in (1e-3, 0.5, 0.5, 1.0, 0.5)))
    one = FiniteDifference(scales=scales, radius=PowerDecay(0.05), chains=64, inner=400, perturbation="two_sided")
    state = one.init(it, it.x0, jax.random.key(0))

    @jax.jit
    def settle(state, z):
        state = one.step(it, state, jnp.array(0), noise.fill(one.draws(it), z))
        return dataclasses.replace(state, x=it.x0), (it.x0 - state.x) / 1e-3

    _, g = jax.lax.scan(settle, state, uniforms(9, 12, noise.size(one.draws(it))))
    np.testing.assert_allclose(g[4:].mean(0), it.known_gradient(it.x0, 0.5), atol=0.12)
    ignored = np.asarray(2 * it.objective.weight * it.x0)  # what it would be without the response
    assert np.abs(ignored - it.known_gradient(it.x0, 0.5)).max() > 0.3
