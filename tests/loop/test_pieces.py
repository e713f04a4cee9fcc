"""A replay in pieces: what is written once comes back whole, wherever the ring stands."""

import jax.numpy as jnp
import numpy as np
import pytest

from bilevel_rl.errors import RunNotFound
from bilevel_rl.loop import pieces
from bilevel_rl.loop.pieces import Ring

EACH, CAPACITY = 30, 9000  # pieces of 4,110 rows, so that the ring holds two whole ones at most


def at(iterations: int) -> Ring:
    """The ring after so many iterations: row i holds i."""
    rows = np.zeros((2, CAPACITY, 1), np.float32)
    written = iterations * EACH
    i = np.arange(max(0, written - CAPACITY), written)
    rows[:, i % CAPACITY, 0] = i
    return Ring(jnp.asarray(rows), EACH)


@pytest.mark.parametrize("stops", [(0,), (1,), (137,), (136, 137, 200), (250, 299, 300, 301), (700, 1500), (2000, 2001)])
def test_a_ring_is_read_back_as_it_was(tmp_path, stops):
    for k in stops:
        beside = pieces.save(tmp_path, at(k), k)
        pieces.forget(tmp_path, at(k), k)
    again = pieces.load(tmp_path, at(0), stops[-1], beside)
    assert np.array_equal(again, at(stops[-1]).rows)


def test_whole_pieces_are_written_once_and_removed_when_they_are_no_longer_in_the_ring(tmp_path):
    pieces.save(tmp_path, at(150), 150)
    first = tmp_path / pieces.FOLDER / "00000000.npz"
    before = first.stat().st_mtime_ns
    assert len(pieces.save(tmp_path, at(160), 160)["ring/new"][0]) == 160 * EACH - 4110
    assert first.stat().st_mtime_ns == before
    pieces.save(tmp_path, at(600), 600)
    pieces.forget(tmp_path, at(600), 600)
    assert not first.exists()


def test_a_piece_of_another_run_is_refused(tmp_path):
    beside = pieces.save(tmp_path, at(150), 150)
    other = Ring(jnp.zeros((3, CAPACITY, 1), jnp.float32), EACH)
    with pytest.raises(RunNotFound, match="its own pieces"):
        pieces.load(tmp_path, other, 150, {key: np.zeros((3, *v.shape[1:]), np.float32) for key, v in beside.items()})
