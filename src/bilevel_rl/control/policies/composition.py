r"""GPC: several flow policies as one, composed at every step of sampling; nothing is trained.

$$v_w = w\, v_1 + (1-w)\, v_2 \quad\text{(blend)}, \qquad s = s_1 + s_2 \quad\text{(both)}, \qquad
s = \sum_i p(i|x_t)\, s_i \quad\text{(either)}$$

Scores and velocities of one path are affine in one another, so a blend of velocities is that of scores; near the action it
is the score of $\pi_1^w \pi_2^{1-w}$. The mean squared error of a blend is a convex parabola in w: unless its least point is
0 or 1, some blend is better than both parents, and Groenwall's lemma carries that to where the flow ends (`transport`).

References:
    Compose Your Policies! Improving Diffusion-based or Flow-based Robot Policies via Test-time Distribution-level
    Composition. SEEN (abstract, notes on the paper, public repository SageCao1125/GPC).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel_rl.control.policies import diffusion
from bilevel_rl.control.policies.flow import Field
from bilevel_rl.errors import InvalidConfig, message


class Blend(eqx.Module):
    """w v1 + (1 - w) v2; at w = 1 and w = 0 a parent, bit for bit.

    Args:
        first, second: velocities, or scores, of one path and one action space.
        weight: w; beyond [0, 1] one parent is pushed away from the other.

    Example:
        >>> up, down = (lambda a, t, obs, c=c: jnp.full_like(a, c) for c in (1.0, -1.0))
        >>> Blend(up, down, 0.75)(jnp.zeros(1), jnp.array(0.5), jnp.zeros(0)).tolist()
        [0.5]
    """

    first: Callable
    second: Callable
    weight: Array | float

    def __call__(self, a: Float[Array, "*B m"], t: Float[Array, " *B"], obs: Float[Array, "*B o"]) -> Float[Array, "*B m"]:
        w = jnp.asarray(self.weight, a.dtype)
        return w * self.first(a, t, obs) + (1 - w) * self.second(a, t, obs)


def both(path: diffusion.Path, parents: Sequence[Field]) -> Field:
    """AND: the velocity of the sum of the parents' scores; where the path ends it is the product of their laws."""
    _some("composition.both", parents)

    def v(x, t, obs):
        scores = [diffusion.score_of_velocity(path, parent(x, t, obs), x, t) for parent in parents]
        return diffusion.velocity_of_score(path, sum(scores[1:], scores[0]), x, t)

    return v


def either(parents: Sequence[Field], log_densities: Sequence[Callable], shares: Sequence[float]) -> Field:
    """OR: velocities weighted by how likely each parent made the point; exactly the mixture's.

    Args:
        parents: velocities of one path.
        log_densities: (x [m], t [], obs [o]) -> log density of each parent's points at time t.
        shares: of the parents in the mixture; they sum to one.

    Raises:
        InvalidConfig: shares that are no mixture.
    """
    _some("composition.either", parents)
    if len(shares) != len(parents) or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise InvalidConfig(
            message("composition.either.shares", list(shares), f"{len(parents)} numbers of at least 0 that sum to one",
                    "Normalise them")
        )  # fmt: skip

    def v(x, t, obs):
        logs = jnp.stack([log_p(x, t, obs) for log_p in log_densities]) + jnp.log(jnp.asarray(shares, x.dtype))
        return jnp.einsum("i,im->m", jax.nn.softmax(logs), jnp.stack([parent(x, t, obs) for parent in parents]))

    return v


class Parabola(NamedTuple):
    """curve w^2 + slope w + level.

    Attributes:
        curve: E|v1 - v2|^2, never negative.
        slope, level: of the same size.
    """

    curve: Array
    slope: Array
    level: Array

    def __call__(self, w: Array | float) -> Array:
        """Its value."""
        return self.curve * w**2 + self.slope * w + self.level

    @property
    def least(self) -> Array:
        """The w of its least value."""
        return -self.slope / jnp.maximum(2 * self.curve, 1e-300)


def squared_error(first: Float[Array, "n m"], second: Float[Array, "n m"], truth: Float[Array, "n m"]) -> Parabola:
    """The mean squared error of a blend as a function of w, exactly.

    Args:
        first, second: what the parents say at some points.
        truth: what they should say there.

    Example:
        >>> errors = squared_error(jnp.array([[1.0]]), jnp.array([[-1.0]]), jnp.array([[0.5]]))
        >>> float(errors.least), float(errors(errors.least))
        (0.75, 0.0)
    """
    apart, off = first - second, second - truth
    mean = lambda a, b: jnp.mean(jnp.sum(a * b, -1))  # noqa: E731
    return Parabola(mean(apart, apart), 2 * mean(apart, off), mean(off, off))


def _some(where: str, parents: Sequence[Field]) -> None:
    if len(parents) < 2:
        raise InvalidConfig(message(where, f"{len(parents)} parents", "there are at least two", "Give more"))
