r"""DCG-MAP-Elites: an archive that is filled by chance, by gradients of a conditioned critic, and by a conditioned actor.

One generation makes `chance` policies by $\theta_1 + \sigma_1 N + \sigma_2 N (\theta_2 - \theta_1)$, `climbed` ones by
steps of Adam up $Q(s, \theta(s)\,|\,d_\theta)$, `injected` ones as $\pi(\cdot|d)$ for descriptors
drawn in the box; plays each once; adds them; and teaches critic and actor (TD3) from all transitions under rewards
relabelled for wanted descriptors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from bilevel_rl.control import nets
from bilevel_rl.control.elites import conditioned
from bilevel_rl.control.elites.archive import Archive
from bilevel_rl.control.environment import Environment
from bilevel_rl.control.environments.arm import Arm
from bilevel_rl.loop.settings import check_fields

NOISE, CLIP, DELAY = 0.2, 0.5, 2  # TD3


class BehaviourTask(eqx.Module):
    """What is wanted of behaviours, and what tells them apart.

    Args:
        environment: whose actions are vectors in a bounded box.
        paid: info [p] and reward of a step -> what it adds to fitness, at least 0.
        described: info [p] of a step -> [2]; the last step of an episode counts.
        low, high: of descriptors.
        steps: of an episode.
    """

    environment: Environment = Arm(joints=4, steps=20)
    paid: Callable = eqx.field(static=True, default=lambda info, reward: 1.0 - info[2])
    described: Callable = eqx.field(static=True, default=lambda info: info[:2])
    low: tuple[float, float] = eqx.field(static=True, default=(-1.0, -1.0))
    high: tuple[float, float] = eqx.field(static=True, default=(1.0, 1.0))
    steps: int = eqx.field(static=True, default=20)

    @property
    def sizes(self) -> tuple[int, int]:
        """Observations and actions."""
        return self.environment.observation.size, self.environment.action.size

    def play(self, policy: nets.MLP, key: Array) -> tuple[Float[Array, ""], Float[Array, " 2"], Float[Array, "T W"]]:
        """One episode of a policy of states: fitness, descriptor, rows of transitions without it."""
        e = self.environment
        low, high = (jnp.asarray(b, jnp.float32) for b in (e.action.low, e.action.high))

        def step(carry: Any, key: Array) -> Any:
            state, obs, alive = carry
            unit = conditioned.squashed(policy, obs)
            found = e.step(state, low + (high - low) * (unit + 1) / 2, key)
            reward = jnp.asarray(self.paid(found.info, found.reward), jnp.float32)
            over = found.terminated.astype(jnp.float32)
            row = jnp.concatenate([obs, unit, reward[None], found.obs, over[None], alive[None]])
            return (found.state, found.obs, alive * (1 - over)), (alive * reward, self.described(found.info), row)

        k_first, k_steps = jax.random.split(key)
        first = (*e.reset(k_first), jnp.ones((), jnp.float32))
        (_, _, _), (paid, seen, rows) = jax.lax.scan(step, first, jax.random.split(k_steps, self.steps))
        last = jnp.maximum(jnp.sum(rows[:, -1]).astype(jnp.int32) - 1, 0)
        return jnp.sum(paid), seen[last], rows


class SearchState(eqx.Module):
    """Where a search is.

    Attributes:
        archive: the elites.
        actor, critics: conditioned, with Adam's memory.
        actor_slow, critics_slow: their slow copies.
        ring: [R, W + 2] transitions, with the descriptor of their episode.
        written: rows ever written.
        transitions: steps of the environment so far.
    """

    archive: Archive
    actor: nets.Trained
    critics: nets.Trained
    actor_slow: nets.MLP
    critics_slow: nets.MLP
    ring: Float[Array, "R W"]
    written: Int[Array, ""]
    transitions: Int[Array, ""]


class MapElites(eqx.Module):
    """The search; `generation` is one compiled step. With `climbed=0` and `injected=0` it is MAP-Elites.

    Args:
        cells: G, of each descriptor.
        chance, climbed, injected: policies a generation made in each way.
        iso, line: standard deviations of the two steps of chance.
        climbs: steps of Adam up the critic, and their size `climb_rate`.
        taught: critic's steps a generation; every second one the actor takes one too.
        rate: step size of Adam of critic and actor.
        polyak: share by which slow copies follow.
        gamma: discount.
        reach: L of the similarity, in units of descriptors.
        batch: rows of a step.
        width: units of each of two hidden layers.
        capacity: rows of the replay.

    References:
        Faldor, Chalumeau, Flageat, Cully 2023, arXiv 2303.03832; numbers from adaptive-intelligent-robotics/DCG-MAP-Elites,
        batches scaled to small environments (ours). Half of a batch is relabelled for drawn descriptors (INFERRED).
    """

    iso: float = 0.005
    line: float = 0.05
    climb_rate: float = 5e-3
    rate: float = 3e-4
    polyak: float = 0.005
    gamma: float = 0.99
    reach: float = 0.1
    cells: int = eqx.field(static=True, default=16)
    chance: int = eqx.field(static=True, default=32)
    climbed: int = eqx.field(static=True, default=16)
    injected: int = eqx.field(static=True, default=16)
    climbs: int = eqx.field(static=True, default=20)
    taught: int = eqx.field(static=True, default=100)
    batch: int = eqx.field(static=True, default=100)
    width: int = eqx.field(static=True, default=32)
    capacity: int = eqx.field(static=True, default=65_536)

    def check(self) -> None:
        """Raise `InvalidConfig` for numbers that are not allowed."""
        check_fields(
            "MapElites",
            ("cells", self.cells, self.cells >= 1, "it must be at least 1"),
            ("chance", self.chance, self.chance >= 1, "it must be at least 1"),
            ("climbed", self.climbed, self.climbed >= 0, "it must be at least 0"),
            ("injected", self.injected, self.injected >= 0, "it must be at least 0"),
            ("reach", self.reach, self.reach > 0, "it must be above 0"),
        )

    def init(self, task: BehaviourTask, key: Array) -> SearchState:
        """An archive of `chance` random policies."""
        self.check()
        o, m = task.sizes
        k_actor, k_critics, k_first, k_play = jax.random.split(key, 4)
        actor = nets.MLP.make((o + 2, self.width, self.width, m), k_actor)
        Q = conditioned.critics(o, m, self.width, k_critics)
        made = jax.vmap(lambda k: nets.MLP.make((o, self.width, self.width, m), k))(jax.random.split(k_first, self.chance))
        like = jax.tree.map(lambda v: v[0], made)
        archive, none = Archive.empty(like, task.low, task.high, self.cells), jnp.zeros((), jnp.int32)
        ring = jnp.zeros((self.capacity, 2 * o + m + 3 + 2), jnp.float32)
        first = SearchState(archive, nets.Trained.begin(actor), nets.Trained.begin(Q), actor, Q, ring, none, none)
        return self._played(task, first, made, k_play)

    @eqx.filter_jit
    def generation(self, task: BehaviourTask, found: SearchState, key: Array) -> SearchState:
        """New policies by chance, gradients and injection; played, added, learnt from."""
        k_chance, k_climb, k_inject, k_play, k_learn = jax.random.split(key, 5)
        made = [self._by_chance(found.archive, k_chance)]
        if self.climbed:
            made.append(self._by_climbing(task, found, k_climb))
        if self.injected:
            low, high = (jnp.asarray(b, jnp.float32) for b in (task.low, task.high))
            wanted = jax.random.uniform(k_inject, (self.injected, 2), jnp.float32, low, high)
            made.append(jax.vmap(lambda d: conditioned.inject(found.actor.params, d))(wanted))
        policies = jax.tree.map(lambda *v: jnp.concatenate(v), *made)
        found = self._played(task, found, policies, k_play)
        return self._learnt(task, found, k_learn) if self.climbed or self.injected else found

    def run(self, task: BehaviourTask, generations: int, seed: int = 0) -> tuple[SearchState, dict[str, np.ndarray]]:
        """Some generations; also coverage, score and best fitness after each."""
        k_first, k_rest = jax.random.split(jax.random.key(seed))
        found, log = eqx.filter_jit(self.init)(task, k_first), []
        for key in jax.random.split(k_rest, generations):
            found = self.generation(task, found, key)
            a = found.archive
            log.append([int(found.transitions), float(a.coverage()), float(a.score()), float(jnp.max(a.fitness))])
        names = ("transitions", "coverage", "score", "best")
        return found, dict(zip(names, np.array(log).T, strict=True))

    # -- new policies --------------------------------------------------------------------------------------------------

    def _by_chance(self, archive: Archive, key: Array) -> nets.MLP:
        k_first, k_second, k_noise, k_line = jax.random.split(key, 4)
        pick = lambda at: jax.tree.map(lambda v: v[at], archive.params)  # noqa: E731
        one, two = (pick(archive.parents(self.chance, k)) for k in (k_first, k_second))
        leaves, structure = jax.tree.flatten(one)
        along = self.line * jax.random.normal(k_line, (self.chance,), jnp.float32)  # one number for a child's whole line
        keys = jax.random.split(k_noise, len(leaves))
        new = [
            a + self.iso * jax.random.normal(k, a.shape, jnp.float32) + along.reshape((-1,) + (1,) * (a.ndim - 1)) * (b - a)
            for a, b, k in zip(leaves, jax.tree.leaves(two), keys, strict=True)
        ]
        return jax.tree.unflatten(structure, new)

    def _by_climbing(self, task: BehaviourTask, found: SearchState, key: Array) -> nets.MLP:
        k_parents, k_rows = jax.random.split(key)
        at = found.archive.parents(self.climbed, k_parents)
        Q, o = found.critics.params, task.sizes[0]

        def climb(policy: nets.MLP, wanted: Array, key: Array) -> nets.MLP:
            def step(trained: nets.Trained, key: Array) -> Any:
                states = self._rows(found, key)[:, :o]
                told = jnp.broadcast_to(wanted, (states.shape[0], 2))

                def loss(policy: nets.MLP) -> Array:
                    return -jnp.mean(conditioned.values(Q, states, conditioned.squashed(policy, states), told)[0])

                return trained.descend(jax.grad(loss)(trained.params), self.climb_rate), None

            first = nets.Trained.begin(policy)
            return jax.lax.scan(step, first, jax.random.split(key, self.climbs))[0].params

        parents = jax.tree.map(lambda v: v[at], found.archive.params)
        return jax.vmap(climb)(parents, found.archive.descriptor[at], jax.random.split(k_rows, self.climbed))

    # -- playing and learning --------------------------------------------------------------------------------------------

    def _played(self, task: BehaviourTask, found: SearchState, policies: nets.MLP, key: Array) -> SearchState:
        n = jax.tree.leaves(policies)[0].shape[0]
        fitness, descriptor, rows = jax.vmap(task.play)(policies, jax.random.split(key, n))
        known = jnp.broadcast_to(descriptor[:, None], (*rows.shape[:2], 2))
        flat = jnp.concatenate([rows, known], -1).reshape(n * task.steps, -1)
        at = (found.written + jnp.arange(flat.shape[0])) % self.capacity
        return eqx.tree_at(
            lambda f: (f.archive, f.ring, f.written, f.transitions), found,
            (found.archive.add(policies, fitness, descriptor), found.ring.at[at].set(flat), found.written + flat.shape[0],
             found.transitions + jnp.sum(rows[..., -1]).astype(jnp.int32)),
        )  # fmt: skip

    def _rows(self, found: SearchState, key: Array) -> Float[Array, "B W"]:
        held = jnp.minimum(found.written, self.capacity)
        return found.ring[jax.random.randint(key, (self.batch,), 0, held)]

    def _learnt(self, task: BehaviourTask, found: SearchState, key: Array) -> SearchState:
        o, m = task.sizes
        low, high = (jnp.asarray(b, jnp.float32) for b in (task.low, task.high))

        def step(f: SearchState, at: Any) -> Any:
            i, key = at
            k_rows, k_wanted, k_half, k_noise = jax.random.split(key, 4)
            rows = self._rows(f, k_rows)
            s, a, r, s2, over, alive, d = jnp.split(rows, np.cumsum([o, m, 1, o, 1, 1]).tolist(), 1)
            drawn = jax.random.uniform(k_wanted, d.shape, jnp.float32, low, high)
            wanted = jnp.where(jax.random.bernoulli(k_half, 0.5, (d.shape[0], 1)), d, drawn)
            paid = conditioned.similarity(d, wanted, self.reach) * r[:, 0]
            noise = jnp.clip(NOISE * jax.random.normal(k_noise, a.shape, jnp.float32), -CLIP, CLIP)
            a2 = jnp.clip(conditioned.squashed(f.actor_slow, conditioned.told(s2, wanted)) + noise, -1, 1)
            V = jnp.min(conditioned.values(f.critics_slow, s2, a2, wanted), 0)
            y, live = paid + self.gamma * (1 - over[:, 0]) * V, alive[:, 0]

            def critic_loss(Q: nets.MLP) -> Array:
                return jnp.mean(live * jnp.sum((conditioned.values(Q, s, a, wanted) - y) ** 2, 0))

            Q = f.critics.descend(jax.grad(critic_loss)(f.critics.params), self.rate)

            def actor_loss(actor: nets.MLP) -> Array:
                act = conditioned.squashed(actor, conditioned.told(s, wanted))
                return -jnp.mean(live * conditioned.values(Q.params, s, act, wanted)[0])

            moved = f.actor.descend(jax.grad(actor_loss)(f.actor.params), self.rate)
            turn = i % DELAY == 0
            keep = lambda new, old: jax.tree.map(lambda a, b: jnp.where(turn, a, b), new, old)  # noqa: E731
            actor = keep(moved, f.actor)
            slow = keep(nets.follow(f.actor_slow, actor.params, self.polyak), f.actor_slow)
            slow_Q = keep(nets.follow(f.critics_slow, Q.params, self.polyak), f.critics_slow)
            parts = lambda f: (f.actor, f.critics, f.actor_slow, f.critics_slow)  # noqa: E731
            return eqx.tree_at(parts, f, (actor, Q, slow, slow_Q)), None

        keys = jax.random.split(key, self.taught)
        return jax.lax.scan(step, found, (jnp.arange(self.taught), keys))[0]
