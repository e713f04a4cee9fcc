r"""A linear system with bounded actions: under rewards linear in the state one law of actions is best everywhere."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from bilevel_rl.control.environment import Box, Environment, Step


class Bounded(Environment):
    r"""$s' = A s + B a + \sigma\xi$ with $a \in [-1, 1]^m$, no end and no time limit.

    States are pulled to 0 and pushed by actions: $A = .8\,I$ with a little mixing of neighbours, $B = .3\,I$. The
    environment's own reward is $-\tfrac12|a|^2$. Starts: $N(0, I/4)$. Under a reward $x\cdot s' - \tfrac12|a|^2$ values are
    linear in s, so the entropy-regularised law of actions is the same in every state (`control.problems.bounded_shaping`).

    Args:
        size: n = m.
        noise: $\sigma$.
    """

    size: int = eqx.field(static=True, default=2)
    noise: float = eqx.field(static=True, default=0.1)

    name: ClassVar[str] = "bounded"

    def matrices(self) -> tuple[np.ndarray, np.ndarray]:
        """A and B, [n, n] each."""
        n = self.size
        return 0.8 * np.eye(n) + 0.1 * np.eye(n, k=1), 0.3 * np.eye(n)

    @property
    def observation(self):
        return Box.everywhere(self.size)

    @property
    def action(self):
        return Box((-1.0,) * self.size, (1.0,) * self.size)

    def reset(self, key):
        state = 0.5 * jax.random.normal(key, (self.size,), jnp.float32)
        return state, state

    def step(self, state, action, key):
        A, B = (jnp.asarray(M, jnp.float32) for M in self.matrices())
        a, never = jnp.clip(action, -1.0, 1.0), jnp.zeros((), bool)
        state = A @ state + B @ a + self.noise * jax.random.normal(key, state.shape, jnp.float32)
        return Step(state, state, -0.5 * jnp.sum(a**2), never, never, jnp.zeros(0, jnp.float32))

    def frame(self, state):
        """The first two coordinates as a point, [1, 2]."""
        return {"points": state[None, :2]}
