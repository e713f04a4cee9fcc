r"""How far a step of x takes the follower's answer, as a matrix: what natural steps of the leader are measured by.

$$G = \tfrac{1}{\tau^2}\, E_s\, \mathrm{Cov}_{a\sim\pi}\big[\partial_x Q_L\big], \qquad
|\Delta x|_F^2 = \Delta x^\top G\, \Delta x, \qquad
\Delta x = -\zeta\, \big(G + \lambda\, \tfrac{\mathrm{tr}\, G}{d}\, I\big)^{-1} g$$

G is the Fisher information of the answer in x: the natural gradient, taken through the follower. A problem stated in other
units of x, $x = A z$, makes the same steps but for $\lambda$, which stands for what the samples do not show.
"""

from __future__ import annotations

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

KEPT = 0.95  # ours: weight of what was seen before; a mean over the last twenty moves
RIDGE = 0.01  # ours: lambda; directions in which the answer moves a hundredth of the mean are taken to move so much


class AnswerMetric(eqx.Module):
    """A running mean of G.

    Attributes:
        gathered: [d, d] in squared nats for a squared unit of x, times `weight`.
        weight: of all that was gathered, from 0 to 1.

    References:
        Natural gradients: Amari 1998, Neural Computation 10(2). Of a leader, through the follower's answer, ours.

    Example:
        >>> seen = AnswerMetric.begin(jnp.zeros(2)).after(jnp.ones((5, 3, 2)) * jnp.array([2.0, 0.0]))
        >>> [round(float(v), 3) for v in seen.natural(jnp.array([12.0, 0.0]))]  # G = 3 * 2^2 for the first, 0 for the other
        [0.995, 0.0]
    """

    gathered: Float[Array, "d d"]
    weight: Float[Array, ""]

    @classmethod
    def begin(cls, x0: Float[Array, " d"]) -> AnswerMetric:
        """Before anything was seen."""
        return cls(jnp.zeros((x0.shape[0], x0.shape[0]), x0.dtype), jnp.zeros((), x0.dtype))

    def after(self, pull: Float[Array, "B M d"]) -> AnswerMetric:
        """With one more estimate's answer (`Direction.pull`)."""
        pull = pull.astype(self.gathered.dtype)
        G = jnp.einsum("bmi,bmj->ij", pull, pull) / pull.shape[0]
        return AnswerMetric(KEPT * self.gathered + (1 - KEPT) * G, KEPT * self.weight + (1 - KEPT))

    def natural(self, slope: Float[Array, " d"]) -> Float[Array, " d"]:
        """The slope in units of x for squared nats; 0 while nothing has been seen."""
        d = slope.shape[0]
        G = self.gathered / jnp.maximum(self.weight, 1e-12)
        size = jnp.trace(G) / d
        unit = jnp.where(size > 0, size, 1.0)
        return jnp.where(size > 0, jnp.linalg.solve(G / unit + RIDGE * jnp.eye(d, dtype=G.dtype), slope) / unit, 0.0)
