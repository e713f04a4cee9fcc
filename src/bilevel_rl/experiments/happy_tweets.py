"""The paper's language-model experiment: happy tweets. Every method with the same judge labels and generated
tokens.

A tiny language model writes tweets; a judge says which of two is happier, and its labels are few. Bi-level
RLHF (two estimators) against online RLHF (partial SGD), the usual pipeline (fixed reward, then RL) and the
nested loop. What is compared is the gold score, which no method sees but through the labels, against labels,
tokens and KL.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import math
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from bilevel_rl import json_lines, records, signals, statistics, versions
from bilevel_rl.errors import InvalidConfig, did_you_mean, message
from bilevel_rl.experiments import paper_tweets, travelling
from bilevel_rl.machines import where
from bilevel_rl.machines.job import FOLDER, Job, carried_out

arg = tyro.conf.arg
Watch = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]

ASK = "ask.json"  # in the folder of a run that is done elsewhere: what it is
FREE = where.OPTIONS | {"out", "cache", "resume"}  # settings on which no result depends
BATCH = {"prompts_per_step": 8, "group": 4}
PAIRS = 2  # judged pairs a rollout of 32 completions
# Shared by all methods; ours: the same small grid for each, docs/llm/happy-tweets.md.
COMMON: dict[str, Any] = {
    **BATCH, "max_new_tokens": 28, "pairs_per_step": PAIRS, "replay_pairs": 16, "alpha": 5e-4, "zeta": 1e-3, "tau": 0.2,
    "w": 0.3, "save_every": 50, "samples_every": 50, "coupling": 0.7,
}  # fmt: skip
# The upper objective: explain the labels and, where x answers for what its policy writes, win them. Each
# label serves both.
FIT = {"label_likelihood": 1.0}

# label -> what differs
METHODS: dict[str, dict[str, Any]] = {
    "bilevel_tilted": {"method": "bilevel", "estimator": "tilted", "objective": FIT | {"win_rate": 0.05}},
    "bilevel_shared": {"method": "bilevel", "estimator": "shared", "objective": FIT | {"win_rate": 3.0}},
    "bilevel_paired": {"method": "bilevel", "estimator": "paired", "objective": FIT | {"win_rate": 3.0}},
    "partial_sgd": {"method": "partial_sgd", "objective": FIT},
    "fixed_reward": {"method": "fixed_reward", "objective": FIT},
    "nested": {
        "method": "nested",
        "estimator": "shared",
        "inner_steps": 5,
        "objective": FIT | {"win_rate": 3.0},
    },
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(where.Where):
    """Happy tweets: bi-level RLHF and its baselines at equal labels and tokens, from nothing, offline."""

    data: Annotated[
        Path | None,
        arg(help="folder with TweetEval's emoji, sentiment and emotion; absent: our grammar's tweets"),
    ] = None
    out: Annotated[Path, arg(help="folder for the run folders and the results")] = Path("runs/happy_tweets")
    resume: Annotated[
        Literal["auto", "never"], arg(help="a folder that holds this very experiment: gone on with, or refused")
    ] = "auto"
    cache: Annotated[Path, arg(help="folder for the models that are made on the way")] = Path("runs/cache")
    size: Annotated[
        Literal["auto", "small", "large"],
        arg(help="of the models made on the way; auto: large where there is an accelerator"),
    ] = "auto"
    paper: Annotated[
        bool,
        arg(
            help="as the paper has it: a Transformer of four layers, preferences by VADER's rules of sentiment (extra vader)"
        ),
    ] = False
    runs: Annotated[int, arg(help="independent seeds of every method")] = 1
    seed: Annotated[int, arg(help="first seed")] = 0
    rollouts: Annotated[
        int | None,
        arg(help="batches that every method may generate; absent: 150 of 32 tweets, 80 of 16 with --paper"),
    ] = None
    labels: Annotated[
        int | None, arg(help="pairs that the judge labels, for every method; absent: 300, 240 with --paper")
    ] = None
    tau: Annotated[
        float | None,
        arg(
            help="weight of the KL to the reference: a larger one ends nearer to it; absent: .2, .5 with --paper"
        ),
    ] = None
    methods: Annotated[tuple[str, ...], arg(help="which methods, by name; absent: all")] = ()
    sharpness: Annotated[
        float | None,
        arg(
            help="slope of the judge's Bradley-Terry law in the gold score; absent: 8, noise-free with --paper"
        ),
    ] = None
    ties: Annotated[
        Literal["skip", "break"],
        arg(help="two tweets of exactly the same score: no answer (the label is spent), or a coin's"),
    ] = "skip"

    def filled(self) -> Settings:
        """A copy that says what was left to the experiment."""
        given = {
            "rollouts": 2 * paper_tweets.UPDATES if self.paper else 150,
            "labels": paper_tweets.LABELS if self.paper else 300,
            "tau": paper_tweets.TAU if self.paper else COMMON["tau"],
            "sharpness": None if self.paper else 8.0,
            "methods": tuple(methods_of(self)),
        }  # fmt: skip
        absent: dict[str, Any] = {name: value for name, value in given.items() if getattr(self, name) in (None, ())}
        return dataclasses.replace(self, **absent)

    def check(self) -> None:
        """Raise `InvalidConfig` unless every value makes sense."""
        known = methods_of(self)
        for name in self.methods:
            if name not in known:
                raise InvalidConfig(
                    message(
                        "happy-tweets --methods",
                        repr(name),
                        did_you_mean(name, known),
                        "Choose among these",
                    )
                )
        for name, least in (("runs", 1), ("rollouts", 2 if self.paper else 1), ("labels", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InvalidConfig(
                    message(f"happy-tweets --{name}", value, f"it must be at least {least}", "Raise it")
                )
        if self.labels is not None and self.labels < 10:
            raise InvalidConfig(
                message(
                    "happy-tweets --labels",
                    self.labels,
                    "a reward model needs a few: at least 10",
                    "Raise it",
                )
            )


def methods_of(settings: Settings) -> Mapping[str, Any]:
    """What may be compared, by name."""
    return paper_tweets.ENTRIES if settings.paper else METHODS


def configuration(settings: Settings, label: str, seed: int, task: Any) -> Any:
    """The trainer's configuration of one run: the method's own keys, and budgets equal to every other
    method's.

    Args:
        task: a `HappyTweets`.

    Returns:
        A `Config`.
    """
    settings = settings.filled()
    assert settings.rollouts is not None
    assert settings.labels is not None
    out = str(settings.out / f"{label}-{seed}")
    if settings.paper:
        config = paper_tweets.configuration(
            paper_tweets.ENTRIES[label], paper_tweets.CHOSEN[label], task, seed,
            paper_tweets.updates_of(label, settings.rollouts // 2, settings.labels), settings.labels, out,
        )  # fmt: skip
        assert settings.tau is not None
        return dataclasses.replace(config, tau=settings.tau, save_every=50, samples_every=50, resume="auto")
    return _with_classifier(settings, label, seed, task, out)


def _with_classifier(settings: Settings, label: str, seed: int, task: Any, out: str) -> Any:
    """The configuration where a classifier is the gold score."""
    from bilevel_rl.llm.config import Config

    assert settings.rollouts is not None
    assert settings.labels is not None
    values = {
        **COMMON,
        **METHODS[label],
        "seed": seed,
        "label_budget": settings.labels,
        "tau": settings.tau,
        "policy": str(task.model),
    }
    batch, rollouts = BATCH["prompts_per_step"] * BATCH["group"], settings.rollouts
    each = max(1, -(-settings.labels // rollouts))  # pairs a rollout, so that labels last as long as tokens
    if values["method"] == "fixed_reward":
        # all labels first, ten a rollout of the reference; then fitting costs no tokens; then RL with what is
        # left
        first = -(-settings.labels // 10)
        values |= {
            "pairs_per_step": 10,
            "reward_steps": first + rollouts // 2,
            "steps": rollouts + rollouts // 2,
        }
        if first >= rollouts:
            raise InvalidConfig(
                message("happy-tweets --labels", settings.labels, f"{rollouts} rollouts leave room for {10 * rollouts - 10}",
                        "Lower labels or raise rollouts")
            )  # fmt: skip
    elif values.get("estimator") == "paired":
        values |= {"steps": max(1, rollouts // 2), "pairs_per_step": min(batch // 2, 2 * each)}
    else:
        values |= {"steps": rollouts, "pairs_per_step": min(batch // 2, each)}
    return Config(**values, out=out, resume="auto")


def prepare(settings: Settings, progress: bool = False) -> Any:
    """The task: models from the cache, or made now.

    Returns:
        A `HappyTweets`.
    """
    from bilevel_rl.llm.tasks import happy_tweets
    from bilevel_rl.llm.tasks import paper_tweets as paper

    if settings.paper and settings.data is not None:
        return paper.from_folder(settings.data, settings.cache, progress=progress)
    if settings.paper:
        return paper.from_grammar(settings.cache, progress=progress)
    if settings.data is not None:
        models = happy_tweets.sized(settings.size, "tweeteval")
        return happy_tweets.from_tweeteval(settings.data, settings.cache, *models, progress=progress)
    models = happy_tweets.sized(settings.size, "grammar")
    return happy_tweets.from_grammar(settings.cache, *models, progress=progress)


def run(settings: Settings, watch: Watch, progress: bool = False) -> Path:
    """Make the task, run every method and seed or go on where an earlier call stopped, grade them, write the
    results.

    Args:
        watch: makes a progress bar from a label and a total.
        progress: show the bars of the models' own training too.

    Returns:
        `settings.out`, with a run folder for each method and seed and `results.json`.

    Raises:
        InvalidConfig: settings that can't be, or a folder that holds runs of other settings.
    """
    import torch

    settings.check()
    where.check("experiments happy_tweets", settings)
    given, settings = settings, settings.filled()
    torch.set_num_threads(1)  # ours: models this small lose more to a second thread than they gain
    task = prepare(settings, progress)
    out = records.make_folder(settings.out)
    _same_experiment(out, settings)
    gold, tokenizer = task.gold(), task.tokenizer()
    rows, again = [], command(given, whole=True)
    with signals.hinted(again):
        if settings.elsewhere:
            _elsewhere(settings, task, again)
        for label, seed in _cells(settings):
            config = configuration(settings, label, seed, task)
            rows.append(_one(config, label, task, gold, tokenizer, settings, watch))
    results = {
        "task": task.name, "label": task.label, "models": task.figures, "settings": _plain(settings),
        "common": paper_tweets.COMMON if settings.paper else COMMON,
        "methods": dict(methods_of(settings)), "runs": rows, "summary": summary(rows), "kl_bins": KL_BINS,
        "at_equal_kl": {
            f"{ours} against {theirs}": paired_gaps(rows, ours, theirs)
            for ours in settings.methods if _answers(settings, ours)
            for theirs in settings.methods if not _answers(settings, theirs)
        },
        "provenance": records.provenance(command(given)),
    }  # fmt: skip
    records.write_json(out / "results.json", results)
    return out


def _cells(settings: Settings) -> list[tuple[str, int]]:
    """Every method and seed."""
    seeds = range(settings.seed, settings.seed + settings.runs)
    return [(label, seed) for seed in seeds for label in settings.methods]


def _elsewhere(settings: Settings, task: Any, again: str) -> None:
    """Have every run done and graded on the machines that are asked for; folders are filled as if it had been here."""
    jobs = []
    for label, seed in _cells(settings):
        folder = records.make_folder(settings.out / f"{label}-{seed}")
        if not _graded(folder):
            travelling.pack(task, folder)
            ask = {"settings": _plain(settings), "label": label, "seed": seed, "policy": str(task.model)}
            records.write_json(folder / ASK, ask)
        jobs.append(Job(folder, ("bilevel_rl.experiments.happy_tweets", FOLDER), _graded, folder.name))
    where.do(settings, jobs, names=versions.OF_TORCH)
    where.done(jobs, again)
    for one in jobs:
        travelling.remove(one.folder)
        (one.folder / ASK).unlink(missing_ok=True)


def _graded(folder: Path) -> bool:
    return (folder / "evaluation.json").exists()


def fill(folder: Path) -> None:
    """Do and grade the run that a folder asks for, or go on with it, on any machine."""
    import torch

    if _graded(folder):
        return
    torch.set_num_threads(1)
    ask, task = records.read_json(folder / ASK), travelling.unpack(folder)
    settings = read_settings(ask["settings"])
    config = configuration(settings, ask["label"], ask["seed"], task)
    # a run says where its policy came from by the name that it has at home
    config = dataclasses.replace(config, out=str(folder), policy=ask["policy"])
    _one(config, ask["label"], task, task.gold(), task.tokenizer(), settings, silent)


def _one(
    config: Any, label: str, task: Any, gold: Any, tokenizer: Any, settings: Settings, watch: Watch
) -> dict[str, Any]:  # fmt: skip
    """One run: trained or resumed, then graded on held-out prompts; what is already done is read back."""
    from bilevel_rl.llm.evaluation import evaluate
    from bilevel_rl.llm.trainer import BilevelTrainer

    folder = Path(config.out)
    if _graded(folder):
        return records.read_json(folder / "evaluation.json")
    begin = time.perf_counter()
    resume = (folder / "checkpoint" / "state.json").exists()
    with watch(f"{label}, seed {config.seed}", config.steps) as advance:
        trainer = BilevelTrainer(
            config, str(task.model), None, task.prompts, tokenizer=tokenizer, gold=gold,
            judge=_judge(task, settings, config.seed, gold), callbacks=[_ticker(advance)], resume=resume,
            problem=f"happy_tweets_{task.name}",
        )  # fmt: skip
        trainer.train()
    grade: dict[str, Any] = {"method": label, "seed": config.seed}
    for when, role in (("before", "reference"), ("after", "policy")):
        figures, table = evaluate(
            trainer.roles,
            task.held_out,
            trainer.generator,
            tokenizer,
            gold,
            role,
            config.max_new_tokens,
            seed=0,
        )
        grade[when] = {**figures, "examples": table[:12]}
    grade |= {
        "labels": trainer.labels, "tokens": trainer.tokens, "seconds": round(time.perf_counter() - begin, 1),
        "steps": trainer.step, "frontier": frontier(folder),
    }  # fmt: skip
    records.write_json(folder / "evaluation.json", grade)
    return grade


def _answers(settings: Settings, label: str) -> bool:
    """Whether x learns from how the policy answers it, step by step."""
    keys = paper_tweets.METHODS[paper_tweets.ENTRIES[label]] if settings.paper else METHODS[label]
    return keys["method"] == "bilevel"


def _judge(task: Any, settings: Settings, seed: int, gold: Any) -> Any:
    sharpness = math.inf if settings.sharpness is None else settings.sharpness
    return task.judge(sharpness, seed, gold, settings.ties if settings.paper else "")


# -- what is compared ----------------------------------------------------------------------------------------

KL_BINS = (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)


def frontier(folder: Path) -> list[float | None]:
    """Mean gold score of a run's iterations whose KL falls in each bin of `KL_BINS`; None where it has fewer
    than 3.
    """
    trace = json_lines.read_lines(folder / "metrics.jsonl")
    if "gold" not in trace or "kl" not in trace:
        return [None] * (len(KL_BINS) - 1)
    kl, gold = trace["kl"][0], trace["gold"][0]
    means: list[float | None] = []
    for low, high in itertools.pairwise(KL_BINS):
        inside = (kl >= low) & (kl < high) & np.isfinite(gold)
        means.append(float(gold[inside].mean()) if inside.sum() >= 3 else None)
    return means


def summary(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One line a method: interquartile means over seeds with bootstrap intervals.

    Returns:
        Rows with `method`, `runs`, `labels`, `tokens`, and [value, low, high] of `gold`, `happy`, `kl`,
        `distinct`, and of the gold score in each bin of KL (None where fewer than 3 runs reached it).
    """
    found = []
    for label in dict.fromkeys(row["method"] for row in rows):
        mine = [row for row in rows if row["method"] == label]
        line: dict[str, Any] = {"method": label, "runs": len(mine)}
        for key in ("labels", "tokens"):
            line[key] = float(np.mean([row[key] for row in mine]))
        for key in ("gold", "happy", "kl", "distinct", "length"):
            line[key] = list(statistics.bootstrap([row["after"][key] for row in mine]))
        line["gold_before"] = float(np.mean([row["before"]["gold"] for row in mine]))
        bins: list[Any] = []
        for i in range(len(KL_BINS) - 1):
            values = [row["frontier"][i] for row in mine if row["frontier"][i] is not None]
            bins.append(
                list(statistics.bootstrap(values)) if len(values) >= min(3, len(mine)) and values else None
            )
        line["gold_by_kl"] = bins
        found.append(line)
    return found


def paired_gaps(rows: Sequence[Mapping[str, Any]], ours: str, theirs: str) -> list[dict[str, Any] | None]:
    """Difference of two methods' gold scores at equal KL, seed by seed.

    Returns:
        For each bin of `KL_BINS`: `seeds` that both methods reached, the mean `gap`, and in how many seeds
        ours is `ahead`; None where no seed has both.
    """
    found: list[dict[str, Any] | None] = []
    by = {(row["method"], row["seed"]): row["frontier"] for row in rows}
    seeds = sorted({row["seed"] for row in rows})
    for i in range(len(KL_BINS) - 1):
        gaps = []
        for seed in seeds:
            mine, other = by.get((ours, seed)), by.get((theirs, seed))
            if mine is not None and other is not None and mine[i] is not None and other[i] is not None:
                gaps.append(mine[i] - other[i])
        ahead = sum(gap > 0 for gap in gaps)
        found.append({"seeds": len(gaps), "gap": float(np.mean(gaps)), "ahead": ahead} if gaps else None)
    return found


# -- small things --------------------------------------------------------------------------------------------


def command(settings: Settings, whole: bool = False) -> str:
    """The command line that makes these results.

    Args:
        whole: with the folders and the machines, on which no result depends.
    """
    words = ["bilevel-rl", "llm", "happy-tweets"]
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if value == field.default or (field.name in FREE and not whole):
            continue
        words.append(f"--{field.name.replace('_', '-')}")
        if isinstance(value, tuple):
            words += value
        elif value is not True:
            words.append("FOLDER" if field.name == "data" and not whole else str(value))
    return shlex.join(words)


def _ticker(advance: Callable[[int], None]) -> Any:
    from transformers import TrainerCallback

    class Ticker(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            advance(state.global_step)

    return Ticker()


def _plain(settings: Settings) -> dict[str, Any]:
    """As JSON, without what is only about where and when the work is done."""
    values = {key: value for key, value in dataclasses.asdict(settings).items() if key not in where.OPTIONS | {"resume"}}
    values["data"] = None if settings.data is None else settings.data.name
    values["out"], values["cache"] = str(settings.out), str(settings.cache)
    return json.loads(json.dumps(values))


def read_settings(plain: Mapping[str, Any], **given: Any) -> Settings:
    """Settings that were written as JSON.

    Args:
        plain: as `experiment.json` has them.
        given: what is to be another value.
    """
    values = {**plain, **given}
    folders = {key: Path(values[key]) for key in ("out", "cache", "data") if values[key]}
    return Settings(**values | folders | {"methods": tuple(values["methods"])})


def _same_experiment(out: Path, settings: Settings) -> None:
    """One folder holds one experiment: more seeds and methods may be added, budgets may not change."""
    fixed = {
        key: value
        for key, value in _plain(settings).items()
        if key not in ("out", "cache", "runs", "seed", "methods")
    }
    path = out / "experiment.json"
    if path.exists():
        with contextlib.suppress(KeyError):
            plain = {"paper": False, "ties": "skip"}  # folders of before say nothing of these
            if plain | records.read_json(path)["fixed"] == fixed and settings.resume == "auto":
                return
        what = "runs of an earlier experiment" if settings.resume == "never" else "runs of other settings"
        raise InvalidConfig(message(str(out), what, "one folder holds one experiment", "Choose another --out"))
    records.write_json(path, {"fixed": fixed, "settings": _plain(settings), "data": str(settings.data or "")})


@contextlib.contextmanager
def silent(label: str, total: int) -> Any:
    """A `Watch` that shows nothing."""
    yield lambda done: None


if __name__ == "__main__":
    sys.exit(carried_out(sys.argv[1:], fill))
