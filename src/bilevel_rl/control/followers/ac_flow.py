r"""AC-Flow: a flow that learns by matching, weighted by a critic of actions and one of points on the way to them.

$$\min_v\; E\Big[w\, \big|v(z_t, t, s) - (z_1 - z_0)\big|^2 + \lambda\, |v - v_{ref}|^2\Big], \qquad
w = \exp\frac{\mathrm{clip}\big(Q(s, a_1) - C(z_t, t, s)\big)}{\beta}$$

with $z_1$ from the reference, and the intermediate critic $C(z_t, t, s) = E[Q(s, a_1)\,|\,z_t]$. A factor of w that
depends on $(z_t, t, s)$ alone changes no minimiser, so before clipping the optimum is the reference tilted by
$e^{Q/\beta}$, exactly; what C takes away is scatter.
"""

from __future__ import annotations

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel_rl.control import nets
from bilevel_rl.control.environment import Environment
from bilevel_rl.control.followers.flowing import Flowing, make_critic, regressed, values
from bilevel_rl.control.followers.follower import ongoing, scaled
from bilevel_rl.control.policies import flow, latent
from bilevel_rl.control.policies.flow import Velocity
from bilevel_rl.loop.settings import check_fields


class FlowLearnt(eqx.Module):
    """What it has learnt.

    Attributes:
        velocity: of the flow.
        critic: of Q.
        target: a slow copy of it.
        inner: the intermediate critic, of points on the way.
        updates: so far.
    """

    velocity: nets.Trained
    critic: nets.Trained
    target: nets.MLP
    inner: nets.Trained
    updates: Array


class ACFlow(Flowing):
    r"""Off-policy, for actions that are vectors of few coordinates.

    The reference is the broadest law, and $\beta$ is tau: the optimum is the soft one, whatever its shape.

    Args:
        rate: step size of Adam, for velocity and critics.
        polyak: share by which the critic's target follows.
        regular: lambda, the pull to the reference's velocity, which bounds the Wasserstein distance from it.
        clip: bound on the exponent of a weight.
        warm_up: first updates in which the critics alone learn from rewards, and the flow learns the reference.
        width: units of each of two hidden layers.
        steps: in which the flow is followed.
        candidates: latent points drawn in each state: for its soft value, and to learn from.
        intermediate: whether weights are compared on the way; else with the state's mean.

    References:
        Fine-tuning Flow Matching Generative Models with Intermediate Feedback, arXiv 2510.18072. INFERRED but for the
        idea of an intermediate critic, the clipped advantage and the warm-up, which are SEEN (abstract): in the spirit
        of it. The critic of returns, the broad reference and the soft value are ours.
    """

    rate: float = 1e-3
    polyak: float = 0.05
    regular: float = 0.0
    clip: float = 6.0
    warm_up: int = 200
    width: int = eqx.field(static=True, default=64)
    steps: int = eqx.field(static=True, default=6)
    candidates: int = eqx.field(static=True, default=16)
    intermediate: bool = eqx.field(static=True, default=True)

    name: ClassVar[str] = "ac_flow"
    references: ClassVar[tuple[str, ...]] = ("acflow2025",)

    def check(self, environment: Environment) -> None:
        super().check(environment)
        check_fields(
            f"follower {self.name}",
            ("regular", self.regular, self.regular >= 0, "it must be at least 0"),
            ("clip", self.clip, self.clip > 0, "it must be above 0"),
            ("warm_up", self.warm_up, self.warm_up >= 0, "it must be at least 0"),
            ("candidates", self.candidates, self.candidates >= 2, "it must be at least 2"),
        )

    def init(self, environment: Environment, key: Array) -> FlowLearnt:
        k_v, k_q, k_c = jax.random.split(key, 3)
        o, m = environment.observation.size, environment.action.size
        velocity = Velocity.make(m, o, self.width, k_v, last=0.1)
        Q, C = make_critic(environment, self.width, k_q), Velocity.make(m, o, self.width, k_c, outputs=1)
        begin = nets.Trained.begin
        return FlowLearnt(begin(velocity), begin(Q), Q, begin(C), jnp.zeros((), jnp.int32))

    def end(self, environment: Environment, F: FlowLearnt, obs, noise, key):
        return flow.integrate(F.velocity.params, noise, obs, self.steps)

    def update(self, environment: Environment, F: FlowLearnt, rows, r, gamma, tau, key) -> FlowLearnt:
        space, B = environment.action, r.shape[0]
        obs, after = scaled(environment, rows.t.obs), scaled(environment, rows.t.next_obs)
        k_next, k_now, k_way = jax.random.split(key, 3)
        draw = lambda k: jax.random.normal(k, (B, self.candidates, space.size), jnp.float32)  # noqa: E731
        wide = lambda o: jnp.broadcast_to(o[:, None], (B, self.candidates, o.shape[1]))  # noqa: E731

        # y = r + gamma tau log E_ref[exp(Q(s', a) / tau)]
        Q_next = values(F.target, wide(after), latent.squashed(space, draw(k_next)))
        V_next = tau * (jax.nn.logsumexp(Q_next / tau, 1) - jnp.log(jnp.float32(self.candidates)))
        critic = regressed(F.critic, obs, flow.encoded(space, rows.t.action),
                           r + gamma * ongoing(rows) * V_next, self.rate)  # fmt: skip

        # points on the way from noise to candidates
        ends, seen = draw(k_now), wide(obs)
        Q = values(critic.params, seen, latent.squashed(space, ends))
        k_noise, k_time = jax.random.split(k_way)
        noise = jax.random.normal(k_noise, ends.shape, ends.dtype)
        t = jax.random.uniform(k_time, (B, self.candidates), jnp.float32)
        z = flow.between(noise, ends, t[..., None])
        miss = lambda C: jnp.mean((intermediate(C, z, t, seen) - Q) ** 2)  # noqa: E731
        inner = F.inner.descend(jax.grad(lambda C: 0.5 * miss(C))(F.inner.params), self.rate)
        before = intermediate(inner.params, z, t, seen) if self.intermediate else jnp.mean(Q, 1, keepdims=True)
        w = critic_weights((Q - before) / tau, self.clip)
        w = jnp.where(F.updates < self.warm_up, jnp.ones_like(w), w)
        ref = jax.vmap(jax.vmap(latent.still))(z, t, seen)

        def loss(v: Any):
            return weighted_matching(v(z, t, seen), ends - noise, w, ref, self.regular)

        velocity = F.velocity.descend(jax.grad(loss)(F.velocity.params), self.rate)
        return FlowLearnt(velocity, critic, nets.follow(F.target, critic.params, self.polyak), inner, F.updates + 1)


def critic_weights(advantage: Float[Array, "*B"], clip: Any) -> Float[Array, "*B"]:
    """exp of advantages in units of beta, clipped; without gradient.

    Example:
        >>> critic_weights(jnp.array([0.0, 50.0]), 1.0).tolist()
        [1.0, 2.71828...]
    """
    clip = jnp.asarray(clip, advantage.dtype)
    return jax.lax.stop_gradient(jnp.exp(jnp.clip(advantage, -clip, clip)))


def weighted_matching(v, target, weights: Float[Array, "*B"], reference, regular: Any) -> Float[Array, ""]:
    """Mean over points of w |v - target|^2 + lambda |v - reference|^2, sums over coordinates."""
    regular = jnp.asarray(regular, v.dtype)
    return jnp.mean(weights * jnp.sum((v - target) ** 2, -1) + regular * jnp.sum((v - reference) ** 2, -1))


def intermediate(C: Velocity, z: Float[Array, "*B m"], t: Float[Array, " *B"], obs: Float[Array, "*B o"]) -> Array:
    """The critic of points on the way: what their ends are worth on average."""
    return C(z, t, obs)[..., 0]
