"""The one loop that drives every solver: scan, vmap over runs and settings, records, checkpoints."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.loop import checkpoint, precision, stepping
from bilevel_rl.loop.grading import measure
from bilevel_rl.loop.problem import Optimum, Problem
from bilevel_rl.loop.run_folder import RunFolder
from bilevel_rl.loop.solver import Solver, State, check_fits
from bilevel_rl.loop.starts import checked, checked_seed
from bilevel_rl.loop.trace import OK, Log, Trace, without_value


@precision.double
def solve(
    problem: Problem, solver: Solver | Sequence[Solver], *, iterations: int, runs: int = 1, seed: int = 0,
    record_every: int | None = None, x0: Any = None, tau: float | None = None, optimum: Optimum | None = None,
    evaluate: bool = True, folder: str | Path | None = None, resume: bool = False, config: dict[str, Any] | None = None,
    on_record: Callable[[int, dict[str, np.ndarray]], None] | None = None,
    stepper: Callable[..., stepping.Stepper] | None = None,
) -> Trace:  # fmt: skip
    """Run a solver on a problem: many seeds, and many settings, in one compiled program.

    Args:
        solver: one solver, or several of the same class that differ in numbers only (a sweep). With H solvers the
            runs are ordered setting by setting: run h * runs + i is seed i of setting h.
        iterations: steps a run; rounded down to whole record intervals.
        runs: independent seeds a setting. Run i of seed s is the same whatever else is in the batch.
        seed: the one integer from which all randomness follows.
        record_every: iterations between records; by default a hundredth of the run.
        x0: [d] or [H * runs, d]; the problem's `x0` when None.
        tau: temperature of the grades; the problem's when None. 0 grades the unregularised problem.
        optimum: best known x and value; adds the metrics `gap` and `distance`.
        evaluate: grade with the problem's own measures at every record. Switch it off where they cost too much.
        folder: a run folder to write records and checkpoints to.
        resume: go on from the folder's checkpoint, to the same bits as an uninterrupted run.
        config: what the run folder's `run.json` says about how to start this run again.
        on_record: called after every record with the iteration and the newest metrics [runs].
        stepper: how runs move on, from problem, solver and keys (`loop.stepping.Stepper`); the problem's own when None.

    Raises:
        InvalidProblem, InvalidConfig: before any work starts.
        RunNotFound: nothing to resume, or a checkpoint of another configuration.
        StorageFailed: the folder can't be written; the last good checkpoint stays.

    Example:
        >>> from bilevel_rl.finite.problems import GoalPlacement
        >>> from bilevel_rl.finite.solvers import ExactDescent
        >>> trace = solve(GoalPlacement(), ExactDescent(step_size=0.5), iterations=40)
        >>> bool(trace["objective"][0, -1] < -0.63)
        True
    """
    solvers, seed = ready(problem, [solver] if isinstance(solver, Solver) else [*solver], runs), checked_seed(seed)
    problem = jax.tree.map(jnp.asarray, problem)  # Python numbers too: traced, so that new values do not recompile
    count = iterations // (every := interval(iterations, record_every))
    tau = problem.temperature() if tau is None else float(tau)
    grade = partial(measure, problem, tau=tau, evaluate=evaluate, optimum=optimum)
    x = checked(problem, x0, len(solvers) * runs)
    stacked, keys = stepping.stack(solvers, runs), jnp.tile(stepping.run_keys(seed, runs), len(solvers))
    mark = checkpoint.fingerprint(problem, stacked, x, seed, every, tau)
    with (
        contextlib.closing((stepper or stepping.stepper)(problem, stacked, keys)) as runner,
        RunFolder(folder, resume, mark, config, solvers[0], problem, seed, every) as store,
    ):
        (done, log, states), seconds = store.load(runner.first(x)), 0.0
        if done:
            runner.resumed(done * every)
        else:
            log.add(grade(stacked, states, 0), states, 0, problem)
        for record in range(done, count):
            began, k0, k = time.perf_counter(), record * every, (record + 1) * every
            back = runner.hold(states, k0, every)
            new, alive = jax.block_until_ready(runner.advance(states, k0, every))
            seconds += time.perf_counter() - began
            states = _kept(log, np.asarray(alive), new, back, partial(runner.cause, k0=k0, length=every), problem)
            log.add(grade(stacked, states, k), states, k, problem)
            if on_record is not None:
                on_record(k, log.newest())
            store.save(record + 1, log, states, last=record + 1 == count)
            if (log.status != OK).all():
                break
        store.finish(log, partial(runner.drawn, states))
    return dataclasses.replace(log.trace(states, seconds), x_names=tuple(problem.x_names))


def _kept(
    log: Log, alive: np.ndarray, new: State, back: Callable[[State], State], cause: Callable[..., stepping.Broken],
    problem: Problem,
) -> State:  # fmt: skip
    """The new states of runs that go on, those before of the others; what broke is said in the log.

    Args:
        alive: [B] whether each run is still finite.
        back: new states -> those before.
        cause: (states before, i=run) -> why it broke.
    """
    if (alive & (log.status == OK)).all():
        return new
    before = back(new)
    for i in np.flatnonzero(~alive & (log.status == OK)):
        found = cause(before, i=int(i))
        log.stop(int(i), without_value(problem, found.where, np.asarray(before.x[i]), found.overflow) or found.text)
    return stepping.keep(new, before, jnp.asarray(log.status == OK))


def ready(problem: Problem, solvers: Sequence[Solver], runs: int) -> list[Solver]:
    """The solvers with the problem's temperature where they were told none.

    Raises:
        InvalidProblem, InvalidConfig: anything is wrong that can be known before the first compilation.
    """
    problem.check(thorough=False)
    for one in solvers:
        check_fits(one, problem)
    if runs < 1:
        raise InvalidConfig(message("solve.runs", runs, "at least one run is needed", "Set runs >= 1"))
    return [one.on(problem) for one in solvers]


def interval(iterations: int, record_every: int | None) -> int:
    """Iterations between records.

    Raises:
        InvalidConfig: no iteration at all, or fewer than one interval.
    """
    if iterations < 1 or (record_every is not None and not 1 <= record_every <= iterations):
        raise InvalidConfig(
            message("solve", f"iterations={iterations}, record_every={record_every}",
                    "1 <= record_every <= iterations is needed", "Ask for at least one iteration")
        )  # fmt: skip
    return record_every or max(1, iterations // 100)
