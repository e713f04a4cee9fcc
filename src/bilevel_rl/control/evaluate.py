"""What an x is worth: a follower that never knew another x learns under it, then both levels are scored.

The follower that a run has tracked may flatter its x: it carries what it learnt on the way. A fresh one does not.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bilevel_rl.control import nets, walk
from bilevel_rl.control.estimators.estimator import rewards, utilities
from bilevel_rl.control.followers import Follower, Usual
from bilevel_rl.control.leader import Leader
from bilevel_rl.control.problem import ControlProblem
from bilevel_rl.control.replay import Rows
from bilevel_rl.control.solvers import PartialSGD
from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.loop import noise, precision
from bilevel_rl.loop.solver import check_compiled

NEVER = 1e18


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Sums over an episode, means over episodes, one number a seed.

    Attributes:
        utility: [seeds] of the leader, the follower acting as it explores (sampled actions).
        utility_greedy: [seeds] of the leader, the follower taking its best actions.
        reward: [seeds] of the follower under x, sampled actions.
        reward_greedy: [seeds] of the follower under x, its best actions.
        steps: of an episode.
        transitions: that each follower learnt from.
    """

    utility: np.ndarray
    utility_greedy: np.ndarray
    reward: np.ndarray
    reward_greedy: np.ndarray
    steps: int
    transitions: int

    def __str__(self) -> str:
        middle = lambda v: f"{np.median(v):.4g}"  # noqa: E731
        return (
            f"leader {middle(self.utility_greedy)} greedy, {middle(self.utility)} sampled; follower "
            f"{middle(self.reward_greedy)} greedy, {middle(self.reward)} sampled (medians of {len(self.utility)}, sums over "
            f"{self.steps} steps)"
        )


@precision.double
def fresh(
    problem: ControlProblem, x: Any = None, *, follower: Follower | None = None, transitions: int = 50_000, seeds: int = 5,
    seed: int = 0, episodes: int = 16, steps: int | None = None, tau: float | None = None, **options: Any,
) -> Evaluation:  # fmt: skip
    """Train followers from nothing at a fixed x, and score what they do.

    Args:
        x: [d], or [seeds, d], one for each follower; x0 when None.
        follower: who learns; the usual one when None.
        transitions: of each follower.
        seeds: independent followers.
        seed: from which their randomness follows.
        episodes: scored, of each follower.
        steps: of an episode; the environment's time limit, or five times the leader's horizon where there is none.
        tau: temperature; the problem's own for followers when None.
        options: of the loop, `chains` or `updates` for instance (`control.solvers.SingleLoop`).

    Raises:
        InvalidConfig: fewer transitions than an iteration takes.
        InvalidProblem: an environment that steps outside compiled code.
    """
    problem.check(thorough=False)
    check_compiled("evaluate.fresh", problem)
    solver = PartialSGD(follower=follower or Usual(), leader=Leader(hold=NEVER, evidence=0.0), **options)
    solver.check(problem)
    solver = solver.on(problem)
    solver = solver if tau is None else dataclasses.replace(solver, tau=tau)
    iterations = transitions // solver.chains
    if iterations < 1:
        raise InvalidConfig(
            message("evaluate.fresh", f"{transitions} transitions", f"an iteration takes {solver.chains}", "Ask for more")
        )
    if steps is None:
        steps = problem.environment.horizon or int(np.ceil(5 / (1 - float(problem.discount_upper()))))
    made = jax.tree.map(jnp.asarray, problem)
    x = jnp.asarray(problem.x0 if x is None else x, float)
    x = jnp.broadcast_to(x, (seeds, x.shape[0])) if x.ndim == 1 else x
    learnt = partial(_scored, made, solver, iterations=iterations, episodes=episodes, steps=steps)
    found = eqx.filter_jit(jax.vmap(learnt))(x, key=jax.random.split(jax.random.key(seed), len(x)))
    return Evaluation(*(np.asarray(v) for v in found), steps, iterations * solver.chains)


def _scored(problem: Any, solver: Any, x: Array, iterations: int, episodes: int, steps: int, key: Array):
    k_first, k_learn, k_sampled, k_greedy = jax.random.split(key, 4)
    state = solver.init(problem, x, k_first)

    def step(state, k):
        drawn = noise.uniforms(solver.draws(problem), jax.random.fold_in(k_learn, k))
        return solver.step(problem, state, k, drawn), None

    state, _ = jax.lax.scan(step, state, jnp.arange(iterations))
    play = partial(episode_sums, problem, solver, x, state.follower, episodes, steps)
    (u, r), (u_best, r_best) = play(k_sampled, greedy=False), play(k_greedy, greedy=True)
    return u, u_best, r, r_best


@precision.double
def episode_sums(
    problem: Any, solver: Any, x: Array, F: Any, episodes: int, steps: int, key: Array, greedy: bool
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Mean over episodes of the sums of utilities and of rewards, up to each episode's end; traceable."""
    here = solver.here(problem, x, F)
    env = nets.narrow(problem).environment_at(here.x)
    pick = lambda obs, key: here.follower.mode(env, F, obs)  # noqa: E731
    draw = lambda obs, key: here.follower.act(env, F, obs, key)  # noqa: E731

    def step(carry, key):
        chains, alive = carry
        chains, seen = walk.step(env, chains, pick if greedy else draw, key, 0.0)
        rows = Rows(seen.t, jax.vmap(here.problem.features)(seen.t), seen.first, seen.over)
        gained = alive * utilities(here, rows), alive * rewards(here, rows)
        return (chains, alive * (1 - seen.over)), gained

    first = walk.begin(env, episodes, jax.random.fold_in(key, 0)), jnp.ones(episodes, jnp.float32)
    _, (u, r) = jax.lax.scan(step, first, jax.random.split(key, steps))
    return jnp.mean(jnp.sum(u, 0)), jnp.mean(jnp.sum(r, 0))
