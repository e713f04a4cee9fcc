r"""How x moves: along a running mean of its direction, not while it is held, and reported as an average of its iterates.

$$m_k = \mu\, m_{k-1} + (1-\mu)\, D_k, \qquad y_{k+1} = \Pi_X\big(y_k - \zeta_k\, m_k\, [k \ge h]\big), \qquad
x_{k+1} = x_k + \frac{a}{k' + a}\,(y_{k+1} - x_k), \quad k' = \max(k - h, 0)$$

With $\mu = h = a = 0$ this is the paper's $x \leftarrow \Pi_X(x - \zeta_k D_k)$. The same three aids, under the same names,
are fields of every sampled solver that descends, so that none is compared with means that another lacks.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel_rl.loop.problem import Problem
from bilevel_rl.loop.settings import check_fields
from bilevel_rl.loop.solver import State

RECENT = 8.0  # ours: squares are averaged over the last eighth of the run, roughly


class MovingState(State):
    """A state whose x moves as above.

    Attributes:
        direction: [d] m, the running mean of x's direction.
        ahead: [d] y - x: the iterate, from which the algorithm goes on, less the average of iterates that is reported;
            zero without averaging.
    """

    direction: Float[Array, " d"] | float = eqx.field(default=0.0, kw_only=True)
    ahead: Float[Array, " d"] | float = eqx.field(default=0.0, kw_only=True)

    @property
    def iterate(self) -> Float[Array, " d"]:
        """y, where followers are asked and gradients taken."""
        return self.x + self.ahead


def at_rest(x0: Float[Array, " d"]) -> dict[str, Float[Array, " d"]]:
    """The fields of a `MovingState` that has not moved yet."""
    return {"direction": jnp.zeros_like(x0), "ahead": jnp.zeros_like(x0)}


def descend(problem: Problem, x: Float[Array, " d"], D: Float[Array, " d"], k, zeta, hold) -> Float[Array, " d"]:
    r"""$\Pi_X(x - \zeta D)$; x itself, projected, in the first `hold` iterations."""
    return problem.project(x - jnp.where(k < hold, 0.0, zeta) * D)


def move(
    problem: Problem, state: MovingState, k, D: Float[Array, " d"], zeta, momentum, hold, average
) -> dict[str, Float[Array, " d"]]:
    r"""x, and what its motion remembers, after one step along -D.

    Args:
        D: the direction of descent, at `state.iterate`.
        zeta: step size.
        momentum: $\mu$ in [0, 1), weight of the past directions.
        hold: h, iterations for which x stays; directions are averaged all the same.
        average: a; 0 reports the iterate, 1 the mean of all iterates since the hold, larger values forget the first ones
            (iterate i has weight of the order $i^{a-1}$: polynomial-decay averaging, Shamir and Zhang 2013).

    Returns:
        The fields `x`, `direction`, `ahead` of the next state.
    """
    direction = momentum * state.direction + (1 - momentum) * D
    y = descend(problem, state.iterate, direction, k, zeta, hold)
    share = average / jnp.maximum(jnp.maximum(k - hold, 0) + average, 1e-12)
    x = jnp.where(average > 0, state.x + share * (y - state.x), y)
    return {"x": x, "direction": direction, "ahead": y - x}


def within_reach(
    D: Float[Array, " d"], squares: Float[Array, " d"], span: Float[Array, " d"], k, zeta, reach
) -> tuple[Float[Array, " d"], Float[Array, " d"]]:
    r"""D, shortened where its typical step would be long for x's set, and the running mean of its squares.

    $$D \min\Big(1, \min_j \frac{R\, L_j}{\zeta_k \sqrt{(k+1)\, s_j}}\Big), \qquad
    s_j \leftarrow s_j + \tfrac{8}{k+8}\,(D_j^2 - s_j)$$

    So steps have a root mean square of at most $R L_j/\sqrt{k+1}$: noise alone carries x through less than R of its set
    while the run doubles, and what does not average out through all of it.

    Args:
        D: a direction of descent, before means are taken.
        squares: [d] s.
        span: [d] L, the size of x's set in each coordinate.
        zeta: step size at iteration k.
        reach: R.
    """
    rate = RECENT / (k + RECENT)
    squares = squares + rate * (D**2 - squares)
    longest = zeta * jnp.sqrt((k + 1.0) * squares)
    share = jnp.min(reach * span / jnp.maximum(longest, 1e-300))
    return D * jnp.minimum(1.0, share), squares


def held(hold) -> tuple[str, Any, bool, str]:
    """What `check_fields` asks of `hold`."""
    return "hold", hold, hold >= 0, "it must be at least 0"


def check_motion(where: str, momentum, hold, average) -> None:
    """Raise `InvalidConfig` unless the three numbers are allowed."""
    check_fields(
        where,
        ("momentum", momentum, 0 <= momentum < 1, "it must be in [0, 1)"),
        held(hold),
        ("average", average, average >= 0, "it must be at least 0"),
    )
