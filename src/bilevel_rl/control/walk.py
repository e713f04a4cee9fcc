r"""Chains of an environment, cut at random so that their states follow the discounted visitation.

A chain is begun anew when its episode ends, when its time is up, and with probability $1-\gamma$ after any step: then the
states it is seen in have the law $d(s) = (1-\gamma) \sum_t \gamma^t \Pr(s_t = s)$, of whose means the hyper-gradient is
made. Only an end that belongs to the task stops a value; everything else is bootstrapped.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from bilevel_rl.control.environment import Environment
from bilevel_rl.control.problem import Transition


class Chains(eqx.Module):
    """Where N chains are.

    Attributes:
        state: of the environment, batched.
        obs: [N, o].
        age: [N] steps since the last reset.
    """

    state: Any
    obs: Float[Array, "N o"]
    age: Int[Array, " N"]


class Seen(eqx.Module):
    """One step of N chains.

    Attributes:
        t: the transitions, batched [N].
        first: [N] whether each began an episode.
        over: [N] whether its chain was begun anew after it, for whatever reason.
    """

    t: Transition
    first: Bool[Array, " N"]
    over: Bool[Array, " N"]


def begin(environment: Environment, chains: int, key: Array) -> Chains:
    """N chains at first states."""
    state, obs = jax.vmap(environment.reset)(jax.random.split(key, chains))
    return Chains(state, obs, jnp.zeros(chains, jnp.int32))


def step(environment: Environment, chains: Chains, act: Callable, key: Array, cut: Any) -> tuple[Chains, Seen]:
    """One step of every chain.

    Args:
        act: (obs [o], key) -> action.
        cut: probability of a new beginning after a step, beside ends and the time limit.
    """
    n = chains.age.shape[0]
    k_act, k_step, k_reset, k_cut = jax.random.split(key, 4)
    action = jax.vmap(act)(chains.obs, jax.random.split(k_act, n))
    went = jax.vmap(environment.step)(chains.state, action, jax.random.split(k_step, n))
    late = chains.age + 1 >= environment.horizon if environment.horizon else False
    dice = jax.random.uniform(k_cut, (n,), jnp.float32) < jnp.asarray(cut, jnp.float32)
    over = went.terminated | went.truncated | late | dice
    fresh = begin(environment, n, k_reset)
    choose = lambda a, b: jnp.where(over.reshape((n,) + (1,) * (a.ndim - 1)), a, b)  # noqa: E731
    after = Chains(went.state, went.obs, chains.age + 1)
    t = Transition(chains.obs, action, went.obs, went.reward, went.info, went.terminated)
    return jax.tree.map(choose, fresh, after), Seen(t, chains.age == 0, over)
