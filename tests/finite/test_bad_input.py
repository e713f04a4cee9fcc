"""What bad input gets: an error of the family before any work starts, with the words kept in a snapshot."""

from __future__ import annotations

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel_rl.errors import BilevelError
from bilevel_rl.finite import BilevelProblem, FiniteMDP, oracles, solve
from bilevel_rl.finite.checks import check_problem
from bilevel_rl.finite.objectives import PreferenceLikelihood, VisitationUtility
from bilevel_rl.finite.problems import GoalPlacement, Incentives, PreferenceLearning, RandomMDP
from bilevel_rl.finite.problems.goal_placement import grid_mdp
from bilevel_rl.finite.solvers import (
    ExactDescent,
    ExactPenalty,
    FiniteDifference,
    NestedPenalty,
    PartialSGD,
    PenaltyActorCritic,
)  # fmt: skip
from bilevel_rl.schedules import PowerDecay, TimeScales

HALF = np.full((2, 1, 2), 0.5)


class Mine(BilevelProblem):
    """A user's problem whose reward is whatever the test says."""

    table: object = eqx.field(static=True)

    def __init__(self, table, x0=(0.5,)):
        self.mdp = FiniteMDP.from_dense(HALF)
        self.objective = VisitationUtility(jnp.ones(2))
        self.x0 = jnp.asarray(x0)
        self.table = table

    def reward(self, x):
        return self.table(x)

    def box(self):
        return jnp.zeros_like(self.x0), jnp.ones_like(self.x0)


def scales(**fields):
    return TimeScales(**{name: PowerDecay(**values) for name, values in fields.items()})


def run(solver, problem=None, **options):
    return solve(problem or RandomMDP(3, 2, 2), solver, iterations=options.pop("iterations", 2), **options)


def unchecked(solver, **fields):
    """Set fields past the checker of annotations, which speaks first in tests and which users do not have."""
    for name, value in fields.items():
        object.__setattr__(solver, name, value)
    return solver


two = jnp.ones((2, 1))
BAD = {
    "rows do not sum to one": lambda: FiniteMDP.from_dense(HALF * [[[1]], [[0.97]]]),
    "negative probability": lambda: FiniteMDP.from_dense([[[1.5, -0.5]], [[0.5, 0.5]]]),
    "not a cube": lambda: FiniteMDP.from_dense(np.ones((2, 2))),
    "NaN probability": lambda: FiniteMDP.from_dense([[[np.nan, 1.0]], [[0.5, 0.5]]]),
    "successor out of range": lambda: FiniteMDP.from_sparse([[[0, 3]], [[0, 1]]], HALF),
    "successors and probabilities differ": lambda: FiniteMDP.from_sparse([[[0]], [[0]]], HALF),
    "start of the wrong length": lambda: FiniteMDP.from_dense(HALF, start=[1.0]),
    "start that does not sum to one": lambda: FiniteMDP.from_dense(HALF, start=[0.5, 0.4]),
    "gamma of one": lambda: FiniteMDP.from_dense(HALF, discount=1.0),
    "gamma below zero": lambda: FiniteMDP.from_dense(HALF, discount=-0.1),
    "environment without a table": lambda: FiniteMDP.from_gymnasium("CartPole-v1"),
    "grid with a wall outside": lambda: grid_mdp(2, 2, ((3, 3),)),
    "random MDP without states": lambda: RandomMDP(0),
    "offers of another length": lambda: Incentives(FrozenLake_env(), np.ones((1, 16)), np.ones(16), [0.1, 0.1]),
    "reward of the wrong shape": lambda: check_problem(Mine(lambda x: jnp.ones(2) * x[0])),
    "reward with NaN": lambda: check_problem(Mine(lambda x: two * jnp.nan * x[0])),
    "infinite reward": lambda: check_problem(Mine(lambda x: two / (x[0] - 0.5))),
    "reward that JAX can't trace": lambda: check_problem(Mine(lambda x: two * float(np.asarray(x)[0]))),
    "reward with a step": lambda: check_problem(Mine(lambda x: two * jnp.round(1e5 * (x[0] - 0.5)) + 0 * x[0])),
    "reward with an infinite slope": lambda: check_problem(Mine(lambda x: two * jnp.sqrt(x[0]), x0=(0.0,))),
    "reward_at that disagrees": lambda: check_problem(Disagreeing(lambda x: two * x[0])),
    "x0 outside its set": lambda: check_problem(Mine(lambda x: two * x[0], x0=(2.0,))),
    "x0 of integers": lambda: check_problem(Mine(lambda x: two * x[0], x0=(1,))),
    "start of a run outside": lambda: run(ExactDescent(), x0=[9.0, 0.0, 0.0]),
    "start of a run of another length": lambda: run(ExactDescent(), x0=[0.0]),
    "no iterations": lambda: run(ExactDescent(), iterations=0),
    "no runs": lambda: run(ExactDescent(), runs=0),
    "settings of different structure": lambda: run([PartialSGD(chains=1), PartialSGD(chains=2)]),
    "negative schedule": lambda: run(PenaltyActorCritic(scales=scales(zeta={"initial": -0.1}))),
    "increasing schedule": lambda: run(PenaltyActorCritic(scales=scales(alpha={"power": -0.5}))),
    "infinite schedule": lambda: run(NestedPenalty(scales=scales(beta={"initial": np.inf}))),
    "w of zero": lambda: run(ExactPenalty(scales=scales(w={"initial": 0.0}))),
    "tau of zero": lambda: run(PartialSGD(scales=scales(tau={"initial": 0.0}))),
    "no chains": lambda: run(PenaltyActorCritic(chains=0)),
    "no chains in the nested loop": lambda: run(NestedPenalty(chains=0)),
    "no chains in the partial gradient": lambda: run(PartialSGD(chains=0)),
    "no chains in the differences": lambda: run(FiniteDifference(chains=0)),
    "unknown sampling": lambda: run(unchecked(PenaltyActorCritic(), sampling="chains")),
    "unknown perturbation": lambda: run(unchecked(FiniteDifference(), perturbation="sideways")),
    "radius of zero": lambda: run(FiniteDifference(radius=PowerDecay(0.0))),
    "momentum of one": lambda: run(PenaltyActorCritic(momentum=1.0)),
    "inner loop of one": lambda: run(NestedPenalty(inner=1)),
    "negative hold": lambda: run(ExactPenalty(hold=-1.0)),
    "step of zero": lambda: run(ExactDescent(step_size=0.0)),
    "brute force in many dimensions": lambda: oracles.brute_force(RandomMDP(3, 2, 2, features=4), 0.1),
    "too many trajectories": lambda: oracles.hyper_objective(PreferenceLearning(states=6, horizon=4), jnp.zeros(2), 0.5),
    "horizon of zero": lambda: PreferenceLikelihood(jnp.ones((2, 1)), horizon=0),
}  # fmt: skip


class Disagreeing(Mine):
    def reward_at(self, x, s, a):
        return x[0] * jnp.ones(s.shape) + 0.1


def FrozenLake_env():
    from gymnasium.envs.toy_text.frozen_lake import FrozenLakeEnv

    return FrozenLakeEnv()


@pytest.mark.parametrize("what", BAD)
def test_bad_input_gets_a_sentence(what, snapshot):
    with pytest.raises(BilevelError) as caught:
        BAD[what]()
    text = str(caught.value)
    assert text.endswith(".")
    assert ": got " in text
    assert "; " in text
    assert f"{type(caught.value).__name__}: {text}" == snapshot


def test_a_file_that_is_no_mdp(tmp_path):
    path = tmp_path / "mdp.npz"
    path.write_bytes(b"not an archive")
    with pytest.raises(BilevelError, match=r"an \.npz of plain arrays is expected"):
        FiniteMDP.load(path)
    np.savez(path, Q=np.ones(3))
    with pytest.raises(BilevelError, match="either P or successors and probabilities must be there"):
        FiniteMDP.load(path)
    with pytest.raises(BilevelError):
        FiniteMDP.load(tmp_path / "missing.npz")


@pytest.mark.parametrize("problem", [
    pytest.param(lambda: GoalPlacement(rows=3, columns=3), marks=pytest.mark.slow), lambda: RandomMDP(4, 2, 2, moving=True),
    pytest.param(PreferenceLearning, marks=pytest.mark.slow),
], ids=["goal", "moving", "preferences"])  # fmt: skip
def test_good_problems_pass(problem):
    check_problem(problem())


def test_shapes_are_checked_while_tests_run():
    """The annotations of the engine are enforced here, so a wrong shape can't broadcast its way through."""
    from jaxtyping import TypeCheckError

    from bilevel_rl.finite.model import planning

    mdp = FiniteMDP.from_dense(HALF)
    with pytest.raises(TypeCheckError):
        mdp.expect(jnp.zeros((2, 2)))
    with pytest.raises(TypeCheckError):
        planning.policy_value(mdp, jnp.zeros((2, 3)), jnp.ones((2, 1)))
    with pytest.raises(TypeCheckError):
        planning.visitation(mdp, jnp.ones((2, 1), int))
