"""Answers that used to be wrong in silence: large systems, long corridors, ends, unreachable states, low temperatures."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel_rl.errors import Unsolved
from bilevel_rl.finite import BilevelProblem, FiniteMDP, UpperObjective, oracles, solve
from bilevel_rl.finite.closed_form import ClosedFormProblem
from bilevel_rl.finite.model import linear, planning
from bilevel_rl.finite.model.horizon import unrolled
from bilevel_rl.finite.objectives import VisitationUtility
from bilevel_rl.finite.solvers import ExactDescent

value = jax.jit(planning.policy_value)
visits = jax.jit(planning.visitation)
hard = jax.jit(planning.hard_optimal)


def corridor(n: int, discount: float) -> FiniteMDP:
    """Action 0 goes on, action 1 goes back; the last state stays."""
    at = np.arange(n)
    to = np.stack([np.minimum(at + 1, n - 1), np.maximum(at - 1, 0)], -1)[..., None]
    to[-1] = n - 1
    return FiniteMDP.from_sparse(to, np.ones((n, 2, 1)), np.asarray(at == 0, float), discount)


def paid_at_the_end(n: int, step: float = 0.0):
    return jnp.full((n, 2), step).at[n - 1].set(1.0)


@pytest.mark.parametrize("discount", [0.9, 0.9999])
def test_corridor_longer_than_the_dense_limit(discount):
    """The reward at the end of 1,025 states is worth gamma^1024 / (1 - gamma) at its start: 9026.64 at .9999."""
    n = planning.DENSE_LIMIT + 1
    mdp, on = corridor(n, discount), jnp.tile(jnp.array([1.0, 0.0]), (n, 1))
    want = discount ** np.arange(n - 1, -1, -1) / (1 - discount)
    V = value(mdp, paid_at_the_end(n), on)
    np.testing.assert_allclose(V, want, rtol=1e-10, atol=1e-12)
    if discount == 0.9999:
        assert float(V[0]) == pytest.approx(9026.64, abs=0.01)
    d = visits(mdp, on)
    assert float(d.sum()) == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(d[:-1], (1 - discount) * discount ** np.arange(n - 1), atol=1e-12)


def test_derivative_through_a_sparse_factorisation():
    """What the start of the corridor gains by a little more at its end, by both modes; and of the visitation."""
    n = planning.DENSE_LIMIT + 1
    mdp, on = corridor(n, 0.9999), jnp.tile(jnp.array([0.9, 0.1]), (n, 1))
    first = jax.jit(lambda r: planning.policy_value(mdp, r, on)[0])
    slope = jax.jit(jax.grad(first))(jnp.zeros((n, 2)))
    np.testing.assert_allclose(slope, visits(mdp, on)[:, None] * on / (1 - 0.9999), rtol=1e-8, atol=1e-8)


@pytest.mark.slow
def test_forest_of_a_long_horizon():
    """mdptoolbox's forest over 342 steps, against backward induction: 1,027 states."""
    P = np.zeros((3, 2, 3))
    P[:, 0, 0], P[:, 1, 0] = 0.1, 1.0
    P[0, 0, 1] = P[1, 0, 2] = P[2, 0, 2] = 0.9
    r = np.array([[0.0, 0.0], [0.0, 1.0], [4.0, 2.0]])
    long = unrolled(FiniteMDP.from_dense(P, [1.0, 0.0, 0.0], 0.999), 342)
    reward = jnp.concatenate([jnp.tile(jnp.asarray(r), (342, 1)), jnp.zeros((1, 2))])
    V = np.zeros(3)
    for _ in range(342):
        V = (r + 0.999 * P @ V).max(1)
    np.testing.assert_allclose(hard(long, reward).V[:3], V, rtol=1e-10)


@pytest.mark.slow
def test_batches_of_sparse_systems_are_their_members():
    n = planning.DENSE_LIMIT + 1
    mdp = corridor(n, 0.999)
    pis = jnp.stack([jnp.tile(jnp.array([p, 1 - p]), (n, 1)) for p in (0.9, 0.4)])
    together = jax.jit(jax.vmap(lambda pi: planning.policy_value(mdp, paid_at_the_end(n), pi)))(pis)
    for i in range(2):
        np.testing.assert_array_equal(together[i], value(mdp, paid_at_the_end(n), pis[i]))


def test_a_solve_that_misses_is_refused(monkeypatch):
    """NaN in compiled code, an error with the residual outside of it."""
    mdp = corridor(5, 0.9)
    monkeypatch.setattr(linear, "REFUSED", -1.0)
    pi = jnp.full((5, 2), 0.5)
    with pytest.raises(Unsolved, match=r"5 states, discount 0.9: got a relative residual of .* at most -1 is an answer"):
        planning.policy_value(mdp, paid_at_the_end(5), pi)
    assert bool(jnp.all(jnp.isnan(jax.jit(lambda pi: planning.policy_value(mdp, paid_at_the_end(5), pi))(pi))))


def test_what_rounding_leaves_of_a_difference_is_no_residual():
    """Newton's last b is the rounding of V alone, which a compiler may compute twice, to different bits."""
    V, nothing = jnp.array([200.0]), jnp.zeros(1)
    stated = functools.partial(linear._stated, lambda v: 0.1 * v, transpose=False)
    kept, residual = stated(jnp.array([7e-15]), nothing, beside=V)
    assert (float(kept[0]), float(residual)) == (0.0, 0.0)
    assert jnp.isnan(stated(jnp.array([7e-15]), nothing)[0])  # b stands beside nothing: no solution
    assert jnp.isnan(stated(jnp.array([1e-6]), nothing, beside=V)[0])  # more than rounding


REFUSED = {
    "hard_optimal on 60 states": lambda mdp: planning.hard_optimal(mdp, paid_at_the_end(60), max_iterations=1),
    "soft_optimal on 60 states": lambda mdp: planning.soft_optimal(mdp, paid_at_the_end(60, -1.0), 0.5, max_iterations=0),
    "value_iteration": lambda mdp: planning.value_iteration(mdp, paid_at_the_end(60), 0.1, max_iterations=3),
}


@pytest.mark.parametrize(
    "words", [pytest.param(w, marks=[] if w == "value_iteration" else pytest.mark.slow) for w in REFUSED]
)
def test_planners_refuse_at_their_limit(words):
    with pytest.raises(Unsolved, match=words):
        REFUSED[words](corridor(60, 0.999))


@pytest.mark.slow
def test_planners_at_their_limit_are_nan_in_compiled_code():
    mdp = corridor(60, 0.999)
    assert bool(jnp.isnan(jax.jit(lambda r: planning.hard_optimal(mdp, r, max_iterations=1))(paid_at_the_end(60)).V).all())


@pytest.mark.slow
@pytest.mark.parametrize("step", [0.0, pytest.param(-1.0, marks=pytest.mark.slow)], ids=["free", "costly"])
def test_hard_optimum_of_a_long_corridor(step):
    """900 states in a few iterations: 20 are allowed here, one a state were needed when only neighbours heard of it."""
    n, discount = 900, 0.999
    plan = jax.jit(lambda r: planning.hard_optimal(corridor(n, discount), r, max_iterations=20))(paid_at_the_end(n, step))
    onward = np.arange(n - 1, -1, -1)
    want = discount**onward / (1 - discount) + step * (1 - discount**onward) / (1 - discount)
    np.testing.assert_allclose(plan.V, want, rtol=1e-10)
    np.testing.assert_array_equal(plan.pi[:-1, 0], 1.0)


@pytest.mark.parametrize("scale", [1e-10, 1.0, 1e10])
@pytest.mark.parametrize("discount", [0.0, 0.9, 1 - 1e-9])
def test_ties_do_not_depend_on_units(scale, discount):
    """State 0 has one best action and state 1 two, whatever the rewards are counted in."""
    mdp = FiniteMDP.from_dense(np.tile(np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]), (2, 1, 1)), discount=discount)
    pi = hard(mdp, scale * jnp.array([[1.0, 0.5, 0.4], [0.3, 0.1, 0.3]])).pi
    assert float(pi[0, 0]) == pytest.approx(1)
    np.testing.assert_allclose(pi[1], [0.5, 0.0, 0.5], atol=1e-9)


@pytest.mark.slow
def test_ends_count_nothing_in_any_planner():
    """A reward that stands in an end is earned by nobody: hard, soft, swept, evaluated, and by the leader."""
    mdp = FiniteMDP.from_sparse(
        np.array([[[1], [0]], [[1], [1]]]), np.ones((2, 2, 1)), [1.0, 0.0], 0.9, ends=[False, True]
    )
    reward = jnp.array([[0.0, -1.0], [5.0, 4.0]])
    np.testing.assert_array_equal(planning.hard_optimal(mdp, reward).V, 0.0)
    for plan in (planning.soft_optimal(mdp, reward, 0.01), planning.value_iteration(mdp, reward, 0.01)):
        assert float(plan.V[1]) == 0
        assert float(plan.V[0]) == pytest.approx(0, abs=1e-9)
    np.testing.assert_array_equal(planning.policy_value(mdp, reward, jnp.array([[1.0, 0.0], [0.5, 0.5]]), 0.3), 0.0)


class Aside(BilevelProblem):
    """Two states, of which the second is never reached; x pays in both."""

    def __init__(self, objective):
        self.mdp = FiniteMDP.from_dense([[[1.0, 0.0], [1.0, 0.0]], [[0.5, 0.5], [1.0, 0.0]]], [1.0, 0.0], 0.9)
        self.objective = objective
        self.x0 = jnp.array([0.2, -0.1])

    def reward(self, x):
        return jnp.stack([jnp.stack([x[0], x[1]]), jnp.array([0.3, 0.1])])


class Mixed(UpperObjective):
    """The docs' entropy, of the states that count."""

    weight: jax.Array

    def value(self, x, pi, problem):
        return 0.1 * jnp.sum(x**2) - jnp.sum(self.weight * planning.entropy(pi))


@pytest.mark.slow
def test_what_is_never_visited_counts_nothing():
    """The penalty's gradient tends to the exact one where a state is out of reach and f is not linear."""
    it = Aside(Mixed(jnp.array([1.0, 0.0])))
    exact = oracles.hyper_gradient(it, it.x0, 0.3)
    off = [float(jnp.linalg.norm(oracles.penalty_hyper_gradient(it, it.x0, w, 0.3) - exact)) for w in (1e-2, 1e-3)]
    assert off[0] < 0.1 * float(jnp.linalg.norm(exact))
    assert off[1] < 0.2 * off[0]
    # f looks at the unreachable state too: the follower there keeps to its own optimum
    both = Aside(Mixed(jnp.array([1.0, 1.0])))
    np.testing.assert_allclose(
        oracles.penalised_policy(both, both.x0, 0.1, 0.3)[1], oracles.lower_optimum(both, both.x0, 0.3).pi[1], atol=1e-3
    )


@pytest.mark.slow
def test_a_penalty_that_is_not_found_is_refused():
    it = Aside(Mixed(jnp.array([1.0, 0.0])))
    with pytest.raises(Unsolved, match="penalised_policy"):
        oracles.penalised_policy(it, it.x0, 0.5, 0.3, max_iterations=1)


@functools.partial(jax.jit, static_argnums=1)
def answers_in_the_cold(it, tau):
    """The follower's policy, the slope of its return there, and three answers of the leader's."""
    x, pi = it.x0, oracles.lower_optimum(it, it.x0, tau).pi
    others = oracles.hyper_gradient(it, x, tau), oracles.hyper_objective(it, x, tau)
    return pi, oracles.policy_gradient(it, x, pi, tau), (*others, oracles.penalty_hyper_gradient(it, x, 1e-3, tau))


@pytest.mark.parametrize("tau", [pytest.param(3e-4, marks=pytest.mark.slow), 1e-5])
def test_nothing_times_the_logarithm_of_nothing_is_nothing(tau):
    """At temperatures at which probabilities underflow to 0."""
    it = Aside(Mixed(jnp.array([1.0, 1.0])))
    pi, slope, others = answers_in_the_cold(it, tau)
    assert float(pi.min()) == 0
    np.testing.assert_allclose(slope, 0.0, atol=1e-9)
    for one in others:
        assert np.isfinite(one).all()


def test_upper_objective_earns_nothing_in_ends():
    mdp = FiniteMDP.from_sparse(np.array([[[1]], [[1]]]), np.ones((2, 1, 1)), [1.0, 0.0], 0.9, ends=[False, True])
    it = Aside(VisitationUtility(jnp.array([1.0, 7.0])))
    object.__setattr__(it, "mdp", mdp)
    f = it.objective.value(it.x0, jnp.ones((2, 1)), it)
    assert float(f) == pytest.approx(-0.1)  # one visit of the first state, in shares: 1 - gamma


class Hole(ClosedFormProblem):
    """Its follower is known on one side only."""

    name = "hole"

    def __init__(self):
        self.x0 = jnp.ones(1)
        self.mdp = self.objective = None

    def hyper_objective(self, x, tau):
        return jnp.where(x[0] < 0.5, jnp.nan, x[0] ** 2)


def test_a_grade_that_is_no_number_ends_the_run():
    trace = solve(Hole(), ExactDescent(step_size=0.3), iterations=1)
    assert trace.status.tolist() == [1]
    assert "run 0, iteration 1: got an objective of NaN" in trace.messages[0]
