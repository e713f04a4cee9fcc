r"""Episodes of a fixed length: the same MDP with the time in its states.

$$P\big((t+1, s') \mid (t, s), a\big) = P(s'|s,a), \quad t < T - 1; \qquad (T-1, s) \to \text{end}$$

A policy of it may depend on the time, and its optimum is that of backward induction. The end is a state in which neither
reward nor entropy is counted (`FiniteMDP.ends`).
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bilevel_rl.errors import InvalidProblem, message
from bilevel_rl.finite.model.mdp import FiniteMDP
from bilevel_rl.loop import precision

UNDISCOUNTED = 1e-9  # ours: what a sum of T rewards may be off, relatively, where a discount of 1 is asked for


@precision.double
def unrolled(mdp: FiniteMDP, steps: int, discount: float | None = None) -> FiniteMDP:
    r"""The MDP that ends for good after `steps` steps. State s at time t has the number t S + s, the end T S.

    Memory is O(T S A K). An episode that restarts within the horizon goes on from the start with the time that is left.
    An end of `mdp` itself leads to the common end.

    Args:
        steps: T >= 1.
        discount: $\gamma$ of the unrolled MDP; the MDP's own when None. 1 asks for plain sums, and is taken as
            $1 - 10^{-9}/T$: values are then off by at most $10^{-9}$ of themselves. Exact planners and solvers take it; the
            chains of sampled ones need a discount at which they restart.

    Raises:
        InvalidProblem: T below 1.

    Example:
        >>> two = unrolled(FiniteMDP.from_dense([[[1.0]]], discount=0.9), 2)
        >>> two.successors[:, 0, 0].tolist(), two.ends.tolist()
        ([1, 2, 2], [False, False, True])
    """
    if steps < 1:
        raise InvalidProblem(message("unrolled.steps", steps, "at least one step is needed", "Set steps >= 1"))
    S, A = mdp.n_states, mdp.n_actions
    gamma = float(mdp.discount) if discount is None else 1 - UNDISCOUNTED / steps if discount == 1 else float(discount)
    to, p = np.asarray(mdp.successors), np.asarray(mdp.probabilities)
    start = np.asarray(mdp.start)
    if mdp.episodic:  # within the horizon a restart is an ordinary transition: its successors are written out
        first = np.flatnonzero(start)
        spread = np.where((to == S)[..., None], first, to[..., None])
        share = np.where((to == S)[..., None], start[first], np.arange(len(first)) == 0)
        to, p = spread.reshape(S, A, -1), (p[..., None] * share).reshape(S, A, -1)
    end, K = steps * S, to.shape[2]
    over = np.zeros(S, bool) if mdp.ends is None else np.asarray(mdp.ends)
    onward = np.where(over[to], end, to)
    times = np.arange(1, steps)[:, None, None, None]
    before = np.where(onward == end, end, onward + times * S)  # [T - 1, S, A, K]
    # a state that is an end from the first: nothing happens in it either
    before = np.where(over[:, None, None], end, before)
    successors = np.full((end + 1, A, K), end, np.int64)
    successors[: end - S] = before.reshape(-1, A, K)
    probabilities = np.concatenate([np.tile(p, (steps, 1, 1)), np.full((1, A, K), 1 / K)])
    ends = np.zeros(end + 1, bool)
    ends[end] = True
    # (end, s) itself at the start would be an episode of no step at all
    rho = np.zeros(end + 1)
    rho[:S] = np.where(over, 0.0, start)
    rho[end] = start[over].sum()
    allowed = None
    if mdp.allowed is not None:
        allowed = np.concatenate([np.tile(mdp.allowed, (steps, 1)), np.ones((1, A), bool)])
    return FiniteMDP.from_sparse(successors, probabilities, rho, gamma, ends, allowed)


@precision.double
def unrolled_rewards(
    mdp: FiniteMDP, reward: Float[Array, "S A"], steps: int, terminal: Float[Array, " S"] | None = None,
    discount: float | None = None,
) -> Float[Array, "Z A"]:  # fmt: skip
    r"""The reward table of `unrolled(mdp, steps)`: the same reward at every time, and what the last state is worth.

    $$r(t, s, a) = r(s, a) + 1\{t = T - 1\}\, \gamma \textstyle\sum_{s'} P(s'|s,a)\, g(s')$$

    Args:
        mdp: the MDP before it was unrolled.
        reward: [S, A]; differentiable.
        steps: T.
        terminal: [S] g, the value of being in s' when time is over; None for 0.
        discount: $\gamma$ as it was given to `unrolled`.

    Returns:
        [T S + 1, A].
    """
    table = jnp.tile(mdp.paid(reward), (steps, 1))
    if terminal is not None:
        last = (mdp.discount if discount is None else discount) * mdp.expect(terminal)
        table = table.at[-mdp.n_states :].add(mdp.paid(last))
    return jnp.concatenate([table, jnp.zeros((1, mdp.n_actions))])
