"""States in which all is over: no value, no entropy, in planning, in the oracles and in what samples teach."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel_rl.errors import InvalidProblem
from bilevel_rl.finite import BilevelProblem, FiniteMDP, oracles
from bilevel_rl.finite.learn import followers
from bilevel_rl.finite.learn.followers import Follower, Transition
from bilevel_rl.finite.model import planning
from bilevel_rl.finite.objectives import PolicyEnergy, VisitationUtility
from bilevel_rl.schedules import Sequences

TAU = 0.3


def corridor(ends=True) -> FiniteMDP:
    """0 - 1 - over; action 0 goes on, action 1 stays, each with probability .8, else the other."""
    P = np.zeros((3, 2, 3))
    for s in (0, 1):
        P[s, 0, [s + 1, s]] = 0.8, 0.2
        P[s, 1, [s, s + 1]] = 0.8, 0.2
    P[2, :, 2] = 1
    plain = FiniteMDP.from_dense(P, [1.0, 0.0, 0.0], 0.9)
    return FiniteMDP.from_sparse(
        plain.successors, plain.probabilities, [1.0, 0.0, 0.0], 0.9, ends=[False, False, True] if ends else None
    )


class Corridor(BilevelProblem):
    """x pays for each action in the states before the end."""

    name = "corridor"

    def __init__(self, linear=True, ends=True):
        self.mdp = corridor(ends)
        u = jnp.array([[0.0, 1.0], [2.0, 0.0], [0.0, 0.0]])
        self.objective = VisitationUtility(u, weight=0.1) if linear else PolicyEnergy(0.1, jnp.array([1.0, 1.0, 0.0]))
        self.x0 = jnp.array([0.3, -0.1, 0.2, 0.5])

    def reward(self, x):
        return jnp.concatenate([x.reshape(2, 2), jnp.zeros((1, 2))])

    def temperature(self):
        return TAU


def by_hand(reward, pi=None, sweeps=600):
    """Soft value iteration (or evaluation) in which the end is simply worth nothing."""
    P, V = np.asarray(corridor().dense()), np.zeros(3)
    for _ in range(sweeps):
        Q = reward + 0.9 * P @ V
        best = TAU * np.log(np.exp(Q / TAU).sum(1)) if pi is None else (pi * (Q - TAU * np.log(pi))).sum(1)
        V = np.array([best[0], best[1], 0.0])
    return V


def test_the_end_is_worth_nothing():
    it = Corridor()
    reward = it.reward(it.x0)
    plan = jax.jit(planning.soft_optimal)(it.mdp, reward, TAU)
    np.testing.assert_allclose(plan.V, by_hand(np.asarray(reward)), atol=1e-12)
    np.testing.assert_allclose(jax.jit(planning.value_iteration)(it.mdp, reward, TAU).V, plan.V, atol=1e-8)
    np.testing.assert_allclose(plan.pi[2], 0.5)
    pi = jnp.array([[0.3, 0.7], [0.9, 0.1], [0.8, 0.2]])
    V = jax.jit(planning.policy_value)(it.mdp, reward, pi, TAU)
    np.testing.assert_allclose(V, by_hand(np.asarray(reward), np.asarray(pi)), atol=1e-12)
    forgetful = jax.jit(planning.soft_optimal)(corridor(ends=False), reward, TAU)
    assert float(forgetful.V[2]) == pytest.approx(TAU * np.log(2) / 0.1)  # entropy for ever: what the mark prevents


def test_hard_optimum_ends_too():
    it = Corridor()
    plan = jax.jit(planning.hard_optimal)(it.mdp, it.reward(it.x0))
    soft = jax.jit(planning.soft_optimal)(it.mdp, it.reward(it.x0), 1e-3)
    np.testing.assert_allclose(plan.V, soft.V, atol=1e-2)
    np.testing.assert_allclose(plan.pi, soft.pi, atol=1e-6)


@pytest.mark.parametrize("linear", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_hyper_gradient_and_policy_gradient_are_derivatives(linear):
    it, x, logits = Corridor(linear), Corridor(linear).x0, np.array([[0.1, 0.4], [-0.3, 0.2], [0.7, 0.0]])
    objective = jax.jit(lambda x: oracles.hyper_objective(it, x, TAU))
    central = np.stack([(objective(x + e) - objective(x - e)) / 2e-5 for e in 1e-5 * np.eye(4)])

    @jax.jit
    def derivatives(logits):
        want = jax.grad(lambda theta: oracles.lower_return(it, x, jax.nn.softmax(theta), TAU))(logits)
        near = oracles.penalty_hyper_gradient(it, x, 1e-4, TAU)
        return oracles.hyper_gradient(it, x, TAU), near, oracles.policy_gradient(it, x, jax.nn.softmax(logits), TAU), want

    exact, near, slope, want = derivatives(logits)
    np.testing.assert_allclose(exact, central, atol=1e-8)
    np.testing.assert_allclose(near, central, atol=1e-3)  # the penalty's tends to it: both followers honour the end
    np.testing.assert_allclose(slope, want, atol=1e-12)


def test_samples_at_the_end_teach_nothing():
    mdp = corridor()
    f = Follower(jnp.array([[0.1, 0.2], [0.3, 0.4], [0.5, -0.5]]), jnp.array([1.0, 2.0, 0.0]), jnp.full(4, 2))
    now = Sequences(zeta=0.1, alpha=0.1, beta=0.1, w=1.0, tau=TAU)

    @jax.jit
    def learnt(f):
        seen, _, _ = followers.draw(mdp, f, jnp.full((3, 4), 0.7))
        plain = Transition(seen.s, seen.a, seen.s_next)
        return seen, *(followers.learn(f, t, jnp.zeros(4), now, 0.9, 10.0) for t in (seen, plain))

    seen, after, unmarked = learnt(f)
    assert seen.ended.all()
    np.testing.assert_array_equal(after.theta, f.theta)
    np.testing.assert_array_equal(after.V, f.V)
    assert float(unmarked.V[2]) > 0.01


def test_sampled_follower_finds_the_policy_of_an_mdp_that_ends():
    it = Corridor()
    reward = it.reward(it.x0)
    now = Sequences(zeta=0.0, alpha=0.05, beta=0.1, w=1.0, tau=TAU)

    def step(f, u):
        seen, f, _ = followers.draw(it.mdp, f, u)
        return followers.learn(f, seen, reward[seen.s, seen.a], now, 0.9, 20.0), None

    def run(key):
        f = followers.start(it.mdp, jax.random.uniform(key, (64,)))
        f, _ = jax.lax.scan(step, f, jax.random.uniform(key, (4000, 3, 64)))
        return f

    f = jax.jit(run)(jax.random.key(0))
    want = jax.jit(planning.soft_optimal)(it.mdp, reward, TAU)
    np.testing.assert_allclose(jax.nn.softmax(f.theta)[:2], want.pi[:2], atol=0.06)
    np.testing.assert_allclose(f.V, want.V, atol=0.25)  # noise of a constant step; entropy for ever would add 2


def test_ends_are_absorbing_saved_and_counted(tmp_path):
    mdp = corridor()
    mdp.save(tmp_path / "corridor.npz")
    np.testing.assert_array_equal(FiniteMDP.load(tmp_path / "corridor.npz").ends, mdp.ends)
    with pytest.raises(InvalidProblem, match=r"ends\[1\]: got a state that can be left"):
        FiniteMDP.from_sparse(mdp.successors, mdp.probabilities, ends=[False, True, True])
    with pytest.raises(InvalidProblem, match="one truth value a state"):
        FiniteMDP.from_sparse(mdp.successors, mdp.probabilities, ends=[False, True])


def test_mdp_without_ends_costs_nothing():
    """The compiled program of an MDP that never ends has no operation that looks for ends."""
    it = Corridor(ends=False)
    f = followers.start(it.mdp, jnp.zeros(4))
    now = Sequences(zeta=0.1, alpha=0.1, beta=0.1, w=1.0, tau=TAU)

    def step(f, u):
        seen, f, _ = followers.draw(it.mdp, f, u)
        return followers.learn(f, seen, jnp.zeros(4), now, 0.9, 10.0)

    assert " select_n" not in str(jax.make_jaxpr(lambda V: it.mdp.ongoing(V) + 0.0)(f.V))
    marked = Corridor()
    count = [
        str(jax.make_jaxpr(lambda f, u, mdp=mdp: followers.learn(
            f, followers.draw(mdp, f, u)[0], jnp.zeros(4), now, 0.9, 10.0))(f, jnp.zeros((3, 4)))).count("\n")
        for mdp in (it.mdp, marked.mdp)
    ]  # fmt: skip
    assert count[0] < count[1]
