"""What a run measured: the trace, and the log from which it grows record by record."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from bilevel_rl import metrics as M
from bilevel_rl import shown
from bilevel_rl.errors import NoFiniteValue, NonFiniteState, did_you_mean, message
from bilevel_rl.loop.problem import Problem
from bilevel_rl.loop.solver import State

OK, NON_FINITE, NO_VALUE = 0, 1, 2
BOUND = "Bound x: give the problem a `box` in which the follower's problem has a finite value"


@dataclasses.dataclass(frozen=True)
class Trace:
    """What `solve` measured.

    Attributes:
        metrics: key -> [runs, records]; keys as in `bilevel_rl.metrics`.
        x: [runs, records, d].
        status: [runs] 0 ok, 1 stopped by a non-finite value, 2 by an x under which the follower's problem has none.
        messages: one sentence for each run that stopped.
        state: final states, batched over runs.
        scene: arrays over records for drawing run 0; empty when the problem has nothing to draw.
        seconds: wall time of stepping, without grading and files; the first interval includes compilation.
        x_names: of the upper variables; empty when the problem names none.
    """

    metrics: dict[str, np.ndarray]
    x: np.ndarray
    status: np.ndarray
    messages: tuple[str, ...]
    state: State | None
    scene: dict[str, np.ndarray]
    seconds: float
    x_names: tuple[str, ...] = ()

    @property
    def best_x(self) -> np.ndarray:
        """[d] x at the end of the run with the least objective; not graded: the median over runs."""
        return shown.best_x(self.metrics, self.x, self.status)

    def __repr__(self) -> str:
        return shown.text(self.metrics, self.x, self.status, self.x_names)

    def _repr_html_(self) -> str:
        return shown.table(self.metrics, self.x, self.status, self.x_names)

    def to_dataframe(self) -> Any:
        """A pandas DataFrame, one row a run and record; `MissingDependency` without the extra `pandas`."""
        return shown.dataframe(self.metrics, self.x, self.status, self.x_names)

    def __getitem__(self, key: str) -> np.ndarray:
        """[B, records] a metric; a `KeyError` names the nearest one that was recorded."""
        if key not in self.metrics:
            known = did_you_mean(key, self.metrics)
            raise KeyError(message(f"trace[{key!r}]", "an unknown metric", known, "Name one of these"))
        return self.metrics[key]

    def raise_if_failed(self) -> Trace:
        """Return self, or raise with the first run's diagnosis.

        Raises:
            NoFiniteValue: all that stopped came to an x without a finite value of the follower's problem.
            NonFiniteState: anything else.
        """
        if self.messages:
            stopped = self.status[self.status != OK]
            raise (NoFiniteValue if (stopped == NO_VALUE).all() else NonFiniteState)(self.messages[0])
        return self


def without_value(problem: Problem, where: str, x: np.ndarray, overflow: bool) -> NoFiniteValue | None:
    """The error that says so, where x [d] is one under which the follower's problem has no finite value.

    Args:
        overflow: whether numbers of the run grew beyond all bounds.
    """
    said = problem.valueless(jnp.asarray(x), overflow)
    return None if said is None else NoFiniteValue(message(f"{where}, x", np.round(x, 4).tolist(), said, BOUND))


class Log:
    """The growing trace of a batch of runs."""

    def __init__(self, batch: int):
        self.metrics: dict[str, list[np.ndarray]] = {}
        self.x: list[np.ndarray] = []
        self.scene: dict[str, list[np.ndarray]] = {}
        self.status = np.zeros(batch, int)
        self.messages: list[str] = []

    def add(self, values: Mapping[str, Array], states: State, k: int, problem: Problem) -> None:
        """One more record, of iteration k, as `grading.measure` made it; runs whose grade is NaN end here."""
        for key, value in jax.device_get(dict(values)).items():
            series = self.scene if key.startswith("scene/") else self.metrics
            series.setdefault(key.removeprefix("scene/"), []).append(np.array(value))  # copies: states are written over
        self.x.append(np.array(states.x))
        self._stop_unanswered(k, problem)

    def newest(self) -> dict[str, np.ndarray]:
        """The last record, [runs] each."""
        return {key: series[-1] for key, series in self.metrics.items()}

    def _stop_unanswered(self, k: int, problem: Problem) -> None:
        """End the runs whose last grade is NaN: an exact value that missed its tolerance is no value."""
        grade = self.newest().get(M.OBJECTIVE.key)
        if grade is None:
            return
        for i in np.flatnonzero(np.isnan(grade) & (self.status == OK)):
            where = f"run {i}, iteration {k}"
            self.stop(int(i), without_value(problem, where, self.x[-1][i], False) or message(
                where, "an objective of NaN", "the follower must be found to the oracles' tolerance",
                "Raise the temperature of grading (--tau), or look at this x with oracles.lower_optimum",
            ))  # fmt: skip

    def stop(self, run: int, why: str | NoFiniteValue) -> None:
        """A run ends here, and why."""
        self.status[run] = NO_VALUE if isinstance(why, NoFiniteValue) else NON_FINITE
        self.messages.append(str(why))

    def trace(self, states: State | None, seconds: float) -> Trace:
        """What has been measured so far."""
        return Trace(
            metrics={key: np.stack(series, axis=1) for key, series in self.metrics.items()},
            x=np.stack(self.x, axis=1), status=self.status, messages=tuple(self.messages), state=states,
            scene={key: np.stack(series) for key, series in self.scene.items()}, seconds=seconds,
        )  # fmt: skip

    def arrays(self) -> dict[str, np.ndarray]:
        """What `metrics.npz` holds."""
        trace = self.trace(None, 0.0)
        return trace.metrics | {"x": trace.x, "status": trace.status}
