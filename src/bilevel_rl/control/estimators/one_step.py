r"""One step ahead: how the leader's outcome changes with the follower's next policy-gradient step (LIRPG).

$$\theta'(x) = \theta + \alpha\, E[\nabla_\theta \log\pi\, Q_L], \qquad
\partial_{x_i} J_U(\theta') = \alpha\, \big\langle E[\nabla_\theta\log\pi\, A_U],\
E[\nabla_\theta\log\pi\; \partial_{x_i} Q_L] \big\rangle$$

It looks one step ahead where the hyper-gradient looks to the end: a baseline, not an estimate of $\nabla\Phi$.
"""

from __future__ import annotations

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp

from bilevel_rl.control.estimators import heads
from bilevel_rl.control.estimators.covariance import Carried, Covariance
from bilevel_rl.control.estimators.estimator import Direction, Here
from bilevel_rl.control.followers.follower import branch


class OneStep(Covariance):
    """LIRPG's meta-gradient, from the heads of `Covariance` and the scores of drawn actions; of length 1.

    Args:
        rate: step size of Adam of the critic's network.
        polyak: share by which its target follows.
        width: units of each of two hidden layers.
        actions: drawn in each state where actions are vectors.

    References:
        Zheng, Oh, Singh 2018, arXiv 1804.06459. There x are the weights of a network and the critic is of returns; here both
        factors come from one critic with several heads, taught by replayed transitions, and only the direction counts, as
        with their Adam (ours).
    """

    name: ClassVar[str] = "one_step"
    scores: ClassVar[bool] = True
    pulls: ClassVar[bool] = False
    varies: ClassVar[bool] = False
    remembers: ClassVar[bool] = False  # x meets the step that the newest network takes
    references: ClassVar[tuple[str, ...]] = ("zheng2018lirpg",)

    def estimate(self, here: Here, H: Carried, F: Any, recent, key):
        env, law = here.environment, here.follower.law(here.environment)
        numbered = hasattr(env.action, "n")
        actions, weights = branch(here.follower, env, F, recent.t.obs, self.actions, key)
        q = heads.of_pairs(env, H.heads.online.params, recent.t.obs, actions)
        q = jax.lax.stop_gradient(q - jnp.einsum("bm,bmh->bh", weights, q)[:, None])
        arrays, rest = eqx.partition(F, eqx.is_inexact_array)

        def gained(arrays: Any):
            """E[log pi q] [1 + d], whose derivative is the score's mean with each head."""
            out = here.follower.out(env, eqx.combine(arrays, rest), recent.t.obs)
            if numbered:
                log_pi = jax.nn.log_softmax(out)
            else:
                log_pi = jax.vmap(lambda o, a: jax.vmap(lambda v: law.log_prob(o, law.decoded(v)))(a))(out, actions)
            return jnp.einsum("bm,bm,bmh->h", jax.lax.stop_gradient(weights), log_pi, q) / weights.shape[0]

        rows = jax.tree.leaves(jax.jacrev(gained)(arrays))
        flat = jnp.concatenate([v.reshape(v.shape[0], -1) for v in rows], 1)
        g = flat[1:] @ flat[0]
        return H, Direction(g / jnp.maximum(jnp.linalg.norm(g), 1e-30), None)
