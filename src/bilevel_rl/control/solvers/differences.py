r"""Black-box solvers: followers learn at points around x, and x descends the differences of what the leader gets.

$$\text{finite\_difference:}\quad g_i = \frac{\hat\Phi(x + \delta e_i) - \hat\Phi(x - \delta e_i)}{2\delta}, \qquad
\text{spsa:}\quad g = \frac{\hat\Phi(x + \delta\Delta) - \hat\Phi(x - \delta\Delta)}{2\delta}\, \Delta$$

Followers and their random numbers are common to all points, so that most of the noise cancels. A follower that goes on from
the last x flatters steps that it has not answered yet: hence an inner loop at every point, whose second half alone counts.
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
from bilevel_rl.control.estimators.estimator import Here, rewards, utilities
from bilevel_rl.control.followers import Follower, Usual
from bilevel_rl.control.followers.follower import check_follower
from bilevel_rl.control.problem import ControlProblem
from bilevel_rl.loop.pieces import Ring
from bilevel_rl.loop.settings import check_fields
from bilevel_rl.loop.solver import Solver, State
from bilevel_rl.schedules import TEMPERATURE, PowerDecay


def slope(at: Float[Array, "P d"], Phi: Float[Array, " P"], radius, clip) -> Float[Array, " d"]:
    """The slope that differences say, of bounded length.

    Args:
        at: points on one side of x, then their partners on the other.
        Phi: found there.

    Example:
        >>> slope(jnp.array([[0.5], [-0.5]]), jnp.array([1.5, 0.5]), 0.5, 10.0).tolist()
        [1.0]
    """
    above, below = jnp.split(Phi, 2)
    pairs = above.shape[0]
    moved = (at[:pairs] - at[pairs:]) / 2  # what is left of each direction in x's set
    g = jnp.sum(((above - below) / 2)[:, None] * moved / jnp.maximum(radius**2, 1e-30), 0)
    return g * jnp.minimum(1.0, clip / jnp.maximum(jnp.linalg.norm(g), 1e-30))


class AroundState(State):
    """What an iteration carries; P points around x.

    Attributes:
        followers: [P, ...] what each has learnt.
        chains: [P, ...] where the chains of each are.
        ring: [C, W] one replay for all: transitions do not depend on x, their rewards are recomputed.
        gained: mean of what the leader got at the points, for records.
    """

    followers: Any
    chains: walk.Chains
    ring: Float[Array, "C W"]
    gained: Array


class SPSA(Solver):
    """Two followers on both sides of x, along a random direction of signs.

    Args:
        follower: who learns, at each point.
        zeta: step of x.
        radius: delta, in units of x.
        clip: bound on the length of a slope.
        tau: temperature of the followers, in units of reward.
        first: inner loops for which x stays at first, while followers learn at all.
        chains: of each follower.
        inner: iterations of an inner loop.
        batch: rows of an update.
        capacity: rows of the replay; rounded up to whole inner loops.
        cut: whether chains are begun anew at random, so that their states have the discounted law.

    References:
        Spall 1992.
    """

    follower: Follower = Usual()
    zeta: PowerDecay = PowerDecay(0.3, 0.602)
    radius: PowerDecay = PowerDecay(0.2, 0.101)
    clip: float = 10.0
    tau: float = TEMPERATURE
    first: float = 2.0
    chains: int = eqx.field(static=True, default=16)
    inner: int = eqx.field(static=True, default=200)
    batch: int = eqx.field(static=True, default=128)
    capacity: int = eqx.field(static=True, default=65_536)
    cut: bool = eqx.field(static=True, default=True)

    name: ClassVar[str] = "spsa"
    black_box: ClassVar[bool] = True  # the follower and its environment are asked, never differentiated
    references: ClassVar[tuple[str, ...]] = ("spall1992spsa",)

    def check(self, problem: ControlProblem) -> None:
        check_follower(self.name, self.follower, problem.environment)
        self.zeta.check(f"{self.name}.zeta")
        self.radius.check(f"{self.name}.radius")
        check_fields(
            self.name,
            ("tau", self.tau, self.tau > 0, "it must be above 0"),
            ("clip", self.clip, self.clip > 0, "it must be above 0"),
            ("first", self.first, self.first >= 0, "it must be at least 0"),
            ("chains", self.chains, self.chains >= 1, "it must be at least 1"),
            ("inner", self.inner, self.inner >= 2, "it must be at least 2: the second half counts"),
            ("batch", self.batch, self.batch >= 1, "it must be at least 1"),
        )

    def on(self, problem: ControlProblem) -> SPSA:
        made = super().on(problem)
        return dataclasses.replace(made, follower=made.follower.prepared(problem))

    def points(self, problem: ControlProblem) -> int:
        """P, an even number."""
        return 2

    def signs(self, problem: ControlProblem, key: Array) -> Float[Array, "Q d"]:
        """Directions, one for each pair of points."""
        return jax.random.rademacher(key, (1, problem.x0.shape[0]), float)

    def draws(self, problem: ControlProblem):
        return {"key": 2}

    def _rows(self, problem: ControlProblem) -> int:
        return self.points(problem) * self.chains

    def init(self, problem: ControlProblem, x0, key: Array) -> AroundState:
        env, P = nets.narrow(problem.environment), self.points(problem)
        k_follower, k_chains = jax.random.split(key)
        alike = lambda tree: jax.tree.map(lambda v: jnp.broadcast_to(v, (P, *v.shape)), tree)  # noqa: E731
        F = alike(self.follower.on(env).init(env, k_follower))
        rows = self.inner * self._rows(problem)  # whole inner loops
        ring = replay.empty(replay.Layout(nets.narrow(problem)), -(-self.capacity // rows) * rows)
        return AroundState(x0, jnp.zeros((), int), F, alike(walk.begin(env, self.chains, k_chains)), ring, jnp.zeros(()))

    def step(self, problem: ControlProblem, state: AroundState, k, noise) -> AroundState:
        key, radius, x = nets.key_of(noise["key"]), self.radius(k), state.x
        k_signs, k_loop = jax.random.split(key)
        ahead = radius * self.signs(problem, k_signs)
        at = jax.vmap(problem.project)(jnp.concatenate([x + ahead, x - ahead]))
        rows, written = self._rows(problem), k * self.inner * self._rows(problem)

        def iterate(carry, step):
            (F, chains, ring), (i, key) = carry, step
            F, chains, ring, gained = self._iteration(problem, at, F, chains, ring, written + i * rows, key)
            return (F, chains, ring), gained

        first = state.followers, state.chains, state.ring
        keys = jax.random.split(k_loop, self.inner)
        (F, chains, ring), gained = jax.lax.scan(iterate, first, (jnp.arange(self.inner), keys))
        late = jnp.mean(gained[self.inner // 2 :], 0)  # [P]
        Phi = jax.vmap(lambda y: jnp.asarray(problem.cost(y), float))(at) - late
        g = slope(at, Phi, radius, self.clip)
        x = problem.project(x - jnp.where(k < self.first, 0.0, self.zeta(k)) * g)
        return AroundState(x, state.samples + self.inner * rows, F, chains, ring, -jnp.mean(Phi))

    def _iteration(self, problem: ControlProblem, at, F, chains, ring, written, key):
        """Every follower takes a step and learns, under the same random numbers."""
        p = nets.narrow(problem)
        f32 = lambda v: jnp.asarray(v, jnp.float32)  # noqa: E731
        follower, upper = self.follower.on(p.environment), f32(p.discount_upper())
        layout, tau = replay.Layout(p), f32(self.tau)
        cut = 1 - upper if self.cut else jnp.zeros_like(upper)
        k_walk, k_rows, k_learn = jax.random.split(key, 3)

        def heres(x):
            learner, warm = p.follower_at(x, follower, tau)
            warm = f32(warm)
            return Here(p, p.environment_at(x), learner, x, warm, warm, f32(p.discount_lower()), upper, cut)

        def act(x, F, chains):
            here = heres(x)
            choose = lambda obs, key: here.follower.act(here.environment, F, obs, key)  # noqa: E731
            chains, seen = walk.step(here.environment, chains, choose, k_walk, cut)
            rows = layout.pack(seen)
            return chains, rows, jnp.mean(utilities(here, layout.unpack(rows)))

        at32 = at.astype(jnp.float32)
        chains, rows, gained = jax.vmap(act)(at32, F, chains)
        ring = replay.push(ring, rows.reshape(-1, rows.shape[-1]), written)
        written = written + rows.shape[0] * rows.shape[1]
        drawn = layout.unpack(replay.sample(ring, written, self.batch, k_rows, follower.ages))

        def learn(x, F):
            here = heres(x)
            return here.follower.update(here.environment, F, drawn, rewards(here, drawn), here.lower, here.tau, k_learn)

        return jax.vmap(learn)(at32, F), chains, ring, gained.astype(float)

    def ring(self, states: AroundState) -> Ring:
        followers = jax.tree.leaves(states.followers)[0].shape[1]  # P, behind the axis of runs
        return Ring(states.ring, self.inner * followers * self.chains)

    def with_ring(self, states: AroundState, rows: Array) -> AroundState:
        return eqx.tree_at(lambda s: s.ring, states, rows)

    def said(self, problem: ControlProblem, state: AroundState, k) -> dict[str, Array]:
        """What the leader knows of its own progress, for records."""
        rows, half = self._rows(problem), (self.inner - self.inner // 2) * self._rows(problem)
        paid, _ = replay.newest_worth(problem, state.ring, state.x, k * self.inner, half, rows, rows)
        return {M.OUTCOME.key: state.gained, M.FOLLOWER_OUTCOME.key: paid}

    def tracked(self, problem: ControlProblem, state: AroundState, k) -> Any:
        return jax.tree.map(lambda v: v[0], state.followers)


class FiniteDifference(SPSA):
    """Two followers for each dimension of x.

    Args:
        follower: who learns, at each point.
        zeta: step of x.
        radius: delta, in units of x.
        clip: bound on the length of a slope.
        tau: temperature of the followers, in units of reward.
        first: inner loops for which x stays at first.
        chains: of each follower.
        inner: iterations of an inner loop.
        batch: rows of an update.
        capacity: rows of the replay.
        cut: whether chains are begun anew at random.

    References:
        The baseline of arXiv 2601.16399.
    """

    name: ClassVar[str] = "finite_difference"
    references: ClassVar[tuple[str, ...]] = ("zeng2026hessianfree",)

    def points(self, problem):
        return 2 * problem.x0.shape[0]

    def signs(self, problem, key):
        return jnp.eye(problem.x0.shape[0])
