"""Equivalence classes: ways of running the same thing that must give the same bits."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from finite_instances import SMALL
from finite_instances import make_small as make

from bilevel_rl.errors import NonFiniteState, RunNotFound
from bilevel_rl.finite import solve
from bilevel_rl.finite.problems import GoalPlacement, PreferenceLearning, RandomMDP
from bilevel_rl.finite.solvers import ALL as SOLVERS
from bilevel_rl.finite.solvers import (
    CertaintyEquivalence,
    PenaltyActorCritic,
    ZeroOrder,
)  # fmt: skip
from bilevel_rl.loop import checkpoint
from bilevel_rl.schedules import TimeScales

SAMPLED = [kind for kind in SOLVERS if kind().draws(GoalPlacement()) and kind not in (ZeroOrder, CertaintyEquivalence)]
# Agrees with its batch to rounding only: the compiler contracts the critics' products and sums differently by batch.
TO_ROUNDING = {"coupled_penalty", "hpgd", "boltzmann_covariance"}


def final(trace):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(trace.state)]


PAIRS = [(k, p) for k in SAMPLED if k.name not in TO_ROUNDING for p in (GoalPlacement, PreferenceLearning)]
THIN = {("penalty_actor_critic", "goal_placement")}  # the rest is slow


@pytest.mark.parametrize(
    ("kind", "problem", "thorough"),
    [
        *(pytest.param(k, p, False, id=f"{p.name}-{k.name}-one") for k, p in PAIRS if (k.name, p.name) in THIN),
        *(pytest.param(k, p, True, id=f"{p.name}-{k.name}", marks=pytest.mark.slow) for k, p in PAIRS),
    ],
)
def test_two_settings_times_eight_seeds_in_one_batch_are_separate_runs(kind, problem, thorough):
    """Bit for bit, every number of the final state."""
    it = problem()
    iterations = 10 if kind in SMALL else 60
    settings = [make(kind, scales=TimeScales.constant_entropy(zeta=zeta)) for zeta in (0.02, 0.1)]
    options = {"iterations": iterations, "record_every": iterations, "evaluate": False}
    together = solve(it, settings, runs=8, seed=3, **options)
    for h, setting in enumerate(settings if thorough else ()):
        eight = solve(it, setting, runs=8, seed=3, **options)
        for one, two in zip(final(together), final(eight), strict=True):
            np.testing.assert_array_equal(one[8 * h : 8 * h + 8], two)
    alone = solve(it, settings[1], runs=1, seed=3, **options)
    for one, two in zip(final(together), final(alone), strict=True):
        np.testing.assert_array_equal(one[8], two[0])


@pytest.mark.slow
@pytest.mark.parametrize("kind", [
    pytest.param(k, marks=[] if k.name == "coupled_penalty" else pytest.mark.slow) for k in SAMPLED if k.name in TO_ROUNDING
], ids=lambda kind: kind.name)  # fmt: skip
def test_a_batch_is_its_members_to_rounding(kind):
    it = GoalPlacement()
    options = {"iterations": 10, "record_every": 10, "evaluate": False, "seed": 3}
    settings = [make(kind, scales=TimeScales.constant_entropy(zeta=zeta)) for zeta in (0.02, 0.1)]
    together, alone = solve(it, settings, runs=8, **options), solve(it, settings[1], runs=1, **options)
    for one, two in zip(final(together), final(alone), strict=True):
        np.testing.assert_allclose(one[8], two[0], rtol=1e-9, atol=1e-11)


@pytest.mark.slow
def test_a_learnt_model_in_a_batch_is_that_of_its_run_alone():
    """What is counted bit for bit; what is planned on it to rounding."""
    it = GoalPlacement()
    settings = [make(CertaintyEquivalence, explore=share) for share in (0.3, 0.6)]
    options = {"iterations": 5, "record_every": 5, "evaluate": False, "seed": 3}
    together, alone = solve(it, settings, runs=4, **options), solve(it, settings[1], runs=1, **options)
    np.testing.assert_array_equal(together.state.counts.seen[4], alone.state.counts.seen[0])
    for one, two in zip(final(together), final(alone), strict=True):
        np.testing.assert_allclose(one[4], two[0], rtol=1e-9, atol=1e-11)


def test_records_do_not_change_the_run():
    """Random numbers belong to iterations: not to blocks, records, or how many runs share the batch."""
    it, one = RandomMDP(5, 2, 3, features=2), make(PenaltyActorCritic)
    often = solve(it, one, iterations=24, record_every=4, runs=2, evaluate=False)
    once = solve(it, one, iterations=24, record_every=24, runs=2, evaluate=False)
    for a, b in zip(final(often), final(once), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(often.x[:, -1], once.x[:, -1])


@pytest.mark.slow
def test_grading_does_not_change_the_run():
    it, one = RandomMDP(5, 2, 3, features=2), make(PenaltyActorCritic)
    graded = solve(it, one, iterations=24, record_every=12, runs=2)
    blind = solve(it, one, iterations=24, record_every=12, runs=2, evaluate=False)
    for a, b in zip(final(graded), final(blind), strict=True):
        np.testing.assert_array_equal(a, b)
    assert "objective" in graded.metrics
    assert "objective" not in blind.metrics


def test_resumed_is_uninterrupted(tmp_path, monkeypatch):
    it, one = RandomMDP(5, 2, 3, features=2), make(PenaltyActorCritic)
    options = {"iterations": 30, "record_every": 5, "runs": 2, "seed": 1}
    whole = solve(it, one, **options)
    monkeypatch.setattr(checkpoint, "SECONDS", 0.0)

    def stop(k, _):
        if k == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        solve(it, one, folder=tmp_path / "run", on_record=stop, **options)
    resumed = solve(it, one, folder=tmp_path / "run", resume=True, **options)
    for a, b in zip(final(whole), final(resumed), strict=True):
        np.testing.assert_array_equal(a, b)
    for key, series in whole.metrics.items():
        np.testing.assert_array_equal(series, resumed.metrics[key], err_msg=key)
    np.testing.assert_array_equal(whole.x, resumed.x)
    with pytest.raises(RunNotFound, match="another problem, solver, seed or schedule"):
        solve(it, one, folder=tmp_path / "run", resume=True, **(options | {"seed": 2}))


def test_a_second_call_does_not_compile(caplog):
    it = RandomMDP(5, 2, 3, features=2, cost=0.05)
    other = RandomMDP(5, 2, 3, features=2, cost=0.5, seed=9)
    options = {"iterations": 10, "record_every": 5, "runs": 2}
    solve(it, make(PenaltyActorCritic), **options)
    with jax.log_compiles(), caplog.at_level("WARNING"):
        solve(other, make(PenaltyActorCritic, momentum=0.5, scales=TimeScales.constant_entropy()), seed=4, **options)
    again = [r.message for r in caplog.records if "Compiling" in r.message and "_advance" in r.message]
    assert not again, again


class Unbounded(RandomMDP):
    """x may go anywhere, so a step that is far too long ends in infinity."""

    def box(self):
        return None


def test_a_broken_run_stops_alone_and_says_why():
    it = Unbounded(5, 2, 3, features=2)
    settings = [make(PenaltyActorCritic, scales=TimeScales.constant_entropy(zeta=zeta)) for zeta in (0.1, 1e300)]
    options = {"iterations": 20, "record_every": 5, "evaluate": False}
    trace = solve(it, settings, runs=2, **options)
    assert trace.status.tolist() == [0, 0, 1, 1]
    assert len(trace.messages) == 2
    assert trace.messages[0].startswith("run 2, iteration ")
    assert "nan in x[" in trace.messages[0] or "inf in x[" in trace.messages[0]
    for leaf in final(trace):
        assert np.isfinite(leaf).all()  # the last good state is kept
    sound = solve(it, settings[:1] * 2, runs=2, **options)
    for a, b in zip(final(trace), final(sound), strict=True):
        np.testing.assert_array_equal(a[:2], b[:2])
    with pytest.raises(NonFiniteState, match="run 2"):
        trace.raise_if_failed()


@pytest.mark.slow
def test_a_batch_of_starts_is_its_members():
    it, one = RandomMDP(5, 2, 3, features=2), make(PenaltyActorCritic)
    starts = jnp.array([[0.1, 0.2], [-0.3, 0.4]])
    options = {"iterations": 20, "record_every": 20, "evaluate": False}
    both = solve(it, one, runs=2, x0=starts, **options)
    first = solve(it, one, runs=1, x0=starts[0], **options)
    np.testing.assert_array_equal(both.x[0], first.x[0])
    assert np.abs(both.x[1] - both.x[0]).max() > 0.1
