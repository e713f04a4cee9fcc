"""The comparison of recipes: how settings are chosen and what may be claimed, without a run."""

from __future__ import annotations

import importlib
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def bench():
    """benchmarks/_recipes_choosing.py as a module."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    yield importlib.import_module("_recipes_choosing")
    sys.path.remove(str(ROOT / "benchmarks"))


def test_an_interior_optimum_is_chosen_and_an_edge_is_left_or_refused(bench):
    best, tried, refused = bench.chosen([1e-4, 3e-4, 1e-3], lambda rate: -abs(rate - 3e-4))
    assert (best, len(tried), refused) == (3e-4, 3, False)
    best, tried, refused = bench.chosen([1e-4, 3e-4, 1e-3], lambda rate: -abs(rate - 3e-3))
    assert best == pytest.approx(3e-3)
    assert len(tried) == 5  # one beyond the edge, and one beyond that, which is worse
    assert not refused
    _, tried, refused = bench.chosen([1e-4, 3e-4, 1e-3], lambda rate: rate)
    assert refused
    assert len(tried) == 3 + bench.BEYOND
    pairs = [[1, 1e-4], [1, 3e-4], [2, 1e-4], [2, 3e-4], [2, 1e-3]]
    best, _, refused = bench.chosen(pairs, lambda c: c[0] - abs(c[1] - 3e-4))
    assert (best, refused) == ([2, 3e-4], False)


def row(scores, **more):
    return {"scores": scores, **more}


def test_a_claim_needs_equal_tokens_and_equal_gradient_steps(bench):
    scores = [0.50, 0.52, 0.48, 0.51, 0.49, 0.50, 0.53, 0.47, 0.50, 0.50]
    base = row(scores, steps_a_batch=1, scores_at_equal_steps=scores)
    better = [s + 0.2 + 0.01 * (i % 3) for i, s in enumerate(base["scores"])]
    rows = {
        "base": base,
        "better": row(better, steps_a_batch=1),  # no score at equal steps on record: they are as many
        "more steps": row(better, steps_a_batch=2, scores_at_equal_steps=base["scores"]),
        "more steps, and better": row(better, steps_a_batch=2, scores_at_equal_steps=better),
        "not shown at equal steps": row(better, steps_a_batch=2),
        "refused": row(better, steps_a_batch=1, refused=True),
        "same": row([s + 0.01 * (-1) ** i for i, s in enumerate(base["scores"])], steps_a_batch=1),
    }
    bench.compared(rows, base, "against", "base")
    assert bench.claimed(rows, "against") == ["better", "more steps, and better"]
    assert rows["same"]["against"]["holm"] > 0.05
    assert "against" not in rows["base"]
    assert rows["better"]["against"]["holm"] >= rows["better"]["against"]["p"]


def test_the_record_claims_nothing_that_does_not_survive(bench):
    record = bench.records.read_json(ROOT / "benchmarks/results/recipes.json")
    again = bench.records.read_json(ROOT / "benchmarks/results/recipes.json")
    bench.assess(again, repeats=20)
    assert again["better_than_trl"] == record["better_than_trl"]
    for name, family in record["families"].items():
        assert again["families"][name].get("better", []) == family.get("better", [])
    assert record["coverage"]["10"]["normal"]["percentile bootstrap"] < record["coverage"]["10"]["normal"]["student t"]
