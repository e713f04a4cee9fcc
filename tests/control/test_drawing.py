"""A path of a follower becomes a figure: its lines, points, bars, walls and goals."""

from __future__ import annotations

import numpy as np
import pytest

from bilevel_rl.report import rollouts

go = pytest.importorskip("plotly.graph_objects")


def test_lines_are_drawn_pale_first_and_dark_last():
    plot = rollouts.draw(go, {"segments": np.arange(40.0).reshape(10, 2, 2), "goals": np.ones((10, 1, 2))})
    assert len(plot.data) == 11
    assert plot.data[0].line.color.endswith("0.15)")
    assert plot.data[9].line.color.endswith("1.00)")
    assert plot.data[10].mode == "markers"


def test_a_maze_is_drawn_with_rows_downwards():
    plot = rollouts.draw(go, {"points": np.array([[[1.0, 2.0]], [[1.0, 3.0]]]), "walls": np.ones((2, 4, 4), bool)})
    assert len(plot.layout.shapes) == 16  # a rectangle for each wall
    assert plot.data[0].x == (2.0, 3.0)
    assert plot.layout.yaxis.autorange == "reversed"


def test_bars_become_heights_over_time():
    plot = rollouts.draw(go, {"bars": np.stack([np.c_[np.arange(3.0), np.full(3, t)] for t in range(5)])})
    assert len(plot.data) == 3
    assert plot.data[2].y == (0.0, 1.0, 2.0, 3.0, 4.0)
