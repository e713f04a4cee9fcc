r"""A leader that acts: x parametrises its policy $\phi_x(b|s)$, and the follower's MDP is what that leaves of the game.

The game has transitions $P(s'|s,b,a)$ under the leader's action b and the follower's action a. Two orders of play:

* *observed*: the follower sees b before it acts. Its states are the pairs (s, b), numbered s B + b,

  $$P_x\big((s', b') \mid (s, b), a\big) = P(s'|s,b,a)\, \phi_x(b'|s'), \qquad \rho_x(s, b) = \rho(s)\, \phi_x(b|s);$$

* *simultaneous*: it does not, and answers to the mean over b,

  $$P_x(s'|s,a) = \textstyle\sum_b \phi_x(b|s)\, P(s'|s,b,a), \qquad r_x(s,a) = \sum_b \phi_x(b|s)\, r(s,b,a).$$
"""

from __future__ import annotations

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy.typing import ArrayLike

from bilevel_rl.errors import InvalidProblem, message
from bilevel_rl.finite.model.mdp import FiniteMDP
from bilevel_rl.loop import precision


class Game(eqx.Module):
    r"""Transitions $P(s'|s,b,a)$ of a leader and a follower, by successor; memory O(S B A K) or O(S B^2 A K) if observed.

    Attributes:
        mdp: the follower's MDP under the uniform leader. `BilevelProblem.mdp` of a problem with a leader policy.
        leader_actions: B.
        observed: whether the follower sees the leader's action.

    Example:
        >>> P = np.zeros((2, 2, 1, 2)); P[:, 0, :, 0] = P[:, 1, :, 1] = 1  # the leader chooses the next state
        >>> game = Game.from_dense(P, start=[1.0, 0.0], discount=0.9, observed=False)
        >>> game.under(jnp.array([[0.2, 0.8], [1.0, 0.0]])).dense()[:, 0].tolist()
        [[0.2, 0.8], [1.0, 0.0]]
    """

    mdp: FiniteMDP
    leader_actions: int = eqx.field(static=True)
    observed: bool = eqx.field(static=True)

    @classmethod
    @precision.double
    def from_dense(
        cls, P: ArrayLike, start: ArrayLike | None = None, discount: float = 0.95, observed: bool = True,
        ends: ArrayLike | None = None,
    ) -> Game:  # fmt: skip
        """From `P[s, b, a, s']`; zero entries cost nothing.

        Args:
            P: [S, B, A, S] rows that sum to one.
            start: [S] distribution of the first state; uniform when None.
            discount: gamma in [0, 1).
            observed: whether the follower sees the leader's action before it acts.
            ends: [S] truth values, as in `FiniteMDP.from_sparse`.

        Raises:
            InvalidProblem: wrong shape, and as `FiniteMDP.from_dense`.
        """
        P = np.asarray(P, float)
        if P.ndim != 4 or P.shape[0] != P.shape[3] or 0 in P.shape:
            raise InvalidProblem(
                message("Game.P", f"shape {P.shape}", "it must be [S, B, A, S] with S, B, A >= 1",
                        "Index it as P[state, leader's action, follower's action, next state]")
            )  # fmt: skip
        S, B, A, _ = P.shape
        plain = FiniteMDP.from_dense(P.reshape(S, B * A, S), start, discount)
        K = plain.successors.shape[2]
        shape = (S, B, A, K)
        return cls.from_sparse(
            np.asarray(plain.successors).reshape(shape), np.asarray(plain.probabilities).reshape(shape), start, discount,
            observed, ends,
        )  # fmt: skip

    @classmethod
    @precision.double
    def from_sparse(
        cls, successors: ArrayLike, probabilities: ArrayLike, start: ArrayLike | None = None, discount: float = 0.95,
        observed: bool = True, ends: ArrayLike | None = None,
    ) -> Game:  # fmt: skip
        """From successors [S, B, A, K] in 0..S and their probabilities; S itself restarts the episode."""
        successors, probabilities = np.asarray(successors), np.asarray(probabilities, float)
        if successors.ndim != 4 or successors.shape != probabilities.shape or 0 in successors.shape:
            raise InvalidProblem(
                message("Game.successors", f"shapes {successors.shape} and {probabilities.shape}",
                        "successors and probabilities must both be [S, B, A, K]", "Give both the same shape")
            )  # fmt: skip
        S, B, A, K = successors.shape
        rho = np.full(S, 1 / S) if start is None else np.asarray(start, float)
        if not observed:
            flat = [np.moveaxis(table, 1, 2).reshape(S, A, B * K) for table in (successors, probabilities / B)]
            return cls(FiniteMDP.from_sparse(*flat, rho, discount, ends), B, observed)
        paired = np.minimum(successors[..., None] * B + np.arange(B), S * B)  # [S, B, A, K, B]
        weights = np.broadcast_to(probabilities[..., None] / B, paired.shape)
        if ends is not None:  # an end stays under its own leader action, so that it leads to itself
            over = np.asarray(ends, bool)[:, None, None, None, None]
            own = np.arange(S * B).reshape(S, B, 1, 1, 1)
            paired, ends = np.where(over, own, paired), np.repeat(np.asarray(ends, bool), B)
        shape = (S * B, A, K * B)
        mdp = FiniteMDP.from_sparse(paired.reshape(shape), weights.reshape(shape), np.repeat(rho / B, B), discount, ends)
        return cls(mdp, B, observed)

    def under(self, phi: Float[Array, "S B"]) -> FiniteMDP:
        r"""The follower's MDP under the leader's policy $\phi(b|s)$; differentiable in it."""
        ratio = phi * self.leader_actions  # to the uniform leader
        mdp = self.mdp
        if not self.observed:
            K = mdp.successors.shape[2] // self.leader_actions
            return mdp.with_probabilities(mdp.probabilities * jnp.repeat(ratio, K, axis=1)[:, None, :])
        flat = jnp.append(ratio.ravel(), 1.0)  # a restart draws the leader's action from the new start
        at = flat[mdp.successors]
        if mdp.ends is not None:
            at = jnp.where(mdp.ends[:, None, None], 1.0, at)
        return mdp.with_probabilities(mdp.probabilities * at).with_start(mdp.start * flat[:-1])

    def table(self, values: Float[Array, "S B A"], phi: Float[Array, "S B"]) -> Float[Array, "Z A"]:
        """A reward or utility of (s, b, a) as the follower's MDP counts it: [S B, A] if observed, else its mean [S, A]."""
        if self.observed:
            return values.reshape(-1, values.shape[2])
        return jnp.sum(phi[..., None] * values, axis=1)
