"""Run folders to methods, methods to sections: everything the page shows, before any figure.

Only seeds of the same settings at the same budget are one method. What differs in settings, budget or length stands apart,
labelled by what differs; what is graded at another temperature, or comes from another problem file, is another section.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bilevel_rl import json_lines, records
from bilevel_rl.errors import RunNotFound

SUCCESS = 0.05  # a run succeeds when it ends within this fraction of the best known value
RECORDS = 120  # ours: points a curve is drawn with at most
EQUAL = 0.05  # ours: budgets within this fraction of each other are equal; walks of random length differ by less
SHOWN = 3  # ours: how many differing settings a label names
# what may differ between seeds of one method: where, which and how it was asked, not what was run
OWN = {
    "seed", "seeds", "out", "label", "command", "optimum", "runs", "problem_source", "solver_source", "search_seed",
    "samples", "evaluate", "problem", "problem_options", "tau", "exact", "extended_from",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class MethodRuns:
    """All runs of one method on one problem.

    Attributes:
        label: its name on the page.
        trace: metric key -> [runs, records].
        runs: the run folders' headers and traces, as read.
        folders: where they were read.
        scene: arrays for drawing the first run on its grid, or empty.
        samples: rows of text a language model wrote, or empty.
        damage: sentences on files that could not be read.
    """

    label: str
    trace: dict[str, np.ndarray]
    runs: tuple[records.Run, ...]
    folders: tuple[Path, ...]
    scene: dict[str, np.ndarray]
    samples: tuple[dict[str, Any], ...]
    damage: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """Number of independent runs."""
        return int(self.trace["samples"].shape[0])

    @property
    def best(self) -> float | None:
        """Best known value of the objective, which the gap is measured from."""
        found = self.runs[0].config.get("optimum")
        return None if found is None else float(found["value"])

    @property
    def best_x(self) -> list[float] | None:
        """Best known x."""
        found = self.runs[0].config.get("optimum")
        return None if found is None else [float(v) for v in found["x"]]

    @property
    def command(self) -> str:
        """The command that makes these runs."""
        return str(self.runs[0].config.get("command") or self.runs[0].provenance.get("command", ""))

    @property
    def settings(self) -> str:
        """Its hyper-parameters on one line."""
        config = self.runs[0].config
        return settings_text(config.get("solver_options", {} if "solver" in config else config))

    @property
    def model_based(self) -> bool:
        """Whether it uses the model and no samples."""
        return bool((self.trace["samples"] == 0).all())

    @property
    def budget(self) -> float:
        """Mean samples of a run at its end."""
        return float(self.trace["samples"][:, -1].mean())

    @property
    def trouble(self) -> list[str]:
        """Sentences about runs that did not finish, files that were changed or could not be read."""
        found = list(self.damage)
        for folder, run in zip(self.folders, self.runs, strict=True):
            if run.status.get("state") != "finished" or run.status.get("message"):
                found.append(
                    f"{folder.name}: {run.status.get('state')}. {run.status.get('message', '')}".strip()
                )
            if run.altered:
                found.append(f"{folder.name}: run.json was changed after it was written, and may not say what was run.")
        return found

    def names(self) -> list[str]:
        """Names of the upper variables, x₁ ... x_d where they have none."""
        d = self.trace["x"].shape[-1] if "x" in self.trace else 0
        given = self.runs[0].x_names
        return list(given) if len(given) == d else [f"x{subscript(i + 1)}" if d > 1 else "x" for i in range(d)]


@dataclasses.dataclass(frozen=True)
class Section:
    """One problem and the methods that were run on it."""

    kind: str
    problem: str
    options: str
    methods: tuple[MethodRuns, ...]

    @property
    def title(self) -> str:
        """Problem in words."""
        return self.problem.replace("_", " ")

    @property
    def common(self) -> float | None:
        """The largest budget that every sampling method has, where their budgets differ; else None.

        Tokens of a language model are what it chose to write, and are not equal on purpose.
        """
        if self.kind == "llm":
            return None
        budgets = [m.budget for m in self.methods if not m.model_based]
        if not budgets or max(budgets) <= (1 + EQUAL) * min(budgets):
            return None
        return min(budgets)


class Collected(NamedTuple):
    """Everything at or below some folders.

    Attributes:
        sections: what is shown.
        trouble: one sentence for each folder that is not, and why.
    """

    sections: list[Section]
    trouble: list[str]


def sections(paths: Sequence[str | Path]) -> list[Section]:
    """The sections of `read`."""
    return read(paths).sections


def read(paths: Sequence[str | Path]) -> Collected:
    """Read every run folder at or below `paths` and sort the runs into sections and methods.

    Raises:
        RunNotFound: none is there, or none is readable.
    """
    folders = list(dict.fromkeys(folder for path in paths for folder in records.find_runs(path)))
    groups: dict[tuple[str, str, str, str], dict[str, list[tuple[Path, records.Run]]]] = {}
    first: RunNotFound | None = None
    trouble = []
    for folder in folders:
        try:
            run = records.Run.read(folder)
        except RunNotFound as error:
            first = first or error
            trouble.append(f"Left out: {error}")
            continue
        if "samples" not in run.trace or not run.trace["samples"].size:
            trouble.append(f"Left out: {folder}: started, nothing recorded yet.")
            continue
        options = run.config.get("problem_options")
        words = settings_text(options if isinstance(options, dict) else {})
        tau = run.config.get("tau")
        graded = f"graded at τ = {tau:g}" if isinstance(tau, (int, float)) else ""
        place = (run.kind, run.problem, " · ".join(filter(None, (words, graded))), _source(folder))
        for one in _settings(run):
            groups.setdefault(place, {}).setdefault(label_of(one), []).append((folder, one))
    if not groups:
        raise first or RunNotFound(f"{paths[0]}: no run has recorded anything yet.")
    made = []
    for (kind, problem, options, source), named in groups.items():
        found = [method for label, runs in named.items() for method in _methods(label, runs)]
        # in the order they were started, methods that use the model last
        found.sort(key=lambda m: (m.model_based, str(m.runs[0].provenance.get("time", ""))))
        twins = {s for k, p, o, s in groups if (k, p, o) == (kind, problem, options)}
        words = f"{options} · problem file {source}".strip(" ·") if len(twins) > 1 else options
        made.append(Section(kind, problem, words, tuple(found)))
    return Collected(made, trouble)


def _settings(run: records.Run) -> list[records.Run]:
    """The settings of a sweep, which ran side by side, one by one; any other run as it is."""
    tried = run.config.get("sweep")
    if not isinstance(tried, list) or not tried or run.runs % len(tried):
        return [run]
    each = run.runs // len(tried)
    return [
        dataclasses.replace(
            run, config=run.config | {"solver_options": one, "sweep": None},
            trace={key: value[i * each : (i + 1) * each] for key, value in run.trace.items()},
        )
        for i, one in enumerate(tried)
    ]  # fmt: skip


def _source(folder: Path) -> str:
    """Digest of the user's own problem file, of which the run folder has a copy."""
    try:
        return hashlib.sha256((folder / "problem.py").read_bytes()).hexdigest()[:6]
    except OSError:
        return ""


def label_of(run: records.Run) -> str:
    """Name of the method on the page: for language models, the estimator belongs to it."""
    if run.kind == "llm":
        if run.config.get("label"):
            return str(run.config["label"])
        if run.name == "bilevel" and "estimator" in run.config:
            return f"bilevel, {run.config['estimator']}"
    return run.name


def _methods(label: str, found: list[tuple[Path, records.Run]]) -> list[MethodRuns]:
    """Runs under one label, apart where their settings or lengths differ."""
    apart: dict[str, list[tuple[Path, records.Run]]] = {}
    about: dict[str, dict[str, Any]] = {}
    for folder, run in found:
        facts = _identity(run)
        key = json.dumps(facts, sort_keys=True, default=str)
        apart.setdefault(key, []).append((folder, run))
        about[key] = facts
    differing = sorted({name for facts in about.values() for name in facts
                        if len({json.dumps(f.get(name), default=str) for f in about.values()}) > 1})  # fmt: skip
    made = []
    for key, runs in apart.items():
        named = [_words(name, about[key].get(name), runs[0][1]) for name in differing if name != "record_every"
                 or "iterations" not in differing]  # fmt: skip
        more = [f"and {len(named) - SHOWN} more"] if len(named) > SHOWN else []
        made.append(_method(", ".join([label, *named[:SHOWN], *more]), runs))
    return made


def _identity(run: records.Run) -> dict[str, Any]:
    """What seeds of one method have in common, flat: settings, and how far each has come."""
    facts = flat({key: value for key, value in run.config.items() if key not in OWN})
    facts = {key.removeprefix("solver_options.").removeprefix("scales."): value for key, value in facts.items()}
    if "iteration" in run.trace:
        facts["iterations"] = int(run.trace["iteration"][0, -1])
    for name in ("zeta", "alpha", "beta", "w", "tau"):  # runs from Python may not say their settings
        if "solver_options" not in run.config and name in run.trace and run.kind != "llm":
            facts[name] = float(f"{run.trace[name][0, 0]:.6g}")
    return facts


def _words(name: str, value: Any, run: records.Run) -> str:
    """A setting in a label; a length is said in samples where there are any."""
    spent = float(run.trace["samples"][:, -1].mean())
    if name == "iterations" and spent:
        return f"{spent:,.0f} samples"
    return f"{name.removesuffix('.initial')} {_short(value)}"


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested options under dotted names.

    Example:
        >>> flat({"chains": 8, "scales": {"w": {"initial": 1.0}}})
        {'chains': 8, 'scales.w.initial': 1.0}
    """
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def _method(label: str, found: list[tuple[Path, records.Run]]) -> MethodRuns:
    folders, runs = zip(*found, strict=True)
    keys = set.intersection(*(set(run.trace) for run in runs))
    length = min(run.trace["samples"].shape[1] for run in runs)
    keep = np.unique(np.linspace(0, length - 1, min(length, RECORDS)).round().astype(int))
    trace = {}
    for key in sorted(keys):
        arrays = [run.trace[key] for run in runs]
        if all(a.ndim >= 2 for a in arrays) and len({a.shape[2:] for a in arrays}) == 1:
            trace[key] = np.concatenate([a[:, keep] for a in arrays])
    scene: dict[str, np.ndarray] = {}
    damage = []
    if (folders[0] / "scene.npz").exists():
        try:
            scene = records.read_arrays(folders[0] / "scene.npz")
        except RunNotFound as error:
            damage.append(f"Not drawn: {error}")
    rows, torn = _samples(folders[0] / "samples.jsonl")
    if torn:
        damage.append(f"{folders[0].name}: {torn} lines of samples.jsonl can't be read.")
    return MethodRuns(label, trace, tuple(runs), tuple(folders), scene, tuple(rows), tuple(damage))


def _samples(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Rows of text, and how many lines before the last could not be read."""
    rows: list[dict[str, Any]] = []
    bad = 0
    if path.exists():
        lines = path.read_bytes().decode(errors="replace").splitlines()
        for i, (line, before) in enumerate(zip(lines, ["", *lines], strict=False)):
            row = None
            with contextlib.suppress(ValueError):
                row = json_lines.open_line(line, json_lines.seal_of(before))
            if isinstance(row, dict) and {"iteration", "prompt", "completion", "reward"} <= row.keys():
                rows.append(row)
            else:
                bad += i + 1 < len(lines)  # a torn last line is a kill's
    return rows, bad


def settings_text(values: dict[str, Any], prefix: str = "") -> str:
    """Nested options on one line; a power schedule as its formula.

    Example:
        >>> settings_text({"chains": 32, "scales": {"w": {"initial": 1.0, "power": 0.15, "floor": 0.0}}})
        'chains 32 · w 1/(k+1)^0.15'
    """
    words = []
    for key, value in values.items():
        if isinstance(value, dict) and {"initial", "power"} <= value.keys() and _numbers(value):
            formula = f"{value['initial']:g}" + (f"/(k+1)^{value['power']:.3g}" if value["power"] else "")
            words.append(f"{key} {formula}")
        elif isinstance(value, dict):
            inner = settings_text(value)
            words += [inner] if inner else []
        elif value not in ("", None, [], {}):
            words.append(f"{prefix}{key} {_short(value)}")
    return " · ".join(words)


def _numbers(schedule: dict[str, Any]) -> bool:
    return all(isinstance(schedule[key], (int, float)) for key in ("initial", "power"))


def _short(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:,.0f}" if math.isfinite(value) and value == int(value) and abs(value) >= 1000 else f"{value:g}"
    if isinstance(value, int) and abs(value) >= 1000:
        return f"{value:,}"
    if isinstance(value, (list, tuple)):
        return "(" + ", ".join(_short(v) for v in value) + ")"
    return str(value)


def subscript(number: int) -> str:
    """A number in small letters below the line.

    Example:
        >>> subscript(12)
        '₁₂'
    """
    return "".join("₀₁₂₃₄₅₆₇₈₉"[int(digit)] for digit in str(number))
