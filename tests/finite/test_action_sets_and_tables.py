"""Action sets by state, tables of environments and of other packages, files, horizons: against backward induction."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse

from bilevel_rl.errors import InvalidProblem
from bilevel_rl.finite import BilevelProblem, FiniteMDP, gymnasium_rewards, oracles, solve
from bilevel_rl.finite.model import planning, sampling
from bilevel_rl.finite.model.contexts import side_by_side
from bilevel_rl.finite.model.horizon import unrolled, unrolled_rewards
from bilevel_rl.finite.objectives import VisitationUtility
from bilevel_rl.finite.solvers import AMD, CoupledPenalty, ExactDescent, PenaltyActorCritic
from bilevel_rl.loop.solver import check_fits

ALLOWED = np.array([[1, 1, 0], [1, 0, 1], [0, 1, 0], [1, 1, 1]], bool)
TAU = 0.3
hard = jax.jit(planning.hard_optimal)


def table(S: int = 4, A: int = 3) -> np.ndarray:
    return np.random.default_rng(0).dirichlet(np.ones(S), (S, A))


class Ragged(BilevelProblem):
    """x pays each action; what a state does not offer would pay a thousand."""

    name = "ragged"

    def __init__(self):
        self.mdp = FiniteMDP.from_dense(table(), discount=0.8, allowed=ALLOWED)
        self.objective = VisitationUtility(jnp.array([0.5, -1.0, 0.3, 1.0]), weight=0.1)
        self.x0 = jnp.zeros(3)

    def reward(self, x):
        return jnp.where(ALLOWED, 0.0, 1e3) + x + jnp.array([0.0, 0.1, 0.2])

    def temperature(self):
        return TAU


def best_by_hand(x, tau: float) -> np.ndarray:
    """Values by sweeps over lists of what each state offers."""
    r, V = np.asarray(Ragged().reward(x)), np.zeros(4)
    for _ in range(300):
        Q = r + 0.8 * table() @ V
        offered = [Q[s][ALLOWED[s]] for s in range(4)]
        V = np.array([tau * np.log(np.exp(q / tau).sum()) if tau else q.max() for q in offered])
    return V


def test_planners_keep_to_what_a_state_offers():
    it = Ragged()
    reward = it.reward(it.x0)
    soft = jax.jit(planning.soft_optimal)(it.mdp, reward, TAU)
    np.testing.assert_allclose(soft.V, best_by_hand(it.x0, TAU), atol=1e-12)
    np.testing.assert_allclose(planning.value_iteration(it.mdp, reward, TAU).V, soft.V, atol=1e-8)
    best = hard(it.mdp, reward)
    np.testing.assert_allclose(best.V, best_by_hand(it.x0, 0.0), atol=1e-12)
    for pi in (soft.pi, best.pi):
        np.testing.assert_array_equal(np.asarray(pi)[~ALLOWED], 0.0)
    assert np.isfinite(oracles.policy_gradient(it, it.x0, soft.pi, TAU)).all()


@pytest.mark.slow
def test_hyper_gradient_with_action_sets_is_central_differences():
    it = Ragged()
    f = jax.jit(lambda x: oracles.hyper_objective(it, x, TAU))
    central = [float(f(it.x0 + e) - f(it.x0 - e)) / 2e-5 for e in 1e-5 * np.eye(3)]
    np.testing.assert_allclose(oracles.hyper_gradient(it, it.x0, TAU), central, atol=1e-9)


@pytest.mark.parametrize(
    "solver",
    [PenaltyActorCritic(), *(pytest.param(s, marks=pytest.mark.slow) for s in (CoupledPenalty(), ExactDescent(tau=TAU)))],
    ids=lambda s: s.name,
)
def test_solvers_keep_to_what_a_state_offers(solver):
    trace = solve(Ragged(), solver, iterations=200, record_every=200, evaluate=False)
    assert trace.status.tolist() == [0]
    pair = solver.policies(Ragged(), jax.tree.map(lambda v: v[0], trace.state), jnp.array(200))
    for pi in pair or ():
        np.testing.assert_array_equal(np.asarray(pi)[~ALLOWED], 0.0)
        np.testing.assert_allclose(pi.sum(-1), 1.0, atol=1e-12)


def test_solvers_that_take_every_action_are_refused():
    with pytest.raises(InvalidProblem, match="amd takes every action in every state"):
        check_fits(AMD(), Ragged())


def test_actions_are_drawn_among_those_offered():
    mdp = Ragged().mdp
    u = jax.random.uniform(jax.random.key(0), (8000,))
    s = jnp.arange(8000) % 4
    counts = np.zeros((4, 3))
    np.add.at(counts, (np.asarray(s), np.asarray(sampling.any_action(mdp, s, u))), 1)
    np.testing.assert_allclose(counts / 2000, ALLOWED / ALLOWED.sum(1, keepdims=True), atol=0.05)


def test_action_sets_travel(tmp_path):
    """Through files without an ending, contexts and horizons."""
    mdp = Ragged().mdp
    mdp.save(tmp_path / "m")
    np.testing.assert_array_equal(FiniteMDP.load(tmp_path / "m").allowed, ALLOWED)
    np.testing.assert_array_equal(side_by_side([mdp, FiniteMDP.from_dense(table(), discount=0.8)]).allowed[4:], True)
    np.testing.assert_array_equal(unrolled(mdp, 2).allowed, np.concatenate([ALLOWED, ALLOWED, np.ones((1, 3), bool)]))
    with pytest.raises(InvalidProblem, match="at least one action a state"):
        FiniteMDP.from_dense(table(), allowed=np.zeros((4, 3)))


# -- tables of others ------------------------------------------------------------------------------------------------


class Env:
    """Anything with `P`."""

    def __init__(self, P):
        self.P = P


def test_a_ragged_table_keeps_all_its_actions():
    paid = [(0.25, 1, 4.0, True), (0.75, 1, 0.0, False)]
    env = Env({0: {0: [(1.0, 1, 0.0, False)]}, 1: {0: [(1.0, 0, 0.5, False)], 1: paid}})
    mdp = FiniteMDP.from_gymnasium(env, 0.9)
    np.testing.assert_array_equal(mdp.allowed, [[True, False], [True, True]])
    np.testing.assert_array_equal(mdp.start, 0.5)
    np.testing.assert_array_equal(gymnasium_rewards(env), [[0.0, 0.0], [0.5, 1.0]])


MALFORMED = {
    r"P\[0\]\[0\]\[0\]: got .*at least 0": {0: {0: [(-0.1, 0, 0.0, False), (1.1, 0, 0.0, False)]}},
    r"next state 1; states are numbered 0\.\.0": {0: {0: [(1.0, 1, 0.0, False)]}},
    r"its keys must be 0, 1, \.\.\., S - 1": {1: {0: [(1.0, 1, 0.0, False)]}},
    "a state offers at least one action": {0: {}},
    r"P\[0\]\[0\]: got no outcome": {0: {0: []}},
    r"\(probability, next state, reward, done\)": {0: {0: [(1.0, 0, 0.0)]}},
    "sums to 0.5": {0: {0: [(0.5, 0, 0.0, False)]}},
}


@pytest.mark.parametrize("words", MALFORMED)
def test_malformed_tables_are_named(words):
    with pytest.raises(InvalidProblem, match=words):
        FiniteMDP.from_gymnasium(Env(MALFORMED[words]))


@pytest.mark.parametrize(
    ("name", "value"),
    [pytest.param("CliffWalking-v1", -13.0, id="thirteen steps"),
     pytest.param("FrozenLake-v1", 14 / 17, id="14 of 17 succeed", marks=pytest.mark.slow),
     pytest.param("Taxi-v4", 7.93, id="7.93 on average", marks=pytest.mark.slow)],
)  # fmt: skip
def test_published_values_of_episodes_that_end(name, value):
    """The best undiscounted return of one episode; restarts would make a goal at -1 a step worthless."""
    mdp, reward = FiniteMDP.from_gymnasium(name, 1 - 1e-8, ends=True), gymnasium_rewards(name, ends=True)
    assert float(jnp.dot(mdp.start, hard(mdp, reward).V)) == pytest.approx(value, abs=1e-4)


def test_matrices_by_action_are_the_same_mdp():
    P = np.where(table() < 0.2, 0.0, table())
    P /= P.sum(-1, keepdims=True)
    by_state = FiniteMDP.from_dense(P, discount=0.9)
    matrices = [scipy.sparse.csr_matrix(P[:, a]) for a in range(3)]
    for other in (FiniteMDP.from_dense(matrices, discount=0.9), FiniteMDP.from_matrices(np.moveaxis(P, 1, 0), discount=0.9)):
        np.testing.assert_allclose(other.dense(), by_state.dense(), atol=1e-15)
        assert other.successors.shape == by_state.successors.shape
    with pytest.raises(InvalidProblem, match="from_matrices for one"):
        FiniteMDP.from_dense(np.moveaxis(table(5), 1, 0))


def test_rounding_of_the_input_is_accepted():
    thirds = np.full((3, 2, 3), np.float32(1) / np.float32(3), np.float32)
    np.testing.assert_allclose(FiniteMDP.from_dense(thirds).probabilities.sum(-1), 1.0, atol=1e-15)
    mdp = FiniteMDP.from_dense([[[1 - 0.9 - 0.1, 0.9 + 0.1]], [[0.5, 0.5]]])
    assert float(mdp.probabilities.min()) >= 0
    with pytest.raises(InvalidProblem, match=r"a row that sums to 1 -1e-07; each row must sum to 1"):
        FiniteMDP.from_dense([[[0.9999999, 0.0]], [[0.5, 0.5]]])
    for wrong, words in ((table() + 0j, "complex"), (np.ma.masked_array(table()), "masked"), ("x", "real numbers")):
        with pytest.raises(InvalidProblem, match=words):
            FiniteMDP.from_dense(wrong)
    with pytest.raises(InvalidProblem, match=r"a traced value.*with_probabilities"):
        jax.jit(lambda t: FiniteMDP.from_dense(t * table()).probabilities)(1.0)


def test_files_are_looked_through(tmp_path):
    np.savez(tmp_path / "gamma.npz", P=table(), gamma=0.9)
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04junk")
    (tmp_path / "empty.npz").touch()
    for name, words in (("gamma", "nothing but P, .*discount"), ("cut", "BadZipFile"), ("empty", "EOFError")):
        with pytest.raises(InvalidProblem, match=words):
            FiniteMDP.load(tmp_path / f"{name}.npz")


# -- horizons and rewards of the next state ----------------------------------------------------------------------------


@pytest.mark.slow  # tests/finite/test_contexts.py has an unrolled horizon that is quick
@pytest.mark.parametrize("discount", [0.9, 1.0])
def test_finite_horizon_is_backward_induction(discount):
    """With terminal values, and at discount 1."""
    mdp, steps = FiniteMDP.from_dense(table(), discount=0.9), 30
    r, g = np.random.default_rng(1).normal(size=(4, 3)), np.array([1.0, 2.0, -1.0, 0.0])
    V, soft = g, g
    for _ in range(steps):
        V = (r + discount * table() @ V).max(1)
        soft = TAU * np.log(np.exp((r + discount * table() @ soft) / TAU).sum(1))
    long = unrolled(mdp, steps, discount)
    reward = unrolled_rewards(mdp, jnp.asarray(r), steps, jnp.asarray(g), discount)
    np.testing.assert_allclose(hard(long, reward).V[:4], V, rtol=1e-8)
    np.testing.assert_allclose(jax.jit(planning.soft_optimal)(long, reward, TAU).V[:4], soft, rtol=1e-8)


def test_rewards_of_the_next_state():
    """Their mean is what every planner needs; an episode that restarts arrives at its first state."""
    r = jnp.asarray(np.random.default_rng(2).normal(size=(4, 3, 4)))
    mdp = FiniteMDP.from_dense(table(), discount=0.9)
    np.testing.assert_allclose(mdp.mean_reward(r), np.einsum("sat,sat->sa", table(), r), atol=1e-14)
    restart = FiniteMDP.from_sparse(np.full((4, 3, 1), 4), np.ones((4, 3, 1)), [0.5, 0.0, 0.0, 0.5])
    np.testing.assert_allclose(restart.mean_reward(r), (r[..., 0] + r[..., 3]) / 2, atol=1e-14)
