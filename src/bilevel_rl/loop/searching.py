r"""Global search: many starts in one batch, the poor ones given up early, the temperature lowered on the way.

Hyper-objectives have basins. A local method finds that of its start; N starts find the best of N, and successive halving
spends most of the budget on the starts that do well:

$$n_r = \lceil N / \eta^r \rceil \quad\text{starts go on in stage } r, \text{ each with an equal share of the budget},
\qquad \tau_r = \tau\, c^{\,1 - r/(R-1)} .$$

Every transition is counted, those of the starts that were given up and those that compare the starts included.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from bilevel_rl import metrics as M
from bilevel_rl.errors import InvalidProblem, message
from bilevel_rl.loop import checkpoint, meter, precision, settings, stepping
from bilevel_rl.loop.comparison import Limited, MakeComparison
from bilevel_rl.loop.grading import measure
from bilevel_rl.loop.problem import Problem
from bilevel_rl.loop.search_folder import Place, SearchFolder
from bilevel_rl.loop.solver import Solver, State, check_compiled, check_fits
from bilevel_rl.loop.stages import COMPARING, SETTLING, Shape, Stage, arrange
from bilevel_rl.loop.starts import checked, checked_seed, starting_points
from bilevel_rl.loop.trace import NON_FINITE, OK


@dataclasses.dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        x: [d] of the chosen start.
        chosen: its index.
        value: its exact hyper-objective; NaN where grading is off.
        values: [N] of every start, at the x where it was given up.
        score: [N] by which the starts were compared last.
        starts: [N, d].
        samples: transitions, all starts and comparisons together.
        stages: the rounds.
        metrics: key -> [N, stages + 1]; a start that was given up keeps its last values.
        xs: [N, stages + 1, d].
        status: [N] 0, or 1 where a start became non-finite.
    """

    x: np.ndarray
    chosen: int
    value: float
    values: np.ndarray
    score: np.ndarray
    starts: np.ndarray
    samples: int
    stages: tuple[Stage, ...]
    metrics: dict[str, np.ndarray]
    xs: np.ndarray
    status: np.ndarray

    @property
    def mean(self) -> float:
        """Mean exact hyper-objective of all starts: what one start can expect, more or less."""
        return float(np.mean(self.values))


@precision.double
def search(
    problem: Problem,
    solver: Solver,
    *,
    starts: int = 64,
    samples: int | None = None,
    iterations: int | None = None,
    eta: int = 4,
    stages: int | None = None,
    continuation: float = 1.0,
    comparing: float = COMPARING,
    settling: float = SETTLING,
    comparison: MakeComparison | None = None,
    by: str = "auto",
    spread: float = 1.0,
    seed: int = 0,
    tau: float | None = None,
    x0: Any = None,
    folder: str | Path | None = None,
    resume: bool = False,
    config: dict[str, Any] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Found:
    """Search for a global optimum with any solver, under one budget for everything.

    Starts of a solver that samples are compared by samples, in the way that `comparison` knows for the problem's engine.
    Without one, and for solvers that use the model, they are compared by the objective that the problem's `measures`
    report, which costs no transitions.

    Args:
        problem, solver: as for `solve`.
        starts: N.
        samples: transitions of all starts together, comparisons included, never exceeded; for solvers that sample.
        iterations: iterations of all starts together; for solvers that use the model.
        eta: a stage keeps one start in eta; 1 keeps all of them.
        stages: R; by default as many as lead to a single start (one when eta is 1).
        continuation: c; the first stage's temperature is c times the solver's own, the last one's is its own.
        comparing: share of a stage's samples that is spent on comparing its starts, where they are compared by samples.
        settling: share of that in which followers go on learning at a held x, before f is measured.
        comparison: makes what compares starts by samples, from (problem, solver, by, tau).
        by: how, in that engine's words; `"auto"` leaves it to the engine.
        spread: of random starts where x has no box.
        seed: the one integer from which all randomness follows.
        tau: temperature of grading; the problem's when None.
        x0: [N, d] starts, in place of `starting_points`.
        folder: keeps a checkpoint; in the end it holds two ordinary run folders, `starts` (all of them) and `best` (the
            chosen one, at the samples of all).
        resume: go on from the folder's checkpoint, to the same bits as an uninterrupted search.
        config: what the folder says about how to start this again.
        on_progress: called at first and after every chunk with the iterations of all starts that are done, and their total.

    Returns:
        Found.

    Raises:
        InvalidProblem, InvalidConfig: before any work starts.
        RunNotFound: nothing to resume, or a checkpoint of another search.
        StorageFailed: the folder can't be written; the last good checkpoint stays.

    Example:
        >>> from bilevel_rl.finite.problems import GoalPlacement
        >>> from bilevel_rl.finite.solvers import ExactDescent
        >>> found = search(GoalPlacement(), ExactDescent(0.2), starts=16, iterations=960)
        >>> found.value < -0.63, found.mean > -0.5
        (True, False)
    """
    shape = Shape(starts, samples, iterations, eta, stages, continuation, comparing, settling)
    seed = checked_seed(seed)
    points = starting_points(problem, starts, seed, spread) if x0 is None and starts >= 1 else x0
    it = _Search(problem, solver, shape, points, comparison, by, seed, tau)
    store = SearchFolder(
        folder, resume, it.fingerprint(), config or {}, problem, solver, seed,
        [dataclasses.asdict(stage) for stage in it.plan],
    )  # fmt: skip
    with store:
        found = it.ended(store, on_progress)
        store.finish(found.metrics, found.xs, found.status, found.chosen)
    return found



class _Search:
    """The work of a search: from one place to the next."""

    def __init__(
        self, problem: Problem, solver: Solver, shape: Shape, points: Any, comparison: MakeComparison | None, by: str,
        seed: int, tau: float | None,
    ):  # fmt: skip
        problem.check(thorough=False)
        check_fits(solver, problem)
        check_compiled("search", problem)
        solver = solver.on(problem)
        self.cost = meter.iteration_cost(problem, solver)
        # solvers that use the model are compared by what is exact, whatever that costs
        self.comparison = None if comparison is None or not self.cost.each else comparison(problem, solver, by, tau)
        least = None if self.comparison is None else self.comparison.least
        self.plan = arrange(solver, self.cost.each, shape, least)
        if self.comparison is not None:
            self.plan = self.comparison.marked(self.plan)
        starts = shape.starts
        self.points = checked(problem, jnp.asarray(points, float), starts)
        self.problem = jax.tree.map(jnp.asarray, problem)
        self.tau = problem.temperature() if tau is None else float(tau)
        self.evaluate = problem.graded() or self.comparison is None
        self.keys = stepping.run_keys(seed, starts)
        self.stacked = stepping.stack([solver], starts)
        self.solver, self.starts, self.seed = solver, starts, seed
        # what a start may have drawn by the end of each stage's iterations, measurements aside
        share = (shape.samples or 0) / len(self.plan)
        self.limits = np.cumsum([int(share / stage.starts) - stage.measure for stage in self.plan])

    def fingerprint(self) -> str:
        """Of everything on which the search depends."""
        stages = np.array([dataclasses.astuple(stage) for stage in self.plan])
        return checkpoint.fingerprint(
            self.problem, self.stacked, self.points, self.seed, self.tau, stages, self.solver.name
        )

    def begin(self) -> Place:
        """The starts, graded."""
        states = stepping.first_states(self.problem, self.stacked, self.points, self.keys)
        seen = {}
        if self.comparison is not None and any(stage.model for stage in self.plan):
            seen = self.comparison.nothing()
        place = Place(
            0, 0, 0, states, np.zeros(self.starts, int), np.full(self.starts, np.inf), np.zeros(self.starts, int),
            np.arange(self.starts), seen=seen,
        )  # fmt: skip
        place = self._graded(place)
        if self.comparison is None and M.OBJECTIVE.key not in place.log[0]:
            raise InvalidProblem(
                message(f"{type(self.problem).__name__}.measures", f"no {M.OBJECTIVE.key!r} among its values",
                        "a search compares starts by it, or by a comparison from samples",
                        "Report the objective, or pass `comparison`")
            )  # fmt: skip
        return place

    def ended(self, store: SearchFolder, on_progress: Callable[[int, int], None] | None) -> Found:
        """From the beginning, or where the folder's checkpoint stands, to the end."""
        place = store.begin(self.begin())
        total = sum(stage.starts * stage.chunks * stage.chunk for stage in self.plan)
        if on_progress is not None:
            on_progress(self.done(place), total)
        try:
            while place.stage < len(self.plan):
                place = self.onward(place)
                if on_progress is not None:
                    on_progress(self.done(place), total)
                store.save(place)
        except KeyboardInterrupt:
            store.save(place, now=True)
            raise
        store.save(place, now=True)
        return self.found(place)

    def done(self, place: Place) -> int:
        """Iterations of all starts, as if none had broken."""
        past = sum(stage.starts * stage.chunks * stage.chunk for stage in self.plan[: place.stage])
        return past + (len(place.going) * place.chunk * self.plan[place.stage].chunk if place.chunk else 0)

    def onward(self, place: Place) -> Place:
        """One chunk of iterations, or the comparison that ends a stage."""
        stage = self.plan[place.stage]
        if place.stage and not place.chunk and len(place.going) != stage.starts:  # the best of those that went on
            order = np.argsort(place.score[place.going], kind="stable")
            place = dataclasses.replace(place, going=place.going[order][: stage.starts])
        alive = place.status[place.going] == OK
        if place.chunk < stage.chunks and alive.any():
            return self._advanced(place, stage, alive)
        return self._compared(place, stage)

    def _advanced(self, place: Place, stage: Stage, alive: np.ndarray) -> Place:
        going, held = place.going, place.chunk * stage.chunk >= stage.iterations
        old = _some(place.states, going)
        new, finite = stepping.advance(
            self.problem, self._stepping(stage, place.stage, held), old, self.keys[going], jnp.array(place.k), stage.chunk
        )
        alive = alive & np.asarray(finite)
        new = stepping.keep(new, old, jnp.asarray(alive))
        status = place.status.copy()
        status[going[~alive]] = NON_FINITE
        states = _with(place.states, new, going)
        return dataclasses.replace(place, chunk=place.chunk + 1, k=place.k + stage.chunk, states=states, status=status)

    def _stepping(self, stage: Stage, number: int, held: bool) -> Solver:
        """The stage's solver; under guard where it settles or where its iterations differ in cost."""
        hot = settings.heated(self.solver, stage.heat)
        if stage.settle or self.cost.varies:
            hot = Limited(hot, float(held), float(self.limits[number]), self.cost.varies)
        return stepping.stack([hot], stage.starts)

    def _compared(self, place: Place, stage: Stage) -> Place:
        going, score = place.going, place.score.copy()
        if stage.measure:
            place, score[going] = self._measured(place, stage)
        place = self._graded(place)
        if self.comparison is None:
            score[going] = place.log[-1][M.OBJECTIVE.key][going]
        if stage.measure or self.comparison is None:
            good = (place.status[going] == OK) & np.isfinite(score[going])
            score[going] = np.where(good, score[going], np.inf)
        return dataclasses.replace(place, stage=place.stage + 1, chunk=0, score=score)

    def _measured(self, place: Place, stage: Stage) -> tuple[Place, np.ndarray]:
        """The outcome of every start that goes on, from samples, and the place with those samples counted."""
        assert self.comparison is not None
        hot = stepping.stack([settings.heated(self.solver, stage.heat)], stage.starts)
        value, used, seen = self.comparison.measure(
            hot, _some(place.states, place.going), self.keys[place.going], place.stage, place.k, stage, self.tau, place.seen
        )
        extra = place.extra.copy()
        extra[place.going] += used
        return dataclasses.replace(place, extra=extra, seen=seen), value

    def _graded(self, place: Place) -> Place:
        """The place with one more record."""
        values = measure(
            self.problem, self.stacked, place.states, place.k, tau=self.tau, evaluate=self.evaluate,
        )  # fmt: skip
        kept = {
            key: np.broadcast_to(np.asarray(v), (self.starts,)).copy()
            for key, v in values.items() if not key.startswith("scene/")
        }  # fmt: skip
        kept[M.SAMPLES.key] = kept[M.SAMPLES.key] + place.extra
        gone = np.setdiff1d(np.arange(self.starts), place.going)
        for key, v in kept.items():  # what the schedules say moves on; a start that was given up does not
            if place.log:
                v[gone] = place.log[-1][key][gone]
        return dataclasses.replace(place, log=(*place.log, kept), xs=(*place.xs, np.asarray(place.states.x)))

    def found(self, place: Place) -> Found:
        """The end."""
        chosen = int(place.going[np.argmin(place.score[place.going])])
        metrics = {key: np.stack([record[key] for record in place.log], axis=1) for key in place.log[0]}
        values = metrics.get(M.OBJECTIVE.key, np.full((self.starts, 1), np.nan))[:, -1]
        return Found(
            np.asarray(place.states.x[chosen]), chosen, float(values[chosen]), values, place.score,
            np.asarray(self.points), int(metrics[M.SAMPLES.key][:, -1].sum()), self.plan, metrics,
            np.stack(place.xs, axis=1), place.status,
        )  # fmt: skip


@jax.jit
def _some(states: State, going: Int[Array, " n"]) -> State:
    return jax.tree.map(lambda v: v[going], states)


@jax.jit
def _with(states: State, some: State, going: Int[Array, " n"]) -> State:
    return jax.tree.map(lambda every, v: every.at[going].set(v), states, some)
