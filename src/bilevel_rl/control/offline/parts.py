"""What learners from data share: actions in their own units, policies, critics, weighted means, expectiles."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bilevel_rl.control import nets
from bilevel_rl.control.environment import Box, Discrete, Environment
from bilevel_rl.control.followers.follower import scaled
from bilevel_rl.control.policies import flow

LOG_STD = (-3.0, 0.5)  # ours: of policies, in half widths of the action box
HALF_LOG_TAU = 0.9189385332046727  # log(2 pi) / 2
LIMIT = 100.0  # IQL and ODICE: weights of actions are cut there


# -- actions as networks see them ------------------------------------------------------------------------------------


def encoded(space: Box | Discrete, action: Array, dtype: Any = jnp.float32) -> Float[Array, "*B e"]:
    """In half widths around the centre of the box, as they are where a side is open; one-hot where they are numbered."""
    if isinstance(space, Discrete):
        return jax.nn.one_hot(action, space.n, dtype=dtype)
    if not space.bounded:
        return action
    centre, half = _middle(space, action.dtype)
    return (action - centre) / half


def decoded(space: Box | Discrete, code: Float[Array, "*B e"]) -> Array:
    """The other way: clipped to the box, or the largest entry's number."""
    if isinstance(space, Discrete):
        return jnp.argmax(code, -1).astype(jnp.int32)
    if not space.bounded:
        return code
    centre, half = _middle(space, code.dtype)
    return centre + half * jnp.clip(code, -1.0, 1.0)


def _middle(space: Box, dtype: Any) -> tuple[Array, Array]:
    low, high = np.asarray(space.low), np.asarray(space.high)
    return jnp.asarray((low + high) / 2, dtype), jnp.asarray((high - low) / 2, dtype)


def code_size(space: Box | Discrete) -> int:
    """Numbers of an encoded action."""
    return space.n if isinstance(space, Discrete) else space.size


# -- policies --------------------------------------------------------------------------------------------------------


class Soft(eqx.Module):
    """A policy with a likelihood: a softmax of logits, or a Gaussian around tanh of a network's output.

    Attributes:
        net: of logits [n] or means [m].
        log_std: [m], the same in every state; [0] where actions are numbered.
    """

    net: nets.MLP
    log_std: Float[Array, " m"]

    @classmethod
    def make(cls, environment: Environment, width: int, key: Array) -> Soft:
        """Before the first step: nearly uniform, or a standard deviation of e^-1 around the centre."""
        space = environment.action
        sizes = (environment.observation.size, width, width, code_size(space))
        stds = 0 if isinstance(space, Discrete) else space.size
        return cls(nets.MLP.make(sizes, key, last=0.1), jnp.full(stds, -1.0, jnp.float32))


def steered(environment: Environment, net: Any, obs: Float[Array, "*B o"]) -> Float[Array, "*B m"]:
    """The action that a network says, encoded: through tanh where the box is bounded."""
    out = net(scaled(environment, obs))
    return jnp.tanh(out) if environment.action.bounded else out


def log_likelihood(environment: Environment, pi: Soft, obs: Float[Array, "*B o"], action: Array) -> Float[Array, "*B"]:
    """Log probability, or log density in units of the half width."""
    if isinstance(environment.action, Discrete):
        logp = jax.nn.log_softmax(pi.net(scaled(environment, obs)))
        return jnp.take_along_axis(logp, action[..., None], -1)[..., 0]
    log_std = jnp.clip(pi.log_std, *LOG_STD)
    eps = (encoded(environment.action, action) - steered(environment, pi.net, obs)) * jnp.exp(-log_std)
    return -jnp.sum(0.5 * eps**2 + log_std + HALF_LOG_TAU, -1)


def best_action(environment: Environment, pi: Soft, obs: Float[Array, "*B o"]) -> Array:
    """The most likely one."""
    if isinstance(environment.action, Discrete):
        return decoded(environment.action, pi.net(scaled(environment, obs)))
    return decoded(environment.action, steered(environment, pi.net, obs))


def drawn_code(environment: Environment, pi: Soft, obs: Float[Array, "*B o"], key: Array) -> Float[Array, "*B e"]:
    """A random action, encoded."""
    if isinstance(environment.action, Discrete):
        choice = jax.random.categorical(key, pi.net(scaled(environment, obs)))
        return jax.nn.one_hot(choice, environment.action.n, dtype=jnp.float32)
    mean = steered(environment, pi.net, obs)
    code = mean + jnp.exp(jnp.clip(pi.log_std, *LOG_STD)) * jax.random.normal(key, mean.shape, mean.dtype)
    return jnp.clip(code, -1.0, 1.0) if environment.action.bounded else code


def flowed(
    environment: Environment, v: Any, obs: Float[Array, "B o"], noise: Float[Array, "B m"], steps: int
) -> Float[Array, "B m"]:
    """Where a flow of encoded actions takes given noise, clipped to the box."""
    code = jax.vmap(lambda z, o: flow.integrate(v, z, o, steps))(noise, scaled(environment, obs))
    return jnp.clip(code, -1.0, 1.0) if environment.action.bounded else code


# -- critics ---------------------------------------------------------------------------------------------------------


class NormedMLP(nets.MLP):
    """Hidden layers normalised to mean 0 and variance 1 before they are rectified, without scale and shift."""

    def __call__(self, v: Float[Array, "*batch i"]) -> Float[Array, "*batch o"]:
        for W, b in zip(self.weights[:-1], self.biases[:-1], strict=True):
            v = v @ W + b
            v = v - jnp.mean(v, -1, keepdims=True)
            v = jax.nn.relu(v * jax.lax.rsqrt(jnp.mean(v**2, -1, keepdims=True) + 1e-6))
        return v @ self.weights[-1] + self.biases[-1]


def critics(
    environment: Environment, width: int, key: Array, count: int = 2, kind: type = nets.MLP, actions: int = 1
) -> Any:
    """Networks of Q(s, a), stacked along the first axis.

    Args:
        actions: in a row, whose codes the critic sees side by side.
    """
    size = environment.observation.size + actions * code_size(environment.action)
    return jax.vmap(lambda k: kind.make((size, width, width, 1), k))(jax.random.split(key, count))


def values(environment: Environment, Q: Any, obs: Float[Array, "*B o"], code: Float[Array, "*B e"]) -> Float[Array, "c *B"]:
    """Q of each network."""
    seen = jnp.concatenate([scaled(environment, obs), code], -1)
    return jax.vmap(lambda q: q(seen)[..., 0])(Q)


def state_net(environment: Environment, width: int, key: Array) -> nets.MLP:
    """A network of V(s)."""
    return nets.MLP.make((environment.observation.size, width, width, 1), key)


def state_values(environment: Environment, V: Any, obs: Float[Array, "*B o"]) -> Float[Array, "*B"]:
    """V of observations."""
    return V(scaled(environment, obs))[..., 0]


# -- losses ----------------------------------------------------------------------------------------------------------


def weighted_mean(weight: Float[Array, "*B"], v: Float[Array, "*B"]) -> Float[Array, ""]:
    """Mean under weights that need not sum to one.

    Example:
        >>> float(weighted_mean(jnp.array([1.0, 3.0]), jnp.array([0.0, 4.0])))
        3.0
    """
    return jnp.sum(weight * v) / jnp.maximum(jnp.sum(weight), 1e-8)


def expectile_loss(u: Float[Array, "*B"], kappa: Any) -> Float[Array, "*B"]:
    r"""$|\kappa - 1\{u < 0\}|\, u^2$: at .5 half the squared error.

    Example:
        >>> expectile_loss(jnp.array([-1.0, 1.0]), 0.75).tolist()
        [0.25, 0.75]
    """
    return jnp.abs(kappa - (u < 0)) * u**2


def ongoing(terminated: Array, dtype: Any = jnp.float32) -> Array:
    """1 where something comes after a transition, 0 where the task has ended."""
    return 1.0 - terminated.astype(dtype)


def critic_loss(environment: Environment, Q: Any, batch: Any, code: Array, y: Float[Array, " B"]) -> Float[Array, ""]:
    """Squared errors of all critics against y."""
    found = values(environment, Q, batch.t.obs, code)
    return jnp.sum(jax.vmap(lambda q: weighted_mean(batch.weight, (q - y) ** 2))(found))


def cloning_loss(environment: Environment, pi: Soft, batch: Any, weight: Any = 1.0) -> Float[Array, ""]:
    """Negative log likelihood of a batch's actions, each by a weight that is cut at `LIMIT`; a mean over the batch."""
    logp = log_likelihood(environment, pi, batch.t.obs, batch.t.action)
    return -weighted_mean(batch.weight, jnp.minimum(weight, LIMIT) * logp)
