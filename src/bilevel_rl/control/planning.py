"""What a run will need, from a pilot at x0: how strong the slope is, how noisy, how far x may go, how long it takes."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from bilevel_rl.control import replay
from bilevel_rl.control.problem import ControlProblem
from bilevel_rl.control.solvers import SingleLoop
from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.loop import precision, stepping
from bilevel_rl.loop.solver import check_fits

ESTIMATES = 16  # ours: of the second half of the pilot, whose scatter is the noise
NEVER = 1e18
# ours: noises by which a slope must exceed one estimate's; the pilot's estimates share a follower and a critic, whose errors
# last, so that their number does not count
CLEAR = 2.0
STRIDE = 0.05  # ours: the largest first move, as a share of the box's diagonal


@dataclasses.dataclass(frozen=True)
class Planned:
    """What a pilot says.

    Attributes:
        slope: length of the mean descent direction at x0, in outcome per unit of x.
        noise: root of the mean squared deviation of one estimate from it.
        nats: by which the follower's answer moves for one unit of x along the slope; 0 where that is not learnt.
        zeta: initial step of x proposed; of natural steps where the leader takes these.
        reach: distance that x goes in the run at that slope, in its own unit.
        seconds: of the run on this machine, one seed, without compilation.
        transitions: of the run, all followers' counted.
        pilot: transitions of the pilot.
    """

    slope: float
    noise: float
    nats: float
    zeta: float
    reach: float
    seconds: float
    transitions: int
    pilot: int

    @property
    def clear(self) -> bool:
        """Whether the slope can be told from its noise."""
        return self.slope > CLEAR * self.noise

    def rows(self) -> list[tuple[str, str, str]]:
        """Quantity, value and meaning, for the screen."""
        return [
            ("slope", f"{self.slope:.3g}", "length of the mean hyper-gradient at x0, outcome per unit of x"),
            ("noise", f"{self.noise:.3g}", "standard deviation of one estimate"),
            ("nats", f"{self.nats:.3g}", "the answer's move for a unit of x along the slope; 0: not learnt"),
            ("zeta", f"{self.zeta:.3g}", "initial step of x proposed"),
            ("reach", f"{self.reach:.3g}", "how far x goes in the run at that slope, in its own unit"),
            ("transitions", f"{self.transitions:,}", "of the run, all followers' counted"),
            ("seconds", f"{self.seconds:.3g}", "of the run on this machine, one seed, without compilation"),
        ]


@precision.double
def plan(problem: ControlProblem, solver: Any, *, iterations: int, pilot: int, seed: int = 0) -> Planned:
    """Hold x at x0, learn, and look at the estimates of the second half.

    Args:
        solver: any of the single loop.
        iterations: of the run that is planned.
        pilot: iterations of the pilot; rounded to whole intervals.
        seed: of the pilot.

    Raises:
        InvalidConfig: a solver of another kind.
    """
    check_fits(solver, problem)
    if not isinstance(solver, SingleLoop):
        raise InvalidConfig(
            message("bilevel-rl plan", solver.name, "plans are made for solvers with an estimator in one loop",
                    "Take covariance, trajectory, backward or coupled_pair")
        )  # fmt: skip
    solver = solver.on(problem)
    leader = solver.leader
    every = max(1, pilot // (2 * ESTIMATES) // leader.every) * leader.every
    still = dataclasses.replace(solver, leader=dataclasses.replace(leader, hold=NEVER, momentum=0.0, evidence=0.0))
    made, stacked, n = jax.tree.map(jnp.asarray, problem), stepping.stack([still], 1), 2 * ESTIMATES
    slopes, seconds = [], []
    with contextlib.closing(stepping.stepper(made, stacked, stepping.run_keys(seed, 1))) as runner:
        states = runner.first(made.x0[None])
        for i in range(n):
            began = time.perf_counter()
            states, _ = jax.block_until_ready(runner.advance(states, i * every, every))
            seconds.append((time.perf_counter() - began) / every)
            slopes.append(np.asarray(states.motion.slope[0]))
    state, each = jax.tree.map(lambda v: v[0], states), int(states.samples[0]) // (n * every)
    g = np.stack(slopes)[ESTIMATES:]
    mean = g.mean(0)
    along = mean if state.motion.metric is None else np.asarray(state.motion.metric.natural(jnp.asarray(mean)))
    nats = float(_nats(still, made, state, jnp.asarray(along), jnp.asarray(n * every), jax.random.key(seed)))
    slope, scatter = float(np.linalg.norm(mean)), float(np.sqrt(((g - mean) ** 2).sum(1).mean()))
    length = float(np.linalg.norm(along))
    noise = scatter if state.motion.metric is None else scatter * length / max(slope, 1e-12)
    zeta, reach = _steps(problem, solver, iterations, length, noise, nats)
    return Planned(
        slope, scatter, nats, zeta, reach, float(np.median(seconds)) * iterations, each * iterations, each * n * every
    )


@eqx.filter_jit
def _nats(solver: SingleLoop, problem: Any, state: Any, along: Array, k: Array, key: Array) -> Array:
    """Nats by which the answer moves for a unit of x along a slope, at the end of a pilot; 0 where that is not learnt."""
    here = solver.here(problem, state.x, state.follower)
    newest = replay.newest(state.ring, k, solver.recent, solver.chains, solver.rows_each())
    recent = replay.Layout(here.problem).unpack(newest)
    pull = solver.estimator.estimate(here, state.estimator, state.follower, recent, key)[1].pull
    if pull is None:
        return jnp.zeros(())
    unit = (along / jnp.maximum(jnp.linalg.norm(along), 1e-30)).astype(pull.dtype)
    return jnp.sqrt(jnp.mean(jnp.sum((pull @ unit) ** 2, -1)))


def _steps(problem: ControlProblem, solver: SingleLoop, iterations: int, along: float, noise: float, nats: float):
    """The initial step of x: as far as the gate and the box let the first move go; and how far the run goes at it.

    Args:
        along: how far x goes at a step of 1.
        noise: how far one estimate's noise takes it.
    """
    leader, size = solver.leader, (along**2 + noise**2) ** 0.5
    bounds = []
    if nats > 0 and leader.drift > 0:
        bounds.append(leader.drift * leader.every / (float(solver.lag(problem)) * nats))
    box = problem.box()
    if box is not None and bool(np.isfinite(np.asarray(box)).all()):
        bounds.append(STRIDE * float(np.linalg.norm(np.asarray(box[1]) - np.asarray(box[0]))))
    first = min(bounds) if bounds else STRIDE * max(1.0, float(np.linalg.norm(problem.x0)))
    power, hold = float(leader.zeta.power), float(leader.hold)
    zeta = first / max(size, 1e-12) * (hold + 1) ** power
    k = np.arange(min(int(hold), iterations), iterations, leader.every)
    return zeta, float((zeta / (k + 1) ** power).sum() * along)
