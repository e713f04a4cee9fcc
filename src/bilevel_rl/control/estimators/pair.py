r"""The hyper-gradient as a difference of two followers, the paper's: one answers x, one also wants what the leader wants.

$$\nabla_x E_d[u] \approx -\tfrac1w \Big( E_{d^{\pi}}[\partial_x r] - E_{d^{\pi^L}}[\partial_x r] \Big), \qquad
\pi^L \text{ optimal for } r_x + w\, u$$

Coupled, both begin alike and see the same random numbers and rows, so that what they have in common cancels before it is
divided by w.
"""

from __future__ import annotations

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel_rl.control import walk
from bilevel_rl.control.estimators.estimator import Direction, Here, HyperGradient, rewards, slopes, utilities
from bilevel_rl.control.replay import Layout
from bilevel_rl.errors import InvalidProblem, message


class Second(eqx.Module):
    """The penalised follower.

    Attributes:
        follower: what it has learnt.
        chains: where its chains are.
        total: [d] sum of the difference of mean derivatives since the last estimate.
        count: steps in it.
    """

    follower: Any
    chains: walk.Chains
    total: Float[Array, " d"]
    count: Float[Array, ""]


class Pair(HyperGradient):
    """Two followers, as many transitions again. The penalty constant w is the solver's.

    Args:
        common: whether both see the same random numbers and begin alike.

    References:
        arXiv 2601.16399, equation of the penalty's gradient; coupling by common random numbers is ours.
    """

    common: bool = eqx.field(static=True, default=True)

    name: ClassVar[str] = "pair"
    references: ClassVar[tuple[str, ...]] = ("zeng2026hessianfree",)
    other_chains: ClassVar[bool] = True
    equal_discounts: ClassVar[bool] = True

    def check(self, problem):
        lower, upper = float(problem.discount_lower()), float(problem.discount_upper())
        if abs(lower - upper) > 1e-9:
            raise InvalidProblem(
                message(f"{problem.name}.discount_upper", f"{upper:g}, where the follower's is {lower:g}",
                        "a pair of followers adds the leader's utility to the reward: both must discount alike",
                        "Take the solver covariance, trajectory or backward")
            )  # fmt: skip

    def init(self, here: Here, F, chains, key) -> Second:
        k_follower, k_chains = jax.random.split(key)
        # alike at first where noise is common: also the chains, by the key that the solver gives its own
        second = F if self.common else here.follower.init(here.environment, k_follower)
        at = walk.begin(here.environment, chains, k_chains)
        return Second(second, at, jnp.zeros_like(here.x), jnp.zeros((), jnp.float32))

    def walk(self, here: Here, H: Second, F, rows, keys):
        act = lambda obs, key: here.follower.act(here.environment, H.follower, obs, key)  # noqa: E731
        chains, seen = walk.step(here.environment, H.chains, act, keys[0 if self.common else 1], here.cut)
        layout = Layout(here.problem)
        other = layout.unpack(layout.pack(seen))
        difference = jnp.mean(slopes(here, rows), 0) - jnp.mean(slopes(here, other), 0)
        return Second(H.follower, chains, H.total + difference, H.count + 1), seen

    def learn(self, here: Here, H: Second, F, rows, keys) -> Second:
        r = rewards(here, rows) + here.w * utilities(here, rows)
        key = keys[0 if self.common else 1]
        follower = here.follower.update(here.environment, H.follower, rows, r, here.lower, here.tau, key)
        return Second(follower, H.chains, H.total, H.count)

    def estimate(self, here: Here, H: Second, F, recent, key):
        again = Second(H.follower, H.chains, jnp.zeros_like(H.total), jnp.zeros_like(H.count))
        return again, Direction(-H.total / (here.w * jnp.maximum(H.count, 1)), None)
