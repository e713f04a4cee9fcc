"""What `check` finds in a user's own problem: each fault once, in one sentence that names the method; and what it takes."""

from __future__ import annotations

import re
import types

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel_rl.commands.screen import basin_note, held_note, worse_note
from bilevel_rl.errors import InvalidConfig, InvalidProblem, typed
from bilevel_rl.finite import BilevelProblem, FiniteMDP, solve
from bilevel_rl.finite.checks import built, check_problem
from bilevel_rl.finite.objectives import VisitationUtility
from bilevel_rl.finite.solvers import ExactDescent
from bilevel_rl.host import GymnasiumHost
from bilevel_rl.loop.searching import search
from bilevel_rl.loop.starts import checked_seed

HALF = np.full((2, 2, 2), 0.5)


class Own(BilevelProblem):
    """A sound problem; each case below spoils one method."""

    def __init__(self, x0=(0.5,)):
        self.mdp = FiniteMDP.from_dense(HALF)
        self.objective = VisitationUtility(jnp.ones(2))
        self.x0 = jnp.asarray(x0) if isinstance(x0, (np.ndarray, tuple)) else x0

    def reward(self, x):
        return jnp.array([[0.0, 1.0], [0.0, 0.0]]) * x[0]


def spoilt(**methods):
    return type("Spoilt", (Own,), methods)


def raising(*_):
    raise KeyError("lost")


def leaking(self, x):
    return self.mdp.with_probabilities(self.mdp.probabilities * (1 - 0.1 * x[0]))


BAD = {
    "a branch on x": (
        {"reward": lambda self, x: jnp.ones((2, 2)) * x[0] if x[0] > 0 else jnp.zeros((2, 2))},
        r"Spoilt\.reward: got .*a branch on x; .*jnp\.where",
    ),
    "steps": (
        {"reward": lambda self, x: jnp.ones((2, 2)) * jnp.floor(50 * x[0])},
        r"Spoilt\.reward: got a change .* derivative of zero",
    ),
    "a reward that raises": ({"reward": raising}, r"Spoilt\.reward: got .*lost"),
    "a temperature that is a word": ({"temperature": lambda self: "warm"}, r"Spoilt\.temperature\(\): got .*warm"),
    "a temperature below zero": ({"temperature": lambda self: -0.1}, r"Spoilt\.temperature\(\): got .*at least 0"),
    "a temperature that raises": ({"temperature": raising}, r"Spoilt\.temperature: got .*lost"),
    "a box that is no pair": ({"box": lambda self: jnp.zeros(1)}, r"Spoilt\.box\(\): got .*pair of arrays \[1\]"),
    "a box of numbers": ({"box": lambda self: (0.0, 1.0)}, r"Spoilt\.box\(\): got .*pair of arrays \[1\].*full_like"),
    "a box upside down": ({"box": lambda self: (jnp.ones(1), jnp.zeros(1))}, r"Spoilt\.box\(\): got .*below the upper"),
    "a layout of another kind": ({"layout": lambda self: 3}, r"Spoilt\.layout\(\): got int; .*GridLayout"),
    "rows that x takes from": (
        {"moves_transitions": True, "transitions": leaking},
        r"Spoilt\.transitions\(\[.*\]\).*: got .*sum to 1 whatever x is",
    ),
    "transitions of another kind": (
        {"moves_transitions": True, "transitions": lambda self, x: HALF},
        r"Spoilt\.transitions\(\[.*\]\): got .*an MDP of the same states and actions",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_a_fault_is_named_by_its_method(what):
    methods, words = BAD[what]
    with pytest.raises(InvalidProblem, match=words) as caught:
        check_problem(spoilt(**methods)(), thorough=False)
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize("shape", [(3,), (2, 3)])
def test_a_utility_of_another_size_is_found(shape):
    it = eqx.tree_at(lambda problem: problem.objective, Own(), VisitationUtility(jnp.ones(shape)))
    with pytest.raises(InvalidProblem, match=r"Own\.objective: got a utility of shape \(.*\[S, A\] = \(2, 2\)"):
        check_problem(it, thorough=False)


def test_a_utility_that_is_the_same_in_every_state_is_not():
    check_problem(eqx.tree_at(lambda problem: problem.objective, Own(), VisitationUtility(jnp.ones((1, 2)))), thorough=False)


def test_a_state_reward_that_looks_at_actions_is_found():
    with pytest.raises(InvalidProblem, match="state_reward"):
        check_problem(spoilt(state_reward=True)())


@pytest.mark.parametrize("edge", [0.9, pytest.param(0.1, marks=pytest.mark.slow)])
def test_a_step_anywhere_in_the_box_is_found(edge):
    methods = {"reward": lambda self, x: jnp.ones((2, 2)) * jnp.where(x[0] > edge, 1.0, 0.0),
               "box": lambda self: (jnp.zeros(1), jnp.ones(1))}  # fmt: skip
    with pytest.raises(InvalidProblem, match=r"Spoilt\.reward: got a change of 1 .* derivative of zero"):
        check_problem(spoilt(**methods)())
    hinge = {**methods, "reward": lambda self, x: jnp.ones((2, 2)) * jnp.maximum(x[0] - edge, 0.0)}  # flat in places only
    check_problem(spoilt(**hinge)())


@pytest.mark.parametrize("x0", ["half", np.array([[0.5]]), np.array([np.nan]), np.array([1]), (), 0.5, ["half"]], ids=repr)
def test_x0_that_is_no_vector_of_floats(x0):
    with pytest.raises(InvalidProblem, match=r"Own\.x0: got .*a vector \[d\] of finite floats; ?|Own\.x0: got"):
        check_problem(Own(x0), thorough=False)


@pytest.mark.parametrize("x0", [[0.5], [1], np.array([0.5], np.float32)], ids=repr)
def test_x0_as_a_list_or_in_single_precision_is_taken(x0):
    it = Own(x0)
    check_problem(it, thorough=False)
    assert it.x0.shape == (1,)


class Undeclared(Own):
    def __init__(self):
        super().__init__()
        self.price = 2.0


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (Undeclared, r"fields must be declared in the class.*Declare it in the class body"),
        (lambda: None, r"a function that returns NoneType; it must return a problem"),
        (lambda: raising(), r"KeyError .*lost.*it must be made without an error"),
        (lambda: Own(1, 2), r"TypeError .*it must be made without an error"),
    ],
    ids=["undeclared field", "None", "raises", "arguments"],
)
def test_what_makes_a_problem(make, words):
    with pytest.raises(InvalidProblem, match=words):
        built("mine.py:problem", make)


@pytest.mark.parametrize("seed", [1.5, "1", None, True, 2**63], ids=repr)
def test_a_seed_that_is_no_integer(seed):
    with pytest.raises(InvalidConfig, match=r"solve\.seed: got .*an integer of at most 64 bits"):
        checked_seed(seed)
    assert checked_seed(np.int64(3)) == 3


def test_solve_and_search_look_at_the_seed():
    with pytest.raises(InvalidConfig, match=r"solve\.seed"):
        solve(Own(), ExactDescent(), iterations=1, seed=2**63)
    with pytest.raises(InvalidConfig, match=r"solve\.seed"):
        search(Own(), ExactDescent(), starts=1, iterations=1, seed=2**63)


def test_runs_that_end_above_their_start_are_said():
    def trace(*rows):
        return types.SimpleNamespace(metrics={"objective": np.array(rows)})

    assert worse_note(trace([1.0, 0.5], [1.0, 1.0])) is None
    assert re.match(r"1 of 2 runs end at a higher objective than x0", worse_note(trace([1.0, 0.5], [-0.085, 2.36])))
    assert worse_note(types.SimpleNamespace(metrics={})) is None


def test_runs_that_rest_at_a_local_optimum_are_said():
    def note(rows, x=(0.1, 0.05, 0.01, 0.01), starts=True):
        rows = np.array(rows, float)
        metrics = {"objective": rows, "samples": np.full(rows.shape, 900), "iteration": np.full(rows.shape, 30)}
        trace = types.SimpleNamespace(metrics=metrics, x=np.broadcast_to(np.array(x)[:, None], (*rows.shape, 1)))
        names = "my toll.py", "coupled_penalty"
        return basin_note(trace, -1.0, *names, starts=starts), held_note(trace, *names)

    stuck, going, there = [-0.1, -0.2, -0.2, -0.2], [-0.1, -0.2, -0.3, -0.5], [-0.1, -0.6, -0.99, -0.99]
    found, held = note([stuck, stuck, there])
    assert found.startswith("2 of 3 runs rest more than 5 % from the best known value: a local optimum, it seems")
    assert found.endswith("bilevel-rl run 'my toll.py' coupled_penalty --solver.starts 8 --samples 900")
    assert held is None
    assert note([stuck, there, there])[0] is None  # most have found it
    assert note([going])[0] is None  # on its way
    assert note([stuck], starts=False)[0].endswith("bilevel-rl search 'my toll.py' coupled_penalty --starts 8 --samples 900")
    found, held = note([stuck], x=(0.1,) * 4)
    assert found is None
    assert held.endswith("bilevel-rl run 'my toll.py' coupled_penalty --samples 9000")


def test_a_path_with_a_space_is_one_word():
    assert typed("resume", "my runs/a") == "bilevel-rl resume 'my runs/a'"


def test_what_is_not_there_is_named_with_the_nearest():
    with pytest.raises(InvalidConfig, match=r"from_gymnasium: got the id 'FrozenLke-v1'; Did you mean 'FrozenLake-v1'"):
        FiniteMDP.from_gymnasium("FrozenLke-v1")
    with pytest.raises(InvalidConfig, match=r"environment: got the id 'FrozenLke-v1'; Did you mean 'FrozenLake-v1'"):
        GymnasiumHost("FrozenLke-v1")
    trace = solve(Own(), ExactDescent(), iterations=1)
    with pytest.raises(KeyError, match="Did you mean 'objective'"):
        trace["objectiv"]
