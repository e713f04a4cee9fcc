"""Start a run and write its folder: sample budget, best known value, configuration, progress, TensorBoard."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bilevel_rl import records
from bilevel_rl.errors import BilevelError, InvalidConfig, message, typed
from bilevel_rl.launch import options, sources
from bilevel_rl.launch.load import Target, find_problem, find_solver, from_config
from bilevel_rl.loop import Optimum, Trace, noise, solve
from bilevel_rl.loop.meter import samples_per_iteration
from bilevel_rl.loop.run_folder import header
from bilevel_rl.loop.solver import check_fits
from bilevel_rl.schedules import Unstated

EXACT_STATES = 200  # ours: above this, the exact answer would outlast the run it stands beside
LENGTH = 128_000  # ours: transitions, at which the recommended solver's defaults were chosen
LEAST_LENGTH = 100  # ours: iterations, however many transitions each draws
EXACT_LENGTH = 100  # ours: iterations of solvers that use the model, as in the table of all methods
EXACT_ITERATIONS = 60  # ours: quasi-Newton from x0 on a small model ends long before


@dataclasses.dataclass(frozen=True)
class RunAsk:
    """What a run is asked to be.

    Attributes:
        problem, solver: what makes them.
        problem_options, solver_options: nested plain values; what is absent keeps its default.
        iterations: steps a run; or
        samples: transitions a run, turned into iterations.
        runs: independent seeds.
        seed: the one integer.
        label: name of the method in tables; the solver's when empty.
        records: how many times the run is graded.
        tau: temperature of grading; the problem's when None.
        command: the command that makes this run, for captions.
        search: whether to look for the best known value by brute force where that is possible.
    """

    problem: Target
    solver: Target
    problem_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    solver_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    iterations: int | None = None
    samples: int | None = None
    runs: int = 1
    seed: int = 0
    label: str = ""
    records: int = 100
    tau: float | None = None
    command: str = ""
    search: bool = True


@dataclasses.dataclass(frozen=True)
class Ready:
    """A run that can start: objects, iterations and the configuration its folder will hold."""

    problem: Any
    solver: Any
    optimum: Optimum | None
    config: dict[str, Any]

    def start(self, folder: Path | None, resume: bool = False, on_record: Callable | None = None) -> Trace:
        """Run it."""
        c = self.config
        return solve(
            self.problem,
            self.solver,
            iterations=c["iterations"],
            runs=c["runs"],
            seed=c["seed"],
            record_every=c["record_every"],
            tau=c["tau"],
            optimum=self.optimum,
            evaluate=c["evaluate"],
            folder=folder,
            resume=resume,
            config=c,
            on_record=on_record,
        )


def prepare(ask: RunAsk, optimum: Optimum | None = None) -> Ready:
    """Build the objects, check the numbers, find the best known value.

    Raises:
        InvalidConfig, InvalidProblem: before any work starts.
    """
    if ask.runs < 1:
        raise InvalidConfig(
            message("bilevel-rl run --runs", ask.runs, "at least one run is needed", "Set --runs 1")
        )
    problem_options, solver_options = complete(ask.problem, ask.problem_options), complete(ask.solver, ask.solver_options)
    problem = ask.problem.build(problem_options)
    problem.check(thorough=False)
    solver = ask.solver.build(solver_options)
    check_fits(solver, problem)
    solver = solver.on(problem)
    iterations = iterations_of(ask, problem, solver)
    every = max(1, iterations // max(1, ask.records))
    iterations -= iterations % every
    tau = problem.temperature() if ask.tau is None else ask.tau
    if optimum is None and ask.search:
        optimum = problem.best_known(tau)
    config = {
        "problem": ask.problem.name,
        "problem_options": problem_options,
        "solver": ask.solver.name,
        "solver_options": stated(solver_options, problem),
        "label": ask.label or getattr(solver, "name", ask.solver.name),
        "iterations": iterations,
        "samples": ask.samples,
        "record_every": every,
        "runs": ask.runs,
        "seed": ask.seed,
        "tau": tau,
        "evaluate": problem.graded(),
        "optimum": None if optimum is None else dataclasses.asdict(optimum),
        "command": ask.command,
        "exact": ask.search,
    }
    return Ready(problem, solver, optimum, config)


def start(
    ask: RunAsk, folder: Path | None, optimum: Optimum | None = None, on_record: Callable | None = None
) -> Trace:
    """`prepare`, write the user's own source beside the run, and run."""
    ready = prepare(ask, optimum)
    if folder is not None:
        keep_sources(ask, ready.config, folder)
    return ready.start(folder, on_record=on_record)


def lay(ready: Ready, folder: Path) -> None:
    """Write the folder of a run that nobody has begun, so that `resume` there begins it, on whatever machine."""
    described = header(ready.problem, ready.solver, ready.config["seed"], ready.config)
    records.write_json(folder / "status.json", {"state": "stopped", "message": "not begun"})
    records.write_header(folder, described | {"provenance": records.provenance(ready.config["command"] or None)})


def check_same(folder: Path, ask: RunAsk) -> None:
    """Whether the run of a folder is the one that is asked for.

    Raises:
        InvalidConfig: it is another, naming what differs first.
        RunNotFound: the folder's run can't be read.
    """
    theirs = records.read_header(folder)["config"]
    ours = records.plain(prepare(dataclasses.replace(ask, search=False)).config)
    ours |= {f"{word}_source": f"{word}.py" for word in sources.WORDS if getattr(ask, word).source is not None}
    for word in sources.WORDS:  # of a file, its attribute: the file itself is compared below
        ours[word], theirs[word] = (str(one[word]).rpartition(":")[2] for one in (ours, theirs))
    same = [key for key in ours.keys() | theirs.keys() if key not in UNASKED]
    odd = sorted(key for key in same if ours.get(key) != theirs.get(key))
    odd += [
        f"{word}.py" for word in sources.WORDS if (own := getattr(ask, word).source) is not None
        and (not (folder / f"{word}.py").exists() or (folder / f"{word}.py").read_bytes() != own.read_bytes())
    ]  # fmt: skip
    if odd:
        key = odd[0]
        what = f"{key}={theirs.get(key)!r} where {ours.get(key)!r} is asked for" if key in same else f"another {key}"
        raise InvalidConfig(
            message(str(folder), f"a run with {what}", "a folder is gone on with by the run that it holds",
                    f"Choose another --out, or go on with the folder as it is: `{typed('resume', folder)}`")
        )  # fmt: skip


UNASKED = ("command", "optimum", "exact", "evaluate", "extended_from")  # of a configuration: no number depends on it


def check_free(folder: Path) -> None:
    """Raise `InvalidConfig` where a run lives already."""
    if (folder / "run.json").exists():
        raise InvalidConfig(
            message(str(folder), "a folder that already holds a run", "a new run needs a folder of its own",
                    f"Choose another --out, or continue with `{typed('resume', folder)}`")
        )  # fmt: skip


def keep_sources(ask: RunAsk, config: dict[str, Any], folder: Path) -> None:
    """Copy a user's own files into the run folder, so that it can be rebuilt without them."""
    check_free(folder)
    for word, target in (("problem", ask.problem), ("solver", ask.solver)):
        if target.source is not None:
            config[f"{word}_source"] = sources.keep(target.source, folder, word)


def again(folder: Path) -> tuple[Ready, RunAsk]:
    """A run folder, ready to go on or to start anew.

    Raises:
        RunNotFound: the folder does not hold a run that can be rebuilt.
    """
    header = records.read_header(folder)
    if header["kind"] == "llm":
        raise InvalidConfig(
            message(
                str(folder),
                f"a run of kind {header['kind']!r}",
                "this verb is not for language models",
                "Use `bilevel-rl llm resume`",
            )
        )
    config = header["config"]
    problem_target, problem, solver_target, solver = from_config(folder, config)
    found = config.get("optimum")
    optimum = (
        None
        if found is None
        else Optimum(np.asarray(found["x"]), found["value"], found["grid_value"])
    )
    ask = RunAsk(
        problem_target,
        solver_target,
        config["problem_options"],
        config["solver_options"],
        config["iterations"],
        None,
        config["runs"],
        config["seed"],
        config["label"],
        tau=config["tau"],
    )
    return Ready(problem, solver, optimum, config), ask


def complete(target: Target, given: Mapping[str, Any]) -> dict[str, Any]:
    """Every option with its value, so that a later default can't change an old run."""
    if target.make is None:
        return {}
    kind = options.as_dataclass("options", target.options)
    filled = options.values(
        kind(**{o.name: _nested(o, given[o.name]) for o in target.options if o.name in given})
    )
    return filled


def stated(values: Mapping[str, Any], problem: Any) -> dict[str, Any]:
    """Options with the numbers that a solver takes from the problem in place of its defaults, as `Solver.on` does."""
    tau = float(problem.follower_temperature())

    def of(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: of(inner) for name, inner in value.items()}
        return tau if isinstance(value, Unstated) else value

    return {name: of(value) for name, value in values.items()}


def _nested(option: options.Option, value: Any) -> Any:
    if not option.nested:
        return value
    kind = options.as_dataclass(option.name, option.nested)
    return kind(**{o.name: _nested(o, value[o.name]) for o in option.nested if o.name in value})


def iterations_of(ask: RunAsk, problem: Any, solver: Any) -> int:
    """The number of iterations; a sample budget is divided by what an iteration uses.

    Raises:
        InvalidConfig: neither or both were given, or the budget is below one iteration.
    """
    if ask.iterations is None and ask.samples is None:
        raise InvalidConfig(
            message("bilevel-rl run", "no length", "a run ends after --samples or --iterations",
                    _proposal(ask, problem, solver))
        )  # fmt: skip
    if ask.iterations is not None and ask.samples is not None:
        raise InvalidConfig(
            message(
                "bilevel-rl run",
                f"--iterations {ask.iterations} and --samples {ask.samples}",
                "a run has one length",
                "Give exactly one of them",
            )
        )
    if ask.iterations is not None:
        if ask.iterations < 1:
            raise InvalidConfig(
                message(
                    "bilevel-rl run --iterations",
                    ask.iterations,
                    "at least one iteration is needed",
                    "Raise it",
                )
            )
        return ask.iterations
    each = samples_per_iteration(problem, solver)
    if not each:
        raise InvalidConfig(
            message(
                "bilevel-rl run --samples",
                f"{ask.samples} for {solver.name}, which uses the model and no samples",
                "such a solver is run by --iterations",
                "Give --iterations instead",
            )
        )
    assert ask.samples is not None
    if ask.samples < each:
        raise InvalidConfig(
            message(
                "bilevel-rl run --samples",
                ask.samples,
                f"one iteration of {solver.name} uses {each} transitions",
                "Raise the budget, or lower the solver's chains or inner steps",
            )
        )
    return int(ask.samples // each)


def _proposal(ask: RunAsk, problem: Any, solver: Any) -> str:
    """A length to start with, as a command; and the command that looks at the problem before it proposes constants."""
    words = ask.problem.name, ask.solver.name
    asked, given = ask.command or typed("run", *words), options.kept(shlex.split(ask.command))
    each = samples_per_iteration(problem, solver)
    if not each:
        return f"Start with `{asked} --iterations {EXACT_LENGTH}`: {solver.name} uses the model and no samples"
    iterations = max(LENGTH // each, LEAST_LENGTH)
    return (
        f"Start with `{asked} --samples {iterations * each}`, {iterations:,} iterations of {each}; "
        f"`{typed('plan', *words, *given, '--iterations', iterations)}` measures which steps suit a run of that length"
    )


class Exact(NamedTuple):
    """An exact answer to print beside the sampled one.

    Attributes:
        label: of its column.
        x, value: the answer and its objective.
        how: where it comes from.
    """

    label: str
    x: np.ndarray
    value: float
    how: str


def exact_answer(ready: Ready) -> Exact | None:
    """What the model itself says, on small problems: brute force where it was searched, else descent from x0."""
    if ready.optimum is not None:
        return Exact("best known", np.asarray(ready.optimum.x), float(ready.optimum.value), "by brute force over x")
    mdp = getattr(ready.problem, "mdp", None)
    if mdp is None or mdp.n_states > EXACT_STATES or not ready.config.get("exact", True):
        return None
    if not noise.size(ready.solver.draws(ready.problem)):
        return None  # the answer is exact already
    from bilevel_rl.finite.solvers.exact_quasi_newton import ExactQuasiNewton

    tau = ready.config["tau"]
    try:
        solver = ExactQuasiNewton()
        check_fits(solver, ready.problem)
        trace = solve(ready.problem, solver, iterations=EXACT_ITERATIONS, record_every=EXACT_ITERATIONS, tau=tau)
    except BilevelError:  # not everything can be differentiated
        return None
    if trace.status[0] or "objective" not in trace.metrics:
        return None
    again = typed("run", ready.config["problem"], "exact_quasi_newton", "--iterations", EXACT_ITERATIONS)
    return Exact("exact", trace.x[0, -1], float(trace["objective"][0, -1]),
                 f"a local optimum by the model, from x0: `{again}`")


def named(problem: str, solver: str, **rest: Any) -> RunAsk:
    """A `RunAsk` by names."""
    target = find_problem(problem)
    return RunAsk(target, find_solver(solver, target), **rest)


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Options as JSON gives them back: tuples are lists."""
    return json.loads(json.dumps(values, default=str))


def finished(folder: Path) -> bool:
    """Whether a run folder says that its run is over."""
    return records.read_status(folder).get("state") == "finished"


def longer(folder: Path, samples: int | None, iterations: int | None) -> None:
    """Ask more of a run: its folder goes on to a larger budget with `resume`.

    The result has the bits of a run of that length from the start, graded at the same interval.

    Raises:
        InvalidConfig: the new length is not longer by a whole record.
    """
    ready, ask = again(folder)
    config = ready.config
    wanted = iterations_of(
        dataclasses.replace(ask, iterations=iterations, samples=samples), ready.problem, ready.solver
    )
    wanted -= wanted % config["record_every"]
    if wanted <= config["iterations"]:
        raise InvalidConfig(
            message(str(folder), f"a budget of {wanted:,} iterations", f"the run has {config['iterations']:,} already, "
                    f"and is graded every {config['record_every']:,}", "Ask for more, or start a new run")
        )  # fmt: skip
    header = records.read_header(folder)
    header["config"] |= {"iterations": wanted, "samples": samples, "extended_from": config["iterations"]}
    records.write_header(folder, {key: value for key, value in header.items() if key != "checksum"})
    records.write_json(folder / "status.json", {"state": "stopped", "message": ""})


def read_trace(folder: Path) -> Trace:
    """The trace of a finished run, from its folder."""
    run = records.Run.read(folder)
    metrics = {key: value for key, value in run.trace.items() if key not in ("x", "status")}
    status = run.trace["status"]
    said = run.status.get("message", "")
    return Trace(
        metrics=metrics, x=run.trace["x"], status=status, messages=(said,) if said else (), state=None,  # type: ignore[arg-type]
        scene={}, seconds=0.0, x_names=run.x_names,
    )  # fmt: skip


def within(trace_gap: np.ndarray, best: float, fraction: float = 0.05) -> np.ndarray:
    """Whether each run's gap is at most this fraction of the best value's size."""
    return np.asarray(trace_gap) <= fraction * abs(best)
