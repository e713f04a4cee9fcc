"""No estimate: the follower's answer is left out of account."""

from __future__ import annotations

from typing import ClassVar

import jax.numpy as jnp

from bilevel_rl.control.estimators.estimator import Direction, Here, HyperGradient


class Nothing(HyperGradient):
    """A direction of zero; what is left is what x does by itself."""

    name: ClassVar[str] = "nothing"

    def init(self, here: Here, F, chains, key):
        return ()

    def estimate(self, here: Here, H, F, recent, key):
        return H, Direction(jnp.zeros_like(here.x), None)
