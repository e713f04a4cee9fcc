r"""The paper's pair where the second follower is the first one's law, tilted towards what the leader wants.

$$\nabla_x E_d[u] \approx \frac1w \Big( E_{a\sim\pi^L}[\partial_x Q_L] - E_{a \sim \pi}[\partial_x Q_L] \Big), \qquad
\pi^L(a|s) \propto \pi(a|s)\, e^{w A_U(s,a)/\tau}$$

in states of the follower's own. Both expectations are over the same actions, weighted and not: the two followers are coupled
as closely as they can be, and no second one walks or learns. As $w \to 0$ it is the covariance.
"""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp

from bilevel_rl.control.estimators import heads
from bilevel_rl.control.estimators.covariance import Carried, Covariance
from bilevel_rl.control.estimators.estimator import Direction, Here
from bilevel_rl.control.followers.follower import branch, spread


class TiltedActions(Covariance):
    """For followers of any kind, those that x moves directly too. The penalty constant w is the solver's.

    Args:
        rate: step size of Adam of the critic's network.
        polyak: share by which its target follows.
        width: units of each of two hidden layers.
        actions: drawn in each state where actions are vectors.

    References:
        arXiv 2601.16399, equation of the penalty's gradient, at the closed form of its second follower (ours).
    """

    name: ClassVar[str] = "tilted"
    references: ClassVar[tuple[str, ...]] = ("zeng2026hessianfree",)
    varies: ClassVar[bool] = False

    def estimate(self, here: Here, H: Carried, F, recent, key):
        env, (critic, acting) = here.environment, H.seen(F)
        actions, weights = branch(here.follower, env, acting, recent.t.obs, self.actions, key)
        q = heads.of_pairs(env, critic, recent.t.obs, actions)
        q = q - jnp.einsum("bm,bmh->bh", weights, q)[:, None]
        answer, A_u = q[..., 1:] / (1 - here.lower), q[..., 0] / (1 - here.upper)
        tilt = jax.nn.softmax(jnp.log(jnp.maximum(weights, 1e-30)) + here.w * A_u / here.tau, 1)
        factor = spread(env, self.actions)
        g = factor * jnp.einsum("bm,bmd->d", tilt - weights, answer) / (here.w * weights.shape[0])
        return H, Direction(g, jnp.sqrt(factor * weights)[..., None] * answer / here.tau)
