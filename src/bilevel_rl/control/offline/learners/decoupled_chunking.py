r"""Decoupled Q-chunking: a critic of long chunks of actions teaches one of short ones, which the policy follows.

The long critic sees h actions and learns over h steps at once; the short one sees the first $h_a$ of them and is an
expectile of the long one's values over what was done afterwards; V is an expectile of the short one over the data's actions:

$$Q^h \leftarrow \sum_{i<h} \gamma^i r_i + \gamma^h V(s_h), \qquad Q^{h_a} \leftarrow^{\kappa_d} Q^h, \qquad
V \leftarrow^{\kappa_b} Q^{h_a}$$

A flow clones chunks of $h_a$ actions; the best of some of its samples by the short critic is done.
"""

from __future__ import annotations

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel_rl.control import nets
from bilevel_rl.control.offline import parts
from bilevel_rl.control.offline.learner import OfflineLearner
from bilevel_rl.control.policies import flow
from bilevel_rl.loop.settings import check_fields


class Chunked(eqx.Module):
    """What it has learnt.

    Attributes:
        velocity: of the flow that clones short chunks.
        long: critics of h actions, stacked.
        slow_long: slow copies of them.
        short: critics of the first actions, stacked.
        slow_short: slow copies of them.
        V: network of V.
    """

    velocity: nets.Trained
    long: nets.Trained
    slow_long: Any
    short: nets.Trained
    slow_short: Any
    V: nets.Trained


class Chunk(eqx.Module):
    """What is left to do of a chunk.

    Attributes:
        actions: [h_a, m] encoded.
        done: how many of them were.
    """

    actions: Float[Array, "h m"]
    done: Array


class DecoupledChunking(OfflineLearner):
    r"""Q-chunking with a critic's chunk longer than the policy's.

    Values are learnt as numbers in [0, 1], by the logistic loss, between the smallest and the largest that the data's
    rewards allow; published are tasks whose values lie there by themselves (reaching a goal).

    Args:
        long: h, steps of the critic's chunk.
        short: $h_a$, steps of the policy's, at most h.
        distil: $\kappa_d$, expectile of the short critic.
        value: $\kappa_b$, expectile of V.
        samples: chunks among which the best is done.
        flow_steps: in which the flow is followed.

    References:
        Li, Park, Levine 2025, and its released code (ColinQiyangLi/dqc), whose h is 25. OGBench's data are out of reach
        here.
    """

    long: int = eqx.field(static=True, default=5)
    short: int = eqx.field(static=True, default=1)
    distil: float = 0.5
    value: float = 0.9
    samples: int = eqx.field(static=True, default=32)
    flow_steps: int = eqx.field(static=True, default=10)

    name: ClassVar[str] = "decoupled_chunking"
    references: ClassVar[tuple[str, ...]] = ("li2025dqc",)
    discrete: ClassVar[bool | None] = False

    @property
    def window(self) -> int:
        return max(self.long, 2)

    def check(self, environment):
        super().check(environment)
        expectile = lambda v: 0 < v < 1  # noqa: E731
        check_fields(
            "learner decoupled_chunking",
            ("short", self.short, 1 <= self.short <= self.long, "it is at least 1 and at most `long`"),
            ("distil", self.distil, expectile(self.distil), "it must be in (0, 1)"),
            ("value", self.value, expectile(self.value), "it must be in (0, 1)"),
            ("samples", self.samples, self.samples >= 1, "it must be at least 1"),
            ("flow_steps", self.flow_steps, self.flow_steps >= 1, "it must be at least 1"),
        )  # fmt: skip

    def init(self, environment, facts, key):
        k_v, k_long, k_short, k_V = jax.random.split(key, 4)
        o, m, w = environment.observation.size, environment.action.size, self.width
        long = parts.critics(environment, w, k_long, actions=self.long)
        short = parts.critics(environment, w, k_short, actions=self.short)
        begin = nets.Trained.begin
        velocity = flow.Velocity.make(self.short * m, o, w, k_v)
        return Chunked(begin(velocity), begin(long), long, begin(short), short, begin(parts.state_net(environment, w, k_V)))

    def update(self, environment, F, batch, gamma, k, key):
        obs, weight = batch.t.obs[:, 0], batch.weight[:, 0]
        code = parts.encoded(environment.action, batch.t.action) * batch.inside[..., None]  # nothing after the end
        flat = lambda n: code[:, :n].reshape(code.shape[0], -1)  # noqa: E731
        V = lambda after: jax.nn.sigmoid(parts.state_values(environment, F.V.params, after))  # noqa: E731
        y = chunk_target(batch, self.long, gamma, V)

        long = F.long.descend(
            jax.grad(lambda Q: logistic_loss(environment, Q, obs, flat(self.long), y, weight, 0.5))(F.long.params), self.rate
        )
        taught = jax.nn.sigmoid(jnp.min(parts.values(environment, F.slow_long, obs, flat(self.long)), 0))
        short = F.short.descend(
            jax.grad(lambda Q: logistic_loss(environment, Q, obs, flat(self.short), taught, weight, self.distil))(
                F.short.params
            ), self.rate,
        )  # fmt: skip
        q = jax.nn.sigmoid(jnp.min(parts.values(environment, F.slow_short, obs, flat(self.short)), 0))

        def value_loss(V):
            return parts.weighted_mean(weight, logistic(parts.state_values(environment, V, obs), q, self.value))

        V_new = F.V.descend(jax.grad(value_loss)(F.V.params), self.rate)
        share = weight / jnp.maximum(jnp.mean(weight), 1e-8)
        matched = lambda v: flow.matching_loss(v, flat(self.short), parts.scaled(environment, obs), key, share)  # noqa: E731
        velocity = F.velocity.descend(jax.grad(matched)(F.velocity.params), self.rate)
        follow = lambda slow, fast: nets.follow(slow, fast, self.polyak)  # noqa: E731
        return Chunked(velocity, long, follow(F.slow_long, long.params), short, follow(F.slow_short, short.params), V_new)

    def best(self, environment, F, obs: Float[Array, " o"], key: Array) -> Float[Array, "h m"]:
        """The best of some chunks that the flow offers, encoded."""
        m = environment.action.size
        many = jnp.broadcast_to(obs, (self.samples, obs.shape[0]))
        z = jax.random.normal(key, (self.samples, self.short * m), jnp.float32)
        chunks = parts.flowed(environment, F.velocity.params, many, z, self.flow_steps)
        q = jnp.min(parts.values(environment, F.slow_short, many, chunks), 0)
        return chunks[jnp.argmax(q)].reshape(self.short, m)

    def recall(self, environment, F):
        return Chunk(jnp.zeros((self.short, environment.action.size), jnp.float32), jnp.zeros((), jnp.int32))

    def act(self, environment, F, memory, obs, key):
        # the chunk in hand is done without a look at where it leads
        actions = jnp.where(memory.done == 0, self.best(environment, F, obs, key), memory.actions)
        return parts.decoded(environment.action, actions[memory.done]), Chunk(actions, (memory.done + 1) % self.short)


def bounds(facts, gamma):
    """The smallest and the largest value that the data's rewards allow: paid for ever, or once."""
    times = jnp.where(facts.once, 1.0, 1 / (1 - gamma))
    return jnp.minimum(facts.low, 0.0) * times, jnp.maximum(facts.high, 0.0) * times


def chunk_target(batch, long: int, gamma, V):
    r"""$\sum_{i<n} \gamma^i r_i + \gamma^n V(s_n)$ [B], with n the steps of a chunk in its episode, in units of [0, 1].

    Args:
        V: observations [B, o] -> values in [0, 1].
    """
    low, high = bounds(batch.facts, gamma)
    inside = batch.inside[:, :long].astype(batch.reward.dtype)
    n = jnp.sum(inside, 1).astype(jnp.int32)
    powers = gamma ** jnp.arange(long, dtype=batch.reward.dtype)
    paid = jnp.sum(inside * powers * batch.reward[:, :long], 1)
    last = lambda v: jax.vmap(lambda row, i: row[i])(v, n - 1)  # noqa: E731
    after = low + (high - low) * V(last(batch.t.next_obs))
    goes_on = parts.ongoing(last(batch.t.terminated), paid.dtype)
    y = paid + gamma ** n.astype(paid.dtype) * goes_on * after
    return jnp.clip((y - low) / jnp.maximum(high - low, 1e-8), 0.0, 1.0)


def logistic(logits, target, kappa):
    r"""$|\kappa - 1\{y < q\}|\cdot 2$ times the logistic loss of a target y in [0, 1]; at .5 the loss itself."""
    q = jax.lax.stop_gradient(jax.nn.sigmoid(logits))
    fit = jnp.maximum(logits, 0) - logits * target + jnp.log1p(jnp.exp(-jnp.abs(logits)))
    return 2 * jnp.abs(kappa - (target < q)) * fit


def logistic_loss(environment, Q, obs, code, target, weight, kappa):
    """Summed over critics."""
    found = parts.values(environment, Q, obs, code)
    return jnp.sum(jax.vmap(lambda q: parts.weighted_mean(weight, logistic(q, target, kappa)))(found))
