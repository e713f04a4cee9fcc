"""A neural follower in an environment of its own, as a user's file: what the loop can drive besides tables.

A point on a line takes H steps of its policy's choice; under x it is paid for being near x, and moving costs. The leader
wants it near a place of his own, so he must ask for more than he wants: moving costs the follower too.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from bilevel_rl import metrics as M
from bilevel_rl.loop import Problem, Solver, State

STEPS, EFFORT = 6, 0.3


def network(key: Any) -> eqx.nn.MLP:
    """The follower's policy: where it is -> how far it moves. Its own 32 bits, whatever JAX's default is."""
    return eqx.nn.MLP(1, 1, 8, 1, activation=jnp.tanh, dtype=jnp.float32, key=key)


STATIC = eqx.partition(network(jax.random.key(0)), eqx.is_array)[1]


def walk(weights: Any, start: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Positions and moves [N, H] from N starts."""
    policy = eqx.combine(weights, STATIC)

    def step(s, _):
        move = jax.vmap(policy)(s[:, None])[:, 0]
        return s + move, (s + move, move)

    _, (seen, moves) = jax.lax.scan(step, start.astype(jnp.float32), None, length=STEPS)
    return seen.T, moves.T


class Line(Problem):
    """A point on a line.

    Args:
        goal: where the leader wants it.
    """

    goal: float = 0.5

    name = "line"
    kind = "toy"

    @property
    def x0(self):
        return jnp.zeros(1)

    def box(self):
        return jnp.full(1, -2.0), jnp.full(1, 2.0)

    def paid(self, x, weights, start):
        """What the follower is paid for one step, on average: [N] starts."""
        seen, moves = walk(weights, start)
        return -jnp.mean((seen - x[0].astype(jnp.float32)) ** 2 + EFFORT * moves**2)

    def upper(self, weights, start):
        """What the leader minimises: the squared distance of the mean position from his goal."""
        return (jnp.mean(walk(weights, start)[0]).astype(float) - self.goal) ** 2

    def measures(self, solver, state, k, tau):
        """The outcome along the tracked follower, from fixed starts that no solver sees."""
        weights = solver.tracked(self, state, k)
        return {M.OBJECTIVE.key: self.upper(weights, jnp.linspace(-0.5, 0.5, 21))}, None


class PairState(State):
    """A follower at x + eps and one at x - eps, their weights stacked along the first axis."""

    pair: Any


class Differences(Solver):
    """Two followers learn on both sides of x from the same starts; x descends the difference of their outcomes.

    Args:
        zeta: step of x.
        alpha: step of the followers.
        width: half the distance between the followers' x.
        chains: starts an iteration.
    """

    zeta: float = 0.3
    alpha: float = 0.05
    width: float = 0.2
    chains: int = eqx.field(static=True, default=8)

    name = "differences"

    def draws(self, problem):
        return {"starts": (self.chains,)}

    def init(self, problem, x0, key):
        weights = eqx.filter(network(key), eqx.is_array)
        return PairState(x0, jnp.zeros((), int), jax.tree.map(lambda v: jnp.stack([v, v]), weights))

    def step(self, problem, state, k, noise):
        start, x = noise["starts"] - 0.5, state.x
        sides = jnp.stack([x + self.width, x - self.width])
        slope = jax.vmap(jax.grad(lambda weights, x: problem.paid(x, weights, start)))(state.pair, sides)
        rate = jnp.asarray(self.alpha, jnp.float32)
        pair = jax.tree.map(lambda v, g: v + rate * g, state.pair, slope)
        ahead, behind = (problem.upper(jax.tree.map(lambda v, i=i: v[i], pair), start) for i in (0, 1))
        x = problem.project(x - self.zeta / jnp.sqrt(k + 1) * (ahead - behind) / (2 * self.width))
        return PairState(x, state.samples + 2 * self.chains * STEPS, pair)

    def tracked(self, problem, state, k):
        return jax.tree.map(lambda v: (v[0] + v[1]) / 2, state.pair)


problem, solver = Line, Differences
