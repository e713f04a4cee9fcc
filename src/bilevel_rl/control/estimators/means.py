r"""Running means of networks: what an estimate is made of, in place of their newest values.

$$\bar\theta \leftarrow \bar\theta + \max\big(\tfrac{4}{t + 4},\ \eta\big)\,(\theta - \bar\theta)$$

A follower whose steps do not fall wanders about its answer, and a critic about its values. The covariance multiplies both,
so that their wandering does not cancel over estimates: it is a bias. Mean networks wander less. While t, the updates so far,
is small the beginning is forgotten as $t^{-4}$ (polynomial-decay averaging); later as $(1-\eta)^t$.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from bilevel_rl.control import nets

FORGETS = 4.0  # Shamir and Zhang 2013 average so; a power of 3 and more is usual


class Means(eqx.Module):
    """Mean networks, after some updates.

    Attributes:
        follower: of what the follower has learnt; optimisers' memories left out.
        critic: of the estimator's critic.
        updates: how many there were.
    """

    follower: Any
    critic: nets.MLP
    updates: Int[Array, ""]

    @classmethod
    def begin(cls, F: Any, critic: nets.MLP) -> Means:
        """Before the first update."""
        return cls(_bare(F), critic, jnp.zeros((), jnp.int32))

    def after(self, F: Any, critic: nets.MLP, share: Any) -> Means:
        """With one update more.

        Args:
            F, critic: the newest.
            share: eta, by which they count in the long run.
        """
        now = jnp.maximum(FORGETS / (self.updates.astype(jnp.float32) + FORGETS), jnp.asarray(share, jnp.float32))
        toward = lambda a, b: a + now * (b - a) if eqx.is_inexact_array(b) else b  # noqa: E731
        follower, critic = jax.tree.map(toward, (self.follower, self.critic), (_bare(F), critic))
        return Means(follower, critic, self.updates + 1)

    def acting(self, F: Any) -> Any:
        """The mean follower, for whoever takes an F."""
        back = lambda v, mean: nets.Trained(mean, v.memory) if isinstance(v, nets.Trained) else mean  # noqa: E731
        return jax.tree.map(back, F, self.follower, is_leaf=_trained)


def _trained(node: Any) -> bool:
    return isinstance(node, nets.Trained)


def _bare(F: Any) -> Any:
    """What was learnt, without the optimisers' memories."""
    return jax.tree.map(lambda v: v.params if _trained(v) else v, F, is_leaf=_trained)
