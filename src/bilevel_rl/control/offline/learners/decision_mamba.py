r"""Decision Mamba: a selective state-space model of (return to go, observation, action), which is asked for a return.

A selective state-space layer is a linear recurrence whose coefficients depend on its input,

$$h_t = e^{\Delta_t A} h_{t-1} + \Delta_t B_t u_t, \qquad y_t = C_t h_t + D u_t,$$

which an associative scan computes in parallel. A coarse model runs over all tokens of a context, a fine one inside each
triple; what both say of an observation gives the action. Targets evolve: they are mixed with what the last networks would
do,

$$\hat a = (1 - \beta_k)\, a + \beta_k\, a_{\theta_{k-1}},$$

so that the model stops believing in actions that fit nothing else.
"""

from __future__ import annotations

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel_rl.control import nets
from bilevel_rl.control.environment import Discrete
from bilevel_rl.control.offline import parts
from bilevel_rl.control.offline.learner import OfflineLearner
from bilevel_rl.loop.settings import check_fields


def recurrence(a: Float[Array, "L *n"], b: Float[Array, "L *n"]) -> Float[Array, "L *n"]:
    r"""$h_t = a_t h_{t-1} + b_t$ for all t, from $h_{-1} = 0$, by an associative scan.

    Example:
        >>> recurrence(jnp.full(3, 0.5), jnp.ones(3)).tolist()
        [1.0, 1.5, 1.75]
    """

    def joined(first, second):
        return first[0] * second[0], second[0] * first[1] + second[1]

    return jax.lax.associative_scan(joined, (a, b))[1]


class Selective(eqx.Module):
    """A selective state-space layer with its gate, on sequences [L, w].

    Attributes:
        into: [w, 2w] to the layer's input and its gate.
        step, step_bias: [w, w], [w] of Delta.
        B, C: [w, n].
        A: [w, n] logarithms of decay rates.
        D: [w].
        out: [w, w].
    """

    into: Array
    step: Array
    step_bias: Array
    B: Array
    C: Array
    A: Array
    D: Array
    out: Array

    @classmethod
    def make(cls, width: int, states: int, key: Array) -> Selective:
        """Random projections; decay rates 1 to n, steps of about .1."""
        keys = jax.random.split(key, 5)
        random = lambda k, a, b: jax.random.normal(k, (a, b), jnp.float32) / a**0.5  # noqa: E731
        rates = jnp.broadcast_to(jnp.log(jnp.arange(1.0, states + 1)), (width, states)).astype(jnp.float32)
        return cls(
            random(keys[0], width, 2 * width), 0.1 * random(keys[1], width, width), jnp.full(width, -2.25, jnp.float32),
            random(keys[2], width, states), random(keys[3], width, states), rates, jnp.ones(width, jnp.float32),
            random(keys[4], width, width),
        )  # fmt: skip

    def __call__(self, v: Float[Array, "L w"]) -> Float[Array, "L w"]:
        normed = v * jax.lax.rsqrt(jnp.mean(v**2, -1, keepdims=True) + 1e-6)
        u, gate = jnp.split(normed @ self.into, 2, -1)
        h = recurrence(*self.coefficients(u))
        y = jnp.einsum("lwn,ln->lw", h, u @ self.C) + self.D * u
        return v + (y * jax.nn.silu(gate)) @ self.out

    def coefficients(self, u: Float[Array, "L w"]) -> tuple[Float[Array, "L w n"], Float[Array, "L w n"]]:
        r"""$e^{\Delta A}$ and $\Delta B u$."""
        delta = jax.nn.softplus(u @ self.step + self.step_bias)
        decay = jnp.exp(-delta[..., None] * jnp.exp(self.A))
        return decay, (delta * u)[..., None] * (u @ self.B)[:, None, :]


class Model(eqx.Module):
    """Embeddings, coarse and fine layers, heads.

    Attributes:
        embed: three matrices, of return, observation, action.
        kinds: [3, w] which of them a token is.
        coarse: layers over all tokens of a context.
        fine: a layer inside each triple.
        action: head of actions (or logits), from both.
        later: head of the next observation and return, from an action's token.
    """

    embed: tuple[Array, Array, Array]
    kinds: Array
    coarse: tuple[Selective, ...]
    fine: Selective
    action: Array
    later: Array

    @classmethod
    def make(cls, observations: int, actions: int, width: int, states: int, layers: int, key: Array) -> Model:
        """Random weights."""
        keys = jax.random.split(key, layers + 7)
        random = lambda k, a, b, scale=1.0: scale * jax.random.normal(k, (a, b), jnp.float32) / a**0.5  # noqa: E731
        embed = tuple(random(k, n, width) for k, n in zip(keys[:3], (1, observations, actions), strict=True))
        coarse = tuple(Selective.make(width, states, k) for k in keys[7:])
        fine = Selective.make(width, states, keys[3])
        return cls(embed, random(keys[4], 3, width, 0.1), coarse, fine, random(keys[5], 2 * width, actions, 0.1),
                   random(keys[6], 2 * width, observations + 1, 0.1))  # fmt: skip

    def __call__(self, to_go: Float[Array, "K 1"], obs: Float[Array, "K o"], code: Float[Array, "K e"]):
        """Actions (or logits) [K, e] and what comes later [K, o + 1]; nothing depends on later tokens."""
        tokens = jnp.stack([v @ W for v, W in zip((to_go, obs, code), self.embed, strict=True)], 1) + self.kinds
        K, _, w = tokens.shape
        coarse = tokens.reshape(3 * K, w)
        for layer in self.coarse:
            coarse = layer(coarse)
        both = jnp.concatenate([coarse.reshape(K, 3, w), jax.vmap(self.fine)(tokens)], -1)
        return both[:, 1] @ self.action, both[:, 2] @ self.later


class Evolved(eqx.Module):
    """What it has learnt.

    Attributes:
        model: its networks.
        last: those of one update before.
        goal: return that is asked for, in units of reward in use.
        size: by which returns are divided.
        unit: of the environment's own rewards.
    """

    model: nets.Trained
    last: Model
    goal: Array
    size: Array
    unit: Array


class Context(eqx.Module):
    """The last steps of an episode.

    Attributes:
        to_go, obs, code: [K, 1], [K, o], [K, e].
        count: how many there are.
        left: return that is still asked for.
    """

    to_go: Array
    obs: Array
    code: Array
    count: Array
    left: Array


class DecisionMamba(OfflineLearner):
    r"""A sequence model asked for a return, with self-evolving targets.

    Args:
        context: K, steps that it sees.
        states: n, numbers of a layer's memory for each unit.
        layers: of the coarse model.
        evolving: the largest $\beta_k$.
        ramp: updates over which $\beta_k$ rises to it, in a straight line.
        later: weight of predicting what comes next, targets evolving alike.
        ask: return that is asked for, in units of the best of the data.

    References:
        Lv et al. 2024, arXiv 2406.05427. The mixing rule was seen in a review, two grains in the abstract; the schedule of
        $\beta_k$, sizes and how both grains are joined are inferred.
    """

    width: int = eqx.field(static=True, default=32)
    context: int = eqx.field(static=True, default=20)
    states: int = eqx.field(static=True, default=8)
    layers: int = eqx.field(static=True, default=1)
    evolving: float = 0.3
    ramp: float = 5000.0
    later: float = 0.1
    ask: float = 1.0

    name: ClassVar[str] = "decision_mamba"
    references: ClassVar[tuple[str, ...]] = ("lv2024decisionmamba",)
    inferred: ClassVar[str] = "schedule of the evolving targets, sizes, how both grains are joined"

    @property
    def window(self) -> int:
        return self.context

    def check(self, environment):
        super().check(environment)
        check_fields(
            "learner decision_mamba", ("context", self.context, self.context >= 2, "it must be at least 2"),
            ("states", self.states, self.states >= 1, "it must be at least 1"),
            ("layers", self.layers, self.layers >= 1, "it must be at least 1"),
            ("evolving", self.evolving, 0 <= self.evolving <= 1, "it must be in [0, 1]"),
            ("ramp", self.ramp, self.ramp > 0, "it must be above 0"),
            ("later", self.later, self.later >= 0, "it must be at least 0"),
        )  # fmt: skip

    def init(self, environment, facts, key):
        o, e = environment.observation.size, parts.code_size(environment.action)
        model = Model.make(o, e, self.width, self.states, self.layers, key)
        # returns of the size of 1, whatever a step pays
        size = jnp.maximum(jnp.maximum(jnp.abs(facts.low), jnp.abs(facts.high)) * facts.longest, 1e-6)
        return Evolved(nets.Trained.begin(model), model, self.ask * facts.best, size, facts.unit)

    def update(self, environment, F, batch, gamma, k, key):
        obs, code = parts.scaled(environment, batch.t.obs), parts.encoded(environment.action, batch.t.action)
        to_go = (batch.to_go / F.size)[..., None]
        after = jnp.concatenate([parts.scaled(environment, batch.t.next_obs), to_go - batch.reward[..., None] / F.size], -1)
        beta = self.evolving * jnp.minimum(k / self.ramp, 1.0).astype(jnp.float32)
        weight = batch.weight * batch.inside
        loss = lambda model: evolving_loss(  # noqa: E731
            environment, model, F.last, to_go, obs, code, after, weight, beta, self.later
        )
        model = F.model.descend(jax.grad(loss)(F.model.params), self.rate)
        return Evolved(model, F.model.params, F.goal, F.size, F.unit)

    def recall(self, environment, F):
        K, o, e = self.context, environment.observation.size, parts.code_size(environment.action)
        zeros = [jnp.zeros((K, n), jnp.float32) for n in (1, o, e)]
        return Context(*zeros, jnp.zeros((), jnp.int32), F.goal)

    def act(self, environment, F, memory, obs, key):
        K, full = self.context, memory.count >= self.context
        shifted = lambda v: jnp.where(full, jnp.roll(v, -1, 0), v)  # noqa: E731
        at = jnp.minimum(memory.count, K - 1)
        seen = Context(
            shifted(memory.to_go).at[at].set(memory.left / F.size),
            shifted(memory.obs).at[at].set(parts.scaled(environment, obs)),
            shifted(memory.code).at[at].set(0.0), jnp.minimum(memory.count + 1, K), memory.left,
        )  # fmt: skip
        out = F.model.params(seen.to_go, seen.obs, seen.code)[0][at]
        return parts.decoded(environment.action, as_action(environment, out)), seen

    def noted(self, environment, F, memory, obs, action, reward):
        code = memory.code.at[memory.count - 1].set(parts.encoded(environment.action, action))
        return Context(memory.to_go, memory.obs, code, memory.count, memory.left - reward / F.unit)


def as_action(environment, out):
    """The model's output as an encoded action: through tanh in a bounded box, else as it is."""
    space = environment.action
    return jnp.tanh(out) if not isinstance(space, Discrete) and space.bounded else out


def evolving_loss(environment, model, last, to_go, obs, code, after, weight, beta, later):
    """Errors of actions and of what comes later, [B, K, ...], against targets mixed with what the last networks say."""
    said, predicted = jax.vmap(model)(to_go, obs, code)
    before, expected = jax.lax.stop_gradient(jax.vmap(last)(to_go, obs, code))
    mix = lambda data, own: (1 - beta) * data + beta * own  # noqa: E731
    if isinstance(environment.action, Discrete):
        target = mix(code, jax.nn.softmax(before))
        errors = -jnp.sum(target * jax.nn.log_softmax(said), -1)
    else:
        errors = jnp.mean((as_action(environment, said) - mix(code, as_action(environment, before))) ** 2, -1)
    ahead = jnp.mean((predicted - mix(after, expected)) ** 2, -1)
    return parts.weighted_mean(weight, errors + later * ahead)
