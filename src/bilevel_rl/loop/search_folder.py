"""The folder of a search: its configuration and checkpoint while it runs, two ordinary run folders when it is done.

    search.json     what was asked; not run.json, for a search is no run
    status.json     running, finished, stopped or failed, and why
    checkpoint.npz  where it is: states of all starts, who goes on, what was measured
    starts/ best/   run folders: every start a run; the chosen one, at the samples of all

Every file is replaced whole. `search.json` is written after the first checkpoint, so a folder that has it can go on.
"""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from bilevel_rl import metrics as M
from bilevel_rl import records, versions
from bilevel_rl.errors import InvalidConfig, RunNotFound, message, typed
from bilevel_rl.loop import checkpoint
from bilevel_rl.loop.problem import Problem
from bilevel_rl.loop.run_folder import header
from bilevel_rl.loop.solver import Solver
from bilevel_rl.loop.trace import OK

HEADER = "search.json"


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a search is. Replaced whole by every piece of work, so that an interruption finds it consistent.

    Attributes:
        stage, chunk: how many stages, and how many chunks of the present one, are done.
        k: iterations of a start that was never given up.
        states: of the solver, batched over all starts.
        status: [N] 0, or 1 where a start became non-finite.
        score: [N] by which the starts were compared last.
        extra: [N] transitions of comparisons.
        going: [n] the starts of the present stage.
        log: metrics, [N] by key, at the start and after each stage.
        xs: [N, d] likewise.
        seen: what the comparisons keep, by name.
    """

    stage: int
    chunk: int
    k: int
    states: Any
    status: np.ndarray
    score: np.ndarray
    extra: np.ndarray
    going: np.ndarray
    log: tuple[dict[str, np.ndarray], ...] = ()
    xs: tuple[np.ndarray, ...] = ()
    seen: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def arrays(self, solver: Solver, fingerprint: str) -> dict[str, np.ndarray]:
        """As a checkpoint holds it."""
        meta = {"fingerprint": fingerprint, "stage": self.stage, "chunk": self.chunk, "k": self.k}
        found = checkpoint.packed(solver, self.states)
        found |= {name: getattr(self, name) for name in ("status", "score", "extra", "going")}
        found |= {f"log/{key}": np.stack([record[key] for record in self.log]) for key in self.log[0]}
        found |= {f"seen/{key}": value for key, value in self.seen.items()}
        return found | {"xs": np.stack(self.xs), "meta": np.array(json.dumps(meta))}

    def restored(self, solver: Solver, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> Place:
        """This place as a checkpoint says; the structure of the states is that of self."""
        states = checkpoint.unpacked(solver, self.states, arrays)
        log = {key.removeprefix("log/"): value for key, value in arrays.items() if key.startswith("log/")}
        return Place(
            meta["stage"], meta["chunk"], meta["k"], states,
            arrays["status"], arrays["score"], arrays["extra"], arrays["going"],
            tuple({key: value[i] for key, value in log.items()} for i in range(len(arrays["xs"]))),
            tuple(arrays["xs"]), {key: arrays[f"seen/{key}"] for key in self.seen},
        )  # fmt: skip


class SearchFolder(records.Held):
    """Holds a search's folder for this process; does nothing when there is none."""

    def __init__(
        self, folder: str | Path | None, resume: bool, fingerprint: str, config: dict[str, Any],
        problem: Problem, solver: Solver, seed: int, stages: list[dict[str, Any]],
    ):  # fmt: skip
        super().__init__(folder)
        self.resume, self.fingerprint, self.config, self.stages = resume, fingerprint, config, stages
        self.saved = time.monotonic()
        self.solver = solver
        self.header = header(problem, solver, seed, config)
        self.header["references"] = [*solver.references, "jamieson2016hyperband"]
        self.label = self.header["name"]

    def __enter__(self) -> SearchFolder:
        if self.folder is None:
            return self
        if self.resume and not (self.folder / HEADER).exists():
            raise RunNotFound(
                message(str(self.folder), f"no {HEADER}", "resume needs the folder of a search",
                        "Start it with `bilevel-rl search`")
            )  # fmt: skip
        if not self.resume:
            check_free(self.folder)
        self.hold()
        return self

    def begin(self, place: Place) -> Place:
        """Where to go on: the checkpoint's place, or this one, written at once so that a full disk shows now.

        Raises:
            RunNotFound: a checkpoint of another search.
            StorageFailed: the folder can't be written.
        """
        if self.folder is None:
            return place
        if not self.resume:
            records.write_json(self.folder / "status.json", {"state": "running", "message": ""})
            self.save(place, now=True)
            records.write_json(self.folder / HEADER, self.header | {"provenance": records.provenance()})
            self.began = True
            return place
        arrays, meta = checkpoint.read(self.folder / checkpoint.FILE, self.fingerprint, "search")
        records.goes_on(self.folder, HEADER, versions.OF_JAX)
        records.write_json(self.folder / "status.json", {"state": "running", "message": ""})
        self.began = True
        return place.restored(self.solver, arrays, meta)

    def save(self, place: Place, now: bool = False) -> None:
        """Write a checkpoint, when it is time or at once."""
        due = now or self.signal.asked or time.monotonic() - self.saved > checkpoint.SECONDS
        if self.folder is None or not due:
            return
        records.write_arrays(self.folder / checkpoint.FILE, place.arrays(self.solver, self.fingerprint))
        self.saved = time.monotonic()
        if not now:
            self.signal.check()

    def finish(self, metrics: dict[str, np.ndarray], xs: np.ndarray, status: np.ndarray, chosen: int) -> None:
        """The two run folders, and that the search is over. `run.json` comes last: a folder that has it is whole."""
        if self.folder is None:
            return
        everything, count = metrics | {"x": xs, "status": status}, len(status)
        best = {key: v[chosen : chosen + 1] for key, v in everything.items()}
        # what finding it took: the samples of all starts
        best[M.SAMPLES.key] = metrics[M.SAMPLES.key].sum(0, keepdims=True)
        header = self.header | {"provenance": records.provenance()}
        for name, words, runs, arrays in (
            ("starts", f"{count} starts", count, everything),
            ("best", f"best of {count}", 1, best),
        ):
            place, label = records.make_folder(self.folder / name), f"{self.label}, {words}"
            records.write_arrays(place / "metrics.npz", arrays)
            records.write_json(place / "status.json", {"state": "finished", "message": ""})
            config = {"label": label, "stages": self.stages, "runs": runs}
            records.write_header(place, header | {"name": label, "config": self.config | config})
        failed = bool((status != OK).all())
        records.write_json(
            self.folder / "status.json",
            {"state": "failed" if failed else "finished", "message": "every start became non-finite" if failed else ""},
        )


def read_config(folder: Path) -> dict[str, Any]:
    """How a search was started from the command line.

    Raises:
        RunNotFound: unreadable, of another format version, or started from Python without `config`.
    """
    header = records.read_json(folder / HEADER)
    if not isinstance(header, dict) or header.get("format") != records.FORMAT or "config" not in header:
        raise RunNotFound(
            message(str(folder / HEADER), "not the header of a search of this version",
                    f"this version reads format {records.FORMAT}",
                    "Read it with the version that wrote it, or search again")
        )  # fmt: skip
    if "search" not in header["config"]:
        raise RunNotFound(
            message(str(folder / HEADER), "a configuration without search",
                    "only searches started with `bilevel-rl` can be rebuilt",
                    "Start it again from the Python code that made it, with search(..., resume=True)")
        )  # fmt: skip
    return header["config"]


def check_free(folder: Path) -> None:
    """Raise `InvalidConfig` where a search or a run lives already."""
    for name in (HEADER, "run.json", "starts/run.json"):
        if (folder / name).exists():
            word = "run" if name == "run.json" else "search"
            raise InvalidConfig(
                message(str(folder), f"a folder that already holds a {word}", "a new search needs a folder of its own",
                        f"Choose another --out, or continue with `{typed('resume', folder)}`")
            )  # fmt: skip
