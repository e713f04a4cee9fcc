r"""An environment seen only now and then: at a decision the agent looks, then it acts for some steps without."""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel_rl.control.environment import Box, Environment, Step
from bilevel_rl.control.environments.pendulum import Pendulum
from bilevel_rl.errors import InvalidProblem, message


class OpenLoop(Environment):
    """The inner environment with a decision every `length` steps, and after any step with probability `anew`.

    Observed are the state at the last decision, the actions since (in units of their box, zeros for those to come), and the
    place in the sequence, one-hot: [o + (length - 1) m + length]. That is all that an agent knows which does not look, so
    any follower may act here. `info` is what it does not know: the states before and after the step [o each], whether the
    step began with a decision, and the inner environment's own numbers.

    Args:
        inner: an environment whose actions are vectors in a bounded box.
        length: J, steps from decision to decision at most.
        anew: probability of a decision after any step; 1 is the inner environment.
    """

    inner: Environment = Pendulum()
    length: int = eqx.field(static=True, default=4)
    anew: Any = 0.0

    name: ClassVar[str] = "open_loop"

    def __check_init__(self):
        space = self.inner.action
        if not isinstance(space, Box) or not space.bounded or self.length < 1:
            raise InvalidProblem(
                message("OpenLoop", f"actions in {space}, length {self.length}", "a bounded Box, and at least one step",
                        "Give it an environment with vectors as actions")
            )  # fmt: skip

    @property
    def info_names(self):
        o = range(self.inner.observation.size)
        names = (f"{word}_{i}" for word in ("before", "after") for i in o)
        return (*names, "decided", *self.inner.info_names)

    @property
    def observation(self):
        inner, m = self.inner.observation, (self.length - 1) * self.inner.action.size
        low, high = (-1.0,) * m + (0.0,) * self.length, (1.0,) * (m + self.length)
        return Box((*inner.low, *low), (*inner.high, *high))

    @property
    def action(self):
        return self.inner.action

    @property
    def horizon(self):
        return self.inner.horizon

    def reset(self, key):
        inner, obs = self.inner.reset(key)
        past = jnp.zeros((self.length - 1, self.action.size), jnp.float32)
        state = inner, obs, obs, past, jnp.zeros((), jnp.int32)
        return state, self._observed(state)

    def step(self, state, action, key):
        inner, now, seen, past, place = state
        k_step, k_anew = jax.random.split(key)
        found = self.inner.step(inner, action, k_step)
        told = jnp.concatenate([now, found.obs, (place == 0).astype(jnp.float32)[None], found.info])
        dice = jax.random.uniform(k_anew, (), jnp.float32) < jnp.asarray(self.anew, jnp.float32)
        decide = (place + 1 >= self.length) | dice
        low, high = (jnp.asarray(bound, jnp.float32) for bound in (self.action.low, self.action.high))
        unit = (2 * action - high - low) / (high - low)
        kept = jnp.where(jnp.arange(self.length - 1)[:, None] == place, unit, past)
        state = (
            found.state, found.obs, jnp.where(decide, found.obs, seen), jnp.where(decide, jnp.zeros_like(past), kept),
            jnp.where(decide, 0, place + 1),
        )  # fmt: skip
        return Step(state, self._observed(state), found.reward, found.terminated, found.truncated, told)

    def _observed(self, state):
        _, _, seen, past, place = state
        return jnp.concatenate([seen, past.reshape(-1), jax.nn.one_hot(place, self.length, dtype=jnp.float32)])

    def opened(
        self, obs: Float[Array, "*B p"]
    ) -> tuple[Float[Array, "*B o"], Float[Array, "*B past m"], Float[Array, "*B J"]]:
        """State at the last decision, actions since, place in the sequence."""
        o, m = self.inner.observation.size, self.action.size
        past = obs[..., o : o + (self.length - 1) * m].reshape(*obs.shape[:-1], self.length - 1, m)
        return obs[..., :o], past, obs[..., o + (self.length - 1) * m :]

    def frame(self, state):
        return self.inner.frame(state[0])
