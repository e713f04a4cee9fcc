"""One path of a policy as arrays that a page can draw: an environment's frames, one after the other."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from bilevel_rl.control.environment import Environment

STEPS = 60  # ours: of a path that is drawn, where the episode is not shorter


def path(environment: Environment, pick: Callable[[Array], Array], key: Array, steps: int = STEPS) -> dict[str, Array]:
    """Frames [T, ...] by name: `segments`, `points`, `bars`, `goals` or `walls`; after an end the last one stays.

    Args:
        pick: observation [o] -> action.

    Example:
        >>> from bilevel_rl.control.environments import Pendulum
        >>> path(Pendulum(), lambda obs: jnp.zeros(1, jnp.float32), jax.random.key(0), 5)["segments"].shape
        (5, 2, 2)
    """

    def one(carry, key):
        state, obs, over = carry
        found = environment.step(state, pick(obs), key)
        stay = lambda old, new: jnp.where(over, old, new)  # noqa: E731
        after = jax.tree.map(stay, (state, obs), (found.state, found.obs))
        return (*after, over | found.terminated), environment.frame(state)

    k_first, k_steps = jax.random.split(key)
    first = (*environment.reset(k_first), jnp.zeros((), bool))
    frames = jax.lax.scan(one, first, jax.random.split(k_steps, steps))[1]
    return {name: values.astype(jnp.float32) for name, values in frames.items()}
