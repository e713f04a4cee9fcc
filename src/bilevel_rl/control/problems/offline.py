r"""Two levels on stored data: x shapes what a learner from data is paid, or how much each source of the data counts.

The leader sees what is stored and nothing else. It judges the learnt policy by held-out data: by how likely it makes what
was shown, by how well it explains preferences, or by its value as fitted Q evaluation estimates it. What an x is really
worth, a fresh learner shows in the environment (`control.offline.protocol`); no solver sees that.
"""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bilevel_rl.control.environment import Environment
from bilevel_rl.control.environments import Pendulum
from bilevel_rl.control.offline.bank import Bank
from bilevel_rl.control.offline.data import OfflineData, StoredEpisode, joined
from bilevel_rl.control.offline.two_levels import OfflineProblem
from bilevel_rl.control.problem import Transition
from bilevel_rl.control.problems import experts
from bilevel_rl.control.problems.preferences import described

SCALE = 8.0  # ours: Pendulum's rewards lie in [-16.3, 0]; learners see them of the size of 1


class NearTop(Pendulum):
    """Pendulum that starts nearly upright, for what is shown there."""

    def reset(self, key):
        from bilevel_rl.control.environments.pendulum import observed

        state = jax.random.uniform(key, (2,), jnp.float32, -0.3, 0.3)
        return state, observed(state)


def shown(environment: Environment, act: Any, episodes: int, noise: float, key: Array, name: str) -> OfflineData:
    """Disturbed paths as a data set."""
    t = jax.tree.map(np.asarray, experts.paths(environment, act, episodes, environment.horizon, noise, key))
    half = np.asarray(environment.action.high)
    found = [
        StoredEpisode(np.concatenate([t.obs[i], t.next_obs[i, -1:]]), np.clip(t.action[i], -half, half), t.reward[i], False)
        for i in range(episodes)
    ]
    return OfflineData.of("pendulum", found, sources=(name,))


def still(obs: Array) -> Array:
    """No torque."""
    return jnp.zeros(1, jnp.float32)


def pump(obs: Array) -> Array:
    """Energy control that never holds. [3] -> [1]."""
    cos, _, speed = obs
    energy = speed**2 / 6 + 5 * (cos - 1)
    return jnp.where(jnp.abs(speed) < 0.05, 2.0, -2.0 * jnp.sign(energy * speed))[None]


class PendulumMixture(OfflineProblem):
    r"""Which sources to clone: shares $p = \mathrm{softmax}(x)$ weigh the learner's loss.

    Three sources: one pumps energy and never holds, one holds near the top and never was elsewhere, one moves at random and
    gave most of the data. f is the estimated value of the policy at the start, from held-out episodes of all of them.

    Args:
        x0: [3] logits of the shares.
        gamma: discount.
    """

    x0: Float[Array, " d"]
    environment: Environment
    bank: Bank
    held: Bank
    gamma: float

    name: ClassVar[str] = "pendulum_mixture"
    x_names: ClassVar[tuple[str, ...]] = ("pump", "hold", "random")
    unit: ClassVar[float] = SCALE
    asks_value: ClassVar[bool] = True

    def __init__(self, x0: tuple[float, ...] = (0.0, 0.0, 0.0), gamma: float = 0.97):
        self.x0, self.environment, self.gamma = jnp.asarray(x0, float), Pendulum(), gamma
        train, held = sources()
        self.bank, self.held = Bank.of(train, SCALE), Bank.of(held, SCALE)

    def discount_lower(self):
        return self.gamma

    def shares(self, x):
        return jax.nn.softmax(x)

    def outcome(self, x, judged):
        # the task begins where the pump and the random source do
        first = jnp.concatenate([jnp.ones(1, bool), self.held.left[:-1] == 1]) & (self.held.source != 1)
        values = judged.value(self.held.t.obs)
        return -(1 - self.gamma) * jnp.sum(first * values) / jnp.sum(first)

    def box(self):
        return jnp.full(3, -4.0), jnp.full(3, 4.0)


def sources() -> tuple[OfflineData, OfflineData]:
    """The three sources of `PendulumMixture`, 20, 20 and 60 episodes: 70 % to learn from, and what is held out."""
    keys = jax.random.split(jax.random.key(21), 3)
    made = [shown(Pendulum(), pump, 20, 0.1, keys[0], "pump"), shown(NearTop(), experts.swing_up, 20, 0.1, keys[1], "hold"),
            shown(Pendulum(), still, 60, 1.0, keys[2], "random")]  # fmt: skip
    parts = [data.split(0.7, seed=i) for i, data in enumerate(made)]
    return joined([train for train, _ in parts]), joined([held for _, held in parts])


class PendulumOfflineImitation(OfflineProblem):
    r"""Offline inverse reinforcement learning: $\Phi(x) = -E_{D_E}[\log \pi_x(a|s)] + .005\, |x|^2$.

    A learner is paid $x \cdot \phi(s')$ on data without rewards, most of which were made by random actions; held-out
    demonstrations say how likely the expert's actions have become. $\phi$ as in `PendulumImitation`.

    Args:
        x0: [4] weights.
        demonstrations: episodes of the expert among the data; as many are held out.
        gamma: discount.

    References:
        As two levels: Zeng, Li, Garcia, Hong 2023, arXiv 2302.07457; there a world model is learnt, here the policy comes
        from data alone.
    """

    x0: Float[Array, " d"]
    environment: Environment
    bank: Bank
    held: Bank
    gamma: float

    name: ClassVar[str] = "pendulum_offline_imitation"
    x_names: ClassVar[tuple[str, ...]] = ("high", "slow", "away", "swing")
    asks_likelihood: ClassVar[bool] = True

    def __init__(self, x0: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0), demonstrations: int = 4, gamma: float = 0.97):
        self.x0, self.environment, self.gamma = jnp.asarray(x0, float), Pendulum(), gamma
        k_expert, k_mild, k_random = jax.random.split(jax.random.key(22), 3)
        expert = shown(Pendulum(), experts.swing_up, 2 * demonstrations, 0.1, k_expert, "expert")
        mild = shown(Pendulum(), experts.swing_up, 20, 1.0, k_mild, "disturbed")
        anything = shown(Pendulum(), still, 40, 1.0, k_random, "random")
        train, held = expert.split(0.5)
        self.bank, self.held = Bank.of(joined([train, mild, anything])), Bank.of(held)

    def discount_lower(self):
        return self.gamma

    def features(self, t: Transition):
        return described(t)

    def reward(self, x, features):
        return x @ features

    def outcome(self, x, judged):
        return -jnp.mean(judged.log_prob(self.held.t.obs, self.held.t.action))

    def cost(self, x):
        return 0.005 * jnp.sum(x**2)

    def box(self):
        return jnp.full(4, -3.0), jnp.full(4, 3.0)


class PendulumOfflinePreferences(OfflineProblem):
    r"""Offline reward learning from preferences between stored segments, seen from both levels.

    $$\Phi(x) = \frac1N \sum_i \ell\big(x \cdot \Delta\phi_i\big) +
    \frac{w}{N} \sum_i \ell\big(\textstyle\sum_{\sigma^+_i} \log \pi_x - \sum_{\sigma^-_i} \log \pi_x\big) + .001\, |x|^2,
    \qquad \ell(u) = \log(1 + e^{-u})$$

    The first part is the usual likelihood of a reward, which needs no policy; the second asks whether the policy that is
    learnt from the data under x prefers what the teacher prefers. At w = 0 the two stages come apart.

    Args:
        x0: [4] weights.
        pairs: N; few of them leave the reward open.
        length: steps of a segment.
        weight: w.
        gamma: discount.
        seed: of the teacher's pairs and answers; the data stay.

    References:
        Christiano et al. 2017, arXiv 1706.03741; preferences through a policy's likelihood: Hejna et al. 2023, arXiv
        2310.13639.
    """

    x0: Float[Array, " d"]
    environment: Environment
    bank: Bank
    held: Bank
    gamma: float
    ahead: Float[Array, "N p"]
    segment: Transition
    weight: float

    name: ClassVar[str] = "pendulum_offline_preferences"
    x_names: ClassVar[tuple[str, ...]] = ("high", "slow", "away", "swing")
    asks_likelihood: ClassVar[bool] = True

    def __init__(self, x0: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0), pairs: int = 20, length: int = 20, weight: float = 0.5,
                 gamma: float = 0.97, seed: int = 24):  # fmt: skip
        self.x0, self.environment, self.gamma, self.weight = jnp.asarray(x0, float), Pendulum(), gamma, weight
        k_good, k_random = jax.random.split(jax.random.key(23))
        good = shown(Pendulum(), experts.swing_up, 20, 0.5, k_good, "disturbed")
        anything = shown(Pendulum(), still, 40, 1.0, k_random, "random")
        data = joined([good, anything])
        self.bank = self.held = Bank.of(data, SCALE)
        self.segment, self.ahead = labelled(self.bank, pairs, length, seed)

    def discount_lower(self):
        return self.gamma

    def features(self, t):
        return described(t)

    def reward(self, x, features):
        return x @ features

    def outcome(self, x, judged):
        t = self.segment
        flat = lambda v: v.reshape(-1, v.shape[-1])  # noqa: E731
        logp = judged.log_prob(flat(t.obs), flat(t.action)).reshape(t.obs.shape[:3])
        way = jnp.mean(logp[:, 0] - logp[:, 1], -1)  # the mean over steps: of the size of a step's log ratio
        return self.weight * jnp.mean(jax.nn.softplus(-way))

    def cost(self, x):
        return jnp.mean(jax.nn.softplus(-self.ahead @ x)) + 0.001 * jnp.sum(x**2)

    def box(self):
        return jnp.full(4, -3.0), jnp.full(4, 3.0)


def labelled(bank: Bank, pairs: int, length: int, seed: int = 24) -> tuple[Transition, Float[Array, "N p"]]:
    r"""Pairs of segments of a bank, the preferred one first [N, 2, L, ...], and the features by which it is ahead [N, p].

    The teacher prefers the larger sum of the environment's rewards, with probability $\sigma(\Delta / 8)$.
    """
    rng, left = np.random.default_rng(seed), np.asarray(bank.left)
    starts = np.flatnonzero(left >= length)
    at = rng.choice(starts, (pairs, 2))[..., None] + np.arange(length)
    total = np.asarray(bank.t.reward)[at].sum(-1)
    likes = rng.uniform(size=pairs) < 1 / (1 + np.exp(-(total[:, 0] - total[:, 1]) / 8))
    at = np.where(likes[:, None, None], at, at[:, ::-1])
    segment = jax.tree.map(lambda v: v[at], bank.t)
    phi = jax.vmap(jax.vmap(jax.vmap(described)))(segment).sum(2)
    return segment, (phi[:, 0] - phi[:, 1]).astype(float)
