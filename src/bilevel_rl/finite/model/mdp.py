"""The finite MDP: transitions, start and discount. No reward: the reward belongs to the problem."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import gymnasium
import jax.numpy as jnp
import numpy as np
import scipy.sparse
from jaxtyping import Array, Bool, Float, Int
from numpy.typing import ArrayLike

from bilevel_rl.errors import InvalidProblem, did_you_mean, message
from bilevel_rl.finite.model import entries, small, toy_text
from bilevel_rl.loop import precision

NEVER = -1e9  # ours: a logit, or a value in units of reward, at which no action is ever taken, and yet finite
BLOCK = 2**18  # ours: states of a block, so that its rows are some tens of MiB
KEYS = ("P", "successors", "probabilities", "start", "discount", "ends", "allowed")


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

    `allowed` says which actions a state offers; None where every state offers all, which costs nothing. An action that a
    state does not offer is never taken, whatever its reward; the table holds a loop in its place.

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
    allowed: Bool[Array, "S A"] | None = None

    # -- making one ---------------------------------------------------------------------------------------------

    @classmethod
    @precision.double
    def from_dense(
        cls, P: ArrayLike, start: ArrayLike | None = None, discount: float = 0.95, ends: ArrayLike | None = None,
        allowed: ArrayLike | None = None,
    ) -> FiniteMDP:  # fmt: skip
        """From `P[s, a, s']`; zero entries cost nothing.

        Args:
            P: [S, A, S] rows that sum to one, within the rounding of their type.
            start: [S] distribution of the first state; uniform when None.
            discount: gamma in [0, 1).
            ends, allowed: as in `from_sparse`.

        Raises:
            InvalidProblem: wrong shape, NaN, negative entries, a row that does not sum to one, gamma outside [0, 1).
        """
        if isinstance(P, (list, tuple)) and P and all(scipy.sparse.issparse(matrix) for matrix in P):
            return cls.from_matrices(P, start, discount, ends, allowed)
        table = entries.real_numbers("FiniteMDP.P", P, ignore=entries.as_offered(allowed))
        if table.ndim != 3 or table.shape[0] != table.shape[2] or 0 in table.shape:
            raise InvalidProblem(
                message("FiniteMDP.P", f"shape {table.shape}", "it must be [S, A, S] with S, A >= 1",
                        "Index it as P[state, action, next state], or take from_matrices for one [S, S] an action")
            )  # fmt: skip
        P = entries.distributions("FiniteMDP.P", table, P, entries.as_offered(allowed))
        K = max(1, int(np.count_nonzero(P, axis=2).max()))
        # the K largest entries of each row; rows with fewer point at state 0 with probability 0
        order = np.argsort(-P, axis=2, kind="stable")[:, :, :K]
        probabilities = np.take_along_axis(P, order, axis=2)
        if ends is not None:  # what pads the row of an end leads to itself as well
            order = np.where(probabilities > 0, order, np.arange(len(P))[:, None, None])
        return cls.from_sparse(order, probabilities, start, discount, ends, allowed)

    @classmethod
    @precision.double
    def from_matrices(
        cls, P: Any, start: ArrayLike | None = None, discount: float = 0.95, ends: ArrayLike | None = None,
        allowed: ArrayLike | None = None,
    ) -> FiniteMDP:  # fmt: skip
        """From one matrix an action, `P[a][s, s']`: arrays or scipy.sparse matrices, as other packages write them.

        Memory is linear in the entries that are not zero.

        Args:
            P: a sequence of A matrices [S, S] whose rows sum to one, or an array [A, S, S].
            start, discount, ends, allowed: as in `from_sparse`.

        Raises:
            InvalidProblem: matrices of different or not square shapes, and as `from_sparse`.

        Example:
            >>> stay, swap = scipy.sparse.identity(2, format="csr"), [[0.0, 1.0], [1.0, 0.0]]
            >>> FiniteMDP.from_matrices([stay, swap]).dense()[0].tolist()
            [[1.0, 0.0], [0.0, 1.0]]
        """
        kinds = [getattr(matrix, "dtype", np.dtype(float)) for matrix in P]
        matrices = [
            scipy.sparse.csr_matrix(one if scipy.sparse.issparse(one) else entries.real_numbers(f"FiniteMDP.P[{a}]", one))
            for a, one in enumerate(P)
        ]
        shapes = sorted({matrix.shape for matrix in matrices})
        if len(shapes) != 1 or shapes[0][0] != shapes[0][1] or not shapes[0][0]:
            raise InvalidProblem(
                message("FiniteMDP.from_matrices", f"{len(matrices)} matrices of shapes {shapes}",
                        "it takes one [S, S] an action, all alike", "Index them as P[action][state, next state]")
            )  # fmt: skip
        S, A = shapes[0][0], len(matrices)
        for matrix in matrices:
            matrix.sum_duplicates()
            matrix.eliminate_zeros()
        counts = np.stack([np.diff(matrix.indptr) for matrix in matrices], axis=1)  # [S, A]
        K = max(1, int(counts.max()))
        successors = np.broadcast_to(np.arange(S)[:, None, None], (S, A, K)).copy()
        probabilities = np.zeros((S, A, K), np.result_type(*kinds, np.float16))
        for a, matrix in enumerate(matrices):
            s = np.repeat(np.arange(S), counts[:, a])
            k = np.arange(matrix.nnz) - np.repeat(matrix.indptr[:-1], counts[:, a])
            successors[s, a, k], probabilities[s, a, k] = matrix.indices, matrix.data
        return cls.from_sparse(successors, probabilities, start, discount, ends, allowed)

    @classmethod
    @precision.double
    def from_sparse(
        cls,
        successors: ArrayLike,
        probabilities: ArrayLike,
        start: ArrayLike | None = None,
        discount: float = 0.95,
        ends: ArrayLike | None = None,
        allowed: ArrayLike | None = None,
    ) -> FiniteMDP:
        """From successor indices and their probabilities.

        Args:
            successors: [S, A, K] integers in 0..S; S itself means "restart from `start`".
            probabilities: [S, A, K] rows that sum to one.
            start: [S] distribution of the first state; uniform when None.
            discount: gamma in [0, 1).
            ends: [S] truth values: absorbing states in which neither reward nor entropy is counted; None for none.
            allowed: [S, A] truth values: the actions that each state offers; None where every state offers all. The rows
                of other actions are not looked at.

        Raises:
            InvalidProblem: as `from_dense`, an index out of range, an end that can be left, a state without an action.
        """
        offered, successors = entries.as_offered(allowed), np.asarray(successors)
        checked = entries.successor_rows(successors, probabilities, len(successors), offered)
        return cls._of(*checked, start, discount, ends, offered)

    @classmethod
    @precision.double
    def from_blocks(
        cls,
        rows: Callable[[Int[np.ndarray, " B"]], tuple[ArrayLike, ArrayLike]],
        states: int,
        start: ArrayLike | None = None,
        discount: float = 0.95,
        ends: ArrayLike | None = None,
        allowed: ArrayLike | None = None,
        block: int = BLOCK,
    ) -> FiniteMDP:
        """From a rule that gives the successors of some states, asked block by block; the same as `from_sparse` of all.

        For MDPs of millions of states: while it is made, nothing is in memory but the MDP itself and one block.

        Args:
            rows: from B states to their successors [B, A, K] and probabilities [B, A, K], as `from_sparse` has them.
            states: S.
            start, discount, ends, allowed: as in `from_sparse`.
            block: most states of a call.

        Raises:
            InvalidProblem: as `from_sparse`, naming the block's first state, and blocks of unlike shapes.

        Example:
            >>> def queue(s):  # one more or one less, as likely as not
            ...     to = np.clip(s[:, None, None] + np.array([-1, 1]), 0, 999)
            ...     return to, np.full(to.shape, 0.5)
            >>> FiniteMDP.from_blocks(queue, 1_000).successors[7].tolist()
            [[6, 8]]
        """
        if states < 1 or block < 1:
            raise InvalidProblem(
                message("FiniteMDP.from_blocks", f"states={states}, block={block}", "both must be at least 1", "Raise them")
            )
        offered, made = entries.as_offered(allowed), None
        for first in range(0, states, block):
            s = np.arange(first, min(first + block, states))
            to, p = rows(s)
            to = np.asarray(to)
            want = (len(s), *to.shape[1:]) if made is None else (len(s), *made[0].shape[1:])
            if to.shape != want:
                raise InvalidProblem(
                    message(f"FiniteMDP.from_blocks, states from {first} on", f"shape {to.shape}",
                            f"successors must be [B, A, K] = {list(want)}", "Pad rows with successors of probability 0")
                )  # fmt: skip
            if offered is not None and made is None:
                entries.check_offered(offered, (states, *to.shape[1:2]))
            part = None if offered is None else offered[s]
            to, p = entries.successor_rows(to, p, states, part, first, f"FiniteMDP.from_blocks, states from {first} on: ")
            if made is None:
                made = np.empty((states, *to.shape[1:]), np.int32), np.empty((states, *to.shape[1:]))
            made[0][s], made[1][s] = to, p
        assert made is not None
        return cls._of(*made, start, discount, ends, offered)

    @classmethod
    def _of(
        cls, successors: np.ndarray, probabilities: np.ndarray, start: ArrayLike | None, discount: float,
        ends: ArrayLike | None, offered: np.ndarray | None,
    ) -> FiniteMDP:  # fmt: skip
        """From rows that are checked."""
        S = len(successors)
        rho = np.full(S, 1 / S) if start is None else entries.real_numbers("FiniteMDP.start", start)
        if rho.shape != (S,):
            raise InvalidProblem(
                message("FiniteMDP.start", f"shape {rho.shape}", f"it must be [{S}]", "Give one number a state")
            )
        rho = entries.distributions("FiniteMDP.start", rho, start)
        gamma = entries.real_number("FiniteMDP.discount", discount)
        if not 0 <= gamma < 1:
            raise InvalidProblem(
                message("FiniteMDP.discount", gamma, "it must be in [0, 1)", "Choose for instance 0.95")
            )
        keep, alias = _alias_table(rho)
        if ends is not None:
            ends = entries.absorbing(ends, successors, probabilities)
        return cls(
            successors=jnp.asarray(successors, jnp.int32),
            probabilities=jnp.asarray(probabilities),
            start=jnp.asarray(rho),
            start_keep=jnp.asarray(keep),
            start_alias=jnp.asarray(alias, jnp.int32),
            discount=jnp.asarray(gamma),
            episodic=bool((successors == S).any()),
            ends=None if ends is None else jnp.asarray(ends),
            allowed=None if offered is None or offered.all() else jnp.asarray(offered),
        )

    @classmethod
    @precision.double
    def from_gymnasium(
        cls, env: gymnasium.Env | str | Any, discount: float = 0.95, ends: bool = False, **options: Any
    ) -> FiniteMDP:
        """From a Gymnasium toy-text environment (FrozenLake, CliffWalking, Taxi), or anything with its table `P`.

        By default a transition that ends the episode restarts it: the next state is drawn from the initial
        distribution, so the MDP is a stream of episodes, and a goal is worth what the next episodes earn. With `ends`
        one episode is all there is: such transitions lead to one state more, numbered S, in which nothing is earned; a
        reward of -1 a step then asks for the shortest way.

        States offer the actions that they list; where some list fewer, `allowed` says so.

        Args:
            env: the environment or its id, e.g. `"FrozenLake-v1"`; or an object with `P[s][a] = [(p, s', reward, done)]`
                and, unless all states are equally likely at first, `initial_state_distrib`.
            discount: gamma in [0, 1).
            ends: whether an episode that ends is over for good.
            options: passed to `gymnasium.make` when `env` is an id.

        Raises:
            InvalidConfig: an id that Gymnasium does not know.
            InvalidProblem: no transition table, or a malformed one.

        Example:
            >>> cliff = FiniteMDP.from_gymnasium("CliffWalking-v1", discount=0.99, ends=True)
            >>> cliff.n_states, int(cliff.ends.argmax())
            (49, 48)
        """
        table = toy_text.read(env, options)
        successors, probabilities, allowed = table.arrays()
        start, over, S = table.start, None, table.n_states
        if ends:
            A, K = successors.shape[1:]
            successors = np.concatenate([successors, np.full((1, A, K), S)])
            probabilities = np.concatenate([probabilities, np.full((1, A, K), 1 / K)])
            allowed = np.concatenate([allowed, np.ones((1, A), bool)])
            over, start = np.arange(S + 1) == S, np.append(start, 0.0)
        return cls.from_sparse(successors, probabilities, start, discount, over, allowed)

    @classmethod
    @precision.double
    def load(cls, path: str | Path) -> FiniteMDP:
        """From an `.npz` that holds `P` or (`successors`, `probabilities`), and optionally what else `KEYS` names.

        Args:
            path: the file; the ending `.npz` may be left out, as in `save`.

        Raises:
            InvalidProblem: the file is unreadable, lacks these arrays, or holds others.
        """
        path = Path(path)
        file = path if path.exists() or path.suffix == ".npz" else path.with_name(path.name + ".npz")
        try:
            with file.open("rb") as stream, np.load(stream, allow_pickle=False) as held:
                arrays = {key: held[key] for key in held.files}
        except Exception as error:  # whatever NumPy, zipfile and zlib raise on a damaged file
            raise InvalidProblem(
                message(str(path), f"{type(error).__name__} ({error})", "an .npz of plain arrays is expected",
                        "Write it with FiniteMDP.save or numpy.savez")
            ) from error  # fmt: skip
        unknown = sorted(arrays.keys() - set(KEYS))
        if unknown or not ("P" in arrays or {"successors", "probabilities"} <= arrays.keys()):
            raise InvalidProblem(
                message(str(path), f"arrays {sorted(arrays)}", "either P or successors and probabilities must be there, "
                        f"and nothing but {', '.join(KEYS)}",
                        did_you_mean(unknown[0], KEYS) if unknown else "Add the transition arrays")
            )  # fmt: skip
        rest: dict[str, Any] = {key: arrays[key] for key in ("start", "ends", "allowed") if key in arrays}
        if "discount" in arrays:
            rest["discount"] = entries.real_number("FiniteMDP.discount", arrays["discount"])
        if "P" in arrays:
            return cls.from_dense(arrays["P"], **rest)
        return cls.from_sparse(arrays["successors"], arrays["probabilities"], **rest)

    def save(self, path: str | Path) -> None:
        """Write the MDP as an `.npz` that `load` reads under the same name."""
        marks = {key: getattr(self, key) for key in ("ends", "allowed") if getattr(self, key) is not None}
        np.savez(
            path, successors=self.successors, probabilities=self.probabilities, start=self.start,
            discount=self.discount, **marks,
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

    def rows(self, s: Int[Array, "*N"], a: Int[Array, "*N"]) -> Float[Array, "*N K"]:
        r"""$P(\cdot|s,a)$ over the successors of N pairs; no bounds checks."""
        return small.rows(self.probabilities.reshape(-1, self.successors.shape[-1]), s * self.n_actions + a)

    @precision.double
    def expect(self, v: Float[Array, " S"]) -> Float[Array, "S A"]:
        r"""$(P v)(s,a) = \sum_{s'} P(s'|s,a)\, v(s')$. Cost $O(SAK)$."""
        restart = jnp.dot(self.start, v)
        v = jnp.concatenate([v, restart[None]])
        return jnp.sum(self.probabilities * v[self.successors], axis=-1)

    @precision.double
    def flow(self, mu: Float[Array, "S A"]) -> Float[Array, " S"]:
        r"""$(P^\top \mu)(s') = \sum_{s,a} P(s'|s,a)\, \mu(s,a)$, the adjoint of `expect`. Cost $O(SAK)$."""
        mass = self.probabilities * mu[..., None]
        into = jnp.zeros(self.n_states + 1, mass.dtype).at[self.successors].add(mass)
        return into[:-1] + into[-1] * self.start

    @precision.double
    def mean_reward(self, reward: Float[Array, "S A S"]) -> Float[Array, "S A"]:
        r"""$\sum_{s'} P(s'|s,a)\, r(s,a,s')$: a reward of the next state as planners count it, differentiable in both.

        Where an episode ends and restarts, the next state is the new episode's first. Where x moves the transitions,
        call it on `transitions(x)`.

        Example:
            >>> mdp = FiniteMDP.from_dense([[[0.25, 0.75]], [[0.0, 1.0]]])
            >>> mdp.mean_reward(jnp.array([[[4.0, 8.0]], [[1.0, 2.0]]])).tolist()
            [[7.0], [2.0]]
        """
        reward = jnp.concatenate([reward, (reward @ self.start)[..., None]], axis=-1)
        return jnp.sum(self.probabilities * jnp.take_along_axis(reward, self.successors, axis=-1), axis=-1)

    @precision.double
    def dense(self) -> Float[Array, "S A S"]:
        """`P[s, a, s']` written out; for small S."""
        S, A, K = self.successors.shape
        full = jnp.zeros((S, A, S + 1), self.probabilities.dtype)
        s, a = jnp.arange(S)[:, None, None], jnp.arange(A)[None, :, None]
        full = full.at[s, a, self.successors].add(self.probabilities)
        return full[..., :-1] + full[..., -1:] * self.start

    def arrows(self, pi: Float[Array, "S A"]) -> tuple[Int[Array, " E"], Int[Array, " E"], Float[Array, " E"]]:
        r"""$P_\pi$ as E = S A K entries: row, column and probability; column S means a restart. Entries may repeat."""
        rows = jnp.broadcast_to(jnp.arange(self.n_states, dtype=jnp.int32)[:, None, None], self.successors.shape)
        return rows.ravel(), self.successors.ravel(), (self.probabilities * pi[..., None]).ravel()

    @precision.double
    def under(self, pi: Float[Array, "S A"]) -> Float[Array, "S S"]:
        r"""$P_\pi(s, s') = \sum_a \pi(a|s) P(s'|s,a)$, dense; for small S. Cost $O(SAK + S^2)$."""
        S = self.n_states
        full = jnp.zeros((S, S + 1), self.probabilities.dtype)
        full = full.at[jnp.arange(S)[:, None, None], self.successors].add(self.probabilities * pi[..., None])
        return full[:, :-1] + full[:, -1:] * self.start

    @precision.double
    def with_probabilities(self, probabilities: Float[Array, "S A K"]) -> FiniteMDP:
        """The same successors under other probabilities: how a kernel that depends on x is written. Not checked."""
        return eqx.tree_at(lambda mdp: mdp.probabilities, self, probabilities)

    @precision.double
    def with_start(self, start: Float[Array, " S"]) -> FiniteMDP:
        """Another start distribution, which may depend on x. Not checked; first states then cost O(S) to draw."""
        return eqx.tree_at(
            lambda mdp: (mdp.start, mdp.start_keep, mdp.start_alias), self, (start, None, None),
            is_leaf=lambda leaf: leaf is None,
        )  # fmt: skip

    def ongoing(self, values: Float[Array, "..."], s: Int[Array, "*N"] | None = None) -> Float[Array, "..."]:
        """Values of the states s (of all, when None) with those of end states set to zero."""
        if self.ends is None:
            return values
        over = self.ends if s is None else self.ends[s]
        return jnp.where(over.reshape(over.shape + (1,) * (values.ndim - over.ndim)), 0.0, values)

    def paid(self, reward: Float[Array, "S A"]) -> Float[Array, "S A"]:
        """A reward table with what stands in end states set to zero."""
        return reward if self.ends is None else jnp.where(self.ends[:, None], 0.0, reward)

    def first_table(self, value: float | Array = 0.0) -> Float[Array, "S A"]:
        """Logits or action values that a solver begins with: the same everywhere, `NEVER` where no action is offered."""
        table = jnp.full((self.n_states, self.n_actions), jnp.asarray(value, float))
        return table if self.allowed is None else jnp.where(self.allowed, table, NEVER)

    @property
    def mask(self) -> Float[Array, "S A"] | float:
        """What is added to action values or logits: 0 where an action is allowed, -inf where not; 0 where all are."""
        return 0.0 if self.allowed is None else jnp.where(self.allowed, 0.0, -jnp.inf)


@precision.double
def gymnasium_rewards(env: gymnasium.Env | str | Any, ends: bool = False, **options: Any) -> Float[Array, "S A"]:
    """Expected rewards [S, A] of a toy-text environment, the companion of `FiniteMDP.from_gymnasium`."""
    rewards = toy_text.read(env, options).rewards()
    return jnp.asarray(np.concatenate([rewards, np.zeros((1, rewards.shape[1]))]) if ends else rewards)


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
