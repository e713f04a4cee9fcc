"""Small MDPs, and the statistics of sampled estimators."""

from __future__ import annotations

import functools
from itertools import product

import jax.numpy as jnp
import numpy as np
import pytest

from bilevel_rl.finite.model.mdp import FiniteMDP
from bilevel_rl.finite.problems import FrozenLake, PreferenceLearning, RandomMDP
from bilevel_rl.finite.solvers import (
    F2SA,
    HPGD,
    BoltzmannCovariance,
    CertaintyEquivalence,
    FiniteDifference,
    NestedPenalty,
)

STANDARD_ERRORS = 4.5


def thinned(values, keep):
    """Parameters of a test of which every run takes those in `keep`, and the long studies all."""
    whole = {value: value if isinstance(value, tuple) else (value,) for value in values}
    return [pytest.param(*row, marks=[] if value in keep else pytest.mark.slow) for value, row in whole.items()]


def random_dense(seed: int, states: int = 3, actions: int = 2, discount: float = 0.8, sparse: bool = False):
    """An MDP [S, A, S] and a reward [S, A], everything random; `sparse` removes about half of the transitions."""
    rng = np.random.default_rng(seed)
    P = rng.standard_exponential((states, actions, states))
    if sparse:
        P *= rng.uniform(size=P.shape) < 0.5
        P[..., 0] += (P.sum(-1) == 0).astype(float)
    P /= P.sum(-1, keepdims=True)
    start = rng.standard_exponential(states)
    reward = jnp.asarray(rng.normal(size=(states, actions)))
    return FiniteMDP.from_dense(P, start / start.sum(), discount), reward


def random_policy(seed: int, states: int = 3, actions: int = 2):
    p = np.random.default_rng(seed).standard_exponential((states, actions)) + 0.05
    return jnp.asarray(p / p.sum(-1, keepdims=True))


def value_by_powers(P: np.ndarray, reward: np.ndarray, discount: float, pi: np.ndarray, terms: int = 400):
    """Sum of gamma^k E[r_k], term by term: no linear solve."""
    P_pi, r_pi = np.einsum("sa,sat->st", pi, P), (pi * reward).sum(-1)
    V, weight = np.zeros(len(r_pi)), np.eye(len(r_pi))
    for _ in range(terms):
        V = V + weight @ r_pi
        weight = discount * weight @ P_pi
    return V


def deterministic_policies(states: int, actions: int):
    for choice in product(range(actions), repeat=states):
        yield np.eye(actions)[list(choice)]


def assert_mean(samples, exact, what: str = "mean") -> None:
    """The mean of samples [n, ...] lies within 4.5 standard errors of `exact`, in every component."""
    samples, exact = np.asarray(samples, float), np.asarray(exact, float)
    error = samples.std(0, ddof=1) / np.sqrt(len(samples))
    off = np.abs(samples.mean(0) - exact)
    # rounding of the mean itself, where a component does not vary
    allowed = STANDARD_ERRORS * error + 1e-7 * (1 + np.abs(exact))
    worst = np.unravel_index(np.argmax(off - allowed), off.shape) if off.ndim else ()
    assert np.all(off <= allowed), (
        f"{what}{list(map(int, worst))}: mean {samples.mean(0)[worst]:.6g}, exact {exact[worst]:.6g}, "
        f"standard error {error[worst]:.3g}"
    )




# -- solvers, as small as they go ---------------------------------------------------------------------------------------

ROLLED = {"trajectories": 3, "horizon": 4, "passes": 2}
SMALL = {
    NestedPenalty: {"inner": 4, "chains": 3}, FiniteDifference: {"inner": 4, "chains": 3}, F2SA: {"inner": 4, "chains": 3},
    HPGD: ROLLED, BoltzmannCovariance: ROLLED,
    CertaintyEquivalence: {"chains": 3, "length": 8, "descents": 2},
}  # fmt: skip


def make_small(kind, **options):
    """A solver under its small settings, with three chains where it has chains."""
    fields = {f.name for f in kind.__dataclass_fields__.values()}
    return kind(**(SMALL.get(kind, {"chains": 3} if "chains" in fields else {}) | options))


# -- what the competing methods are tested on ---------------------------------------------------------------------------

TAU = 0.3
TINY = 1e-6  # step of x, so small that x stays and its direction can be read off


@functools.cache
def problem(name: str):
    return {
        "visitation": lambda: RandomMDP(4, 2, 3, features=2, largest=10.0, discount=0.7),
        "energy": lambda: RandomMDP(4, 2, 3, features=2, largest=10.0, discount=0.7, objective="energy"),
        "moving": lambda: RandomMDP(4, 2, 3, features=2, largest=10.0, discount=0.7, moving=True),
        "payments": FrozenLake,
        "preferences": lambda: PreferenceLearning(pairs=3),
    }[name]()


def point(it):
    return 0.5 * it.x0 + 0.1
