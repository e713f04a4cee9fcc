r"""Data of a small finite MDP, all of whose actions were tried everywhere: what learners are compared with exactly.

Learners for numbered actions see the table itself. Those for vectors see a lottery: of two actions, the second is taken with
probability $(1 + a)/2$ for $a \in [-1, 1]$. Q is then linear in a, so that the best a is -1 or 1: the best action of the
table.
"""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from bilevel_rl.control import nets
from bilevel_rl.control.environment import Box, Discrete, Environment, Step, random_action
from bilevel_rl.control.offline.data import OfflineData, StoredEpisode
from bilevel_rl.errors import InvalidProblem, message
from bilevel_rl.loop import precision


class Lottery(Environment):
    """A finite MDP in one-hot observations.

    Args:
        P: [S, A, S] transitions, rows that sum to one.
        r: [S, A] rewards.
        lottery: whether actions are a number in [-1, 1] that weighs two actions; else they are numbered.
        steps: of an episode, whose start is a uniform state.

    Example:
        >>> chain(3, lottery=True).action
        Box(low=(-1.0,), high=(1.0,))
    """

    P: Float[Array, "S A S"]
    r: Float[Array, "S A"]
    lottery: bool = eqx.field(static=True, default=False)
    steps: int = eqx.field(static=True, default=20)

    name: ClassVar[str] = "lottery"
    info_names: ClassVar[tuple[str, ...]] = ("state",)

    def __check_init__(self):
        rows = np.asarray(self.P).sum(-1)
        if self.lottery and self.P.shape[1] != 2:
            raise InvalidProblem(message("Lottery.P", f"{self.P.shape[1]} actions", "a lottery is between two", "Give two"))
        if not np.allclose(rows, 1, atol=1e-5):
            raise InvalidProblem(message("Lottery.P", "rows that do not sum to 1", "they must", "Normalise them"))

    @property
    def observation(self):
        return Box((0.0,) * self.P.shape[0], (1.0,) * self.P.shape[0])

    @property
    def action(self):
        return Box((-1.0,), (1.0,)) if self.lottery else Discrete(self.P.shape[1])

    @property
    def horizon(self):
        return self.steps

    def reset(self, key):
        s = jax.random.randint(key, (), 0, self.P.shape[0], jnp.int32)
        return s, self._seen(s)

    def step(self, state: Int[Array, ""], action, key):
        k_which, k_after = jax.random.split(key)
        second = jax.random.uniform(k_which, (), jnp.float32) < (1 + action[0]) / 2 if self.lottery else action
        a = second.astype(jnp.int32)
        row = jnp.log(jnp.maximum(jnp.asarray(self.P, jnp.float32)[state, a], 1e-12))
        after, never = jax.random.categorical(k_after, row).astype(jnp.int32), jnp.zeros((), bool)
        paid = jnp.asarray(self.r, jnp.float32)[state, a]
        return Step(after, self._seen(after), paid, never, never, state.astype(jnp.float32)[None])

    def _seen(self, s):
        return jax.nn.one_hot(s, self.P.shape[0], dtype=jnp.float32)


def chain(states: int = 4, slip: float = 0.1, lottery: bool = False) -> Lottery:
    """A line on which the small reward lies at the left end and the large one at the right; a step slips with a probability.

     Going left pays .1 at the left end, going right 1 at the right end, and .05 is taken for each step to the right
    elsewhere: who does not look ahead goes left.
    """
    P, r = np.zeros((states, 2, states)), np.zeros((states, 2))
    for s in range(states):
        ends = max(s - 1, 0), min(s + 1, states - 1)
        for a in (0, 1):
            P[s, a, ends[a]] += 1 - slip
            P[s, a, ends[1 - a]] += slip
    r[0, 0], r[:, 1], r[-1, 1] = 0.1, -0.05, 1.0
    return Lottery(jnp.asarray(P, jnp.float32), jnp.asarray(r, jnp.float32), lottery)


def optimal(table: Lottery, gamma: float) -> tuple[np.ndarray, np.ndarray]:
    """The best values [S], and the best actions [S], by value iteration to 1e-12."""
    P, r = np.asarray(table.P, float), np.asarray(table.r, float)
    V = np.zeros(len(r))
    while True:
        Q = r + gamma * P @ V
        if np.max(np.abs(Q.max(1) - V)) < 1e-12:
            return Q.max(1), Q.argmax(1)
        V = Q.max(1)


@precision.double
def covered(
    table: Lottery, episodes: int = 500, seed: int = 0, actions: np.ndarray | None = None, share: float = 1.0
) -> OfflineData:
    """Data of uniform actions: every action in every state, as often as chance wants.

    Args:
        actions: [S] what is done in each state with probability `share`; states are covered still, by the starts.
    """
    env = nets.narrow(table)
    preferred = None if actions is None else jnp.asarray(actions, jnp.int32)

    def act(state, key):
        if preferred is None:
            return random_action(env.action, key)
        k_which, k_any = jax.random.split(key)
        one = 2.0 * preferred[state][None].astype(jnp.float32) - 1 if table.lottery else preferred[state]
        return jnp.where(jax.random.uniform(k_which, (), jnp.float32) < share, one, random_action(env.action, k_any))

    def one(key):
        k_first, k_steps = jax.random.split(key)

        def step(state, key):
            k_act, k_step = jax.random.split(key)
            action = act(state, k_act)
            went = env.step(state, action, k_step)
            return went.state, (env._seen(state), action, went.reward, went.info)

        state, rows = jax.lax.scan(step, env.reset(k_first)[0], jax.random.split(k_steps, env.horizon))
        return rows, env._seen(state)

    (obs, action, reward, info), last = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(seed), episodes))
    join = lambda i: np.concatenate([np.asarray(obs[i]), np.asarray(last[i])[None]])  # noqa: E731
    action, reward, info = (np.asarray(v) for v in (action, reward, info))
    found = [StoredEpisode(join(i), action[i], reward[i], False, 0, info[i]) for i in range(episodes)]
    return OfflineData.of(table.name, found, sources=("uniform" if actions is None else "given",))


def chosen(table: Lottery, actions: Array) -> np.ndarray:
    """[S] the table's actions that a policy's actions in all states prefer."""
    return (np.asarray(actions)[:, 0] > 0).astype(int) if table.lottery else np.asarray(actions)
