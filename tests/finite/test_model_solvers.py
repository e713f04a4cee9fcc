"""The model-based competing methods: they converge to the exact hyper-gradient, and their bias falls as it should."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from finite_instances import TAU, TINY, point, problem, random_policy, thinned

from bilevel_rl.errors import InvalidConfig, InvalidProblem
from bilevel_rl.finite import implicit, oracles, solve
from bilevel_rl.finite.problems import GoalPlacement
from bilevel_rl.finite.problems.probes import TwoState
from bilevel_rl.finite.solvers import (
    AMD,
    F2SA,
    HPGD,
    BoltzmannCovariance,
    ImplicitCG,
    PBRLBellman,
    PBRLValue,
    PolicyAlignment,
    SoBiRL,
    ZeroOrder,
)  # fmt: skip
from bilevel_rl.schedules import PowerDecay, TimeScales


def settled(it, one, steps: int):
    """x's direction after many iterations at a fixed x."""
    x = point(it)

    @jax.jit
    def run(state):
        def still(state, k):
            new = one.step(it, state, k, jnp.zeros(0))
            return eqx.tree_at(lambda s: s.x, new, x), (x - new.x) / TINY

        return jax.lax.scan(still, state, jnp.arange(steps))[1][-1]

    return run(one.init(it, x, jax.random.key(0)))


MODEL = {
    "amd": (AMD(TINY, TAU, sweeps=20), 30, ["moving", "payments"]),
    "implicit_cg, bicgstab": (ImplicitCG(TINY, TAU, sweeps=20, products=3), 30, ["energy", "moving"]),
    "implicit_cg, cg": (ImplicitCG(TINY, TAU, sweeps=20, products=5, method="cg"), 60, ["energy"]),
    "sobirl": (SoBiRL(TINY, TAU, inner=20), 200, ["energy", "moving"]),
    "policy_alignment": (PolicyAlignment(TINY, TAU, alpha=10.0, damping=0.0), 30, ["energy", "moving"]),
}  # fmt: skip


ROWS = [(label, name) for label, row in MODEL.items() for name in row[2]]


@pytest.mark.parametrize(("label", "name"), thinned(ROWS, [row for row in ROWS if row[1] == "moving"]))
def test_model_based_directions_become_the_exact_hyper_gradient(label, name):
    one, steps, _ = MODEL[label]
    it = problem(name)
    exact = oracles.hyper_gradient(it, point(it), TAU)
    assert float(jnp.linalg.norm(exact)) > 1e-3
    np.testing.assert_allclose(settled(it, one, steps), exact, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", ["visitation", "payments"])
def test_the_dense_operators_are_the_sparse_ones(name):
    it = problem(name)
    pi = random_policy(0, it.mdp.n_states, it.mdp.n_actions)
    v = jax.random.normal(jax.random.key(2), (it.mdp.n_states,))
    both = (implicit.flow_residual, implicit.adjoint_residual)
    for dense, sparse in zip(implicit.operators(it.mdp, pi), both, strict=True):
        np.testing.assert_allclose(dense(v), sparse(it.mdp, pi, v), rtol=1e-10, atol=1e-12)


def test_adjoint_sweeps_are_adjoint():
    it = problem("payments")
    pi = random_policy(0, it.mdp.n_states, it.mdp.n_actions)
    m, v = (jax.random.normal(jax.random.key(i), (it.mdp.n_states,)) for i in range(2))
    np.testing.assert_allclose(
        jnp.dot(implicit.flow_residual(it.mdp, pi, m), v), jnp.dot(m, implicit.adjoint_residual(it.mdp, pi, v)), rtol=1e-10
    )


@pytest.mark.slow
def test_sweeps_from_zero_have_a_bias_of_the_order_of_their_discount():
    """Each sweep of AMD multiplies the error by gamma."""
    it = problem("visitation")
    exact = oracles.hyper_gradient(it, point(it), TAU)
    counts = np.array([8, 16, 24])
    errors = [float(jnp.linalg.norm(settled(it, AMD(TINY, TAU, sweeps=int(n), warm=False), 1) - exact)) for n in counts]
    slope = np.polyfit(counts, np.log(errors), 1)[0]
    assert slope == pytest.approx(np.log(0.7), rel=0.25)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [PBRLValue, PBRLBellman], ids=lambda kind: kind.name)
@pytest.mark.parametrize("name", ["visitation", "energy"])
def test_penalty_bias_is_of_order_w(kind, name):
    it = problem(name)
    exact = oracles.hyper_gradient(it, point(it), TAU)
    ws = np.array([0.02, 0.005])

    def direction(w):
        scales = TimeScales(*(PowerDecay(v) for v in (TINY, 1 / TAU, 1.0, w, TAU)))
        return settled(it, kind(scales=scales), 40)

    errors = [float(jnp.linalg.norm(direction(w) - exact)) for w in ws]
    assert errors[-1] < 0.1 * float(jnp.linalg.norm(exact))
    assert np.polyfit(np.log(ws), np.log(errors), 1)[0] == pytest.approx(1.0, abs=0.15)


def test_value_penalty_is_the_oracle_s():
    """At its fixed point the direction is the penalty hyper-gradient, whatever w."""
    it = problem("energy")
    scales = TimeScales(*(PowerDecay(v) for v in (TINY, 1 / TAU, 1.0, 0.3, TAU)))
    exact = oracles.penalty_hyper_gradient(it, point(it), 0.3, TAU)
    np.testing.assert_allclose(settled(it, PBRLValue(scales=scales), 60), exact, rtol=1e-6, atol=1e-8)


# -- what does not fit ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "name", "missing"),
    [
        (AMD(), "energy", "not linear in the visitation"),
        (SoBiRL(form="sampled"), "visitation", "such as preference data"),
        (SoBiRL(form="sampled"), "moving", "such as preference data .* and transitions or a start that depend on x"),
    ],
    ids=["amd", "sobirl", "sobirl twice"],
)
def test_a_problem_that_does_not_fit_is_refused_before_the_start(one, name, missing):
    with pytest.raises(InvalidProblem, match=missing) as caught:
        solve(problem(name), one, iterations=10**9)
    assert "coupled_penalty" in str(caught.value)
    assert ("amd" in str(caught.value).rpartition("Take one of")[2]) == problem(name).objective.linear


@pytest.mark.slow
@pytest.mark.parametrize(
    "one", [HPGD(trajectories=8, horizon=60), BoltzmannCovariance(), AMD(), ImplicitCG(), PBRLBellman(), PolicyAlignment()],
    ids=lambda one: one.name,
)  # fmt: skip
def test_goals_are_placed(one):
    """With default settings on the default problem, from a start that is not good."""
    trace = solve(GoalPlacement(), one, iterations=250, record_every=250)
    assert trace["objective"][0, -1] < -0.6


BAD = {
    "hpgd.trajectories": HPGD(trajectories=0), "hpgd.horizon": HPGD(horizon=1), "hpgd.clip": HPGD(clip=0.0),
    "boltzmann_covariance.passes": BoltzmannCovariance(passes=0),
    "boltzmann_covariance.hold": BoltzmannCovariance(hold=-1.0),
    "sobirl.rate": SoBiRL(rate=2.0), "sobirl.sweeps": SoBiRL(sweeps=0), "amd.sweeps": AMD(sweeps=0),
    "implicit_cg.products": ImplicitCG(products=0), "policy_alignment.damping": PolicyAlignment(damping=-1.0),
    "pbrl_value.outer": PBRLValue(outer=0), "pbrl_bellman.weights": PBRLBellman(weights="start"),
    "zero_order.directions": ZeroOrder(directions=0), "zero_order.radius.initial": ZeroOrder(radius=PowerDecay(0.0)),
    "f2sa.inner": F2SA(inner=0), "f2sa.scales.tau.power": F2SA(scales=TimeScales.attenuating()),
}  # fmt: skip


@pytest.mark.parametrize("field", BAD)
def test_settings_of_model_solvers_that_are_not_allowed_are_refused_by_name(field):
    with pytest.raises(InvalidConfig, match=field):
        solve(TwoState(), BAD[field], iterations=10**9)
