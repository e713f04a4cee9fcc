r"""How good an agent is when it may look only now and then: returns by decision frequency, and their mean.

$$\mathrm{FAS} = \frac1J \sum_{j=1}^J \frac{R_j - R_{\text{low}}}{R_{\text{high}} - R_{\text{low}}}$$

$R_j$ is the return with a decision every j steps. That the score is the mean over frequencies of normalised returns is
INFERRED: the abstract names it alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bilevel_rl.control import walk
from bilevel_rl.control.environment import Environment
from bilevel_rl.control.environments.open_loop import OpenLoop
from bilevel_rl.control.followers import SRL, Follower
from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.loop import precision


def frequency_averaged_score(returns: Any, low: float = 0.0, high: float = 1.0) -> float:
    """Mean of normalised returns, one for each frequency.

    Args:
        returns: [J].
        low, high: returns that count 0 and 1.

    Raises:
        InvalidConfig: high is not above low.

    Example:
        >>> frequency_averaged_score([0.25, 0.25, 0.25])
        0.25
        >>> frequency_averaged_score([-100.0, -300.0], low=-500.0, high=-100.0)
        0.75
    """
    if not high > low:
        raise InvalidConfig(message("frequency_averaged_score", f"low {low}, high {high}", "high is above low", "Swap them"))
    return float(np.mean((np.asarray(returns, float) - low) / (high - low)))


@precision.double
def returns_by_frequency(
    environment: Environment, follower: Follower, learnt: Any, lengths: Sequence[int] = (1, 2, 4, 8), *, episodes: int = 16,
    steps: int | None = None, seed: int = 0,
) -> Float[np.ndarray, " J"]:  # fmt: skip
    """Mean return of an agent's best actions when it looks once in so many steps.

    `SRL` plans on from what it saw; any other follower repeats its action.

    Args:
        environment: in which it looks at every step.
        follower: who acts.
        learnt: one run's.
        lengths: steps from decision to decision.
        episodes: of which returns are averaged.
        steps: of an episode; the environment's horizon when None.
    """
    steps = environment.horizon if steps is None else steps
    worlds, key = [OpenLoop(environment, int(j)) for j in lengths], jax.random.key(seed)
    return np.array([float(_played(world, follower, learnt, episodes, steps, key)) for world in worlds])


@eqx.filter_jit
def _played(world: OpenLoop, follower: Follower, learnt: Any, episodes: int, steps: int, key: Array) -> Float[Array, ""]:
    def act(obs: Array, key: Array) -> Array:
        if isinstance(follower, SRL):
            return follower.mode(world, learnt, obs)
        return follower.mode(world.inner, learnt, world.opened(obs)[0])

    def step(carry: Any, key: Array) -> Any:
        chains, alive = carry
        chains, seen = walk.step(world, chains, act, key, 0.0)
        return (chains, alive * (1 - seen.over)), alive * seen.t.reward

    first = walk.begin(world, episodes, jax.random.fold_in(key, 0)), jnp.ones(episodes, jnp.float32)
    return jnp.mean(jnp.sum(jax.lax.scan(step, first, jax.random.split(key, steps))[1], 0))
