r"""The one loop of neural followers: they act, they learn, the leader's critic learns beside them, x moves.

One iteration: N chains take a step each under the present policy and go into the replay; follower and estimator learn from
the same drawn rows, paid under the present x; every few iterations the estimate of $\nabla_x E_d[u]$ moves x. Solvers derive
from this class and choose what estimates, and when x moves.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel_rl import metrics as M
from bilevel_rl.control import nets, replay, walk
from bilevel_rl.control.environment import random_action
from bilevel_rl.control.estimators import Here, HyperGradient
from bilevel_rl.control.estimators.estimator import rewards, utilities
from bilevel_rl.control.followers import Follower
from bilevel_rl.control.followers.follower import check_follower
from bilevel_rl.control.leader import Leader, Motion
from bilevel_rl.control.problem import ControlProblem
from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.loop.pieces import Ring
from bilevel_rl.loop.settings import check_fields
from bilevel_rl.loop.solver import Solver, State
from bilevel_rl.schedules import TEMPERATURE


class LoopState(State):
    """What an iteration carries.

    Attributes:
        follower: what it has learnt.
        estimator: what the estimator carries.
        chains: where the follower's chains are.
        ring: [C, W] the replay.
        motion: of x.
        direct: [d] sum since the last move of what x does to the utility by itself.
        explorers: where the exploring chains are; None without them.
    """

    follower: Any
    estimator: Any
    chains: walk.Chains
    ring: Float[Array, "C W"]
    motion: Motion
    direct: Float[Array, " d"]
    explorers: walk.Chains | None = None


class SingleLoop(Solver):
    """Follower, estimator and leader in one loop.

    Args:
        follower: who learns.
        estimator: of the hyper-gradient.
        leader: how x moves.
        tau: temperature of the follower, in units of reward.
        w: penalty constant of estimators that compare two followers.
        chains: N, transitions an iteration.
        updates: of the networks, an iteration; 0 for one for each coordinate of an action (1 where actions are numbered).
        batch: rows of an update.
        capacity: rows of the replay; rounded up to whole iterations.
        recent: last rows in whose states the hyper-gradient is taken.
        cut: whether chains are begun anew at random, so that their states have the discounted law (`control.walk`).
        explorers: more chains, which end with their episodes alone. Follower and critics learn from their steps too; the
            leader's estimate and outcome are of the follower's own chains. For goals that a follower seldom meets by itself.
        curiosity: probability with which an explorer takes any action in place of the follower's.
    """

    follower: Follower
    estimator: HyperGradient
    leader: Leader = Leader()
    tau: float = TEMPERATURE
    w: float = 0.03
    chains: int = eqx.field(static=True, default=16)
    updates: int = eqx.field(static=True, default=0)
    batch: int = eqx.field(static=True, default=128)
    capacity: int = eqx.field(static=True, default=65_536)
    recent: int = eqx.field(static=True, default=128)
    cut: bool = eqx.field(static=True, default=True)
    explorers: int = eqx.field(static=True, default=0)
    curiosity: float = 0.5

    name: ClassVar[str] = "single_loop"
    moves: ClassVar[bool] = True  # whether the follower's answer is accounted for

    def check(self, problem: ControlProblem) -> None:
        for name in ("chains", "batch", "recent"):
            check_fields(self.name, (name, getattr(self, name), getattr(self, name) >= 1, "it must be at least 1"))
        rows = self.rows_each()
        check_fields(
            self.name,
            ("updates", self.updates, self.updates >= 0, "it must be at least 0 (0 for one a coordinate of the action)"),
            ("tau", self.tau, self.tau > 0, "it must be above 0"),
            ("w", self.w, self.w > 0, "it must be above 0"),
            ("capacity", self.capacity, self.capacity >= max(rows, self.recent), "it must hold `recent` rows"),
            ("leader.hold", self.leader.hold, self.leader.hold >= 0, "it must be at least 0"),
            ("explorers", self.explorers, self.explorers >= 0, "it must be at least 0"),
            ("curiosity", self.curiosity, 0 <= self.curiosity <= 1, "it must be in [0, 1]"),
        )
        if self.explorers and problem.environment.outside:
            raise InvalidConfig(
                message(f"{self.name}.explorers", f"{self.explorers} with {problem.environment.name}, which is not compiled",
                        "a host steps the follower's own copies alone", "Leave it at 0")
            )  # fmt: skip
        if self.explorers and self.follower.on_policy:
            raise InvalidConfig(
                message(f"{self.name}.explorers", f"{self.explorers} with {self.follower.name}, which learns on-policy",
                        "its steps must be its own", "Take soft_q, sac or usual, or leave it at 0")
            )  # fmt: skip
        self.leader.check(f"{self.name}.leader")
        if self.leader.natural and not self.estimator.pulls:
            raise InvalidConfig(
                message(f"{self.name}.leader.natural", f"true, with the estimator {self.estimator.name}",
                        "natural steps need an estimator that learns how the answer moves with x",
                        "Take covariance, tilted_pair or nested, or leave natural false")
            )  # fmt: skip
        check_follower(self.name, self.follower, problem.environment)
        acting = self.follower.on(problem.environment)
        if self.estimator.likelihoods and not acting.likelihood:
            raise InvalidConfig(
                message(f"{self.name}.follower", f"{acting.name}, which does not say how likely an action is",
                        f"the estimator {self.estimator.name} needs that here",
                        "Take sac, soft_q or usual, or another solver, e.g. covariance without a control variate")
            )  # fmt: skip
        self.estimator.check(problem)

    def on(self, problem: ControlProblem) -> SingleLoop:
        """As every solver's; followers get their demonstrations, chains outside compiled code are not cut at random."""
        made = super().on(problem)
        made = dataclasses.replace(made, follower=made.follower.prepared(problem))
        return dataclasses.replace(made, cut=False) if problem.environment.outside else made

    @property
    def references(self):
        return tuple(dict.fromkeys((*self.estimator.references, *self.follower.references)))

    # -- sizes --------------------------------------------------------------------------------------------------------

    def rows_each(self) -> int:
        """Rows of the replay that an iteration writes: the transitions of all followers."""
        return self.chains * (2 if self.estimator.other_chains else 1) + self.explorers

    def rounds(self, problem: ControlProblem) -> int:
        """Updates of the networks, an iteration."""
        return self.updates or getattr(problem.environment.action, "size", 1)

    def _ring(self) -> int:
        """Rows of the replay: whole iterations."""
        return -(-self.capacity // self.rows_each()) * self.rows_each()

    def lag(self, problem: ControlProblem) -> Any:
        """Iterations in which the slowest critic forgets."""
        polyak = self.follower.on(problem.environment).polyak
        slowest = jnp.minimum(1 - problem.discount_lower(), 1 - problem.discount_upper())
        return 1.0 / (slowest * polyak * self.rounds(problem))

    # -- the loop -----------------------------------------------------------------------------------------------------

    def draws(self, problem: ControlProblem):
        return {"key": 2}

    def here(self, problem: ControlProblem, x, F) -> Here:
        """What is the same for an iteration, in 32 bits."""
        p, f32 = nets.narrow(problem), lambda v: jnp.asarray(v, jnp.float32)
        follower, tau = p.follower_at(f32(x), self.follower.on(p.environment), f32(self.tau))
        tau = f32(tau) if F is None else f32(follower.temperature(F, f32(tau)))
        lower, upper = f32(p.discount_lower()), f32(p.discount_upper())
        cut = 1 - upper if self.cut else jnp.zeros_like(upper)
        return Here(p, p.environment_at(f32(x)), follower, f32(x), tau, f32(self.w), lower, upper, cut)

    def init(self, problem: ControlProblem, x0, key: Array, chains: walk.Chains | None = None) -> LoopState:
        k_follower, k_estimator, k_chains = jax.random.split(key, 3)
        here = self.here(problem, x0, None)
        F = here.follower.init(here.environment, k_follower)
        H = self.estimator.init(here, F, self.chains, k_estimator)
        if chains is None:
            chains = walk.begin(here.environment, self.chains, k_chains)
        ring = replay.empty(replay.Layout(here.problem), self._ring())
        explorers = None
        if self.explorers:
            explorers = walk.begin(here.environment, self.explorers, jax.random.fold_in(k_chains, 1))
        direct = jnp.zeros(x0.shape, jnp.float32)
        return LoopState(x0, jnp.zeros((), int), F, H, chains, ring, self.leader.init(x0), direct, explorers)

    def step(self, problem: ControlProblem, state: LoopState, k, noise) -> LoopState:
        here = self.here(problem, state.x, state.follower)
        keys = jax.random.split(nets.key_of(noise["key"]), 4)
        act = lambda obs, key: here.follower.act(here.environment, state.follower, obs, key)  # noqa: E731
        chains, seen = walk.step(here.environment, state.chains, act, keys[0], here.cut)
        explored = self._explored(state, here, act, jax.random.fold_in(keys[0], 1)) if self.explorers else None
        return self.advance(problem, state, here, chains, seen, k, keys, explored)

    def _explored(self, state: LoopState, here: Here, act: Any, key: Array) -> tuple[walk.Chains, walk.Seen]:
        """A step of the exploring chains."""

        def curious(obs, key):
            k_which, k_any, k_own = jax.random.split(key, 3)
            anything = jax.random.uniform(k_which, (), jnp.float32) < jnp.asarray(self.curiosity, jnp.float32)
            return jnp.where(anything, random_action(here.environment.action, k_any), act(obs, k_own))

        return walk.step(here.environment, state.explorers, curious, key, 0.0)

    def advance(
        self, problem: ControlProblem, state: LoopState, here: Here, chains: Any, seen: walk.Seen, k, keys,
        explored: tuple[walk.Chains, walk.Seen] | None = None,
    ) -> LoopState:  # fmt: skip
        """The rest of an iteration, once the chains have taken their step, wherever they walk.

        Args:
            chains: where they are now.
            seen: the step that they took.
            keys: [4] of the walk, of chains of the estimator's own, of learning, of the move.
            explored: exploring chains and their step, where there are any.
        """
        layout, written = replay.Layout(here.problem), k * self.rows_each()
        k_walk, k_other, k_learn, k_move = keys
        F, H = state.follower, state.estimator
        rows = layout.pack(seen)
        newest = layout.unpack(rows)
        H, other = self.estimator.walk(here, H, F, newest, (k_walk, k_other))
        if other is not None:
            rows = jnp.concatenate([rows, layout.pack(other)])
        if explored is not None:
            rows = jnp.concatenate([rows, layout.pack(explored[1])])
        ring = replay.push(state.ring, rows, written)
        written = written + rows.shape[0]

        # learn
        f32 = lambda v: jnp.asarray(v, jnp.float32)  # noqa: E731
        tau = f32(here.problem.follower_at(here.x, here.follower, f32(self.tau))[1])

        def update(carry, key):
            F, H = carry
            k_rows, k_follower, k_estimator = jax.random.split(key, 3)
            drawn = layout.unpack(replay.sample(ring, written, self.batch, k_rows, here.follower.ages))
            r = rewards(here, drawn)
            F = here.follower.update(here.environment, F, drawn, r, here.lower, tau, k_follower)
            return (F, self.estimator.learn(here, H, F, drawn, (k_follower, k_estimator))), None

        (F, H), _ = jax.lax.scan(update, (F, H), jax.random.split(k_learn, self.rounds(here.problem)))

        # move
        outcome = jnp.mean(utilities(here, newest))
        direct = state.direct + _direct(here, newest)
        lag, every = self.lag(problem), self.leader.every

        def move():
            recent = layout.unpack(replay.newest(ring, k + 1, self.recent, self.chains, self.rows_each()))
            after, found = self.estimator.estimate(here, H, F, recent, k_move)
            slope = jax.grad(lambda x: jnp.asarray(problem.cost(x), float))(state.x)
            g = slope - direct / every - (found.g if self.moves else 0.0)
            pull = found.pull if self.moves else None
            motion, x = self.leader.move(problem.project, state.motion, state.x, g, pull, k, lag)
            return after, motion, x, jnp.zeros_like(direct)

        H, motion, x, direct = jax.lax.cond((k + 1) % every == 0, move, lambda: (H, state.motion, state.x, direct))
        gained = outcome.astype(float) - jnp.asarray(problem.cost(state.x), float)
        motion, x = self.leader.watch(motion, x, gained, k, lag)
        explorers = None if explored is None else explored[0]
        return LoopState(x, state.samples + rows.shape[0], F, H, chains, ring, motion, direct, explorers)

    def ring(self, states: LoopState) -> Ring:
        return Ring(states.ring, self.rows_each())

    def with_ring(self, states: LoopState, rows: Array) -> LoopState:
        return eqx.tree_at(lambda s: s.ring, states, rows)

    # -- what is said of it -------------------------------------------------------------------------------------------

    def said(self, problem: ControlProblem, state: LoopState, k) -> dict[str, Array]:
        """What the leader knows of its own progress, for records."""
        motion = state.motion
        held = jnp.sum(jnp.where(jnp.arange(motion.blocks.shape[0]) < motion.filled, motion.blocks, 0.0))
        count = jnp.clip(motion.filled, 1, motion.blocks.shape[0])
        block = min(self.leader.block, self._ring() // self.rows_each()) * self.chains
        paid, gained = replay.newest_worth(problem, state.ring, state.x, k, block, self.chains, self.rows_each())
        # while no block counts, x being held for instance: the newest steps
        now = jnp.where(motion.filled > 0, held / count, gained - jnp.asarray(problem.cost(state.x), float))
        best = jnp.where(motion.best > -1e29, motion.best, now)
        return {
            M.OUTCOME.key: now, M.BEST_OUTCOME.key: best, M.FOLLOWER_OUTCOME.key: paid, M.GATE.key: motion.gate,
            M.SPEED.key: motion.speed, M.RESTARTS.key: motion.restarts,
        }  # fmt: skip

    def tracked(self, problem: ControlProblem, state: LoopState, k) -> Any:
        return state.follower


def _direct(here: Here, newest: replay.Rows) -> Float[Array, " d"]:
    """Mean derivative of the utility itself in x."""
    return jax.grad(lambda x: jnp.mean(utilities(here._replace(x=x), newest)))(here.x)

