"""A problem and a solver that compile in no time, as a user's file: for tests of what stands around a run.

The follower is one number that goes half of the way to x in every iteration; the leader wants it at 1.
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp

from bilevel_rl.loop import Problem, Solver, State


class Echo(Problem):
    """The leader wants the follower at the goal; the follower wants to be where x is.

    Args:
        goal: where.
    """

    goal: float = 1.0

    name = "echo"
    kind = "echo"

    @property
    def x0(self):
        return jnp.zeros(1)

    def box(self):
        return jnp.full(1, -2.0), jnp.full(1, 2.0)

    def measures(self, solver, state, k, tau):
        return {"objective": (state.y - self.goal) ** 2}, None


class EchoState(State):
    y: jax.Array


class Lead(Solver):
    """Both go on at once, and noise goes along.

    Args:
        step_size: of x.
        chains: numbers drawn an iteration.
    """

    step_size: float = 0.1
    chains: int = eqx.field(static=True, default=2)

    name = "lead"

    def draws(self, problem):
        return {"walk": (self.chains,)}

    def init(self, problem, x0, key):
        return EchoState(x0, jnp.zeros((), int), jnp.zeros(()))

    def step(self, problem, state, k, noise):
        y = state.y + 0.5 * (state.x[0] - state.y) + 0.01 * jnp.mean(noise["walk"] - 0.5)
        x = problem.project(state.x - self.step_size * (y - problem.goal))
        return EchoState(x, state.samples + self.chains, y)


problem, solver = Echo, Lead
