"""What a solver is, and the one loop that drives them all: scan, vmap over runs and settings, records, checkpoints.

A solver is frozen hyper-parameters with `init` and `step`. `solve` owns everything else.
"""

from __future__ import annotations

import abc
import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from bilevel_rl import metrics as M
from bilevel_rl import records
from bilevel_rl.errors import InvalidConfig, InvalidProblem, NonFiniteState, RunNotFound, message
from bilevel_rl.finite import checks, oracles, requirements
from bilevel_rl.finite.closed_form import ClosedFormProblem
from bilevel_rl.finite.model import planning
from bilevel_rl.finite.problem import BilevelProblem
from bilevel_rl.schedules import PowerDecay, TimeScales

# The schedules know no array library; here JAX learns that their numbers may be traced and batched.
jax.tree_util.register_dataclass(PowerDecay, ["initial", "power", "floor"], [])
jax.tree_util.register_dataclass(TimeScales, ["zeta", "alpha", "beta", "w", "tau"], [])

OK, NON_FINITE = 0, 1
NOISE_BYTES = 2**24  # ours: random numbers are made in blocks of at most this size, which stays in cache
BATCH_BYTES, MATRICES = 2**28, 8  # ours: room for the dense S x S matrices of a batch of runs, and how many a run has
CHECKPOINT_SECONDS = 5.0  # ours: at most this much work is lost to a kill
SCENE_STATES = 2500  # ours: larger grids are not drawn


class State(eqx.Module):
    """What a step carries. Subclasses add followers, critics and chains.

    Attributes:
        x: [d] the upper variable.
        samples: environment transitions used so far.
    """

    x: Float[Array, " d"]
    samples: Int[Array, ""]


class Solver(eqx.Module):
    """Frozen hyper-parameters, a pure `init` and a pure `step`."""

    name: ClassVar[str] = "solver"
    references: ClassVar[tuple[str, ...]] = ()
    closed_form: ClassVar[bool] = False  # whether it needs the hyper-objective and x's set only, not an MDP

    @property
    def requires(self) -> tuple[str, ...]:
        """What a problem must offer: names of `bilevel_rl.finite.requirements.REQUIREMENTS`; see `check_fits`."""
        return ()

    @abc.abstractmethod
    def draws(self, problem: BilevelProblem) -> int:
        """How many uniform random numbers one step consumes."""

    @abc.abstractmethod
    def init(self, problem: BilevelProblem, x0: Float[Array, " d"], key: Array) -> State:
        """The first state."""

    @abc.abstractmethod
    def step(self, problem: BilevelProblem, state: State, k: Int[Array, ""], noise: Float[Array, " M"]) -> State:
        """One iteration. `noise` holds `draws(problem)` uniform numbers in [0, 1)."""

    def policies(self, problem: BilevelProblem, state: State, k) -> tuple[Array, Array] | None:
        """The tracked followers (pi, pi_l), each [S, A], for diagnosis; None for solvers that track none."""
        return None

    def tracked(self, problem: BilevelProblem, state: State, k) -> Array | None:
        """The tracked answer to x, pi [S, A]; None for solvers that track none."""
        pair = self.policies(problem, state, k)
        return None if pair is None else pair[0]

    def check(self, problem: BilevelProblem) -> None:
        """Raise `InvalidConfig` or `InvalidProblem` when the settings are wrong on this problem."""


def check_fits(solver: Solver, problem: BilevelProblem) -> None:
    """Check a solver's settings, and that the problem offers what it `requires`.

    Raises:
        InvalidConfig: a setting that is not allowed.
        InvalidProblem: something is missing; the message names it, and the library's solvers that do without.
    """
    if isinstance(problem, ClosedFormProblem) and not solver.closed_form:
        able = sorted(name for name, kind in known_solvers().items() if kind.closed_form)
        raise InvalidProblem(
            message(f"{solver.name} on {problem.name}", "a problem without a table of states and actions",
                    f"{solver.name} needs a finite MDP", f"Take {' or '.join(able) or 'oracles.brute_force'}")
        )  # fmt: skip
    solver.check(problem)
    missing = requirements.unmet(solver.requires, problem)
    if missing:
        able = [name for name, kind in known_solvers().items() if not requirements.unmet(kind().requires, problem)]
        raise InvalidProblem(
            message(f"{solver.name} on {problem.name}",
                    " and ".join(requirements.REQUIREMENTS[name].missing for name in missing),
                    f"{solver.name} needs: {', '.join(solver.requires)}",
                    f"Take one of {', '.join(sorted(able))}" if able else "Take a solver without this requirement")
        )  # fmt: skip


def known_solvers() -> dict[str, type[Solver]]:
    """Name -> class of every solver of this library that has been imported."""
    found: dict[str, type[Solver]] = {}
    rest = list(Solver.__subclasses__())
    while rest:
        kind = rest.pop()
        rest += kind.__subclasses__()
        if kind.__module__.startswith("bilevel_rl.finite.solvers."):
            found[kind.name] = kind
    return found


@dataclasses.dataclass(frozen=True)
class Trace:
    """What `solve` measured.

    Attributes:
        metrics: key -> [runs, records]; keys as in `bilevel_rl.metrics`.
        x: [runs, records, d].
        status: [runs] 0 ok, 1 stopped by a non-finite value.
        messages: one sentence for each run that stopped.
        state: final states, batched over runs.
        scene: arrays over records for drawing run 0; empty when the problem has no layout.
        seconds: wall time of stepping, without oracles and files; the first interval includes compilation.
    """

    metrics: dict[str, np.ndarray]
    x: np.ndarray
    status: np.ndarray
    messages: tuple[str, ...]
    state: State | None
    scene: dict[str, np.ndarray]
    seconds: float

    def __getitem__(self, key: str) -> np.ndarray:
        return self.metrics[key]

    def raise_if_failed(self) -> Trace:
        """Return self, or raise `NonFiniteState` with the first run's diagnosis."""
        if self.messages:
            raise NonFiniteState(self.messages[0])
        return self


def solve(
    problem: BilevelProblem,
    solver: Solver | Sequence[Solver],
    *,
    iterations: int,
    runs: int = 1,
    seed: int = 0,
    record_every: int | None = None,
    x0: Any = None,
    tau: float | None = None,
    optimum: oracles.Optimum | None = None,
    evaluate: bool = True,
    folder: str | Path | None = None,
    resume: bool = False,
    config: dict[str, Any] | None = None,
    on_record: Callable[[int, dict[str, np.ndarray]], None] | None = None,
) -> Trace:
    """Run a solver on a problem: many seeds, and many settings, in one compiled program.

    Args:
        problem: what to solve.
        solver: one solver, or several of the same class that differ in numbers only (a sweep). With H solvers the
            runs are ordered setting by setting: run h * runs + i is seed i of setting h.
        iterations: steps a run; rounded down to whole record intervals.
        runs: independent seeds a setting. Run i of seed s is the same whatever else is in the batch.
        seed: the one integer from which all randomness follows.
        record_every: iterations between records; by default a hundredth of the run.
        x0: [d] or [H * runs, d]; the problem's `x0` when None.
        tau: temperature at which results are graded; the problem's when None. 0 grades the unregularised problem.
        optimum: best known x and value; adds the metrics `gap` and `distance`.
        evaluate: grade with exact oracles at every record. Switch it off where S is too large for them.
        folder: a run folder to write records and checkpoints to.
        resume: go on from the folder's checkpoint, to the same bits as an uninterrupted run.
        config: what the run folder's `run.json` says about how to start this run again.
        on_record: called after every record with the iteration and the newest metrics [runs].

    Returns:
        Trace.

    Raises:
        InvalidProblem, InvalidConfig: before any work starts.
        RunNotFound: nothing to resume, or a checkpoint of another configuration.
        StorageFailed: the folder can't be written; the last good checkpoint stays.

    Example:
        >>> from bilevel_rl.finite.problems.goal_placement import GoalPlacement
        >>> from bilevel_rl.finite.solvers.exact_descent import ExactDescent
        >>> trace = solve(GoalPlacement(), ExactDescent(step_size=0.5), iterations=40)
        >>> bool(trace["objective"][0, -1] < -0.63)
        True
    """
    solvers = [solver] if isinstance(solver, Solver) else list(solver)
    checks.check_problem(problem, thorough=False)
    problem = jax.tree.map(jnp.asarray, problem)  # Python numbers too: traced, so that new values do not recompile
    every = _interval(iterations, record_every)
    count = iterations // every
    tau = problem.temperature() if tau is None else float(tau)
    grade = partial(_measure, tau=jnp.asarray(tau) if tau else 0, evaluate=evaluate,
                    optimum=None if optimum is None else (jnp.asarray(optimum.x), jnp.asarray(optimum.value)))  # fmt: skip
    for one in solvers:
        check_fits(one, problem)
    if runs < 1:
        raise InvalidConfig(message("solve.runs", runs, "at least one run is needed", "Set runs >= 1"))
    batch = len(solvers) * runs
    x = _starts(problem, x0, batch)
    stacked = _stack(solvers, runs)
    keys = jnp.tile(jax.vmap(partial(jax.random.fold_in, jax.random.key(seed)))(jnp.arange(runs)), len(solvers))
    states = _init(problem, stacked, x, keys)

    store = _Store(folder, resume, _fingerprint(problem, stacked, x, seed, every, tau), config, solvers[0], problem, seed)
    with store:
        done, log, states = store.load(states)
        seconds = 0.0
        if not done:
            log.add(grade(problem, stacked, states, jnp.array(0)), states, problem)
        for record in range(done, count):
            began = time.perf_counter()
            new, finite = _advance(problem, stacked, states, keys, jnp.array(record * every), every)
            finite = np.asarray(finite)
            seconds += time.perf_counter() - began
            for i in np.flatnonzero(~finite & (log.status == OK)):
                log.stop(int(i), _diagnose(problem, stacked, states, keys, record * every, every, int(i)))
            states = _keep(new, states, jnp.asarray(log.status == OK))
            k = (record + 1) * every
            values = grade(problem, stacked, states, jnp.array(k))
            log.add(values, states, problem)
            if on_record is not None:
                on_record(k, {key: series[-1] for key, series in log.metrics.items()})
            store.save(record + 1, log, states, last=record + 1 == count)
            if (log.status != OK).all():
                break
        store.finish(log)
    return log.trace(states, seconds)


# -- pieces of the loop ---------------------------------------------------------------------------------------------


def _interval(iterations: int, record_every: int | None) -> int:
    if iterations < 1 or (record_every is not None and not 1 <= record_every <= iterations):
        raise InvalidConfig(
            message("solve", f"iterations={iterations}, record_every={record_every}",
                    "1 <= record_every <= iterations is needed", "Ask for at least one iteration")
        )  # fmt: skip
    return record_every or max(1, iterations // 100)


def _starts(problem: BilevelProblem, x0: Any, batch: int) -> Array:
    x = jnp.asarray(problem.x0 if x0 is None else x0, float)
    d = problem.x0.shape[0]
    if x.shape not in {(d,), (batch, d)}:
        raise InvalidConfig(
            message("solve.x0", f"shape {x.shape}", f"it must be [{d}] or [{batch}, {d}]", "Give one x, or one a run")
        )
    x = jnp.broadcast_to(x, (batch, d))
    if not bool(jnp.all(jnp.isfinite(x))) or bool(jnp.any(jnp.abs(jax.vmap(problem.project)(x) - x) > 1e-9)):
        raise InvalidConfig(
            message("solve.x0", x[0].tolist(), "x must start inside its feasible set", "Use problem.project(x) first")
        )
    return x


def _stack(solvers: list[Solver], runs: int) -> Solver:
    """One solver whose numbers carry a leading axis [H * runs]."""
    static = {jax.tree.structure(s) for s in solvers}
    if len(static) != 1:
        raise InvalidConfig(
            message("solve.solver", f"{len(static)} different structures", "settings of one sweep may differ in numbers "
                    "only, not in options that change the program", "Call solve once for each structure")
        )  # fmt: skip
    return jax.tree.map(lambda *v: jnp.repeat(jnp.stack([jnp.asarray(x, float) for x in v]), runs, axis=0), *solvers)


@eqx.filter_jit
def _init(problem, solver, x, keys):
    # 2**32 - 1 is a fold no iteration uses
    return jax.vmap(lambda s, x, key: s.init(problem, x, jax.random.fold_in(key, 2**32 - 1)))(solver, x, keys)


@eqx.filter_jit
def _advance(problem, solver, states, keys, k0, length: int):
    """`length` iterations of every run; also whether each run is still finite."""
    n = solver.draws(problem)
    batch = keys.shape[0]
    block = max(b for b in range(1, length + 1) if length % b == 0 and (b == 1 or b * max(n, 1) * batch * 8 <= NOISE_BYTES))

    def run(solver, state, key):
        def some(state, first):
            ks = first + jnp.arange(block)
            # a key for each iteration: the stream does not depend on blocks, records or the batch
            noise = jax.vmap(lambda k: jax.random.uniform(jax.random.fold_in(key, k), (n,)))(ks)
            return jax.lax.scan(lambda s, z: (solver.step(problem, s, *z), None), state, (ks, noise))

        state, _ = jax.lax.scan(some, state, k0 + block * jnp.arange(length // block))
        return state, _finite(state)

    if batch > 1 and n == 0:  # a solver that uses the model factorises matrices
        return _over_runs(lambda each: run(*each), (solver, states, keys), problem)
    if batch > 1:
        return jax.vmap(run)(solver, states, keys)
    # one run alone: the same operations without a batch axis, which costs a third of a step's time
    alone = jax.tree.map(lambda v: v[0], (solver, states, keys))
    return jax.tree.map(lambda v: v[None], run(*alone))


def _over_runs(f: Callable, trees: Any, problem) -> Any:
    """`vmap`, in chunks where the dense matrices of all runs at once would not fit."""
    S, batch = 1 if problem.mdp is None else problem.mdp.n_states, jax.tree.leaves(trees)[0].shape[0]
    chunk = max(1, BATCH_BYTES // (MATRICES * 8 * min(S, planning.DENSE_LIMIT) ** 2))
    return jax.vmap(f)(trees) if batch <= chunk else jax.lax.map(f, trees, batch_size=chunk)


def _finite(state: State) -> Array:
    leaves = [v for v in jax.tree.leaves(state) if jnp.issubdtype(v.dtype, jnp.floating)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(v)) for v in leaves]))


@jax.jit
def _keep(new: State, old: State, alive: Array) -> State:
    return jax.tree.map(lambda a, b: jnp.where(alive.reshape(alive.shape + (1,) * (a.ndim - 1)), a, b), new, old)


def _diagnose(problem, solver, states, keys, k0: int, length: int, i: int) -> str:
    """Run the fatal interval again, one iteration at a time, and name what broke first."""
    pick = partial(jax.tree.map, lambda v: v[i : i + 1])
    one, state, key = pick(solver), pick(states), keys[i : i + 1]
    for k in range(k0, k0 + length):
        new, finite = _advance(problem, one, state, key, jnp.array(k), 1)
        if not bool(finite[0]):
            for path, leaf in jax.tree_util.tree_leaves_with_path(new):
                bad = np.argwhere(~np.isfinite(np.asarray(leaf[0], float)))
                if bad.size:
                    name = jax.tree_util.keystr(path).lstrip(".")
                    where = f"{name}{bad[0].tolist()}" if bad.shape[1] else name
                    return message(
                        f"run {i}, iteration {k}", f"{np.asarray(leaf[0])[tuple(bad[0])]} in {where}",
                        "every quantity must stay finite; the state before it is kept",
                        "Lower the step sizes (zeta, alpha, beta) or raise w and tau; `bilevel-rl plan` proposes values",
                    )  # fmt: skip
        state = new
    return f"run {i} became non-finite between iterations {k0} and {k0 + length}"


@eqx.filter_jit
def _measure(problem, solver, states, k, *, tau, evaluate: bool, optimum) -> dict[str, Array]:
    """Every metric of every run, by oracles; [runs] each, and scene arrays of run 0 under their own names."""

    def one(solver, state):
        values = {M.SAMPLES.key: state.samples, M.ITERATION.key: k}
        if isinstance(getattr(solver, "scales", None), TimeScales):
            values |= solver.scales.at(k)._asdict()
        if not evaluate:
            return values
        # one solution of the lower level serves the hyper-objective, its gradient, the gap and the scene
        (phi, plan), exact = jax.value_and_grad(_answered, argnums=1, has_aux=True)(problem, state.x, tau)
        values |= {M.OBJECTIVE.key: phi, M.GRADIENT_NORM.key: jnp.linalg.norm(exact)}
        if optimum is not None:
            best_x, best = optimum
            values |= {M.GAP.key: phi - best, M.DISTANCE.key: jnp.linalg.norm(state.x - best_x)}
        followers = solver.policies(problem, state, k)
        if followers is not None:
            pi, pi_l = followers
            mdp = problem.transitions(state.x)
            V = planning.policy_value(mdp, problem.reward(state.x), pi, tau)
            now = solver.scales.at(k)
            mean = oracles.penalty_estimate(problem, state.x, pi, pi_l, now.w, now.tau)
            values[M.GRADIENT_ERROR.key] = jnp.linalg.norm(mean - exact)
            values[M.LOWER_GAP.key] = jnp.dot(mdp.start, plan.V - V)
            values[M.POLICY_GRADIENT.key] = jnp.sum(oracles.policy_gradient(problem, state.x, pi, tau, V) ** 2)
        return values | ({"best": plan.pi} if drawn else {})

    drawn = evaluate and problem.layout() is not None and problem.mdp.n_states <= SCENE_STATES
    values = _over_runs(lambda each: one(*each), (solver, states), problem)
    if drawn:
        x, pi = states.x[0], values.pop("best")[0]
        marker = problem.marker(x)
        values |= {
            "scene/policy": pi,
            "scene/visitation": planning.visitation(problem.transitions(x), pi),
            "scene/reward": jnp.max(problem.reward(x), -1),
            "scene/marker": jnp.full(2, jnp.nan) if marker is None else marker,
        }
    return values


def _answered(problem, x, tau) -> tuple[Array, planning.Plan | None]:
    """The hyper-objective, and the lower level's optimum with it."""
    plan = None if isinstance(problem, ClosedFormProblem) else oracles.lower_optimum(problem, x, tau)
    return oracles.hyper_objective(problem, x, tau, plan), plan


class _Log:
    """The growing trace."""

    def __init__(self, batch: int):
        self.metrics: dict[str, list[np.ndarray]] = {}
        self.x: list[np.ndarray] = []
        self.scene: dict[str, list[np.ndarray]] = {}
        self.status = np.zeros(batch, int)
        self.messages: list[str] = []

    def add(self, values: dict[str, Array], states: State, problem: BilevelProblem) -> None:
        for key, value in jax.device_get(values).items():
            series = self.scene if key.startswith("scene/") else self.metrics
            series.setdefault(key.removeprefix("scene/"), []).append(np.asarray(value))
        self.x.append(np.asarray(states.x))

    def stop(self, run: int, text: str) -> None:
        self.status[run] = NON_FINITE
        self.messages.append(text)

    def trace(self, states: State | None, seconds: float) -> Trace:
        return Trace(
            metrics={key: np.stack(series, axis=1) for key, series in self.metrics.items()},
            x=np.stack(self.x, axis=1), status=self.status, messages=tuple(self.messages), state=states,
            scene={key: np.stack(series) for key, series in self.scene.items()}, seconds=seconds,
        )  # fmt: skip

    def arrays(self) -> dict[str, np.ndarray]:
        trace = self.trace(None, 0.0)
        return trace.metrics | {"x": trace.x, "status": trace.status}


def _fingerprint(*parts: Any) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(str(jax.tree.structure(part)).encode())
        for leaf in jax.tree.leaves(part):
            digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


class _Store(records.Held):
    """The run folder of a solve: does nothing when there is no folder."""

    def __init__(self, folder, resume, fingerprint, config, solver, problem, seed):
        super().__init__(folder)
        self.resume, self.fingerprint, self.saved = resume, fingerprint, 0.0
        self.header = {
            "format": records.FORMAT, "kind": "finite", "name": (config or {}).get("label", solver.name),
            "problem": problem.name, "seed": seed, "config": config or {}, "references": [*solver.references],
            "x_names": [*problem.x_names],
        }  # fmt: skip
        layout = problem.layout()
        self.layout = {} if layout is None else {k: np.asarray(v) for k, v in dataclasses.asdict(layout).items()}

    def __enter__(self):
        if self.folder is None:
            return self
        if not self.resume and (self.folder / "run.json").exists():
            raise InvalidConfig(
                message(str(self.folder), "a folder that already holds a run", "a new run needs a folder of its own",
                        "Choose another --out, or continue with `bilevel-rl resume`")
            )  # fmt: skip
        if self.resume and not (self.folder / "run.json").exists():
            raise RunNotFound(
                message(str(self.folder), "no run.json", "resume needs a run folder", "Start it with `bilevel-rl run`")
            )
        self.hold()
        return self

    def load(self, states: State) -> tuple[int, _Log, State]:
        log = _Log(states.samples.shape[0])
        if self.folder is None:
            return 0, log, states
        path, self.began = self.folder / "checkpoint.npz", True
        records.write_json(self.folder / "status.json", {"state": "running", "message": ""})
        if not self.resume or not path.exists():
            if not self.resume:
                records.write_header(self.folder, self.header | {"provenance": records.provenance()})
            return 0, log, states
        arrays = records.read_arrays(path)
        meta = json.loads(str(arrays.pop("meta")))
        if meta["fingerprint"] != self.fingerprint:
            raise RunNotFound(
                message(str(path), "a checkpoint of another problem, solver, seed or schedule",
                        "a run goes on only with the configuration it was started with",
                        "Start a new run in another folder")
            )  # fmt: skip
        leaves, structure = jax.tree.flatten(states)
        states = jax.tree.unflatten(structure, [jnp.asarray(arrays[f"state/{i}"]) for i in range(len(leaves))])
        for group, series in (("metrics", log.metrics), ("scene", log.scene)):
            for key, value in arrays.items():
                if key.startswith(f"{group}/"):
                    axis = 1 if group == "metrics" else 0
                    series[key.removeprefix(f"{group}/")] = [np.take(value, i, axis) for i in range(value.shape[axis])]
        log.x = list(np.moveaxis(arrays["x"], 1, 0))
        log.status, log.messages = arrays["status"].copy(), meta["messages"]
        return meta["records"], log, states

    def save(self, done: int, log: _Log, states: State, last: bool) -> None:
        if self.folder is None or not (last or self.signal.asked or time.monotonic() - self.saved > CHECKPOINT_SECONDS):
            return
        trace = log.trace(states, 0.0)
        arrays = {f"state/{i}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(states))}
        arrays |= {f"metrics/{key}": value for key, value in trace.metrics.items()}
        arrays |= {f"scene/{key}": value for key, value in trace.scene.items()}
        meta = {"fingerprint": self.fingerprint, "records": done, "messages": list(log.messages)}
        arrays |= {"x": trace.x, "status": trace.status, "meta": np.array(json.dumps(meta))}
        records.write_arrays(self.folder / "checkpoint.npz", arrays)
        records.write_arrays(self.folder / "metrics.npz", log.arrays())
        self.saved = time.monotonic()
        if not last:
            self.signal.check()

    def finish(self, log: _Log) -> None:
        if self.folder is None:
            return
        if log.scene:
            trace = log.trace(None, 0.0)
            records.write_arrays(self.folder / "scene.npz", trace.scene | self.layout)
        records.write_json(
            self.folder / "status.json",
            {"state": "failed" if (log.status != OK).all() else "finished", "message": " ".join(log.messages)},
        )
