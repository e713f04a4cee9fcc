r"""What a policy is worth, from stored rows that it did not make: fitted Q evaluation on random features, solved at once.

$$Q(s, a) = w^\top\varphi(s, a), \qquad
\big(E[\varphi\varphi^\top] + \lambda I - \gamma\, E[\varphi(s, a)\, \varphi(s', \pi(s'))^\top]\big)\, w = E[\varphi\, r]$$

A network that follows its own slow copy needs about $1/((1-\gamma)\,\text{polyak})$ updates until it knows of a change of
the policy, thousands at usual settings; a leader that asks after some hundreds sees a small part of what x does. A linear
system has no such memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bilevel_rl.control.environment import Environment
from bilevel_rl.control.offline import parts

NEAR = 0.5  # ours: over how much of an observation's range, from -1 to 1, a feature turns by one radian


class Features:
    r"""Random cosines of observation and action, and a constant: $\varphi(s, a)$ [D + 1].

    Args:
        environment: whose observations and actions they see.
        count: D.
        seed: of the draw.

    References:
        Rahimi, Recht 2007: random features of a Gaussian kernel.
    """

    def __init__(self, environment: Environment, count: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        o, e = environment.observation.size, parts.code_size(environment.action)
        scale = np.concatenate([np.full(o, 1 / NEAR), np.ones(e)])
        self.environment, self.count = environment, count
        self.turns = jnp.asarray(scale[:, None] * rng.normal(size=(o + e, count)), jnp.float32)
        self.begin = jnp.asarray(rng.uniform(0, 2 * np.pi, count), jnp.float32)

    def __call__(self, obs: Float[Array, "B o"], code: Float[Array, "B e"]) -> Float[Array, "B D"]:
        """Of pairs; actions encoded."""
        seen = jnp.concatenate([parts.scaled(self.environment, obs), code], -1)
        waves = jnp.cos(seen @ self.turns.astype(seen.dtype) + self.begin.astype(seen.dtype)) * (2 / self.count) ** 0.5
        return jnp.concatenate([waves, jnp.ones_like(waves[:, :1])], -1)


def evaluated(
    features: Features, rows: Any, acts: Callable[[Float[Array, "B o"]], Float[Array, "B e"]], gamma: Any,
    ridge: float = 1e-3,
) -> Callable[[Float[Array, "B o"]], Float[Array, " B"]]:  # fmt: skip
    r"""V of a policy: observations [B, o] -> [B]; traceable.

    Args:
        rows: a `Bank` or `Minibatch` of single transitions; its weights count.
        acts: the policy's encoded actions.
        ridge: $\lambda$; a feature's mean square is 1/D.
    """
    env, t = features.environment, rows.t
    now = features(t.obs, parts.encoded(env.action, t.action, t.reward.dtype))
    after = features(t.next_obs, acts(t.next_obs)) * parts.ongoing(t.terminated, now.dtype)[:, None]
    share = (rows.weight / jnp.maximum(jnp.sum(rows.weight), 1e-8))[:, None] * now
    wide = lambda v: v.astype(float)  # noqa: E731
    system = wide(share.T @ now) + ridge * jnp.eye(now.shape[1]) - gamma * wide(share.T @ after)
    w = jnp.linalg.solve(system, wide(share.T @ rows.reward)).astype(now.dtype)
    return lambda obs: features(obs, acts(obs)) @ w
