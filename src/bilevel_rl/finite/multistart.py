r"""Global search: many starts in one batch, the poor ones given up early, the temperature lowered on the way.

Hyper-objectives have basins. A local method finds that of its start; N starts find the best of N, and successive halving
spends most of the budget on the starts that do well:

$$n_r = \lceil N / \eta^r \rceil \quad\text{starts go on in stage } r, \text{ each with an equal share of the budget},
\qquad \tau_r = \tau\, c^{\,1 - r/(R-1)} .$$

Every transition is counted, those of the starts that were given up and those that compare the starts included.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from bilevel_rl import metrics as M
from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.finite import checks, comparing, tuning
from bilevel_rl.finite import solver as engine
from bilevel_rl.finite.learn import learnt_model
from bilevel_rl.finite.learn.learnt_model import Seen
from bilevel_rl.finite.problem import BilevelProblem
from bilevel_rl.finite.search_folder import Place, Store
from bilevel_rl.finite.solver import Solver, State
from bilevel_rl.finite.starts import points

By = Literal["auto", "model", "follower"]
COMPARING = 0.1  # ours: share of a sampled budget that is spent on comparing the starts
SETTLING = 0.0  # ours: share of that in which followers settle at a held x
CHUNKS = (10, 50)  # ours: pieces of a stage, after each of which a search can stop and go on
GRADED_STATES = 5000  # ours: above this many states solvers that sample are not graded by oracles


@dataclasses.dataclass(frozen=True)
class Stage:
    """One round, of which each start gets the same.

    Attributes:
        starts: how many.
        iterations: of each.
        heat: the temperature, relative to the target.
        settle: further iterations in which x is held, before starts are compared.
        measure: transitions from which f is measured then; 0 where nothing is compared by samples.
        chunk: iterations after which a search can stop and go on; divides both numbers of iterations.
        model: whether f is measured by a model learnt from those transitions.
    """

    starts: int
    iterations: int
    heat: float
    settle: int = 0
    measure: int = 0
    chunk: int = 1
    model: bool = False

    @property
    def chunks(self) -> int:
        """Pieces of work, without the comparison."""
        return (self.iterations + self.settle) // self.chunk


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


# -- starts -----------------------------------------------------------------------------------------------------------


def starting_points(problem: BilevelProblem, count: int, seed: int = 0, spread: float = 1.0) -> Float[Array, "N d"]:
    """The problem's `x0`, its `structured_starts()` where it has any, then random points; projected on x's set.

    Random points are uniform in the box, or normal around x0 with standard deviation `spread` where x is free.
    """
    return points(problem, count, jax.random.fold_in(jax.random.key(seed), 2**31), spread)


# -- the search -------------------------------------------------------------------------------------------------------


def search(
    problem: BilevelProblem,
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
    by: By = "auto",
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

    A solver that samples is compared by samples: along the answer to each x by a model learnt from the transitions of all
    starts, or along the follower that each start tracks. Solvers that use the model are compared by the exact
    hyper-objective.

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
        by: `"model"`, `"follower"`, or `"auto"`: by a model where x does not move the kernel and the transitions suffice to
            learn one, else by the followers.
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
    it = _Search(
        problem, solver, starts, samples, iterations, eta, stages, continuation, comparing, settling, by, spread, seed,
        tau, x0,
    )  # fmt: skip
    store = Store(
        folder, resume, it.fingerprint(), config or {}, problem, solver, seed,
        [dataclasses.asdict(stage) for stage in it.plan],
    )  # fmt: skip
    with store:
        place = store.begin(it.begin())
        total = sum(stage.starts * stage.chunks * stage.chunk for stage in it.plan)
        if on_progress is not None:
            on_progress(it.done(place), total)
        try:
            while place.stage < len(it.plan):
                place = it.onward(place)
                if on_progress is not None:
                    on_progress(it.done(place), total)
                store.save(place)
        except KeyboardInterrupt:
            store.save(place, now=True)
            raise
        store.save(place, now=True)
        found = it.found(place)
        store.finish(found.metrics, found.xs, found.status, found.chosen)
    return found


class _Search:
    """The work of a search: from one place to the next."""

    def __init__(
        self, problem, solver, starts, samples, iterations, eta, stages, continuation, compare, settling, by, spread,
        seed, tau, x0,
    ):  # fmt: skip
        checks.check_problem(problem, thorough=False)
        engine.check_fits(solver, problem)
        self.cost = comparing.iteration_cost(problem, solver)
        least = comparing.least(problem, solver) if self.cost.each else 0
        self.plan, _ = _plan(
            solver, self.cost.each, starts, samples, iterations, eta, stages, continuation, compare, settling, least
        )
        if self.cost.each:
            # planning needs a temperature above 0: that of grading, or the solver's own
            by = by if tau != 0 or _has_temperature(solver) else "follower"
            self.plan = _by_model(problem, self.plan, by, 0 if problem.objective.linear else least)
        points = starting_points(problem, starts, seed, spread) if x0 is None else jnp.asarray(x0, float)
        self.points = engine._starts(problem, points, starts)
        self.problem = jax.tree.map(jnp.asarray, problem)
        self.tau = problem.temperature() if tau is None else float(tau)
        # solvers that use the model are compared by oracles, whatever that costs
        small = problem.mdp is None or problem.mdp.n_states <= GRADED_STATES
        self.evaluate = small or not self.cost.each
        self.keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(jnp.arange(starts))
        self.stacked = engine._stack([solver], starts)
        self.solver, self.starts, self.seed = solver, starts, seed
        # what a start may have drawn by the end of each stage's iterations, measurements aside
        share = (samples or 0) / len(self.plan)
        self.limits = np.cumsum([int(share / stage.starts) - stage.measure for stage in self.plan])

    def fingerprint(self) -> str:
        """Of everything on which the search depends."""
        plan = np.array([dataclasses.astuple(stage) for stage in self.plan])
        return engine._fingerprint(self.problem, self.stacked, self.points, self.seed, self.tau, plan, self.solver.name)

    def begin(self) -> Place:
        """The starts, graded."""
        states = engine._init(self.problem, self.stacked, self.points, self.keys)
        place = Place(
            0, 0, 0, states, np.zeros(self.starts, int), np.full(self.starts, np.inf), np.zeros(self.starts, int),
            np.arange(self.starts),
            seen=Seen.nothing(self.problem.mdp.n_states) if any(stage.model for stage in self.plan) else None,
        )  # fmt: skip
        return self._graded(place)

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
        alive = place.status[place.going] == engine.OK
        if place.chunk < stage.chunks and alive.any():
            return self._advanced(place, stage, alive)
        return self._compared(place, stage)

    def _advanced(self, place: Place, stage: Stage, alive: np.ndarray) -> Place:
        going, held = place.going, place.chunk * stage.chunk >= stage.iterations
        old = _some(place.states, going)
        new, finite = engine._advance(
            self.problem, self._stepping(stage, place.stage, held), old, self.keys[going], jnp.array(place.k), stage.chunk
        )
        alive = alive & np.asarray(finite)
        new = engine._keep(new, old, jnp.asarray(alive))
        status = place.status.copy()
        status[going[~alive]] = engine.NON_FINITE
        states = _with(place.states, new, going)
        return dataclasses.replace(place, chunk=place.chunk + 1, k=place.k + stage.chunk, states=states, status=status)

    def _stepping(self, stage: Stage, number: int, held: bool) -> Solver:
        """The stage's solver; under guard where it settles or where its iterations differ in cost."""
        hot = _heated(self.solver, stage.heat)
        if stage.settle or self.cost.varies:
            hot = comparing.Guarded(hot, float(held), float(self.limits[number]), self.cost.varies)
        return engine._stack([hot], stage.starts)

    def _compared(self, place: Place, stage: Stage) -> Place:
        going, score = place.going, place.score.copy()
        if stage.measure:
            place, score[going] = self._measured(place, stage)
        place = self._graded(place)
        if not self.cost.each:
            score[going] = place.log[-1][M.OBJECTIVE.key][going]
        if stage.measure or not self.cost.each:
            good = (place.status[going] == engine.OK) & np.isfinite(score[going])
            score[going] = np.where(good, score[going], np.inf)
        return dataclasses.replace(place, stage=place.stage + 1, chunk=0, score=score)

    def _measured(self, place: Place, stage: Stage) -> tuple[Place, np.ndarray]:
        """f of every start that goes on, from samples, and the place with those samples counted."""
        problem, going, left = self.problem, place.going, stage.measure
        states, keys = _some(place.states, going), self.keys[going]
        hot = engine._stack([_heated(self.solver, stage.heat)], stage.starts)
        pi, value, used = comparing.followers(problem, hot, states, place.k), None, np.zeros(len(going), int)
        if stage.model:
            share = left if problem.objective.linear else left // 2
            length = min(learnt_model.walk_length(problem), share)
            own = jax.vmap(lambda key: jax.random.fold_in(comparing.key_of(key, place.stage), 0))(keys)
            walks = learnt_model.explore(problem, pi, own, share // length, length)
            assert place.seen is not None
            place = dataclasses.replace(place, seen=place.seen.plus(*walks))
            tau = self.tau or _temperature(self.solver, place.k)
            pi, value = learnt_model.answers(problem, states.x, tau, place.seen)
            used += share // length * length
            left -= share
        if value is None:
            value, more = comparing.compare(problem, states.x, pi, keys, place.stage, left)
            used += np.asarray(more)
        extra = place.extra.copy()
        extra[going] += used
        return dataclasses.replace(place, extra=extra), np.asarray(value)

    def _graded(self, place: Place) -> Place:
        """The place with one more record."""
        values = engine._measure(
            self.problem, self.stacked, place.states, jnp.array(place.k), tau=jnp.asarray(self.tau) if self.tau else 0,
            evaluate=self.evaluate, optimum=None,
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


# -- stages -----------------------------------------------------------------------------------------------------------


def _plan(
    solver, each, starts, samples, iterations, eta, stages, continuation, compare=COMPARING, settling=SETTLING, least=2
) -> tuple[tuple[Stage, ...], list[int]]:
    """The stages, and the transitions that each start may spend on being compared after each."""
    budget, word = (samples, "samples") if each else (iterations, "iterations")
    other = iterations if each else samples
    can_heat = continuation == 1 or _has_temperature(solver)
    for name, value, good, allowed in (
        ("starts", starts, starts >= 1, "at least one start is needed"),
        ("eta", eta, eta >= 1, "it must be at least 1"),
        ("stages", stages, stages is None or stages >= 1, "at least one stage is needed"),
        ("continuation", continuation, 1 <= continuation < math.inf,
         "it must be at least 1: temperatures fall towards the target"),
        ("continuation", continuation, can_heat, f"{solver.name} has no temperature (`tau`, or `scales`) to lower"),
        ("comparing", compare, 0 < compare < 1, "it must be a share between 0 and 1"),
        ("settling", settling, 0 <= settling < 1, "it must be a share of at least 0 and below 1"),
        (word, budget, budget is not None and other is None, f"{solver.name} is given a budget of {word}, and no other"),
    ):
        if not good:
            raise InvalidConfig(message(f"search.{name}", value, allowed, f"Set {name} accordingly"))
    if stages is None:
        stages = 1 if eta == 1 else 1 + math.ceil(math.log(starts) / math.log(eta) - 1e-9)
    counts = [max(1, math.ceil(starts / eta**r)) for r in range(stages)]
    # only where some are given up, or one of several is chosen in the end
    cuts = [n > m for n, m in zip(counts, [*counts[1:], 1], strict=True)]
    own = [int(budget / stages / n) for n in counts]
    spent = [max(int(compare * s), least) if each and cut else 0 for s, cut in zip(own, cuts, strict=True)]
    lengths = [(s - c) // max(each, 1) for s, c in zip(own, spent, strict=True)]
    if min(lengths) < 1:
        one = max(math.ceil(each / (1 - compare)), each + least) + 1 if each else 1
        needed = stages * max(n * (one if cut or not each else each) for n, cut in zip(counts, cuts, strict=True))
        raise InvalidConfig(
            message(f"search.{word}", budget, f"{starts} starts in {stages} stages need at least {needed}",
                    f"Raise {word}, or lower starts")
        )  # fmt: skip
    plan = []
    for r in range(stages):
        heat = continuation ** (1 - r / (stages - 1)) if stages > 1 else 1.0
        pieces = _pieces(lengths[r])
        chunk = lengths[r] // pieces
        settle = int(min(settling * spent[r], spent[r] - least) / each) // chunk * chunk if spent[r] else 0
        plan.append(Stage(counts[r], pieces * chunk, heat, settle, spent[r] - settle * each, chunk))
    return tuple(plan), spent


def _by_model(problem: BilevelProblem, plan: tuple[Stage, ...], by: By, least: int) -> tuple[Stage, ...]:
    """The stages, with those marked whose starts are compared by a learnt model."""
    if by not in ("auto", "model", "follower"):
        raise InvalidConfig(message("search.by", repr(by), "it must be 'auto', 'model' or 'follower'", "Choose one"))
    if by == "model" and (problem.moves_transitions or problem.moves_start):
        raise InvalidConfig(
            message("search.by", "'model' on a problem whose transitions or start depend on x",
                    "one learnt model must serve every x", "Compare by 'follower'")
        )  # fmt: skip
    seen, marked = 0, []
    for stage in plan:
        share = stage.measure // 2 if least else stage.measure  # the rest measures f, where the model can't
        seen += stage.starts * share
        enough = share >= max(least, 2) and (by == "model" or (by == "auto" and learnt_model.fits(problem, seen)))
        marked.append(dataclasses.replace(stage, model=enough))
    return tuple(marked)


def _pieces(length: int) -> int:
    """Into how many equal chunks a stage is cut: as little as possible is left over."""
    return min(range(min(CHUNKS[0], length), min(CHUNKS[1], length) + 1), key=lambda n: (length % n, -n))


def _heated(solver: Solver, heat: float) -> Solver:
    """The solver at a higher temperature: its `tau`, or that of its five sequences."""
    if heat == 1.0:
        return solver
    field = "tau" if hasattr(solver, "tau") else "scales.tau.initial"
    value = solver.tau if hasattr(solver, "tau") else solver.scales.tau.initial  # type: ignore[attr-defined]
    return tuning.with_options(solver, {field: value * heat})


def _has_temperature(solver: Solver) -> bool:
    return hasattr(solver, "tau") or hasattr(solver, "scales")


def _temperature(solver: Solver, k: int) -> float:
    """The solver's own at iteration k."""
    return float(solver.tau if hasattr(solver, "tau") else solver.scales.at(k).tau)  # type: ignore[attr-defined]
