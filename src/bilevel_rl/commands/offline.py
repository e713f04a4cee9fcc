"""`bilevel-rl offline VERB ...`: data sets of environments, and the learners that need nothing else."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import tyro
from rich.table import Table

from bilevel_rl import names, records
from bilevel_rl.commands import heads, screen
from bilevel_rl.errors import InvalidConfig, InvalidProblem, StorageFailed, did_you_mean, message, require
from bilevel_rl.launch import options

if TYPE_CHECKING:
    from bilevel_rl.control.environment import Environment
    from bilevel_rl.control.offline.data import OfflineData

arg = tyro.conf.arg
USAGE = """usage: bilevel-rl offline VERB ...

  make ENVIRONMENT --out FOLDER      a data set of the library's own followers, in Minari's format
  check DATA ENVIRONMENT             can it be learnt from? the error says what is wrong
  show DATA ENVIRONMENT              what is in it, source by source; --plot FILE.html draws it
  train DATA ENVIRONMENT LEARNER     a learner on it, several seeds, scored between random and expert
  compare DATA ENVIRONMENT           several learners under one protocol

DATA is a folder in Minari's format, or the id of a data set that Minari holds on this machine. ENVIRONMENT is a name, or
FILE.py:NAME for your own. Each verb has its own --help."""


def main(argv: Sequence[str]) -> int:
    """Run one verb and return its exit code.

    Raises:
        InvalidConfig: an unknown verb, environment, learner or option.
        InvalidProblem: data that can't be learnt from.
    """
    asked = heads.verb("bilevel-rl offline", argv, VERBS, lambda: USAGE)
    return 0 if asked is None else VERBS[asked[0]](asked[1])


# -- words -----------------------------------------------------------------------------------------------------------


def _environment(word: str) -> Environment:
    from bilevel_rl.control import environments

    known: dict[str, Any] = {kind.name: kind for kind in environments.ALL}
    found = names.find_word(word, known, "bilevel-rl offline", "environment")
    return found() if isinstance(found, type) else found


def _learner(word: str) -> Any:
    from bilevel_rl.control.offline import learners

    known = {kind.name: kind for kind in learners.ALL}
    return names.find_word(word, known, "bilevel-rl offline", "learner")


def _load(words: Sequence[str]) -> tuple[OfflineData, Environment]:
    from bilevel_rl.control.offline import minari_folder

    environment = _environment(words[1])
    return minari_folder.load(words[0], environment), environment


# -- make ------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Make:
    """A data set of the library's own followers."""

    out: Annotated[Path, arg(help="folder to write, which must not exist yet")]
    sources: Annotated[tuple[str, ...], arg(help="who acted: random, medium, expert, replay")] = (
        "random", "medium", "expert", "replay",
    )  # fmt: skip
    shares: Annotated[tuple[float, ...], arg(help="a mixture instead: share of each source, summing to 1")] = ()
    rows: Annotated[int, arg(help="transitions of each source, or of the mixture")] = 10_000
    transitions: Annotated[int, arg(help="that the follower learns from")] = 60_000
    gamma: Annotated[float, arg(help="the follower's discount")] = 0.98
    seed: Annotated[int, arg(help="the one integer from which all randomness follows")] = 0


def _make(argv: Sequence[str]) -> int:
    read = heads.words("bilevel-rl offline make", argv, ("ENVIRONMENT",), Make)
    if read is None:
        return 0
    given = options.parse("offline make", Make, read[1], Make.__doc__ or "")
    environment = _environment(read[0][0])
    from bilevel_rl.control.offline import data, making, minari_folder

    unknown = [name for name in given.sources if name not in making.SOURCES]
    if unknown or not given.sources:
        raise InvalidConfig(
            message("bilevel-rl offline make --sources", repr(unknown), did_you_mean("".join(unknown), making.SOURCES),
                    "Name some")
        )  # fmt: skip
    if given.shares and len(given.shares) != len(given.sources):
        raise InvalidConfig(
            message("bilevel-rl offline make --shares", f"{len(given.shares)} shares of {len(given.sources)} sources",
                    "each source has one", "Give as many")
        )  # fmt: skip
    if given.out.exists():
        raise StorageFailed(message(str(given.out), "a folder that exists", "data sets are not overwritten", "Name another"))
    minari_folder.check_installed()
    recipe = making.Making(transitions=given.transitions, rows=given.rows, gamma=given.gamma, seed=given.seed)
    whole = making.make(environment, recipe)
    if given.shares:
        found = data.mixed(whole, dict(zip(given.sources, given.shares, strict=True)), given.rows, given.seed)
    else:
        found = data.joined([whole.of_source(name) for name in given.sources])
    found = data.without_empty_sources(dataclasses.replace(found, low=whole.low, high=whole.high))
    minari_folder.save(found, environment, given.out)
    _print_summary(found)
    print(f"data: {given.out}")
    return 0


# -- check and show --------------------------------------------------------------------------------------------------


def _check(argv: Sequence[str]) -> int:
    read = heads.words("bilevel-rl offline check", argv, ("DATA", "ENVIRONMENT"))
    if read is None:
        return 0
    data, environment = _load(read[0])
    print(f"{read[0][0]}: {len(data)} transitions of {environment.name} in {len(data.bounds)} episodes can be learnt from")
    print("checked: shapes, finite numbers, bounds of actions and observations, ends, order of rows, noted returns")
    return 0


@dataclasses.dataclass(frozen=True)
class Show:
    """What is in a data set."""

    plot: Annotated[Path | None, arg(help="HTML file: returns, rewards and actions of each source")] = None


def _show(argv: Sequence[str]) -> int:
    read = heads.words("bilevel-rl offline show", argv, ("DATA", "ENVIRONMENT"), Show)
    if read is None:
        return 0
    given = options.parse("offline show", Show, read[1], Show.__doc__ or "")
    data, _ = _load(read[0])
    _print_summary(data)
    if given.plot is not None:
        given.plot.write_text(drawn(data).to_html(include_plotlyjs=True), encoding="utf-8")
        print(f"plot: {given.plot}")
    return 0


def _print_summary(data: OfflineData) -> None:
    from bilevel_rl.control.offline.data import summary

    heads = "source", "rows", "episodes", "return", "worst", "best", "steps", "ended"
    table = Table(*heads, title=data.environment, title_justify="left")
    for s in summary(data):
        table.add_row(s.name, str(s.rows), str(s.episodes), f"{s.mean:.4g}", f"{s.worst:.4g}", f"{s.best:.4g}",
                      f"{s.length:.4g}", f"{100 * s.ended:.0f} %")  # fmt: skip
    screen.console().print(table)
    if np.isfinite(data.high):
        print(f"scores: {data.low:.4g} is 0 (random actions), {data.high:.4g} is 100 (expert)")


def drawn(data: OfflineData) -> Any:
    """A Plotly figure: distributions of returns, rewards and actions, source by source."""
    from bilevel_rl.report.style import COLOURS, FONT

    make = require("plotly.subplots", "report").make_subplots
    go = require("plotly.graph_objects", "report")
    figure = make(1, 3, subplot_titles=("return of an episode", "reward of a step", "action, first coordinate"))
    returns, first = data.returns(), data.source[data.bounds[:, 0]]
    action = data.action if data.action.ndim == 1 else data.action[:, 0]
    for i, name in enumerate(data.sources):
        mine = data.source == i
        for column, values in enumerate((returns[first == i], data.reward[mine], action[mine]), 1):
            figure.add_trace(
                go.Histogram(x=values, name=name, legendgroup=name, showlegend=column == 1, nbinsx=40, opacity=0.6,
                             histnorm="probability", marker_color=COLOURS[i % len(COLOURS)]), 1, column,
            )  # fmt: skip
    figure.update_layout(barmode="overlay", title=data.environment, font_family=FONT, template="plotly_white")
    return figure


# -- train and compare -----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Protocol:
    """What is the same for every learner."""

    updates: Annotated[int, arg(help="of the networks")] = 10_000
    batch: Annotated[int, arg(help="rows of an update")] = 128
    gamma: Annotated[float, arg(help="discount")] = 0.99
    seeds: Annotated[int, arg(help="independent runs, side by side")] = 5
    seed: Annotated[int, arg(help="the one integer from which all randomness follows")] = 0
    episodes: Annotated[int, arg(help="in which each seed is scored")] = 16
    records: Annotated[int, arg(help="points of the curve, the last of which counts")] = 5
    out: Annotated[Path | None, arg(help="folder for result.json and, of train, the networks")] = None

    def setting(self) -> Any:
        from bilevel_rl.control.offline.protocol import Setting

        return Setting(**{f.name: getattr(self, f.name) for f in dataclasses.fields(Setting)})


@dataclasses.dataclass(frozen=True)
class Compare(Protocol):
    """Several learners under one protocol: same data, updates and seeds; the last networks count."""

    learners: Annotated[tuple[str, ...], arg(help="names, or FILE.py:NAME")] = ("bc", "td3_bc", "iql", "rebrac")


def _train(argv: Sequence[str]) -> int:
    read = heads.words("bilevel-rl offline train", argv, ("DATA", "ENVIRONMENT", "LEARNER"), Protocol)
    if read is None:
        return 0
    words, rest = read
    kind = _learner(words[2])
    own = options.options_of(kind) if isinstance(kind, type) else ()
    fields: list[tuple[str, Any, Any]] = [
        ("protocol", Annotated[Protocol, arg(name="")], dataclasses.field(default_factory=Protocol))
    ]
    if own:
        made = options.as_dataclass("learner", own, (kind.__doc__ or "").split("\n\n")[0])
        fields.append(("learner", made, dataclasses.field(default_factory=made)))
    asked = dataclasses.make_dataclass("Options", fields, frozen=True, kw_only=True)
    given = options.parse(f"offline train {' '.join(words)}", asked, rest, (kind.__doc__ or "").split("\n\n")[0])
    learner = options.build(kind, options.values(given.learner)) if own else (kind() if isinstance(kind, type) else kind)
    return _run(words, [learner], given.protocol)


def _compare(argv: Sequence[str]) -> int:
    read = heads.words("bilevel-rl offline compare", argv, ("DATA", "ENVIRONMENT"), Compare)
    if read is None:
        return 0
    given = options.parse("offline compare", Compare, read[1], Compare.__doc__ or "")
    made = [_learner(word) for word in given.learners]
    return _run(read[0], [kind() if isinstance(kind, type) else kind for kind in made], given)


def _run(words: Sequence[str], learners: list[Any], ask: Protocol) -> int:
    data, environment = _load(words)
    if not data.high > data.low:
        data = _measured(data, environment)
    from bilevel_rl.control import export
    from bilevel_rl.control.offline import protocol

    found = protocol.compare(learners, data, environment, ask.setting())
    table = Table("learner", "score [95 %]", "return, seeds", title=f"{environment.name}, {len(data)} transitions",
                  title_justify="left")  # fmt: skip
    for r in found:
        table.add_row(r.name, str(r.last), " ".join(f"{v:.4g}" for v in r.returns[-1]))
    screen.console().print(table)
    print(f"scores: {data.low:.4g} is 0, {data.high:.4g} is 100; interquartile means of {ask.seeds} seeds")
    if ask.out is not None:
        ask.out.mkdir(parents=True, exist_ok=True)
        facts = {
            "data": words[0], "environment": environment.name, "setting": dataclasses.asdict(ask.setting()),
            "low": data.low, "high": data.high, "hardware": records.hardware(),
            "learners": {r.name: {"returns": r.returns.tolist(), "at": r.at.tolist()} for r in found},
        }  # fmt: skip
        (ask.out / "result.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        if len(found) == 1:
            export.save(ask.out / "learnt.safetensors", found[0].learnt, {"learner": found[0].name, "data": words[0]})
        print(f"results: {ask.out}")
    return 0


def _measured(data: OfflineData, environment: Environment) -> OfflineData:
    """Data of others: 0 is what random actions earn, 100 their best episode."""
    from bilevel_rl.control.offline.protocol import random_return

    low, high = random_return(environment), float(data.returns().max())
    if not high > low:
        raise InvalidProblem(
            message(f"data of {environment.name}", f"episodes that return {high:g} at best", f"random actions earn {low:g}",
                    "Scores need data that are better than random")
        )  # fmt: skip
    print("nobody has noted an expert's return: the best episode of the data is 100")
    return dataclasses.replace(data, low=low, high=high)


VERBS = {"make": _make, "check": _check, "show": _show, "train": _train, "compare": _compare}
