r"""PA-RL: actions are improved, then any class of policies learns them as it learns everything else.

In a state: some actions of the policy, the best few of them by Q (global), some steps up $\nabla_a Q$ from each, of which
the best point stays (local). The policy then takes a supervised step towards the result: a likelihood for softmax and
Gaussian policies, flow matching for flows, noise prediction for diffusion. All that it has to offer is `sample` and `loss`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel_rl.control import nets
from bilevel_rl.control.offline import parts
from bilevel_rl.control.offline.learner import OfflineLearner
from bilevel_rl.control.policies import Diffusion, flow
from bilevel_rl.loop.settings import check_fields

Class = Literal["soft", "flow", "diffusion"]
FLOW_STEPS = 5  # ours: in which the flow is followed
NOISE_STEPS = 10  # ours: in which a diffusion policy denoises


class Improved(eqx.Module):
    """What it has learnt.

    Attributes:
        actor: the policy, of whatever class.
        critics: two, stacked.
        slow: slow copies of both.
    """

    actor: nets.Trained
    critics: nets.Trained
    slow: Any


class PARL(OfflineLearner):
    """Policy-agnostic improvement, with a conservative critic.

    Args:
        policy: `"soft"` (softmax or Gaussian, by the actions), `"flow"` or `"diffusion"`.
        samples: actions of the policy in a state.
        best: how many of them are improved further.
        steps: up the critic's slope; 0 for the best of the samples.
        size: of a step, in half widths of the action box.
        conservative: weight of Cal-QL's penalty on actions that the data do not have.
        warm: updates in which the policy is cloned before it is improved.

    References:
        Mark et al. 2024, arXiv 2412.06685, and its released code; the critic is Cal-QL (Nakamoto et al. 2023, arXiv
        2303.05479) with two networks. Vision-language-action policies are out of reach here.
    """

    policy: Class = eqx.field(static=True, default="soft")
    samples: int = eqx.field(static=True, default=32)
    best: int = eqx.field(static=True, default=10)
    steps: int = eqx.field(static=True, default=10)
    size: float = 0.02
    conservative: float = 0.005
    warm: float = 1000.0

    name: ClassVar[str] = "pa_rl"
    references: ClassVar[tuple[str, ...]] = ("mark2024parl", "nakamoto2023calql")

    def check(self, environment):
        super().check(environment)
        numbered = hasattr(environment.action, "n")
        check_fields(
            "learner pa_rl", ("best", self.best, 1 <= self.best <= self.samples, "it is at least 1 and at most `samples`"),
            ("steps", self.steps, self.steps >= 0, "it must be at least 0"),
            ("size", self.size, self.size > 0, "it must be above 0"),
            ("conservative", self.conservative, self.conservative >= 0, "it must be at least 0"),
            ("policy", self.policy, self.policy in ("soft", "flow", "diffusion"), "known are soft, flow and diffusion"),
            ("policy", self.policy, not (numbered and self.policy != "soft"), "noise becomes vectors alone; take soft"),
        )  # fmt: skip

    def init(self, environment, facts, key):
        k_pi, k_q = jax.random.split(key)
        Q = parts.critics(environment, self.width, k_q)
        return Improved(nets.Trained.begin(self._made(environment, k_pi)), nets.Trained.begin(Q), Q)

    # -- the two things asked of a policy -----------------------------------------------------------------------------

    def _made(self, environment, key):
        if self.policy != "soft":  # a diffusion's noise has a velocity's shape
            return flow.Velocity.make(environment.action.size, environment.observation.size, self.width, key)
        return parts.Soft.make(environment, self.width, key)

    def sample(self, environment, pi, obs: Float[Array, "B o"], key: Array) -> Float[Array, "B e"]:
        """One action in each state, encoded."""
        if self.policy == "flow":
            noise = jax.random.normal(key, (obs.shape[0], environment.action.size), jnp.float32)
            return parts.flowed(environment, pi, obs, noise, FLOW_STEPS)
        if self.policy == "diffusion":
            law, keys = Diffusion(environment.action, NOISE_STEPS), jax.random.split(key, obs.shape[0])
            drawn = jax.vmap(lambda o, k: law.sample(pi, o, k))(parts.scaled(environment, obs), keys)
            return law.encoded(drawn)
        return parts.drawn_code(environment, pi, obs, key)

    def loss(self, environment, pi, obs, code, weight, key) -> Float[Array, ""]:
        """The supervised loss of encoded actions."""
        if self.policy == "flow":
            return flow.matching_loss(pi, code, parts.scaled(environment, obs), key, weight / jnp.mean(weight))
        action = parts.decoded(environment.action, code)
        if self.policy == "diffusion":
            law = Diffusion(environment.action, NOISE_STEPS)
            return law.loss(pi, parts.scaled(environment, obs), action, key, weight / jnp.mean(weight))
        return -parts.weighted_mean(weight, parts.log_likelihood(environment, pi, obs, action))

    # -----------------------------------------------------------------------------------------------------------------

    def optimised(self, environment, pi, Q, obs: Float[Array, "B o"], key: Array) -> Float[Array, "B e"]:
        """Improved actions in each state, encoded."""
        draws = jax.vmap(lambda k: self.sample(environment, pi, obs, k))(jax.random.split(key, self.samples))
        value = lambda code: jnp.min(parts.values(environment, Q, obs, code), 0)  # noqa: E731
        smooth = not hasattr(environment.action, "n")
        bounded = smooth and environment.action.bounded
        return improved(value, draws, self.best, self.steps if smooth else 0, self.size, bounded)

    def act(self, environment, F, memory, obs, key):
        code = self.optimised(environment, F.actor.params, F.slow, obs[None], key)[0]
        return parts.decoded(environment.action, code), memory

    def update(self, environment, F, batch, gamma, k, key):
        k_next, k_now, k_mine, k_loss = jax.random.split(key, 4)
        pi, obs, code = F.actor.params, batch.t.obs, parts.encoded(environment.action, batch.t.action)
        a_next = self.optimised(environment, pi, F.slow, batch.t.next_obs, k_next)
        V = jnp.min(parts.values(environment, F.slow, batch.t.next_obs, a_next), 0)
        y = batch.reward + gamma * parts.ongoing(batch.t.terminated) * V
        mine = self.sample(environment, pi, obs, k_mine)

        def loss(Q):
            # Cal-QL: what the policy would do is not pushed below what the data have returned
            pushed = jnp.maximum(parts.values(environment, Q, obs, mine), batch.to_go)
            gap = jnp.mean(pushed - parts.values(environment, Q, obs, code), 0)
            fit = parts.critic_loss(environment, Q, batch, code, y)
            return fit + self.conservative * parts.weighted_mean(batch.weight, gap)

        critics = F.critics.descend(jax.grad(loss)(F.critics.params), self.rate)
        aim = self.optimised(environment, pi, critics.params, obs, k_now)
        aim = jnp.where(k < self.warm, code, aim)
        slope = jax.grad(lambda pi: self.loss(environment, pi, obs, aim, batch.weight, k_loss))(pi)
        return Improved(F.actor.descend(slope, self.rate), critics, nets.follow(F.slow, critics.params, self.polyak))


def improved(
    value: Callable[[Float[Array, "B e"]], Float[Array, " B"]], draws: Float[Array, "M B e"], best: int, steps: int,
    size: Any, bounded: bool,
) -> Float[Array, "B e"]:  # fmt: skip
    """Global and local optimisation: never worse than the best of the draws.

    Args:
        value: of one action in each state.
        draws: M actions in each state.
        best: how many of them are improved.
        steps: up the slope, of each of these.
        size: of a step.
        bounded: whether actions stay in [-1, 1].
    """
    found = jax.vmap(value)(draws)  # [M, B]
    order = jnp.argsort(-found, axis=0)[:best]
    start = jnp.take_along_axis(draws, order[..., None], 0)
    slope = jax.vmap(jax.grad(lambda code: jnp.sum(value(code))))

    def climb(carry, _):
        at, top, height = carry
        at = at + size * slope(at)
        at = jnp.clip(at, -1.0, 1.0) if bounded else at
        now = jax.vmap(value)(at)
        higher = now > height
        return (at, jnp.where(higher[..., None], at, top), jnp.maximum(now, height)), None

    first = start, start, jnp.take_along_axis(found, order, 0)
    (_, top, height), _ = jax.lax.scan(climb, first, None, length=steps)
    return jnp.take_along_axis(top, jnp.argmax(height, 0)[None, :, None], 0)[0]
