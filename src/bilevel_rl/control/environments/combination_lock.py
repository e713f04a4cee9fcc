r"""A lock that opens after the right choices in a row: what random actions almost never find."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp

from bilevel_rl.control.environment import Box, Discrete, Environment, Step


class CombinationLock(Environment):
    r"""At place i of L one action of A goes on to i + 1, the others back to the beginning; the end pays 1 and is the end.

    The right action at i is $(7 i + 3) \bmod A$. Random actions open it with probability $A^{-L}$ an attempt. A wrong choice
    pays a bait of .01, so that who plans too short stays at the beginning. Observed is the place, one-hot [L + 1]; a state
    is its number. `info`: whether the choice was right, and the place reached as a share of L.

    Args:
        length: L.
        choices: A.
        steps: of an episode.

    References:
        The combination lock of exploration studies: Kakade 2003, section 8.6; Misra et al. 2020, arXiv 1911.05815.
    """

    length: int = eqx.field(static=True, default=6)
    choices: int = eqx.field(static=True, default=4)
    steps: int = eqx.field(static=True, default=50)

    name: ClassVar[str] = "combination_lock"
    info_names: ClassVar[tuple[str, ...]] = ("right", "progress")

    @property
    def observation(self):
        return Box((0.0,) * (self.length + 1), (1.0,) * (self.length + 1))

    @property
    def action(self):
        return Discrete(self.choices)

    @property
    def horizon(self):
        return self.steps

    def reset(self, key):
        place = jnp.zeros((), jnp.int32)
        return place, self._observed(place)

    def step(self, state, action, key):
        right = action == (7 * state + 3) % self.choices
        place = jnp.where(right, state + 1, 0)
        opened = place >= self.length
        reward = jnp.where(opened, 1.0, jnp.where(right, 0.0, 0.01)).astype(jnp.float32)
        info = jnp.stack([right, place / self.length]).astype(jnp.float32)
        return Step(place, self._observed(place), reward, opened, jnp.zeros((), bool), info)

    def _observed(self, place):
        return jax.nn.one_hot(place, self.length + 1, dtype=jnp.float32)

    def frame(self, state):
        """The place on a line, [1, 2]."""
        return {"points": jnp.stack([state.astype(jnp.float32), jnp.zeros((), jnp.float32)])[None]}
