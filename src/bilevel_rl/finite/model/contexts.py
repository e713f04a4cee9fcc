r"""Contexts and several followers: one MDP whose states are the pairs (context, state).

A context c is drawn with probability $\mu_c$ and stays; the follower sees it. Its MDPs side by side are one MDP,

$$P\big((c', s') \mid (c, s), a\big) = 1\{c' = c\}\, P_c(s'|s,a), \qquad \rho(c, s) = \mu_c\, \rho_c(s),$$

and a policy of that MDP is one policy a context, so every solver and oracle takes it as it is: the return from $\rho$ is
the mean over contexts. The same with followers in place of contexts: each is optimal for itself, $\mu_c$ weighs them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from bilevel_rl.errors import InvalidProblem, message
from bilevel_rl.finite.model.mdp import FiniteMDP
from bilevel_rl.loop import precision


@precision.double
def side_by_side(mdps: Sequence[FiniteMDP], weights: ArrayLike | None = None) -> FiniteMDP:
    r"""The MDP of all contexts; state s of context c has the number s plus the sizes of the contexts before c.

    An episode that ends and restarts draws a new context. Memory is the sum of the contexts'.

    Args:
        mdps: one a context, of the same number of actions and the same discount.
        weights: [C] $\mu$; uniform when None.

    Raises:
        InvalidProblem: no context, different numbers of actions or discounts, weights that are not probabilities.

    Example:
        >>> stay, swap = ([[[1.0, 0.0]], [[0.0, 1.0]]], [[[0.0, 1.0]], [[1.0, 0.0]]])
        >>> both = side_by_side([FiniteMDP.from_dense(P, [1.0, 0.0]) for P in (stay, swap)], [0.25, 0.75])
        >>> both.n_states, both.start.tolist()
        (4, [0.25, 0.0, 0.75, 0.0])
    """
    kinds = {(mdp.n_actions, float(mdp.discount)) for mdp in mdps}
    mu = np.full(len(mdps), 1 / max(1, len(mdps))) if weights is None else np.asarray(weights, float)
    if len(kinds) != 1 or mu.shape != (len(mdps),):
        raise InvalidProblem(
            message("side_by_side", f"{len(mdps)} MDPs of (actions, discount) {sorted(kinds)}, weights {list(mu.shape)}",
                    "at least one is needed, all alike in both, and one weight each", "Give all the same actions")
        )  # fmt: skip
    total, K = sum(mdp.n_states for mdp in mdps), max(mdp.successors.shape[2] for mdp in mdps)
    successors, probabilities, before = [], [], 0
    for mdp in mdps:
        to, p = np.asarray(mdp.successors), np.asarray(mdp.probabilities)
        to = np.where(to == mdp.n_states, total, to + before)
        # missing successors: the state itself, with probability 0
        own = np.broadcast_to(before + np.arange(mdp.n_states)[:, None, None], (*to.shape[:2], K - to.shape[2]))
        successors.append(np.concatenate([to, own], axis=2))
        probabilities.append(np.pad(p, ((0, 0), (0, 0), (0, K - p.shape[2]))))
        before += mdp.n_states
    ends = None
    if any(mdp.ends is not None for mdp in mdps):
        ends = np.concatenate([np.zeros(mdp.n_states, bool) if mdp.ends is None else mdp.ends for mdp in mdps])
    allowed = None
    if any(mdp.allowed is not None for mdp in mdps):
        allowed = np.concatenate(
            [np.ones((mdp.n_states, mdp.n_actions), bool) if mdp.allowed is None else mdp.allowed for mdp in mdps]
        )
    return FiniteMDP.from_sparse(
        np.concatenate(successors), np.concatenate(probabilities),
        np.concatenate([m * np.asarray(mdp.start) for m, mdp in zip(mu, mdps, strict=True)]), float(mdps[0].discount), ends,
        allowed,
    )  # fmt: skip
