"""Every metric once."""

from __future__ import annotations

import pytest

from bilevel_rl import metrics


def test_a_key_means_one_thing_within_a_kind_of_run():
    for family in (metrics.FINITE, metrics.LLM):
        keys = [metric.key for metric in family]
        assert len(keys) == len(set(keys))


@pytest.mark.parametrize("metric", metrics.ALL, ids=lambda metric: metric.key)
def test_every_metric_says_what_it_is(metric):
    assert metric.label
    assert metric.unit
    assert metric.better in ("up", "down", "none")
    assert len(metric.meaning.split()) >= 2


def test_solve_records_only_keys_that_are_defined():
    from bilevel_rl.finite import solve
    from bilevel_rl.finite.problems.probes import TwoState
    from bilevel_rl.finite.solvers.penalty_actor_critic import PenaltyActorCritic

    trace = solve(TwoState(), PenaltyActorCritic(), iterations=2)
    assert trace.metrics.keys() <= {metric.key for metric in metrics.FINITE}
