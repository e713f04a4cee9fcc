"""The finite MDP: transitions, start and discount. No reward: the reward belongs to the problem."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import equinox as eqx
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from numpy.typing import ArrayLike

from bilevel_rl.errors import InvalidProblem, message

TOLERANCE = 1e-8  # ours: how far a row of probabilities may be from 1, in 64 bit


class FiniteMDP(eqx.Module):
    r"""Transitions, start distribution and discount of a finite MDP.

    Transitions are stored by successor: from state $s$ under action $a$ the next state is
    `successors[s, a, k]` with probability `probabilities[s, a, k]`, $k < K$. Memory is $O(S A K)$, so a sparse MDP of
    $10^6$ states fits. A successor index equal to `n_states` means *the episode ends here and a new one starts*: the
    next state is drawn from `start`.

    `start_keep` and `start_alias` are the alias table of `start`: one uniform number draws a first state in constant
    time, whatever S; None where `with_start` replaced it, and first states are then drawn from cumulated sums. `episodic`
    says whether any transition restarts.

    `ends` marks absorbing states in which everything is over for good: no reward and no entropy is counted there, so
    their value is 0. None where there are none, which costs nothing.

    Example:
        >>> mdp = FiniteMDP.from_dense([[[0.9, 0.1]], [[0.0, 1.0]]], start=[1.0, 0.0], discount=0.9)
        >>> mdp.n_states, mdp.n_actions
        (2, 1)
    """

    successors: Int[Array, "S A K"]
    probabilities: Float[Array, "S A K"]
    start: Float[Array, " S"]
    start_keep: Float[Array, " S"] | None
    start_alias: Int[Array, " S"] | None
    discount: Float[Array, ""]
    episodic: bool = eqx.field(static=True)
    ends: Bool[Array, " S"] | None = None

    # -- making one ---------------------------------------------------------------------------------------------

    @classmethod
    def from_dense(cls, P: ArrayLike, start: ArrayLike | None = None, discount: float = 0.95) -> FiniteMDP:
        """From `P[s, a, s']`; zero entries cost nothing.

        Args:
            P: [S, A, S] rows that sum to one.
            start: [S] distribution of the first state; uniform when None.
            discount: gamma in [0, 1).

        Raises:
            InvalidProblem: wrong shape, NaN, negative entries, a row that does not sum to one, gamma outside [0, 1).
        """
        P = _numbers("FiniteMDP.P", P)
        if P.ndim != 3 or P.shape[0] != P.shape[2] or 0 in P.shape:
            raise InvalidProblem(
                message("FiniteMDP.P", f"shape {P.shape}", "it must be [S, A, S] with S, A >= 1",
                        "Index it as P[state, action, next state]")
            )  # fmt: skip
        _check_rows("FiniteMDP.P", P)
        K = int(np.count_nonzero(P, axis=2).max())
        # the K largest entries of each row; rows with fewer point at state 0 with probability 0
        order = np.argsort(-P, axis=2, kind="stable")[:, :, :K]
        probabilities = np.take_along_axis(P, order, axis=2)
        return cls.from_sparse(order, probabilities, start, discount)

    @classmethod
    def from_sparse(
        cls,
        successors: ArrayLike,
        probabilities: ArrayLike,
        start: ArrayLike | None = None,
        discount: float = 0.95,
        ends: ArrayLike | None = None,
    ) -> FiniteMDP:
        """From successor indices and their probabilities.

        Args:
            successors: [S, A, K] integers in 0..S; S itself means "restart from `start`".
            probabilities: [S, A, K] rows that sum to one.
            start: [S] distribution of the first state; uniform when None.
            discount: gamma in [0, 1).
            ends: [S] truth values: absorbing states in which neither reward nor entropy is counted; None for none.

        Raises:
            InvalidProblem: as `from_dense`, an index out of range, or an end that can be left.
        """
        successors = np.asarray(successors)
        probabilities = _numbers("FiniteMDP.probabilities", probabilities)
        if successors.ndim != 3 or successors.shape != probabilities.shape or 0 in successors.shape:
            raise InvalidProblem(
                message("FiniteMDP.successors", f"shapes {successors.shape} and {probabilities.shape}",
                        "successors and probabilities must both be [S, A, K]", "Give both the same shape")
            )  # fmt: skip
        S = successors.shape[0]
        if not np.issubdtype(successors.dtype, np.integer) or successors.min() < 0 or successors.max() > S:
            raise InvalidProblem(
                message("FiniteMDP.successors", f"{successors.dtype} in [{successors.min()}, {successors.max()}]",
                        f"indices must be integers in 0..{S} ({S} restarts the episode)", "Number the states from 0")
            )  # fmt: skip
        _check_rows("FiniteMDP.probabilities", probabilities)
        rho = np.full(S, 1 / S) if start is None else _numbers("FiniteMDP.start", start)
        if rho.shape != (S,):
            raise InvalidProblem(
                message("FiniteMDP.start", f"shape {rho.shape}", f"it must be [{S}]", "Give one number a state")
            )
        _check_rows("FiniteMDP.start", rho)
        gamma = float(discount)
        if not 0 <= gamma < 1:
            raise InvalidProblem(
                message("FiniteMDP.discount", gamma, "it must be in [0, 1)", "Choose for instance 0.95")
            )
        keep, alias = _alias_table(rho)
        if ends is not None:
            ends = _absorbing(ends, successors, probabilities)
        return cls(
            successors=jnp.asarray(successors, jnp.int32),
            probabilities=jnp.asarray(probabilities),
            start=jnp.asarray(rho),
            start_keep=jnp.asarray(keep),
            start_alias=jnp.asarray(alias, jnp.int32),
            discount=jnp.asarray(gamma),
            episodic=bool((successors == S).any()),
            ends=None if ends is None else jnp.asarray(ends),
        )

    @classmethod
    def from_gymnasium(cls, env: gymnasium.Env | str, discount: float = 0.95, **options: Any) -> FiniteMDP:
        """From a Gymnasium toy-text environment (FrozenLake, CliffWalking, Taxi), or anything with its table `P`.

        A transition that ends the episode restarts it: the next state is drawn from the initial distribution, so the
        MDP is a stream of episodes.

        Args:
            env: the environment or its id, e.g. `"FrozenLake-v1"`.
            options: passed to `gymnasium.make` when `env` is an id.

        Raises:
            InvalidProblem: the environment has no transition table.
        """
        table, start = _toy_text(env, options)
        S, A = len(table), len(table[0])
        K = max(len(_merged(table[s][a], S)) for s in range(S) for a in range(A))
        successors, probabilities = np.zeros((S, A, K), int), np.zeros((S, A, K))
        for s in range(S):
            for a in range(A):
                for k, (s_next, p) in enumerate(_merged(table[s][a], S).items()):
                    successors[s, a, k], probabilities[s, a, k] = s_next, p
        return cls.from_sparse(successors, probabilities, start, discount)

    @classmethod
    def load(cls, path: str | Path) -> FiniteMDP:
        """From an `.npz` that holds `P` or (`successors`, `probabilities`), and optionally `start` and `discount`.

        Raises:
            InvalidProblem: the file is unreadable or lacks these arrays.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {key: file[key] for key in file.files}
        except (OSError, ValueError) as error:
            raise InvalidProblem(
                message(str(path), f"{type(error).__name__} ({error})", "an .npz of plain arrays is expected",
                        "Write it with FiniteMDP.save or numpy.savez")
            ) from error  # fmt: skip
        rest = {"start": arrays.get("start"), "discount": float(arrays.get("discount", 0.95))}
        if "P" in arrays:
            return cls.from_dense(arrays["P"], **rest)
        if {"successors", "probabilities"} <= arrays.keys():
            return cls.from_sparse(arrays["successors"], arrays["probabilities"], **rest, ends=arrays.get("ends"))
        raise InvalidProblem(
            message(str(path), f"arrays {sorted(arrays)}", "either P or successors and probabilities must be there",
                    "Add the transition arrays")
        )  # fmt: skip

    def save(self, path: str | Path) -> None:
        """Write the MDP as an `.npz` that `load` reads."""
        ends = {} if self.ends is None else {"ends": self.ends}
        np.savez(
            path, successors=self.successors, probabilities=self.probabilities, start=self.start,
            discount=self.discount, **ends,
        )  # fmt: skip

    # -- what it does ---------------------------------------------------------------------------------------------

    @property
    def n_states(self) -> int:
        """S."""
        return self.successors.shape[0]

    @property
    def n_actions(self) -> int:
        """A."""
        return self.successors.shape[1]

    def expect(self, v: Float[Array, " S"]) -> Float[Array, "S A"]:
        r"""$(P v)(s,a) = \sum_{s'} P(s'|s,a)\, v(s')$. Cost $O(SAK)$."""
        restart = jnp.dot(self.start, v)
        v = jnp.concatenate([v, restart[None]])
        return jnp.sum(self.probabilities * v[self.successors], axis=-1)

    def flow(self, mu: Float[Array, "S A"]) -> Float[Array, " S"]:
        r"""$(P^\top \mu)(s') = \sum_{s,a} P(s'|s,a)\, \mu(s,a)$, the adjoint of `expect`. Cost $O(SAK)$."""
        mass = self.probabilities * mu[..., None]
        into = jnp.zeros(self.n_states + 1, mass.dtype).at[self.successors].add(mass)
        return into[:-1] + into[-1] * self.start

    def dense(self) -> Float[Array, "S A S"]:
        """`P[s, a, s']` written out; for small S."""
        S, A, K = self.successors.shape
        full = jnp.zeros((S, A, S + 1), self.probabilities.dtype)
        s, a = jnp.arange(S)[:, None, None], jnp.arange(A)[None, :, None]
        full = full.at[s, a, self.successors].add(self.probabilities)
        return full[..., :-1] + full[..., -1:] * self.start

    def under(self, pi: Float[Array, "S A"]) -> Float[Array, "S S"]:
        r"""$P_\pi(s, s') = \sum_a \pi(a|s) P(s'|s,a)$, dense; for small S. Cost $O(SAK + S^2)$."""
        S = self.n_states
        full = jnp.zeros((S, S + 1), self.probabilities.dtype)
        full = full.at[jnp.arange(S)[:, None, None], self.successors].add(self.probabilities * pi[..., None])
        return full[:, :-1] + full[:, -1:] * self.start

    def with_probabilities(self, probabilities: Float[Array, "S A K"]) -> FiniteMDP:
        """The same successors under other probabilities: how a kernel that depends on x is written. Not checked."""
        return eqx.tree_at(lambda mdp: mdp.probabilities, self, probabilities)

    def with_start(self, start: Float[Array, " S"]) -> FiniteMDP:
        """Another start distribution, which may depend on x. Not checked; first states then cost O(S) to draw."""
        return eqx.tree_at(
            lambda mdp: (mdp.start, mdp.start_keep, mdp.start_alias), self, (start, None, None),
            is_leaf=lambda leaf: leaf is None,
        )  # fmt: skip

    def ongoing(self, values: Float[Array, "*N"], s: Int[Array, "*N"] | None = None) -> Float[Array, "*N"]:
        """Values of the states s (of all, when None) with those of end states set to zero."""
        if self.ends is None:
            return values
        return jnp.where(self.ends if s is None else self.ends[s], 0.0, values)


def gymnasium_rewards(env: gymnasium.Env | str, **options: Any) -> Float[Array, "S A"]:
    """Expected rewards [S, A] of a toy-text environment, the companion of `FiniteMDP.from_gymnasium`."""
    table, _ = _toy_text(env, options)
    return jnp.asarray(
        [[sum(p * r for p, _, r, _ in table[s][a]) for a in range(len(table[0]))] for s in range(len(table))]
    )


def _toy_text(env: gymnasium.Env | str, options: dict[str, Any]) -> tuple[dict, np.ndarray]:
    env = gymnasium.make(env, **options) if isinstance(env, str) else env
    bare = env.unwrapped
    if not hasattr(bare, "P") or not hasattr(bare, "initial_state_distrib"):
        raise InvalidProblem(
            message(f"FiniteMDP.from_gymnasium({env})", "an environment without a transition table",
                    "it must have `P` and `initial_state_distrib` (FrozenLake, CliffWalking, Taxi)",
                    "Build the arrays yourself and use FiniteMDP.from_sparse")
        )  # fmt: skip
    return bare.P, np.asarray(bare.initial_state_distrib, float)


def _merged(outcomes: list[tuple], n_states: int) -> dict[int, float]:
    """Outcomes (p, s', r, done) with equal successors added up; an ended episode goes to `n_states`."""
    merged: dict[int, float] = {}
    for p, s_next, _, done in outcomes:
        key = n_states if done else int(s_next)
        merged[key] = merged.get(key, 0.0) + float(p)
    return {s: p for s, p in merged.items() if p > 0}


def _alias_table(p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Walker's alias table: cell i keeps i with probability keep[i], else gives alias[i]. Cost O(S)."""
    keep, alias = np.ones(len(p)), np.arange(len(p))
    scaled = p * len(p)
    small, large = list(np.flatnonzero(scaled < 1)), list(np.flatnonzero(scaled > 1))
    while small and large:
        low, high = small.pop(), large[-1]
        keep[low], alias[low] = scaled[low], high
        scaled[high] -= 1 - scaled[low]
        if scaled[high] < 1:
            small.append(large.pop())
    return keep, alias


def _absorbing(ends: ArrayLike, successors: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """The ends as truth values, once it is sure that none can be left."""
    marked = np.asarray(ends, bool)
    S = len(successors)
    if marked.shape != (S,):
        raise InvalidProblem(
            message("FiniteMDP.ends", f"shape {marked.shape}", f"it must be [{S}]", "Give one truth value a state")
        )
    left = (probabilities > 0) & (successors != np.arange(S)[:, None, None]) & marked[:, None, None]
    if left.any():
        state = int(np.argwhere(left)[0][0])
        raise InvalidProblem(
            message(f"FiniteMDP.ends[{state}]", "a state that can be left", "an end leads to itself for ever",
                    "Let its successors be itself, or do not mark it")
        )  # fmt: skip
    return marked


def _numbers(where: str, values: ArrayLike) -> np.ndarray:
    array = np.asarray(values, float)
    if not np.isfinite(array).all():
        index = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        raise InvalidProblem(
            message(f"{where}{list(index)}", array[index], "every entry must be a finite number",
                    "Replace NaN and infinity")
        )  # fmt: skip
    return array


def _check_rows(where: str, rows: np.ndarray) -> None:
    if (rows < 0).any():
        index = [int(i) for i in np.argwhere(rows < 0)[0]]
        raise InvalidProblem(
            message(f"{where}{index}", rows[tuple(index)], "probabilities must be at least 0", "Remove the sign")
        )
    off = np.abs(rows.sum(axis=-1) - 1) > TOLERANCE
    if off.any():
        index = [int(i) for i in np.argwhere(off)[0]] if off.ndim else []
        got = rows.sum(axis=-1)[tuple(index)]
        raise InvalidProblem(
            message(f"{where}{index or ''}", f"a row that sums to {got:.6g}", "each row must sum to 1",
                    "Normalise the row or add the missing transition")
        )  # fmt: skip


def check_rewards(reward: Array, mdp: FiniteMDP, where: str = "BilevelProblem.reward(x)") -> None:
    """Raise `InvalidProblem` unless the reward table is [S, A] and finite."""
    want = (mdp.n_states, mdp.n_actions)
    if jnp.shape(reward) != want:
        raise InvalidProblem(
            message(where, f"shape {jnp.shape(reward)}", f"it must be [S, A] = {list(want)}",
                    "Broadcast a state reward with `jnp.broadcast_to(r[:, None], (S, A))`")
        )  # fmt: skip
    _numbers(where, jax.device_get(reward))
