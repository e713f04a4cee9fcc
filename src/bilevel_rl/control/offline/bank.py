"""A data set on the device, under the rewards and weights in use, and the batches that are drawn from it."""

from __future__ import annotations

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from bilevel_rl.control.offline.data import OfflineData
from bilevel_rl.control.problem import Transition


class Facts(NamedTuple):
    """Numbers of a whole data set that some learners ask for.

    Attributes:
        low, high: smallest and largest reward of a step.
        best: largest return of an episode.
        longest: steps of the longest episode.
        unit: by which rewards were divided; the environment pays in units of 1.
        once: whether nothing is paid but at the end of the task, as where a goal is to be reached.
    """

    low: Float[Array, ""]
    high: Float[Array, ""]
    best: Float[Array, ""]
    longest: Float[Array, ""]
    unit: Float[Array, ""]
    once: Bool[Array, ""]


class Bank(eqx.Module):
    """Arrays from which batches are drawn; nothing here grows.

    Attributes:
        t: [N] transitions.
        reward: [N] in use.
        to_go: [N] sum of rewards from a step to the end of its episode.
        next_action: [N, ...] what was done next; at an episode's last step the same again.
        left: [N] int32, steps to the end of the episode, the present one counted.
        weight: [N] of each row in every loss.
        source: [N] int32.
        facts: of all rows.
    """

    t: Transition
    reward: Float[Array, " N"]
    to_go: Float[Array, " N"]
    next_action: Array
    left: Int[Array, " N"]
    weight: Float[Array, " N"]
    source: Int[Array, " N"]
    facts: Facts

    @classmethod
    def of(cls, data: OfflineData, unit: float = 1.0) -> Bank:
        """On the device, paid by the environment's own rewards.

        Args:
            unit: by which rewards are divided (`reward_unit`).

        Example:
            >>> from bilevel_rl.control.offline.data import StoredEpisode
            >>> line = StoredEpisode(np.arange(4.0)[:, None], np.zeros((3, 1)), np.ones(3), True)
            >>> Bank.of(OfflineData.of("line", [line])).to_go.tolist()
            [3.0, 2.0, 1.0]
        """
        put = lambda v: jnp.asarray(v)  # noqa: E731
        t = Transition(*(put(v) for v in (data.obs, data.action, data.next_obs, data.reward, data.info, data.terminated)))
        bounds = data.bounds
        left = np.concatenate([np.arange(b - a, 0, -1) for a, b in bounds]).astype(np.int32)
        after = np.where(data.over, np.arange(len(data)), np.arange(len(data)) + 1)
        zero, f32 = jnp.zeros((), jnp.float32), lambda v: jnp.asarray(v, jnp.float32)
        facts = Facts(zero, zero, zero, f32(left.max()), f32(unit), jnp.asarray(False))
        bank = cls(t, t.reward, t.reward, put(data.action[after]), put(left), jnp.ones(len(data), jnp.float32),
                   put(data.source), facts)  # fmt: skip
        return bank.paid(t.reward / jnp.asarray(unit, jnp.float32))

    def paid(self, reward: Float[Array, " N"]) -> Bank:
        """The same rows under other rewards; traceable."""
        def back(later, step):
            r, last = step
            now = r + jnp.where(last, 0.0, later)
            return now, now

        _, to_go = jax.lax.scan(back, jnp.zeros((), reward.dtype), (reward, self.left == 1), reverse=True)
        first = jnp.concatenate([jnp.ones(1, bool), self.left[:-1] == 1])
        facts = self.facts._replace(
            low=jnp.min(reward), high=jnp.max(reward), best=jnp.max(jnp.where(first, to_go, -jnp.inf)),
            once=jnp.all((reward == 0) | self.t.terminated),
        )
        return eqx.tree_at(lambda b: (b.reward, b.to_go, b.facts), self, (reward, to_go, facts))

    def weighed(self, weight: Float[Array, " N"]) -> Bank:
        """The same rows with other weights; traceable."""
        return eqx.tree_at(lambda b: b.weight, self, weight)

    @property
    def rows(self) -> int:
        """N."""
        return self.reward.shape[0]


class Minibatch(eqx.Module):
    """What an update sees: B rows, or B pieces of h steps each.

    Attributes:
        t: [B] or [B, h] transitions.
        reward, to_go, weight: [B] or [B, h].
        next_action: [B, ...] or [B, h, ...].
        inside: [B] or [B, h], whether a step belongs to the episode in which its piece begins.
        facts: of the whole data set.
    """

    t: Transition
    reward: Float[Array, "*B"]
    to_go: Float[Array, "*B"]
    next_action: Array
    weight: Float[Array, "*B"]
    inside: Bool[Array, "*B"]
    facts: Facts


def draw(bank: Bank, batch: int, window: int, key: Array) -> Minibatch:
    """B rows, uniformly and with replacement; with a window above 1 each with the steps that follow it.

    Args:
        window: h; the axis of steps is there from 2 on.
    """
    first = jax.random.randint(key, (batch,), 0, bank.rows)
    at, inside = first, jnp.ones(batch, bool)
    if window > 1:
        ahead = jnp.arange(window)
        at = jnp.minimum(first[:, None] + ahead, bank.rows - 1)
        inside = ahead < bank.left[first][:, None]
    pick = lambda v: v[at]  # noqa: E731
    return Minibatch(
        jax.tree.map(pick, bank.t), pick(bank.reward), pick(bank.to_go), pick(bank.next_action), pick(bank.weight), inside,
        bank.facts,
    )  # fmt: skip


def reward_unit(data: OfflineData) -> float:
    """The standard deviation of a step's reward, by which the protocol divides rewards; 1 where all are the same.

    Example:
        >>> from bilevel_rl.control.offline.data import StoredEpisode
        >>> line = StoredEpisode(np.zeros((3, 1)), np.zeros((2, 1)), np.array([1.0, 5.0]), True)
        >>> reward_unit(OfflineData.of("line", [line]))
        2.0
    """
    found = float(np.std(data.reward))
    return found if found > 1e-6 else 1.0
