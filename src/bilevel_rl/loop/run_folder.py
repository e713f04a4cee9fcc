"""The run folder of a solve: header and status at once, a checkpoint every few seconds, the trace as it grows."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bilevel_rl import records, versions
from bilevel_rl.errors import InvalidConfig, RunNotFound, message, typed
from bilevel_rl.loop import checkpoint, pieces
from bilevel_rl.loop.problem import Problem
from bilevel_rl.loop.solver import Solver, State
from bilevel_rl.loop.trace import OK, Log


def header(problem: Problem, solver: Solver, seed: int, config: dict[str, Any]) -> dict[str, Any]:
    """What `run.json` says, provenance aside."""
    return {
        "format": records.FORMAT, "kind": problem.kind, "name": config.get("label") or solver.name,
        "problem": problem.name, "seed": seed, "config": config, "references": [*solver.references],
        "x_names": [*problem.x_names],
    }  # fmt: skip


class RunFolder(records.Held):
    """The run folder of a solve: does nothing when there is no folder.

    Args:
        folder: where; None for nowhere.
        resume: whether to go on from its checkpoint.
        fingerprint: of the configuration that the checkpoint must belong to.
        config: how to start this run again.
        solver: one of the solvers.
        every: iterations between records.
    """

    def __init__(
        self, folder: str | Path | None, resume: bool, fingerprint: str, config: dict[str, Any] | None, solver: Solver,
        problem: Problem, seed: int, every: int,
    ):  # fmt: skip
        super().__init__(folder)
        self.every = every
        self.resume, self.fingerprint, self.saved, self.solver = resume, fingerprint, 0.0, solver
        self.header, self.backdrop = header(problem, solver, seed, config or {}), problem.backdrop()

    def __enter__(self) -> RunFolder:
        if self.folder is None:
            return self
        if not self.resume and (self.folder / "run.json").exists():
            raise InvalidConfig(
                message(str(self.folder), "a folder that already holds a run", "a new run needs a folder of its own",
                        f"Choose another --out, or continue with `{typed('resume', self.folder)}`")
            )  # fmt: skip
        if self.resume and not (self.folder / "run.json").exists():
            raise RunNotFound(
                message(str(self.folder), "no run.json", "resume needs a run folder", "Start it with `bilevel-rl run`")
            )
        self.hold()
        return self

    def load(self, states: State) -> tuple[int, Log, State]:
        """Records that are done, their log and the states after them; or the first states and an empty log.

        Raises:
            RunNotFound: a checkpoint of another configuration.
            StorageFailed: the folder can't be written.
        """
        log = Log(states.samples.shape[0])
        if self.folder is None:
            return 0, log, states
        path, running = self.folder / checkpoint.FILE, {"state": "running", "message": ""}
        if not self.resume or not path.exists():
            records.write_json(self.folder / "status.json", running)
            self.began = True
            if not self.resume:
                records.write_header(self.folder, self.header | {"provenance": records.provenance()})
            return 0, log, states
        arrays, meta = checkpoint.read(path, self.fingerprint, "run")
        records.goes_on(self.folder, "run.json", versions.OF_JAX)
        records.write_json(self.folder / "status.json", running)
        self.began = True
        ring = self.solver.ring(states)
        states = checkpoint.unpacked(self.solver, self._without_ring(states), arrays)
        if ring is not None:
            rows = pieces.load(self.folder, ring, meta["records"] * self.every, arrays)
            states = self.solver.with_ring(states, rows)
        for group, series in (("metrics", log.metrics), ("scene", log.scene)):
            for key, value in arrays.items():
                if key.startswith(f"{group}/"):
                    axis = 1 if group == "metrics" else 0
                    series[key.removeprefix(f"{group}/")] = [np.take(value, i, axis) for i in range(value.shape[axis])]
        log.x = list(np.moveaxis(arrays["x"], 1, 0))
        log.status, log.messages = arrays["status"].copy(), meta["messages"]
        return meta["records"], log, states

    def save(self, done: int, log: Log, states: State, last: bool) -> None:
        """Write a checkpoint and the trace, when it is time, when a signal waits, or at the end."""
        due = last or self.signal.asked or time.monotonic() - self.saved > checkpoint.SECONDS
        if self.folder is None or not due:
            return
        trace = log.trace(states, 0.0)
        arrays, ring = checkpoint.packed(self.solver, self._without_ring(states)), self.solver.ring(states)
        if ring is not None:
            arrays |= pieces.save(self.folder, ring, done * self.every)
        arrays |= {f"metrics/{key}": value for key, value in trace.metrics.items()}
        arrays |= {f"scene/{key}": value for key, value in trace.scene.items()}
        meta = {"fingerprint": self.fingerprint, "records": done, "messages": list(log.messages)}
        arrays |= {"x": trace.x, "status": trace.status, "meta": np.array(json.dumps(meta))}
        records.write_arrays(self.folder / checkpoint.FILE, arrays)
        records.write_arrays(self.folder / "metrics.npz", log.arrays())
        if ring is not None:
            pieces.forget(self.folder, ring, done * self.every)
        self.saved = time.monotonic()
        if not last:
            self.signal.check()

    def _without_ring(self, states: State) -> State:
        ring = self.solver.ring(states)
        return states if ring is None else self.solver.with_ring(states, ring.rows[:, :0])

    def finish(self, log: Log, drawn: Callable[[], dict[str, np.ndarray]]) -> None:
        """What is drawn, and that the run is over.

        Args:
            drawn: asked once for what draws the end besides.
        """
        if self.folder is None:
            return
        scene = log.trace(None, 0.0).scene | drawn()
        if scene:
            records.write_arrays(self.folder / "scene.npz", scene | self.backdrop)
        records.write_json(
            self.folder / "status.json",
            {"state": "failed" if (log.status != OK).all() else "finished", "message": " ".join(log.messages)},
        )
