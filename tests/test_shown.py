"""What a trace says of itself: five lines, a table, a data frame, its answer."""

from __future__ import annotations

import numpy as np
import pytest

from bilevel_rl import shown
from bilevel_rl.finite import solve
from bilevel_rl.finite.problems.probes import Bandit
from bilevel_rl.finite.solvers import ExactDescent


def made(runs=3, count=4, d=2, **more):
    """Arrays of a trace; run 1 ends lowest, run 2 stopped."""
    rng = np.random.default_rng(0)
    metrics = {
        "samples": np.tile(np.arange(count) * 10.0, (runs, 1)),
        "objective": np.linspace(1, 0, count) + np.array([0.2, 0.1, -5.0])[:runs, None],
    } | more  # fmt: skip
    return metrics, rng.normal(size=(runs, count, d)), np.array([0, 0, 1])[:runs]


def test_five_lines_say_size_samples_objective_gap_and_x():
    metrics, x, status = made(gap=np.ones((3, 4)))
    lines = shown.text(metrics, x, status, ("toll", "tax")).splitlines()
    assert [line.split()[0] for line in lines] == ["Trace", "samples", "objective", "gap", "best"]
    assert "3 runs, 4 records, 1 stopped" in lines[0]
    assert "30 a run" in lines[1]
    assert lines[4].endswith(f"toll {x[1, -1, 0]:.4g}, tax {x[1, -1, 1]:.4g}")
    metrics, x, status = made(d=30)
    assert "... 30 numbers" in shown.text(metrics, x, status, ())
    del metrics["objective"]
    assert shown.text(metrics, x, status, ()).count("not graded") == 2


def test_the_best_x_is_that_of_the_best_run_that_did_not_stop():
    metrics, x, status = made()
    np.testing.assert_array_equal(shown.best_x(metrics, x, status), x[1, -1])
    del metrics["objective"]
    np.testing.assert_array_equal(shown.best_x(metrics, x, status), np.median(x[:, -1], axis=0))


def test_the_html_table_is_escaped():
    metrics, x, status = made()
    assert "&lt;b&gt;" in shown.table(metrics, x, status, ("<b>", "tax"))


def test_a_data_frame_has_a_row_for_each_run_and_record():
    pytest.importorskip("pandas")
    metrics, x, status = made()
    frame = shown.dataframe(metrics, x, status, ("toll", "tax"))
    assert len(frame) == 12
    row = frame[(frame.run == 2) & (frame.record == 3)].iloc[0]
    assert (row.samples, row.toll, row.stopped) == (30.0, x[2, 3, 0], True)


def test_a_trace_of_the_engine_speaks_so():
    trace = solve(Bandit(), ExactDescent(step_size=0.1), iterations=2)
    assert len(repr(trace).splitlines()) == 5
    assert "<table>" in trace._repr_html_()
    np.testing.assert_array_equal(trace.best_x, trace.x[0, -1])
    assert trace.x_names == ()
