"""`bilevel-rl search PROBLEM [SOLVER] --starts N`: many starts, the poor ones given up early, under one budget."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from bilevel_rl.commands import screen, words
from bilevel_rl.commands.run import _stem
from bilevel_rl.errors import RunNotFound, message
from bilevel_rl.finite import multistart
from bilevel_rl.launch import RECOMMENDED, execute, load
from bilevel_rl.loop import search_folder

arg = tyro.conf.arg
USAGE = (
    "usage: bilevel-rl search PROBLEM [SOLVER] --starts N --samples TOTAL (or --iterations TOTAL) [--problem.* --solver.*]"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Best of many starts under one budget, by successive halving."""

    starts: Annotated[int, arg(help="starts: x0, the problem's own structured starts, then random ones")] = 64
    samples: Annotated[int | None, arg(help="transitions of all starts together, comparisons included")] = None
    iterations: Annotated[
        int | None, arg(help="iterations of all starts together, for solvers that use the model and no samples")
    ] = None  # fmt: skip
    eta: Annotated[int, arg(help="each stage keeps one start in eta; 1 keeps all")] = 4
    stages: Annotated[int | None, arg(help="rounds; by default until one start is left")] = None
    continuation: Annotated[float, arg(help="temperature of the first stage, as a multiple of the last one's")] = 1.0
    comparing: Annotated[float, arg(help="share of the samples that is spent on comparing starts")] = multistart.COMPARING
    by: Annotated[
        multistart.By,
        arg(help="compare by a model learnt from the samples of all starts, or along the follower that each tracks"),
    ] = "auto"
    settling: Annotated[
        float, arg(help="share of that in which followers go on learning at a held x, before f is measured")
    ] = multistart.SETTLING  # fmt: skip
    spread: Annotated[float, arg(help="standard deviation of random starts where x has no bounds")] = 1.0
    seed: Annotated[int, arg(help="the one integer from which all randomness follows")] = 0
    tau: Annotated[float | None, arg(help="temperature at which results are graded; the problem's own when absent")] = None
    out: Annotated[Path | None, arg(help="folder of the search; by default a new one below runs/")] = None

    def chosen(self) -> dict[str, Any]:
        """What `multistart.search` is called with."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "out"}


def main(argv: Sequence[str]) -> int:
    """Search, print the best of N beside the mean; return 1 when every start became non-finite."""
    asked = words.read("search", Settings, argv, USAGE, RECOMMENDED)
    if asked is None:
        return 0
    s, solver, problem = asked.settings, asked.make_solver(), asked.make_problem()
    assert asked.solver is not None
    problem.check(thorough=False)
    folder = s.out or screen.new_folder(Path("runs"), f"search-{_stem(asked.problem.name)}-{_stem(asked.solver.name)}")
    solver_options = execute.stated(execute.complete(asked.solver, asked.given_solver), problem)
    config = {
        "problem": asked.problem.name, "problem_options": execute.complete(asked.problem, asked.given_problem),
        "solver": asked.solver.name, "solver_options": solver_options,
        "seed": s.seed, "command": shlex.join(["bilevel-rl", "search", *argv]), "search": s.chosen(),
    }  # fmt: skip
    search_folder.check_free(folder)
    execute.keep_sources(execute.RunAsk(asked.problem, asked.solver), config, folder)
    return _show(problem, solver, folder, config, resume=False)


def resume(folder: Path) -> int:
    """Go on with the search of a folder; a finished one is left as it is."""
    if screen.read_status(folder).get("state") == "finished":
        print(f"{folder}: finished already; nothing to do")
        return 0
    config = search_folder.read_config(folder)
    asked, known = config["search"], {field.name for field in dataclasses.fields(Settings)} - {"out"}
    if asked.keys() != known:
        raise RunNotFound(
            message(str(folder / search_folder.HEADER), f"the settings {sorted(asked)}", f"they must be {sorted(known)}",
                    "Read it with the version that wrote it (provenance names it), or search again")
        )  # fmt: skip
    whole = config | {"iterations": asked["iterations"], "runs": asked["starts"]}
    _, problem, _, solver = load.from_config(folder, whole)
    return _show(problem, solver, folder, config, resume=True)


def _show(problem, solver, folder: Path, config: dict[str, Any], resume: bool) -> int:
    """Search with a progress bar and print what was found."""
    with contextlib.ExitStack() as stack:
        bar: list[Callable[[int], None]] = []

        def advance(done: int, total: int) -> None:
            if not bar:  # the total is known when the stages are
                bar.append(stack.enter_context(screen.progress(f"{solver.name}, iterations of all starts", total)))
            bar[0](done)

        found = multistart.search(
            problem, solver, **config["search"], folder=folder, resume=resume, config=config, on_progress=advance
        )
    values, kept = found.values, found.status == 0
    screen.show_rows(
        f"{solver.name} on {config['problem']}: {len(values)} starts, "
        + (f"{found.samples:,} transitions" if found.samples else "by the model"),
        ("", "objective", ""),
        [
            ("chosen", f"{found.value:.5g}", f"start {found.chosen}, x = {_short(found.x)}"),
            ("best of all starts", f"{values[kept].min() if kept.any() else float('nan'):.5g}", "by exact oracles"),
            ("mean over starts", f"{values[kept].mean() if kept.any() else float('nan'):.5g}",
             "each where it was given up"),
            ("first start alone", f"{values[0]:.5g}", "x0, where it was given up"),
        ],
    )  # fmt: skip
    rounds = [f"{t.starts} x {t.iterations} iterations at {t.heat:.3g} tau" for t in found.stages]
    print("stages: " + "; ".join(rounds))
    if not kept.all():
        print(f"stopped: {int((~kept).sum())} starts became non-finite and were given up")
    print(f"run folders: {folder}/starts {folder}/best   report: bilevel-rl report {screen.quoted(folder)}")
    return int(not kept.any())


def _short(x) -> str:
    shown = ", ".join(f"{v:.4g}" for v in x[:6])
    return f"({shown}{', ...' if len(x) > 6 else ''})"
