"""Global search: basins, budgets, stages, and the equivalence of many starts with one."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from finite_instances import make_small, thinned
from finite_instances import problem as small_problem
from hypothesis import given
from hypothesis import strategies as st

from bilevel_rl import records
from bilevel_rl.cli import main
from bilevel_rl.errors import InvalidConfig, InvalidProblem, RunNotFound
from bilevel_rl.finite import BilevelProblem, FiniteMDP, oracles, requirements, solve
from bilevel_rl.finite.learn import learnt_model
from bilevel_rl.finite.multistart import Shape, arrange, search, starting_points
from bilevel_rl.finite.objectives import VisitationUtility
from bilevel_rl.finite.problems import GoalPlacement, PreferenceLearning, RandomMDP
from bilevel_rl.finite.solvers import ALL as SOLVERS
from bilevel_rl.finite.solvers import HPGD, CoupledPenalty, ExactDescent, PenaltyActorCritic
from bilevel_rl.loop import meter, stepping
from bilevel_rl.loop.comparison import Limited
from bilevel_rl.loop.settings import heated
from bilevel_rl.report import collect
from bilevel_rl.schedules import PowerDecay, TimeScales


class Basins(BilevelProblem):
    """Two arms; the leader's is paid by two hills of x, the lower one where x starts: sigma(g(x)/tau) has two basins."""

    name = "basins"

    def __init__(self):
        self.mdp = FiniteMDP.from_dense(jnp.ones((1, 2, 1)), discount=0.0)
        self.objective = VisitationUtility(jnp.array([[1.0, 0.0]]))
        self.x0 = jnp.array([-2.2])

    def reward(self, x):
        hills = 0.6 * jnp.exp(-((x[0] + 2) ** 2)) + 1.2 * jnp.exp(-((x[0] - 2) ** 2))
        return jnp.stack([hills - 0.5, jnp.zeros(())])[None]

    def box(self):
        return jnp.array([-4.0]), jnp.array([4.0])

    def temperature(self):
        return 0.5


class Signposted(Basins):
    def structured_starts(self):
        return jnp.array([[1.5], [3.0]])


EXACT = ExactDescent(step_size=0.5, tau=0.5)


@pytest.mark.slow
def test_one_start_stays_in_its_basin_and_many_find_the_best():
    it = Basins()
    alone = solve(it, EXACT, iterations=400, record_every=400)
    assert alone.x[0, -1, 0] == pytest.approx(-2, abs=0.05)
    found = search(it, EXACT, starts=16, iterations=1600)
    assert found.x[0] == pytest.approx(2, abs=0.05)
    assert found.value < alone["objective"][0, -1] - 0.2
    assert found.value < found.mean - 0.1
    assert found.values.min() == found.value
    assert [(s.starts, s.iterations, s.heat) for s in found.stages] == [(16, 33, 1.0), (4, 133, 1.0), (1, 533, 1.0)]


SCALES = TimeScales(*(PowerDecay(v) for v in (0.5, 1.0, 0.5, 0.5, 0.5)))


SAMPLED = [HPGD(SCALES, trajectories=8, horizon=4), CoupledPenalty(SCALES, hold=10.0, replay=32)]


@pytest.mark.slow
@pytest.mark.parametrize("solver", SAMPLED, ids=lambda one: one.name)
def test_sampled_search_compares_by_samples_and_counts_them_all(solver):
    it, budget = Basins(), 400_000
    found = search(it, solver, starts=16, samples=budget)
    assert found.x[0] == pytest.approx(2, abs=0.3)
    assert 0.9 * budget < found.samples <= budget
    assert found.samples == found.metrics["samples"][:, -1].sum()
    each = 64 if isinstance(solver, HPGD) else 32
    stepped = sum(stage.starts * stage.iterations * each for stage in found.stages)
    compared = found.samples - stepped
    # a tenth of the two stages after which starts are given up; the last has one start, and nothing to compare
    assert 0.06 * budget < compared <= 2 / 3 * 0.1 * budget


@pytest.mark.slow
def test_a_start_that_is_given_up_keeps_its_last_values():
    found = search(Basins(), EXACT, starts=8, iterations=300, eta=2)
    assert [stage.starts for stage in found.stages] == [8, 4, 2, 1]
    moved = np.abs(np.diff(found.xs[..., 0], axis=1)) > 0
    assert (np.diff(moved.astype(int), axis=1) <= 0).all()  # never again after it was given up
    assert [int((np.diff(found.metrics["iteration"], axis=1)[:, r] > 0).sum()) for r in range(4)] == [8, 4, 2, 1]
    assert found.metrics["iteration"].max() == sum(stage.iterations for stage in found.stages)


@pytest.mark.slow
def test_many_starts_that_are_all_kept_are_ordinary_runs():
    it = RandomMDP(5, 2, 3, features=2)
    one = ExactDescent(0.3)
    found = search(it, one, starts=5, iterations=100, eta=1, seed=3)
    trace = solve(it, one, iterations=20, runs=5, seed=3, record_every=20, x0=found.starts)
    np.testing.assert_array_equal(found.xs[:, -1], trace.x[:, -1])
    np.testing.assert_allclose(found.values, trace["objective"][:, -1], rtol=1e-12)
    assert found.chosen == int(np.argmin(found.values))


def test_stages_cool_to_the_solver_s_own_temperature():
    shape = Shape(4, iterations=90, eta=1, stages=3, continuation=4.0)
    assert [stage.heat for stage in arrange(EXACT, 0, shape, None)] == [4.0, 2.0, 1.0]
    assert heated(EXACT, 4.0).tau == 2.0
    assert heated(HPGD(), 2.0).scales.tau.initial == 0.1


@pytest.mark.slow
def test_a_search_that_cools_goes_another_way():
    found = search(Basins(), EXACT, starts=4, iterations=90, eta=1, stages=3, continuation=4.0)
    assert [stage.heat for stage in found.stages] == [4.0, 2.0, 1.0]
    cold = search(Basins(), EXACT, starts=4, iterations=90, eta=1, stages=3)
    assert np.abs(found.xs[:, 1] - cold.xs[:, 1]).max() > 1e-3


@pytest.mark.slow
def test_starts_are_x0_then_the_problem_s_own_then_random():
    points = np.asarray(starting_points(Signposted(), 6, seed=1))
    np.testing.assert_allclose(points[:3, 0], [-2.2, 1.5, 3.0])
    assert len(np.unique(points)) == 6
    assert np.abs(points).max() <= 4
    assert search(Signposted(), EXACT, starts=3, iterations=120).x[0] == pytest.approx(2, abs=0.1)


@pytest.mark.slow
def test_runs_in_chunks_are_the_same_runs(monkeypatch):
    it = RandomMDP(6, 2, 3, features=2)
    whole = solve(it, EXACT, iterations=6, runs=6, record_every=3)
    monkeypatch.setattr(stepping, "BATCH_BYTES", 4 * 8 * 36 * 3)
    chunked = solve(it, EXACT, iterations=6, runs=7, record_every=3)
    np.testing.assert_allclose(chunked.x[:6], whole.x, rtol=1e-12)
    np.testing.assert_allclose(chunked["objective"][:6], whole["objective"], rtol=1e-12)


@pytest.mark.slow
def test_search_is_saved_as_ordinary_runs(tmp_path, capsys):
    words = ["search", "goal_placement", "exact_descent", "--starts", "6", "--iterations", "90"]
    words += ["--out", str(tmp_path / "s")]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "best of all starts" in out
    assert "mean over starts" in out
    starts, best = (records.Run.read(tmp_path / "s" / name) for name in ("starts", "best"))
    assert starts.trace["objective"].shape == (6, 4)
    assert best.trace["objective"].shape == (1, 4)
    assert best.trace["objective"][0, -1] == starts.trace["objective"][:, -1].min()
    (section,) = collect.sections([tmp_path / "s"])
    assert sorted(method.label for method in section.methods) == ["exact_descent, 6 starts", "exact_descent, best of 6"]
    assert main(words) == 2  # the folder is taken


@pytest.mark.parametrize(("options", "words"), [
    ({"starts": 0, "iterations": 10}, "search.starts: got 0"),
    ({"iterations": 10}, "64 starts in 4 stages need at least"),
    ({"samples": 10**6}, "is given a budget of iterations"),
    ({"iterations": 10**4, "continuation": 0.5}, "search.continuation"),
    ({"iterations": 10**4, "eta": 0}, "search.eta"),
    ({"iterations": 10**4, "x0": [[0.0]]}, "solve.x0"),
    ({"iterations": 10**4, "comparing": 1.0}, "search.comparing"),
    ({"iterations": 10**4, "settling": -0.1}, "search.settling"),
], ids=lambda v: "-".join(v) if isinstance(v, dict) else "")  # fmt: skip
def test_bad_searches_are_refused(options, words):
    with pytest.raises(InvalidConfig, match=words):
        search(Basins(), EXACT, **options)


def test_a_problem_that_does_not_fit_is_refused():
    from bilevel_rl.finite.solvers import AMD

    with pytest.raises(InvalidProblem, match="amd needs: linear objective"):
        search(RandomMDP(4, 2, 2, objective="energy"), AMD(), iterations=10**4)


# -- the budget -------------------------------------------------------------------------------------------------------


@given(
    each=st.integers(1, 500), least=st.integers(0, 300), starts=st.integers(1, 70), eta=st.integers(1, 6),
    stages=st.none() | st.integers(1, 5), compare=st.floats(0.01, 0.9), settle=st.floats(0, 0.99),
    budget=st.integers(1, 10**6),
)  # fmt: skip
def test_no_plan_spends_more_than_its_budget(each, least, starts, eta, stages, compare, settle, budget):
    def spent(samples):
        shape = Shape(starts, samples, eta=eta, stages=stages, comparing=compare, settling=settle)
        rounds = arrange(EXACT, each, shape, least)
        assert rounds[0].starts == starts
        for stage in rounds:
            assert stage.iterations >= 1
            assert stage.iterations % stage.chunk == stage.settle % stage.chunk == 0
            assert stage.measure == 0 or stage.measure >= least
            if stage.starts == 1:
                assert stage.measure == stage.settle == 0
        return sum(s.starts * ((s.iterations + s.settle) * each + s.measure) for s in rounds)

    try:
        assert spent(budget) <= budget
    except InvalidConfig as error:
        needed = int(re.search(r"need at least (\d+)", str(error))[1])
        assert budget < needed
        assert spent(needed) <= needed  # what the message asks for is enough


SPENDERS = {  # solver, problem, options
    "settling": (SAMPLED[0], Basins, {"settling": 0.5, "comparing": 0.5, "by": "follower", "eta": 1}),
    "walks of random length": (
        PenaltyActorCritic(SCALES, chains=2, sampling="iid"), lambda: RandomMDP(4, 2, 2, discount=0.8),
        {"eta": 3, "stages": 2}),
    "preferences": (
        PenaltyActorCritic(SCALES, chains=2), lambda: PreferenceLearning(pairs=2), {"by": "model", "eta": 1}),
}  # fmt: skip


@pytest.mark.parametrize("case", thinned(SPENDERS, {"settling"}))
def test_what_is_drawn_stays_within_the_budget(case):
    solver, make, options = SPENDERS[case]
    it = make()
    with pytest.raises(InvalidConfig) as refused:
        search(it, solver, starts=3, samples=1, **options)
    budget = 2 * int(re.search(r"need at least (\d+)", str(refused.value))[1]) + 3
    found = search(it, solver, starts=3, samples=budget, **options)
    assert 0 < found.samples <= budget
    assert found.samples == found.metrics["samples"][:, -1].sum()
    if case != "walks of random length":
        each = meter.iteration_cost(it, solver).each
        stepped = sum(s.starts * (s.iterations + s.settle) * each for s in found.stages)
        assert stepped < found.samples <= stepped + sum(s.starts * s.measure for s in found.stages)


def test_iterations_of_random_length_are_told_from_others():
    it = RandomMDP(4, 2, 2, discount=0.8)
    fixed, random = (meter.iteration_cost(it, PenaltyActorCritic(chains=2, sampling=s)) for s in ("chain", "iid"))
    assert fixed == (4, False)
    assert random.varies
    assert random.each > 4


# -- comparing --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_x_is_held_while_followers_settle():
    it = GoalPlacement(rows=3, columns=3)
    one = CoupledPenalty(SCALES, chains=4, replay=0)
    free, held = (  # one program
        solve(it, Limited(one, switch), iterations=200, record_every=200, runs=2, evaluate=False)
        for switch in (0.0, 1.0)
    )
    assert np.abs(free.x[:, -1] - free.x[:, 0]).max() > 1e-3
    np.testing.assert_array_equal(held.x[:, -1], held.x[:, 0])
    first = one.init(it, it.x0, jax.random.key(0)).Q
    assert float(jnp.abs(held.state.Q - first).max()) > 1e-3  # the follower learns on


@pytest.mark.slow
def test_a_limit_ends_iterations_before_it_is_passed():
    it = RandomMDP(4, 2, 2, discount=0.8)
    one = PenaltyActorCritic(chains=2, sampling="iid")
    trace = solve(it, Limited(one, 0.0, 100.0, True), iterations=60, record_every=60, runs=8, evaluate=False)
    assert (trace["samples"][:, -1] <= 100).all()
    assert (trace["samples"][:, -1] > 50).all()


def counted(mdp, unit: int = 20_000):
    """Counts in the proportions of the exact kernel and start."""
    P = np.asarray(mdp.dense())
    s, a, t = np.nonzero(P)
    rows = np.stack([s, a, t, np.round(unit * P[s, a, t]).astype(int)], axis=1)
    return learnt_model.Seen(rows[rows[:, 3] > 0], np.round(unit * np.asarray(mdp.start)).astype(int))


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["visitation", "energy"])
def test_a_model_with_the_true_proportions_gives_the_true_answers(objective):
    it = RandomMDP(5, 2, 3, features=2, objective=objective)
    xs = starting_points(it, 4)
    pi, values = learnt_model.answers(it, xs, 0.5, counted(it.mdp))
    for x, p in zip(xs, pi, strict=True):
        np.testing.assert_allclose(p, oracles.lower_optimum(it, x, 0.5).pi, atol=1e-3)
    if objective == "visitation":
        exact = [oracles.hyper_objective(it, x, 0.5) for x in xs]
        np.testing.assert_allclose(values, exact, atol=1e-3)
    else:
        assert values is None


def test_what_was_never_tried_is_not_done_and_unknown_states_are_ends():
    it = RandomMDP(5, 2, 3, features=2)
    seen = counted(it.mdp)
    rows = seen.rows[(seen.rows[:, 0] != 0) & ~((seen.rows[:, 0] == 1) & (seen.rows[:, 1] == 1))]
    model, allowed, stuck = learnt_model.learnt(it.mdp, learnt_model.Seen(rows, seen.first))
    np.testing.assert_array_equal(stuck, np.arange(5) == 0)
    np.testing.assert_array_equal(model.ends, stuck)
    assert np.isneginf(np.asarray(allowed)).tolist() == [[False, False], [False, True]] + 3 * [[False, False]]
    pi, values = learnt_model.answers(it, it.x0[None], 0.5, learnt_model.Seen(rows, seen.first))
    assert float(pi[0, 1, 1]) == 0
    assert np.isfinite(np.asarray(values)).all()


def test_counts_add_up():
    it = RandomMDP(5, 2, 3, features=2)
    pi = jnp.full((2, 5, 2), 0.5)
    keys = jax.random.split(jax.random.key(0), 2)
    walks = learnt_model.explore(it, pi, keys, 3, 40)
    once = learnt_model.Seen.nothing(5).plus(*walks)
    twice = once.plus(*walks)
    assert once.rows[:, 3].sum() == 2 * 3 * 40
    assert once.first.sum() == 6
    np.testing.assert_array_equal(twice.rows[:, :3], once.rows[:, :3])
    np.testing.assert_array_equal(twice.rows[:, 3], 2 * once.rows[:, 3])
    s, a, t = (v.ravel() for v in walks)
    for row in once.rows:
        assert row[3] == ((s == row[0]) & (a == row[1]) & (t == row[2])).sum()


@pytest.mark.slow
def test_a_learnt_model_tells_starts_apart_where_lagging_followers_do_not():
    """Followers that hardly learn: along them all starts look alike, the model shows which hill each is on."""
    it = Basins()
    still = HPGD(TimeScales(PowerDecay(1e-9), *(PowerDecay(v) for v in (1.0, 1e-9, 0.5, 0.5))), trajectories=2, horizon=2)
    x0 = jnp.linspace(-4, 4, 9)[:, None]
    phi = [float(oracles.hyper_objective(it, x, 0.5)) for x in x0]
    found = search(it, still, starts=9, samples=30_000, eta=9, stages=2, x0=x0)
    assert found.stages[0].model
    assert found.chosen == int(np.argmin(phi))
    np.testing.assert_allclose(found.score, phi, atol=0.1)
    blind = search(it, still, starts=9, samples=30_000, eta=9, stages=2, x0=x0, by="follower")
    assert np.ptp(blind.score) < 0.2 < np.ptp(phi)


def test_a_model_is_refused_where_x_moves_the_kernel():
    it = RandomMDP(4, 2, 2, moving=True)
    with pytest.raises(InvalidConfig, match="one learnt model must serve every x"):
        search(it, SAMPLED[0], starts=2, samples=10**5, by="model")
    assert not learnt_model.fits(it, 10**9)
    assert learnt_model.fits(RandomMDP(4, 2, 2), 80)
    assert not learnt_model.fits(RandomMDP(4, 2, 2), 79)


# -- every solver -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", SOLVERS, ids=lambda kind: kind.name)
def test_every_solver_searches(kind):
    it, one = small_problem("visitation"), make_small(kind)
    if requirements.unmet(one.requires, it):
        with pytest.raises(InvalidProblem):
            search(it, one, starts=2, iterations=4, eta=1)
        return
    each = meter.iteration_cost(it, one).each
    budget = {"samples": 2 * (each + 20) * 2} if each else {"iterations": 4}
    found = search(it, one, starts=2, eta=1, **budget)
    assert found.samples <= budget.get("samples", 0)
    assert np.isfinite(found.values).all()
    assert (found.metrics["iteration"][:, -1] >= 1).all()
    wrong = {"iterations": 4} if each else {"samples": 10**6}
    with pytest.raises(InvalidConfig, match="is given a budget of"):
        search(it, one, starts=2, eta=1, **wrong)


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["exact_descent", "coupled_penalty"])
def test_closed_form_problems_on_the_command_line(solver, tmp_path, capsys):
    fits = solver == "exact_descent"
    words = ["search", "linear_leader" if fits else "thermal_control", solver, "--starts", "3", "--iterations", "12"]
    words += ["--out", str(tmp_path / "s"), *(["--solver.step-size", "1e-4"] if fits else [])]
    if fits:
        assert main(words) == 0
        objective = records.Run.read(tmp_path / "s" / "starts").trace["objective"]
        assert objective.shape == (3, 3)  # two stages
        assert objective[:, -1].min() <= objective[0, 0]
    else:
        assert main(words) == 2
        assert "a problem without a table of states and actions" in capsys.readouterr().err
        assert not (tmp_path / "s").exists()


# -- stopping and going on --------------------------------------------------------------------------------------------


def same(one, two) -> None:
    np.testing.assert_array_equal(one.xs, two.xs)
    np.testing.assert_array_equal(one.score, two.score)
    assert (one.chosen, one.samples, one.stages) == (two.chosen, two.samples, two.stages)
    for key, series in one.metrics.items():
        np.testing.assert_array_equal(series, two.metrics[key], err_msg=key)


@pytest.mark.slow
def test_resumed_is_uninterrupted_wherever_it_stopped(tmp_path):
    it, one = Basins(), SAMPLED[0]
    options = {"starts": 4, "samples": 40_000, "eta": 2, "by": "model", "settling": 0.5, "seed": 3}
    calls = []
    whole = search(it, one, on_progress=lambda *a: calls.append(a), folder=tmp_path / "whole", **options)
    assert calls == sorted(calls)
    assert calls[-1][0] == calls[-1][1]
    chunks = [stage.chunks + 1 for stage in whole.stages]  # with the comparison
    folder, place = tmp_path / "stopped", 0
    for n, at in enumerate((1, chunks[0] - 1, 2, chunks[1], 3)):  # calls after each of which it is stopped

        def stop(*_, left=[at]):  # noqa: B006
            if left[0] == 0:
                raise KeyboardInterrupt
            left[0] -= 1

        with pytest.raises(KeyboardInterrupt):
            search(it, one, folder=folder, resume=n > 0, on_progress=stop, **options)
        assert records.read_json(folder / "status.json")["state"] == "stopped"
        place += at
    assert place < sum(chunks)
    resumed = search(it, one, folder=folder, resume=True, **options)
    same(whole, resumed)
    for name in ("starts", "best"):
        a, b = (records.read_arrays(f / name / "metrics.npz") for f in (tmp_path / "whole", folder))
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key], err_msg=key)
    assert records.read_json(folder / "status.json")["state"] == "finished"
    with pytest.raises(RunNotFound, match="another problem, solver, seed or budget"):
        search(it, one, folder=folder, resume=True, **(options | {"seed": 4}))
    assert records.read_json(folder / "status.json")["state"] == "finished"
    with pytest.raises(RunNotFound, match="resume needs the folder of a search"):
        search(it, one, folder=tmp_path, resume=True, **options)


@pytest.mark.slow
def test_a_folder_changes_nothing(tmp_path):
    it, options = Basins(), {"starts": 4, "iterations": 200}
    same(search(it, EXACT, **options), search(it, EXACT, folder=tmp_path / "s", **options))


class Cliff(Basins):
    """Right of 1.4, on the way up the higher hill, the reward is no number."""

    def reward(self, x):
        return jnp.where(x[0] > 1.4, jnp.nan, 1.0) * super().reward(x)


@pytest.mark.slow
def test_a_start_that_breaks_is_given_up_and_keeps_its_last_state():
    found = search(Cliff(), EXACT, starts=3, iterations=600, eta=3, x0=jnp.array([[-2.1], [0.8], [-1.9]]))
    assert found.status.tolist() == [0, 1, 0]
    assert found.chosen != 1
    assert 0.8 <= found.xs[1, -1, 0] <= 1.4
    assert found.value == pytest.approx(min(found.values[0], found.values[2]))
