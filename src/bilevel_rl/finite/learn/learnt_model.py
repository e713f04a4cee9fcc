r"""Comparing starts by a model learnt from samples: the transitions of all starts are one sample of the same kernel.

Followers that learn along a moving x lag behind it, and a few trajectories of each say little. But the kernel is the same
for every start, so what they all draw, each exploring around its own follower, estimates it; planning with the estimate
gives the answer to every x, and f along it:

$$\hat P(s'|s,a) = \frac{n(s,a,s')}{n(s,a)}, \qquad \hat\rho(s) = \frac{n_0(s)}{n_0}, \qquad
\hat\Phi_\tau(x) = \hat f\big(x, \mathrm{argmax}_\pi \hat J_\tau(x, \pi)\big)$$

Certainty equivalence. What was never tried is not allowed, and a state from which nothing was tried is an end.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from bilevel_rl.finite.learn import rollouts
from bilevel_rl.finite.model import planning
from bilevel_rl.finite.model.mdp import FiniteMDP
from bilevel_rl.finite.problem import BilevelProblem
from bilevel_rl.loop import noise

VISITS = 10  # ours: a model is learnt where every pair of state and action can be seen so often on average
LARGEST = 5000  # ours: states up to which planning for every start is quick
LIVES = 3  # ours: explorers walk for this many times 1/(1 - gamma)


@dataclasses.dataclass(frozen=True)
class Seen:
    """Transitions and first states that were drawn, counted.

    Attributes:
        rows: [M, 4] s, a, s', how often.
        first: [S] how often a walk began in s.
    """

    rows: np.ndarray
    first: np.ndarray

    @classmethod
    def nothing(cls, states: int) -> Seen:
        """Before any walk."""
        return cls(np.zeros((0, 4), int), np.zeros(states, int))

    def plus(self, s: np.ndarray, a: np.ndarray, s_next: np.ndarray) -> Seen:
        """With walks added: [n, N, T] each."""
        fresh = np.stack([v.ravel() for v in (s, a, s_next)] + [np.ones(s.size, int)], axis=1).astype(int)
        every = np.concatenate([self.rows, fresh])
        kinds, which = np.unique(every[:, :3], axis=0, return_inverse=True)
        counts = np.bincount(which.ravel(), every[:, 3], len(kinds)).astype(int)
        first = self.first + np.bincount(s[..., 0].ravel(), minlength=len(self.first))
        return Seen(np.concatenate([kinds, counts[:, None]], axis=1), first)


def walk_length(problem: BilevelProblem) -> int:
    """Transitions of one explorer's walk."""
    return max(2, round(LIVES / (1 - float(problem.mdp.discount))))


def fits(problem: BilevelProblem, transitions: int) -> bool:
    """Whether so many transitions, drawn under any x, teach a model of this problem."""
    fixed = not (problem.moves_transitions or problem.moves_start)
    size, actions = problem.mdp.n_states, problem.mdp.n_actions
    return fixed and size <= LARGEST and transitions >= VISITS * size * actions


def explore(
    problem: BilevelProblem, policies: Float[Array, "n S A"], keys: Array, walks: int, length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    r"""Walks under $\frac12(\pi + \text{uniform})$, `walks` of them for each policy: s, a, s' [n, walks, length]."""
    seen = _explore(problem, policies, keys, walks, length)[:3]
    return tuple(np.asarray(v) for v in seen)  # type: ignore[return-value]


@eqx.filter_jit
def _explore(problem, policies, keys, walks: int, length: int):
    def one(pi, key):
        u = noise.uniforms(rollouts.draws(walks, length), key)
        return rollouts.draw(problem.mdp, (pi + 1 / pi.shape[1]) / 2, u)

    return jax.vmap(one)(policies, keys)


def learnt(mdp: FiniteMDP, seen: Seen) -> tuple[FiniteMDP, Float[Array, "S A"], Bool[Array, " S"]]:
    """The estimated MDP; 0 where an action was tried in a state and -inf where not; in which states nothing was tried."""
    S, A = mdp.n_states, mdp.n_actions
    s, a, s_next, count = seen.rows.T
    pair = s * A + a
    tried = np.bincount(pair, count, S * A)
    begins = np.searchsorted(pair, np.arange(S * A))  # rows are sorted by s, a, s'
    rank = np.arange(len(pair)) - begins[pair]
    K = 1 << int(rank.max()).bit_length()  # a power of two: few programs
    successors = np.repeat(np.arange(S), A)[:, None].repeat(K, 1)
    probabilities = np.zeros((S * A, K))
    successors[pair, rank], probabilities[pair, rank] = s_next, count / tried[pair]
    probabilities[tried == 0, 0] = 1.0  # to itself
    known = (tried > 0).reshape(S, A)
    stuck = np.asarray(~known.any(1))
    ends = np.asarray(stuck if mdp.ends is None else stuck | np.asarray(mdp.ends))
    shape = S, A, K
    loop = np.broadcast_to(np.arange(S)[:, None, None], shape)
    successors = np.where(ends[:, None, None], loop, successors.reshape(shape))
    model = FiniteMDP.from_sparse(
        successors, probabilities.reshape(shape), seen.first / seen.first.sum(), float(mdp.discount), ends
    )
    return model, jnp.where(jnp.asarray(known | ends[:, None]), 0.0, -jnp.inf), jnp.asarray(stuck)


def answers(
    problem: BilevelProblem, x: Float[Array, "n d"], tau, seen: Seen
) -> tuple[Float[Array, "n S A"], Float[Array, " n"] | None]:
    """The planned answer to each x, and f along it by the model where f is linear in the visitation, else None."""
    return _answers(problem, x, tau, *learnt(problem.mdp, seen))


@eqx.filter_jit
def _answers(problem: Any, xs: Array, tau: Any, model: FiniteMDP, allowed: Array, stuck: Array):
    objective = problem.objective

    def one(x):
        pi = planning.soft_optimal(model, problem.reward(x), tau, allowed=allowed).pi
        if not objective.linear:
            return pi, None
        d = jnp.where(stuck, 0.0, planning.visitation(model, pi))  # what comes after them is not known
        return pi, objective.visited_value(x, d[:, None] * pi)

    return jax.lax.map(one, xs)
