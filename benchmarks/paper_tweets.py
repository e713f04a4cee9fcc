"""Happy tweets as the paper has them: search, fresh seeds, controls, reasons. VADER is judge and gold score.

    bilevel-rl llm happy-tweets --paper                               the runs as one command, settings as chosen here
    python benchmarks/paper_tweets.py run --out FOLDER                the grammar; the next call goes on
    python benchmarks/paper_tweets.py run --out FOLDER --data DATA    real tweets
    python benchmarks/paper_tweets.py run --out FOLDER --trap         the grammar of `llm happy-tweets`, sarcasm and all
    python benchmarks/paper_tweets.py noise --out FOLDER              noise of the bracket (paper_tweets_reasons.py)
    python benchmarks/paper_tweets.py write --out FOLDER              benchmarks/results/paper_tweets.json from the rows,
                                                                      docs/assets/paper-tweets.svg
    python benchmarks/paper_tweets.py restore --out FOLDER            rows of the search from that file, to go on with it

A row is appended to `FOLDER/TASK.jsonl` when its run is done, and a call goes on where the last one stopped.
`--minutes` ends a call. The order is that of what matters most: `paired` and `partial_sgd`, their controls, the rest.

Every method gets the same number of settings, drawn by one Latin hypercube over its own constants (`RANGES`), then the same
number around the best of these (so that a choice at the edge of the first ranges is searched beyond), on four tuning
seeds, by the plain mean of the gold score on held-out prompts. Fresh seeds were never used before. On real tweets
the candidates are two of each method, the grammar's best with Adam for x and its best with plain steps. On the grammar with
the trap, whose runs cost four times as much, nothing is searched: the settings of `paired` and `partial_sgd` were found by
hand on seeds 0 to 3; `shared` and `tilted` have two candidates, Adam for x as in `llm happy-tweets`, and plain steps.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import paper_tweets_figure
import paper_tweets_reasons as reasons
import paper_tweets_tables
import torch
from scipy.stats import qmc

from bilevel_rl.experiments import happy_tweets
from bilevel_rl.experiments.paper_tweets import (
    BATCH,
    CHOSEN,
    COMMON,
    ENTRIES,
    LABELS,
    SHARPNESS,
    UPDATES,
    Setting,
    configuration,
    updates_of,
)
from bilevel_rl.llm.config import Config
from bilevel_rl.llm.evaluation import evaluate
from bilevel_rl.llm.tasks import paper_tweets
from bilevel_rl.llm.tasks.happy_tweets import from_grammar as trapped
from bilevel_rl.llm.trainer import BilevelTrainer
from bilevel_rl.records import hardware

TUNING, FRESH = range(4), range(100, 130)
FEWER = range(100, 115)  # fresh seeds of the methods that are not compared with the target
FIRST, SECOND = 6, 4  # settings of the two rounds
# Logarithmic ranges, the same for all methods; zeta's is that of the optimiser that is drawn with it.
RANGES = {
    "alpha": (5e-4, 8e-3),
    "w": (0.3, 6.0),
    "win_rate": (0.3, 6.0),
    "coupling": (0.2, 0.95),
    "fit": (20, 200),
}
ZETA = {"adam": (3e-4, 1.2e-2), "sgd_x": (0.01, 0.6)}
TILTED = (0.01, 0.5)  # the win rate's weight where it stands divided by tau instead of times w and by w
OWN = {
    "paired": ("alpha", "zeta", "w", "win_rate", "coupling"), "shared": ("alpha", "zeta", "w", "win_rate", "coupling"),
    "tilted": ("alpha", "zeta", "win_rate"), "partial_sgd": ("alpha", "zeta"), "fixed_reward": ("alpha", "zeta", "fit"),
}  # fmt: skip
MAIN = ("partial_sgd", "paired")
TWICE = "partial_sgd_twice"
REST = tuple(entry for entry in ENTRIES if entry not in (*MAIN, TWICE))
POINTS = 10  # of a curve


# -- the search -------------------------------------------------------------------------------------------------


def span(method: str, name: str, optimizer: str) -> tuple[float, float]:
    """The first range of a constant."""
    if name == "zeta":
        return ZETA[optimizer]
    return TILTED if (method, name) == ("tilted", "win_rate") else RANGES[name]


def drawn(method: str, count: int, seed: int, centre: Setting | None = None) -> list[Setting]:
    """Settings of a round: over the ranges, or around a setting with half their logarithmic widths."""
    names = OWN[method]
    cube = qmc.LatinHypercube(len(names), seed=seed).random(count)
    settings = []
    for i, row in enumerate(cube):
        optimizer = ("adam", "sgd_x")[i % 2] if centre is None else centre.optimizer
        values: dict[str, Any] = {}
        for name, u in zip(names, row, strict=True):
            low, high = np.log(span(method, name, optimizer))
            if centre is not None:
                middle, quarter = np.log(getattr(centre, name)), (high - low) / 4
                low, high = middle - quarter, middle + quarter
            value = float(np.exp(low + u * (high - low)))
            values[name] = (
                min(value, 0.98)
                if name == "coupling"
                else round(value)
                if name == "fit"
                else float(f"{value:.3g}")
            )
        settings.append(Setting(optimizer=optimizer, **values))
    return settings


def at_edge(method: str, tried: list[Setting], best: Setting) -> list[str]:
    """Constants of a choice that lie in the outer tenth of all that was tried with its optimiser (coupling ends at 1)."""
    found = []
    for name in OWN[method]:
        low, high = np.log(span(method, name, best.optimizer))
        values = np.log([getattr(s, name) for s in tried if s.optimizer == best.optimizer])
        low, high = min(low, values.min()), max(high, values.max())
        share = (np.log(getattr(best, name)) - low) / (high - low)
        if share < 0.1 or (share > 0.9 and name != "coupling"):
            found.append(name)
    return found


# -- the worlds -------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class World:
    """A task, and the budgets of its runs.

    Attributes:
        updates: policy updates of `paired`.
        labels: pairs that the judge labels.
        sharpness: slope of the judge's law.
        common: keys of all configurations, in place of the experiment's.
        given: candidates by entry, in place of settings that are drawn; a single one is taken as it is.
    """

    updates: int = UPDATES
    labels: int = LABELS
    sharpness: float = SHARPNESS
    common: dict[str, Any] = dataclasses.field(default_factory=dict)
    given: dict[str, tuple[Setting, ...]] = dataclasses.field(default_factory=dict)

    def configuration(self, entry: str, setting: Setting, task: Any, seed: int) -> Config:
        """The trainer's configuration of a run."""
        updates = updates_of(entry, self.updates, self.labels)
        config = configuration(ENTRIES[entry], setting, task, seed, updates, self.labels)
        return dataclasses.replace(config, **self.common)


# `llm happy-tweets` as it is: 32 completions a batch, a Bradley-Terry judge of slope 8 in a classifier's score
TRAP = {name: happy_tweets.COMMON[name] for name in ("prompts_per_step", "group", "replay_pairs", "tau")}
PLAIN = Setting(5e-4, 0.05, "sgd_x")
# the grammar's best with Adam for x, and its best with plain steps
CARRIED = {
    "paired": (Setting(2.24e-3, 4.66e-3, "adam", 0.691, 0.549, 0.522), CHOSEN["paired"]),
    "partial_sgd": (CHOSEN["partial_sgd"], Setting(3.44e-3, 0.116, "sgd_x")),
    "partial_sgd_twice": (Setting(6.93e-3, 7.91e-4), CHOSEN["partial_sgd_twice"]),
}  # fmt: skip
WORLDS = {
    "paper_grammar": World(),
    "paper_tweets": World(given=CARRIED),
    "grammar": World(75, 300, 8.0, TRAP, {
        "paired": (Setting(1e-3, 0.05, "sgd_x", w=1.0, win_rate=3.0, coupling=0.7),),
        "partial_sgd": (PLAIN,), "partial_sgd_twice": (PLAIN,),
        "shared": (Setting(5e-4, 1e-3, "adam", 0.3, 3.0, 0.7), Setting(5e-4, 0.05, "sgd_x", 0.3, 3.0, 0.7)),
        "tilted": (Setting(5e-4, 1e-3, "adam", win_rate=0.05), Setting(5e-4, 0.05, "sgd_x", win_rate=0.05)),
    }),
}  # fmt: skip


def made(data: Path | None, trap: bool, cache: Path) -> Any:
    """The task of a call."""
    if trap:
        return trapped(cache)
    return paper_tweets.from_grammar(cache) if data is None else paper_tweets.from_folder(data, cache)


# -- a run ------------------------------------------------------------------------------------------------------


class Elsewhere(Exception):
    """A row that another process is making."""


class Bench:
    """A task's runs, and their rows; several processes may work on one folder."""

    def __init__(self, out: Path, task: Any, rounds: int = 2) -> None:
        self.rounds, self.locks = rounds, out / "locks"
        self.task, self.world = task, WORLDS[task.name]
        self.path = out / f"{self.task.name}.jsonl"
        self.locks.mkdir(parents=True, exist_ok=True)
        self.rows: dict[str, dict[str, Any]] = {}
        self.read()
        self.gold, self.tokenizer = self.task.gold(), self.task.tokenizer()

    def read(self) -> None:
        """The rows there are, those of other processes among them."""
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        self.rows = {json.dumps(row["key"]): row for row in map(json.loads, lines)}

    def about(self) -> None:
        """Write what the task is, and where the reference stands on it, once."""
        path = self.path.with_name(f"{self.task.name}-about.json")
        if path.exists():
            return
        config = self.world.configuration("partial_sgd", Setting(1e-3, 1e-3), self.task, 0)
        trainer = BilevelTrainer(
            config, None, None, self.task.prompts, tokenizer=self.tokenizer, judge=self.task.judge()
        )
        figures, _ = evaluate(
            trainer.roles,
            self.task.held_out,
            trainer.generator,
            self.tokenizer,
            self.gold,
            "reference",
            self.task.longest,
        )
        before = {
            name: round(figures[name], 4) for name in ("gold", "gold_error", "happy", "distinct", "length")
        }
        prompts = {"prompts": len(self.task.prompts), "held_out": len(self.task.held_out)}
        path.write_text(json.dumps({"models": self.task.figures, "before": before, **prompts}))

    def key(self, entry: str, setting: Setting, seed: int, off: bool) -> list[Any]:
        return [entry, dataclasses.asdict(setting), seed, off]

    def row(self, entry: str, setting: Setting, seed: int, off: bool = False) -> dict[str, Any]:
        """A run's row, read or made."""
        key = self.key(entry, setting, seed, off)
        name = json.dumps(key)
        if name in self.rows:
            return self.rows[name]
        lock = self.locks / f"{self.task.name}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
        try:
            with filelock.FileLock(lock, timeout=0):
                self.read()
                if name in self.rows:
                    return self.rows[name]
                row = {"key": key, **self._made(entry, setting, seed, off)}
                with self.path.open("a") as file:
                    file.write(json.dumps(row) + "\n")
        except filelock.Timeout:
            raise Elsewhere from None
        self.rows[name] = row
        print(
            entry,
            "off" if off else "",
            seed,
            f"gold {row['gold']:.3f} KL {row['kl']:.2f}, {row['seconds']:.1f} s",
            flush=True,
        )
        return row

    def _made(self, entry: str, setting: Setting, seed: int, off: bool) -> dict[str, Any]:
        begin = time.process_time()
        config = self.world.configuration(entry, setting, self.task, seed)
        judge = self.task.judge(self.world.sharpness, seed, self.gold)
        trainer = BilevelTrainer(
            config, None, None, self.task.prompts, tokenizer=self.tokenizer, gold=self.gold, judge=judge
        )
        if off:
            trainer.method = reasons.OFF[ENTRIES[entry]](trainer.settings)
        failure = ""
        try:
            history = trainer.train()
        except ArithmeticError as error:  # a setting under which a run breaks is worth the reference's score
            failure, history = str(error), trainer.history
        role = "reference" if failure else "policy"
        figures, _ = evaluate(
            trainer.roles,
            self.task.held_out,
            trainer.generator,
            self.tokenizer,
            self.gold,
            role,
            self.task.longest,
            seed=0,
        )
        kept = {name: round(figures[name], 4) for name in ("gold", "kl", "happy", "distinct", "length")}
        return {**kept, "labels": trainer.labels, "tokens": trainer.tokens, "curve": curve(history), "failure": failure,
                "seconds": round(time.process_time() - begin, 2)}  # fmt: skip


def curve(history: list[dict[str, float]]) -> dict[str, list[float]]:
    """Means over tenths of the iterations in which the policy wrote."""
    lines = [line for line in history if "gold" in line and "kl" in line]
    parts = [part for part in np.array_split(np.arange(len(lines)), POINTS) if len(part)]
    mean = {
        name: [round(float(np.mean([lines[i][name] for i in part])), 4) for part in parts]
        for name in ("gold", "kl")
    }
    last = {name: [round(float(lines[part[-1]][name])) for part in parts] for name in ("labels", "samples")}
    return {**mean, **last}


# -- what is run, in order --------------------------------------------------------------------------------------


def score(bench: Bench, entry: str, setting: Setting) -> float:
    """Mean over the tuning seeds."""
    return float(np.mean([bench.row(entry, setting, seed)["gold"] for seed in TUNING]))


def searched(bench: Bench, entry: str) -> tuple[list[Setting], Setting]:
    """All settings tried, and the best; where one is given, that."""
    given = bench.world.given.get(entry, ())
    if given:
        return list(given), given[0] if len(given) == 1 else max(given, key=lambda s: score(bench, entry, s))
    method = ENTRIES[entry]
    tried = drawn(method, FIRST, seed=1)
    best = max(tried, key=lambda s: score(bench, entry, s))
    if bench.rounds > 1:
        tried += drawn(method, SECOND, seed=2, centre=best)
    return tried, max(tried, key=lambda s: score(bench, entry, s))


STAGES = ("search", "fresh", "off", "swaps")


def plan(bench: Bench, entries: Sequence[str], stages: Sequence[str] = STAGES) -> Iterator[bool]:
    """The runs of these entries, a step a run that says whether it is there: searches, fresh seeds, controls.

    What a later stage asks of an earlier one is made on the way.
    """
    if "search" in stages:
        for entry in entries:
            yield from _search(bench, entry)
    off = [entry for entry in entries if entry in reasons.bi_level()]
    for stage, among in (("fresh", entries), ("off", off)):
        for seed in FRESH if stage in stages else ():
            for entry in among:
                if entry not in REST or seed in FEWER:
                    yield _there(bench, entry, searched(bench, entry)[1], seed, off=stage == "off")
    if "swaps" in stages and set(MAIN) <= set(entries):
        chosen = {entry: searched(bench, entry)[1] for entry in MAIN}
        for seed in reasons.SEEDS:
            for entry, setting, without in reasons.swaps(chosen).values():
                yield _there(bench, entry, setting, seed, without)


def _there(bench: Bench, entry: str, setting: Setting, seed: int, off: bool = False) -> bool:
    try:
        bench.row(entry, setting, seed, off)
    except Elsewhere:
        return False
    return True


def _search(bench: Bench, entry: str) -> Iterator[bool]:
    given = bench.world.given.get(entry, ())
    if given:
        yield from _tuned(bench, entry, given if len(given) > 1 else ())
        return
    method = ENTRIES[entry]
    tried = drawn(method, FIRST, seed=1)
    yield from _tuned(bench, entry, tried)
    if bench.rounds < 2:
        return
    best = max(tried, key=lambda s: score(bench, entry, s))
    yield from _tuned(bench, entry, drawn(method, SECOND, seed=2, centre=best))


def _tuned(bench: Bench, entry: str, settings: Sequence[Setting]) -> Iterator[bool]:
    """The tuning seeds of all settings; ends the call where another process has not made its share yet."""
    missing = False
    for setting in settings:
        for seed in TUNING:
            there = _there(bench, entry, setting, seed)
            missing |= not there
            yield there
    if missing:
        bench.read()
        if not all(
            json.dumps(bench.key(entry, s, seed, False)) in bench.rows for s in settings for seed in TUNING
        ):
            raise Elsewhere


def written(out: Path, again: Path | None = None) -> dict[str, Any]:
    """The results of every task that has rows; `again` is a folder with the same runs made a second time."""
    tasks = {}
    for name, world in WORLDS.items():
        if (out / f"{name}.jsonl").exists():
            about = json.loads((out / f"{name}-about.json").read_text())
            rows = paper_tweets_tables.read(out / f"{name}.jsonl")
            fixed = {entry: dataclasses.asdict(some[0]) for entry, some in world.given.items() if len(some) == 1}
            tasks[name] = about | paper_tweets_tables.task_results(rows, tuple(ENTRIES), TUNING, FRESH, fixed)
            tasks[name] |= {"updates": world.updates, "labels": world.labels, "fixed": sorted(fixed)}
            choices = {entry: Setting(**setting) for entry, setting in tasks[name]["chosen"].items()}
            exchanged = {
                title: (entry, dataclasses.asdict(setting), off)
                for title, (entry, setting, off) in reasons.swaps(choices).items()
            }
            tasks[name] |= {"swaps": paper_tweets_tables.swapped(rows, exchanged, choices, reasons.SEEDS)}
            if again is not None and (again / f"{name}.jsonl").exists():
                others = paper_tweets_tables.read(again / f"{name}.jsonl")
                tasks[name]["again"] = paper_tweets_tables.again(rows, others, FRESH)
            if (out / f"{name}-noise.json").exists():
                tasks[name]["noise"] = json.loads((out / f"{name}-noise.json").read_text())
            for entry, lines in tasks[name]["search"].items():
                tried = [Setting(**line["setting"]) for line in lines]
                chosen = tasks[name]["chosen"].get(entry)
                drawn_here = chosen and tried and entry not in world.given
                edges = at_edge(ENTRIES[entry], tried, Setting(**chosen)) if drawn_here else []
                tasks[name].setdefault("edges", {})[entry] = edges
    protocol = {
        "updates": UPDATES, "labels": LABELS, "tau": COMMON["tau"], "judge": "noise-free", "ties": "skip", "batch": BATCH,
        "tuning": list(TUNING), "settings": [FIRST, SECOND], "near": paper_tweets_tables.NEAR,
        "kl_bins": paper_tweets_tables.KL_BINS, "ranges": {**RANGES, "zeta": ZETA, "win_rate of tilted": TILTED}, "own": OWN,
    }  # fmt: skip
    return {"protocol": protocol, "tasks": tasks, "hardware": hardware()}


def carried(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """The results with what only an earlier study measured: other tasks, and comparisons whose rows were not run again."""
    for name, old in before["tasks"].items():
        task = after["tasks"].setdefault(name, old)
        lost = {title: gap for title, gap in old["differences"].items() if title not in task["differences"]}
        if lost:
            task["earlier"] = {"chosen": old["chosen"], "summary": old["summary"], "differences": lost}
        for part in ("earlier", "again", "noise"):
            if part in old:
                task.setdefault(part, old[part])
    return after


def restore(results: dict[str, Any], out: Path) -> int:
    """Write the rows of a committed search to a folder, so that a study goes on from it; returns how many.

    A restored row holds the gold score alone, all that a choice asks for. Fresh seeds are run again: summaries need more.
    """
    out.mkdir(parents=True, exist_ok=True)
    count = 0
    for name, task in results["tasks"].items():
        path = out / f"{name}.jsonl"
        there = {json.dumps(row["key"]) for row in paper_tweets_tables.read(path)} if path.exists() else set()
        with path.open("a") as file:
            for entry, lines in task["search"].items():
                known = [
                    {"key": [entry, line["setting"], seed, False], "gold": gold, "restored": True}
                    for line in lines
                    for seed, gold in zip(results["protocol"]["tuning"], line["gold"], strict=True)
                ]
                new = [row for row in known if json.dumps(row["key"]) not in there]
                file.writelines(json.dumps(row) + "\n" for row in new)
                count += len(new)
    return count


def main() -> None:
    """Run, write what was run, or restore what a file holds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("run", "noise", "write", "restore"))
    parser.add_argument("--out", type=Path, required=True, help="folder of the rows and the models")
    parser.add_argument("--data", type=Path, default=None, help="folder of texts; absent: the grammar")
    parser.add_argument("--trap", action="store_true", help="the grammar with sarcasm, and a classifier as gold score")
    parser.add_argument(
        "--entries", nargs="+", choices=tuple(ENTRIES), default=tuple(ENTRIES), help="in this order"
    )
    parser.add_argument(
        "--rounds", type=int, choices=(1, 2), default=2, help="of the search; one leaves the second out"
    )
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES, help="what of the plan")
    parser.add_argument(
        "--again", type=Path, default=None, help="write: a folder with the same runs of another machine"
    )
    parser.add_argument("--minutes", type=float, default=12.0, help="of processor time, then the call ends")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    path = Path(__file__).parent / "results/paper_tweets.json"
    if options.what == "restore":
        print(restore(json.loads(path.read_text()), options.out), "rows restored")
        return
    if options.what == "write":
        results = written(options.out, options.again)
        results = carried(json.loads(path.read_text()), results) if path.exists() else results
        path.write_text(json.dumps(results, indent=1) + "\n")
        (Path(__file__).parents[1] / "docs/assets/paper-tweets.svg").write_text(paper_tweets_figure.drawn(results["tasks"]))
        return
    bench = Bench(options.out, made(options.data, options.trap, options.out / "models"), options.rounds)
    bench.about()
    if options.what == "noise":
        found = reasons.noise(bench, searched(bench, "paired")[1])
        (options.out / f"{bench.task.name}-noise.json").write_text(json.dumps(found))
        return
    try:
        for _ in plan(bench, options.entries, options.stages):
            if time.process_time() > 60 * options.minutes:
                print("more to do: call again")
                return
    except Elsewhere:
        print("more to do: call again when the other processes have made their rows")
        return
    print("all done")


if __name__ == "__main__":
    main()
