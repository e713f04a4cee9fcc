r"""A linear system with Gaussian noise and quadratic rewards: everything about it is in closed form."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from bilevel_rl.control.environment import Box, Environment, Step


class LQG(Environment):
    r"""$s' = A s + B a + \sigma \xi$, all of s observed, actions without bounds, no end and no time limit.

    A turns by `turn` rad and shrinks by `keep`; B pushes the last m coordinates by half of a. The environment's own reward
    is $-|s|^2 - .1 |a|^2$. Starts: $N(m, I/4)$ with m = (1, ..., 1). `control.quadratic` has the exact answers.

    Args:
        size: n, numbers of a state.
        actions: m, at most n.
        keep: how much of a state stays.
        turn: angle by which a step turns neighbouring coordinates, rad.
        noise: $\sigma$.

    References:
        Discounted linear-quadratic control: Bertsekas 2017, chapter 3.
    """

    size: int = eqx.field(static=True, default=2)
    actions: int = eqx.field(static=True, default=1)
    keep: float = eqx.field(static=True, default=0.95)
    turn: float = eqx.field(static=True, default=0.3)
    noise: float = eqx.field(static=True, default=0.1)

    name: ClassVar[str] = "lqg"

    def matrices(self) -> tuple[np.ndarray, np.ndarray]:
        """A [n, n] and B [n, m]."""
        n, m = self.size, self.actions
        A = self.keep * np.eye(n)
        c, s = np.cos(self.turn), np.sin(self.turn)
        for i in range(0, n - 1, 2):
            A[i : i + 2, i : i + 2] = self.keep * np.array([[c, -s], [s, c]])
        return A, np.eye(n)[:, n - m :] * 0.5

    @property
    def observation(self):
        return Box.everywhere(self.size)

    @property
    def action(self):
        return Box.everywhere(self.actions)

    def reset(self, key):
        state = 1 + 0.5 * jax.random.normal(key, (self.size,), jnp.float32)
        return state, state

    def step(self, state, action, key):
        A, B = (jnp.asarray(M, jnp.float32) for M in self.matrices())
        reward = -jnp.sum(state**2) - 0.1 * jnp.sum(action**2)
        state = A @ state + B @ action + self.noise * jax.random.normal(key, state.shape, jnp.float32)
        never = jnp.zeros((), bool)
        return Step(state, state, reward, never, never, jnp.zeros(0, jnp.float32))

    def frame(self, state):
        """The first two coordinates as a point, [1, 2]."""
        return {"points": state[None, :2]}
