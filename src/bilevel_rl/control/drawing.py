"""One path of a policy as arrays that a page can draw: an environment's frames, one after the other."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from bilevel_rl.control.environment import Environment
from bilevel_rl.host import GymnasiumHost

STEPS = 60  # ours: of a path that is drawn, where the episode is not shorter
OUTSIDE, CURVES, PICTURES, PIXELS = 200, 8, 8, 160  # ours: steps, numbers, pictures and their size, of a path outside


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


def episode(host: GymnasiumHost, pick: Callable[[np.ndarray], np.ndarray], steps: int = OUTSIDE) -> dict[str, np.ndarray]:
    """What an episode of a Gymnasium environment looks like, up to its end.

    Args:
        host: of one copy.
        pick: observation [o] -> action.

    Returns:
        `path_curves` [1, T, n], its first numbers over time; `path_images` [1, F, h, w, 3] of bytes where it has pictures.
    """
    seen, pictures = [host.observation[0]], [host.picture()]
    for _ in range(steps):
        went = host.step(pick(host.observation[0])[None])
        seen.append(went.observation_next[0])
        if (went.terminated | went.truncated).any():
            break
        pictures.append(host.picture())
    found = {"path_curves": np.stack(seen)[None, :, :CURVES].astype(np.float32)}
    if any(p is None for p in pictures):
        return found
    chosen = np.unique(np.linspace(0, len(pictures) - 1, min(PICTURES, len(pictures))).astype(int))
    apart = max(1, -(-max(pictures[0].shape[:2]) // PIXELS))
    return found | {"path_images": np.stack([pictures[i][::apart, ::apart] for i in chosen])[None]}
