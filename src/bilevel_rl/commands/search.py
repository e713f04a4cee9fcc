"""`bilevel-rl search PROBLEM [SOLVER] --starts N`: many starts, the poor ones given up early, under one budget."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from bilevel_rl import records, signals
from bilevel_rl.commands import screen, words
from bilevel_rl.commands.run import _stem
from bilevel_rl.errors import InvalidConfig, RunNotFound, message, typed
from bilevel_rl.finite import multistart
from bilevel_rl.launch import RECOMMENDED, execute, load
from bilevel_rl.loop import search_folder
from bilevel_rl.machines import where
from bilevel_rl.machines.job import FOLDER, Job, carried_out

arg = tyro.conf.arg
USAGE = (
    "usage: bilevel-rl search PROBLEM [SOLVER] --starts N --samples TOTAL (or --iterations TOTAL) [--problem.* --solver.*]"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(where.Where):
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
    resume: Annotated[
        Literal["never", "auto"], arg(help="where --out holds this very search: an error (never), or gone on with (auto)")
    ] = "never"

    def chosen(self) -> dict[str, Any]:
        """What `multistart.search` is called with."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(Settings) if f.name not in UNASKED}


UNASKED = {"out", "resume", *where.OPTIONS}
ASK = "ask.json"  # in the folder of a search that is done elsewhere, until it has begun: what it is


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
    where.check("search", s)
    held = s.resume == "auto" and any((folder / name).exists() for name in (search_folder.HEADER, ASK))
    if held:
        _check_same(folder, asked, config)
    else:
        search_folder.check_free(folder)
        execute.keep_sources(execute.RunAsk(asked.problem, asked.solver), config, folder)
    if s.elsewhere:
        return _elsewhere(s, folder, config)
    if held and (folder / search_folder.HEADER).exists():
        return resume(folder)
    return _show(problem, solver, folder, config, resume=False)


def _check_same(folder: Path, asked: words.Read, config: dict[str, Any]) -> None:
    """Raise `InvalidConfig` unless the search of a folder is the one that is asked for."""
    theirs, ours = _asked(folder), records.plain(config)
    odd = [key for key in ("problem_options", "solver_options", "seed", "search") if theirs.get(key) != ours.get(key)]
    for word, target in (("problem", asked.problem), ("solver", asked.solver)):
        if target is None or str(theirs.get(word)).rpartition(":")[2] != target.name.rpartition(":")[2]:
            odd.append(word)
        elif target.source is not None:
            kept = folder / f"{word}.py"
            odd += [f"{word}.py"] if not kept.exists() or kept.read_bytes() != target.source.read_bytes() else []
    if odd:
        raise InvalidConfig(
            message(str(folder), f"a search with another {odd[0]}", "a folder is gone on with by the search that it holds",
                    f"Choose another --out, or go on with the folder as it is: `{typed('resume', folder)}`")
        )  # fmt: skip


def _asked(folder: Path) -> dict[str, Any]:
    """How the search of a folder was asked for, begun or not."""
    if (folder / search_folder.HEADER).exists():
        return search_folder.read_config(folder)
    return records.read_json(folder / ASK)


def _elsewhere(s: Settings, folder: Path, config: dict[str, Any]) -> int:
    """Have the search done on a machine of the cluster; its folder is filled as if it had been here."""
    if not (folder / ASK).exists():
        records.make_folder(folder)
        records.write_json(folder / ASK, config)
    job = Job(folder, ("bilevel_rl.commands.search", FOLDER), _over, folder.name)
    again = typed("resume", folder)
    with signals.hinted(again):
        where.do(s, [job], say=screen.say)
    where.done([job], again)
    best = records.Run.read(folder / "best").trace["objective"][0, -1]
    screen.say(f"best of {s.starts} starts: {best:.5g}   report: {typed('report', folder)}")
    return int(records.read_status(folder)["state"] == "failed")


def _over(folder: Path) -> bool:
    ended = (folder / "best" / "run.json").exists() and (folder / "status.json").exists()
    return ended and records.read_status(folder)["state"] in ("finished", "failed")


def fill(folder: Path) -> None:
    """Do the search that a folder asks for, or go on with it."""
    if _over(folder):
        return
    begun = (folder / search_folder.HEADER).exists()
    config = _asked(folder)
    _, problem, _, solver = load.from_config(folder, config | _length(config["search"]))
    multistart.search(problem, solver, **config["search"], folder=folder, resume=begun, config=config)


def resume(folder: Path) -> int:
    """Go on with the search of a folder; a finished one is left as it is."""
    if screen.read_status(folder).get("state") == "finished":
        print(f"{folder}: finished already; nothing to do")
        return 0
    config = search_folder.read_config(folder)
    asked, known = config["search"], {field.name for field in dataclasses.fields(Settings)} - UNASKED
    if asked.keys() != known:
        raise RunNotFound(
            message(str(folder / search_folder.HEADER), f"the settings {sorted(asked)}", f"they must be {sorted(known)}",
                    "Read it with the version that wrote it (provenance names it), or search again")
        )  # fmt: skip
    _, problem, _, solver = load.from_config(folder, config | _length(asked))
    return _show(problem, solver, folder, config, resume=True)


def _length(asked: dict[str, Any]) -> dict[str, Any]:
    """What the configuration of a run says and that of a search has elsewhere."""
    return {"iterations": asked["iterations"], "runs": asked["starts"]}


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
    print(f"run folders: {folder}/starts {folder}/best   report: {typed('report', folder)}")
    return int(not kept.any())


def _short(x) -> str:
    shown = ", ".join(f"{v:.4g}" for v in x[:6])
    return f"({shown}{', ...' if len(x) > 6 else ''})"


if __name__ == "__main__":
    sys.exit(carried_out(sys.argv[1:], fill))
