"""Run folders to methods, methods to sections: everything the page shows, before any figure."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bilevel_rl import records
from bilevel_rl.errors import RunNotFound

SUCCESS = 0.05  # a run succeeds when it ends within this fraction of the best known value
RECORDS = 120  # ours: points a curve is drawn with at most


@dataclasses.dataclass(frozen=True)
class Method:
    """All runs of one method on one problem.

    Attributes:
        label: its name on the page.
        trace: metric key -> [runs, records].
        runs: the run folders' headers and traces, as read.
        folders: where they were read.
        scene: arrays for drawing the first run on its grid, or empty.
        samples: rows of text a language model wrote, or empty.
    """

    label: str
    trace: dict[str, np.ndarray]
    runs: tuple[records.Run, ...]
    folders: tuple[Path, ...]
    scene: dict[str, np.ndarray]
    samples: tuple[dict[str, Any], ...]

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
        return self.runs[0].config.get("command") or self.runs[0].provenance.get("command", "")

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
    def trouble(self) -> list[str]:
        """Sentences about runs that did not finish."""
        found = []
        for folder, run in zip(self.folders, self.runs, strict=True):
            if run.status.get("state") != "finished" or run.status.get("message"):
                found.append(
                    f"{folder.name}: {run.status.get('state')}. {run.status.get('message', '')}".strip()
                )
        return found


@dataclasses.dataclass(frozen=True)
class Section:
    """One problem and the methods that were run on it."""

    kind: str
    problem: str
    options: str
    methods: tuple[Method, ...]

    @property
    def title(self) -> str:
        """Problem in words."""
        return self.problem.replace("_", " ")


def sections(paths: Sequence[str | Path]) -> list[Section]:
    """Read every run folder at or below `paths` and sort the runs into sections and methods.

    Raises:
        RunNotFound: none is there, or none is readable.
    """
    folders = list(dict.fromkeys(folder for path in paths for folder in records.find_runs(path)))
    groups: dict[tuple[str, str, str], dict[str, list[tuple[Path, records.Run]]]] = {}
    unreadable = []
    for folder in folders:
        try:
            run = records.Run.read(folder)
        except RunNotFound as error:
            unreadable.append(error)
            continue
        if "samples" not in run.trace or not run.trace["samples"].size:
            continue  # started, nothing recorded yet
        place = (run.kind, run.problem, settings_text(run.config.get("problem_options", {})))
        groups.setdefault(place, {}).setdefault(label_of(run), []).append((folder, run))
    if not groups:
        raise unreadable[0] if unreadable else RunNotFound(f"{paths[0]}: no run has recorded anything yet.")
    made = []
    for (kind, problem, options), methods in groups.items():
        found = [_method(label, runs) for label, runs in methods.items()]
        # in the order they were started, methods that use the model last
        found.sort(key=lambda m: (m.model_based, m.runs[0].provenance.get("time", "")))
        made.append(Section(kind, problem, options, tuple(found)))
    return made


def label_of(run: records.Run) -> str:
    """Name of the method on the page: for language models, the estimator belongs to it."""
    if run.kind == "llm":
        if run.config.get("label"):
            return str(run.config["label"])
        if run.name == "bilevel" and "estimator" in run.config:
            return f"bilevel, {run.config['estimator']}"
    return run.name


def _method(label: str, found: list[tuple[Path, records.Run]]) -> Method:
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
    if (folders[0] / "scene.npz").exists():
        scene = records.read_arrays(folders[0] / "scene.npz")
    return Method(
        label, trace, tuple(runs), tuple(folders), scene, tuple(_samples(folders[0] / "samples.jsonl"))
    )


def _samples(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    if path.exists():
        for line in path.read_text().splitlines():
            with contextlib.suppress(ValueError):  # a torn last line
                rows.append(json.loads(line))
    return rows


def settings_text(values: dict[str, Any], prefix: str = "") -> str:
    """Nested options on one line; a power schedule as its formula.

    Example:
        >>> settings_text({"chains": 32, "scales": {"w": {"initial": 1.0, "power": 0.15, "floor": 0.0}}})
        'chains 32 · w 1/(k+1)^0.15'
    """
    words = []
    for key, value in values.items():
        if isinstance(value, dict) and {"initial", "power"} <= value.keys():
            formula = f"{value['initial']:g}" + (f"/(k+1)^{value['power']:.3g}" if value["power"] else "")
            words.append(f"{key} {formula}")
        elif isinstance(value, dict):
            inner = settings_text(value)
            words += [inner] if inner else []
        elif value not in ("", None, [], {}):
            words.append(f"{prefix}{key} {_short(value)}")
    return " · ".join(words)


def _short(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (list, tuple)):
        return "(" + ", ".join(_short(v) for v in value) + ")"
    return str(value)
