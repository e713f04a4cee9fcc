"""Every solver keeps what the loop relies on; runs are resumed to the same bits; what breaks is named."""

import dataclasses
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from worlds import Arms, Pay, Steer, small

from bilevel_rl.control import Box, ControlProblem, replay, solvers
from bilevel_rl.control.estimators import Covariance as CovarianceEstimator
from bilevel_rl.control.estimators import TiltedActions
from bilevel_rl.control.followers import SAC, ActorCritic, SoftQ, Usual
from bilevel_rl.control.leader import Leader
from bilevel_rl.control.problems import LQGShaping
from bilevel_rl.errors import InvalidConfig, InvalidProblem, NoFiniteValue, NonFiniteState
from bilevel_rl.loop import checkpoint, noise, pieces, solve, stepping
from bilevel_rl.loop.solver import State, check_fits
from bilevel_rl.loop.trace import Log
from bilevel_rl.schedules import PowerDecay

CONTINUOUS = (solvers.Covariance, solvers.CoupledPair, solvers.PenaltyActorCritic, solvers.SPSA)
ONLINE = [kind for kind in solvers.ALL if not getattr(kind, "offline", False)]
PAIRS = [(kind, Pay()) for kind in ONLINE] + [(kind, Steer()) for kind in CONTINUOUS]


@pytest.mark.parametrize(("kind", "problem"), PAIRS, ids=lambda one: one.name)
def test_a_step_keeps_shapes_and_widths_and_counts_samples(kind, problem):
    """By tracing alone; networks, replays and environments stay at 32 bits whatever JAX's default is."""
    solver = small(kind)
    check_fits(solver, problem)
    problem, solver = jax.tree.map(jnp.asarray, problem), solver.on(problem)
    solver = jax.tree.map(lambda v: jnp.asarray(v, float), solver)  # as the loop hands it on
    state = jax.eval_shape(lambda key: solver.init(problem, problem.x0, key), jax.random.key(0))
    step = lambda s, key: solver.step(problem, s, jnp.array(0), noise.uniforms(solver.draws(problem), key))  # noqa: E731
    after = jax.eval_shape(step, state, jax.random.key(0))
    assert jax.tree.structure(state) == jax.tree.structure(after)
    for (path, one), other in zip(jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(after), strict=True):
        name = jax.tree_util.keystr(path)
        assert (one.shape, one.dtype) == (other.shape, other.dtype), name
        learnt = any(word in name for word in ("follower", "estimator", "ring", "chains"))
        assert one.dtype != jnp.float64 or not learnt, f"{name} is wide"


QUICK = Leader(zeta=PowerDecay(0.05), hold=4.0, every=2, block=2)


@pytest.fixture(scope="module")
def whole():
    return solve(Pay(), small(solvers.Covariance, leader=QUICK), iterations=24, runs=2, record_every=4, seed=3)


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_bits_with_its_replay_in_pieces(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "SECONDS", 0.0)
    monkeypatch.setattr(pieces, "ROWS", 16)  # the ring of 64 rows wraps, and loses pieces
    solver, folder = small(solvers.Covariance, leader=QUICK), tmp_path / "run"

    def stop(k, newest):
        if k == 20:
            raise KeyboardInterrupt

    options = {"iterations": 24, "runs": 2, "record_every": 4, "seed": 3, "folder": folder}
    with pytest.raises(KeyboardInterrupt):
        solve(Pay(), solver, on_record=stop, **options)
    held = {path.stem for path in (folder / pieces.FOLDER).glob("*.npz")}
    assert held == {"00000000", "00000001", "00000002", "00000003"}
    saved = np.load(folder / checkpoint.FILE)
    assert max(saved[key].size for key in saved if key.startswith("state/")) < 64 * 5  # no ring among them
    again = solve(Pay(), solver, resume=True, **options)
    held = {path.stem for path in (folder / pieces.FOLDER).glob("*.npz")}
    assert held == {"00000002", "00000003", "00000004", "00000005"}
    np.testing.assert_array_equal(again.x, whole.x)
    for one, other in zip(jax.tree.leaves(again.state), jax.tree.leaves(whole.state), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_replay_is_written_over_and_comes_back_where_a_run_breaks():
    """One replay in memory, not two; what an interval overwrites is held, where the ring wraps."""
    solver = small(solvers.Covariance, leader=QUICK)
    problem, stacked = jax.tree.map(jnp.asarray, Pay()), stepping.stack([solver.on(Pay())], 2)
    runner = stepping.stepper(problem, stacked, stepping.run_keys(3, 2))
    states = runner.first(jnp.tile(problem.x0, (2, 1)))
    for k in (0, 4, 8, 12):  # 64 rows: the ring is full
        states, _ = runner.advance(states, k, 4)
    before, back = jax.tree.map(np.array, states), runner.hold(states, 16, 4)
    after, alive = runner.advance(states, 16, 4)
    assert states.ring.is_deleted()
    assert bool(alive.all())
    assert not np.array_equal(after.ring, before.ring)
    for one, other in zip(jax.tree.leaves(back(after)), jax.tree.leaves(before), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_run_reports_what_the_leader_got_and_the_exact_objective(whole):
    said = {"objective", "gradient_norm", "outcome", "best_outcome", "follower_outcome", "gate", "speed", "restarts"}
    assert said <= set(whole.metrics)
    assert (whole["follower_outcome"][:, 0] == 0).all()  # nobody has taken a step
    rows = replay.Layout(Pay()).unpack(jnp.asarray(whole.state.ring[0]))  # at gamma = 0 and 64 rows: the last 16 iterations
    newest = np.roll(np.asarray(rows.features[:, 0]).astype(int), -(24 * 4) % 64)[-2 * 4 :]  # of a block
    np.testing.assert_allclose(whole["follower_outcome"][0, -1], whole.x[0, -1][newest].mean(), rtol=1e-5)
    x, ring = whole.x[0, -1], jnp.asarray(whole.state.ring[0])
    paid, gained = replay.newest_worth(Pay(), ring, x, jnp.array(24), 2 * 4, 4, 4)
    np.testing.assert_allclose(paid, whole["follower_outcome"][0, -1], rtol=1e-6)
    np.testing.assert_allclose(gained, np.array([0.0, 0.5, 1.0])[newest].mean(), rtol=1e-6)
    assert (whole["outcome"][:, 1] > -0.05 * np.sum(whole.x[:, 1] ** 2, -1)).all()  # of the newest steps while x is held
    assert (whole["samples"][:, -1] == 24 * 4).all()
    assert (whole.x[:, 1] == whole.x[:, 0]).all()  # held
    assert (whole.x[:, -1] != whole.x[:, 0]).any()


def test_nan_from_an_environment_stops_the_run(whole):
    """In the program that `whole` has compiled; chains restart in every step here, so the first one is broken already."""
    broken = Pay(environment=Arms(broken=0.0))
    trace = solve(broken, small(solvers.Covariance, leader=QUICK), iterations=24, runs=2, record_every=4, seed=3)
    assert trace.status.tolist() == [1, 1]
    assert "the state before it is kept" in trace.messages[0]
    np.testing.assert_array_equal(trace.x, np.broadcast_to(whole.x[:, :1], trace.x.shape))  # where it began


@pytest.mark.slow
def test_nan_from_an_environment_is_named_with_its_iteration():
    trace = solve(
        Pay(environment=Arms(broken=20.0, length=30)), small(solvers.PartialSGD, leader=QUICK, cut=False),
        iterations=24, record_every=1, seed=3,
    )  # fmt: skip
    assert trace.status.tolist() == [1]
    assert "iteration 20" in trace.messages[0]
    assert "the state before it is kept" in trace.messages[0]
    assert np.isfinite(trace.x).all()


class Open(Pay):
    """Pays four digits more in every step, times x, which may have no upper bound."""

    reach: float = np.inf

    name = "open"

    def box(self):
        return jnp.full(3, -1.0), jnp.full(3, self.reach)

    def reward(self, x, features):
        return x[0] * features[0]

    def features(self, t):
        return 10.0 ** (4 * t.next_obs)

    def known(self):
        return False


@pytest.mark.slow
@pytest.mark.parametrize(("reach", "error"), [(np.inf, NoFiniteValue), (1.0, NonFiniteState)])
def test_growth_beyond_all_numbers_under_an_unbounded_x_has_a_name(reach, error):
    solver = small(solvers.PartialSGD, leader=QUICK, cut=False)
    trace = solve(Open(environment=Growing(), reach=reach), solver, iterations=16, record_every=16)
    assert trace.status.tolist() == [2 if error is NoFiniteValue else 1]
    with pytest.raises(error, match="x has no bounds" if error is NoFiniteValue else "every quantity must stay finite"):
        trace.raise_if_failed()


class Growing(Arms):
    """Its observation counts the steps."""

    @property
    def observation(self):
        return Box((0.0,), (100.0,))

    def step(self, state, action, key):
        went = super().step(state, action, key)
        return dataclasses.replace(went, obs=went.state[None].astype(jnp.float32))


class Unbounded(LQGShaping):
    """Weights may be anything: above .5 large states are rewarded for ever."""

    name = "unbounded"

    def box(self):
        return None


def test_an_x_under_which_the_exact_answer_is_none_has_a_name():
    """Before any work by `check`; in a run, at the record at which x is there."""
    problem = Unbounded(x0=(5.0, 0.0, 0.0, 0.0, 0.0))
    with pytest.raises(NoFiniteValue, match=r"unbounded\.x0: got \[5\.0.*more is always better"):
        problem.check()
    states = jax.vmap(lambda x: State(x, jnp.zeros((), int)))(problem.x0[None])
    log = Log(1)
    log.add({"objective": jnp.array([jnp.nan])}, states, 7, problem)
    assert log.status.tolist() == [2]
    assert log.messages[0].startswith("run 0, iteration 7, x: got [5.0")
    assert "Bound x" in log.messages[0]


def test_what_does_not_fit_is_refused_in_words():
    class Far(Pay):
        def discount_upper(self):
            return 0.5

    class Moved(Pay):
        def environment_at(self, x):
            return self.environment

    for kind in (solvers.CoupledPair, solvers.PenaltyActorCritic):
        with pytest.raises(InvalidProblem, match="both must discount alike"):
            check_fits(small(kind), Far())
    check_fits(small(solvers.SPSA), Moved())
    with pytest.raises(InvalidProblem, match="Take spsa or finite_difference"):
        check_fits(small(solvers.Covariance), Moved())
    with pytest.raises(InvalidConfig, match=r"covariance\.recent"):
        check_fits(small(solvers.Covariance, recent=0), Pay())
    with pytest.raises(InvalidConfig, match=r"leader\.drift"):
        check_fits(small(solvers.Covariance, leader=Leader(drift=-1.0)), Pay())
    with pytest.raises(InvalidConfig, match=r"trajectory\.leader\.natural.*Take covariance"):
        check_fits(small(solvers.Trajectory, leader=Leader(natural=True)), Pay())
    check_fits(small(solvers.TiltedPair, leader=Leader(natural=True)), Pay())
    with pytest.raises(InvalidConfig, match="this kind has none"):
        check_fits(solvers.TiltedPair(estimator=TiltedActions(variate=True)), Pay())
    with pytest.raises(InvalidProblem, match="both must discount alike"):
        check_fits(solvers.Covariance(estimator=CovarianceEstimator(variate=True)), Far())
    with pytest.raises(InvalidConfig, match="which does not say how likely"):
        check_fits(solvers.Covariance(follower=Usual(chosen="ctrl"), estimator=CovarianceEstimator(variate=True)), Steer())
    with pytest.raises(InvalidConfig, match="this follower takes numbered actions"):
        check_fits(solvers.Covariance(follower=SoftQ()), Steer())


def test_updates_follow_the_coordinates_of_an_action():
    four = LQGShaping(size=4, actions=4)
    assert [solvers.Covariance().rounds(p) for p in (four, Steer(), Pay())] == [4, 2, 1]
    assert solvers.Covariance(updates=3).rounds(four) == 3
    assert float(solvers.Covariance().lag(four)) == pytest.approx(1 / (0.1 * 0.05 * 4))
    with pytest.raises(InvalidConfig, match=r"covariance\.updates"):
        check_fits(solvers.Covariance(updates=-1), four)


def test_far_planners_and_many_coordinates_get_a_second_critic_unless_one_is_asked_for():
    near, far, four = LQGShaping(), LQGShaping(gamma=0.98), LQGShaping(size=4, actions=4)
    kept = [solvers.Covariance().on(p).follower.on(p.environment).count(p.environment) for p in (near, far, four)]
    assert kept == [1, 2, 2]
    asked = solvers.Covariance(follower=Usual(sac=SAC(critics=1)))
    assert [asked.on(p).follower.on(p.environment).count(p.environment) for p in (near, far, four)] == [1, 1, 1]


def test_explorers_teach_and_are_no_states_of_the_estimate():
    problem, solver = Pay(), small(solvers.Covariance, leader=QUICK, explorers=2, curiosity=1.0, capacity=60)
    trace = solve(problem, solver, iterations=8, runs=1, seed=3, evaluate=False)
    assert int(trace["samples"][0, -1]) == 8 * (4 + 2)
    layout = replay.Layout(problem)
    ring = jnp.asarray(trace.state.ring[0])
    own = layout.unpack(replay.newest(ring, jnp.array(8), 8, solver.chains, solver.rows_each()))
    written = layout.unpack(jnp.concatenate([ring[36:40], ring[42:46]]))
    np.testing.assert_array_equal(own.t.action, written.t.action)
    # what they do: anything with curiosity 1, what the follower does with 0
    state = jax.tree.map(lambda v: jnp.asarray(v[0]), trace.state)
    here = solver.here(problem, state.x, state.follower)
    first = lambda obs, key: jnp.zeros((), jnp.int32)  # noqa: E731
    acted = lambda one, key: one._explored(state, here, first, key)[1].t.action  # noqa: E731
    keys = jax.random.split(jax.random.key(0), 200)
    curious = jax.jit(jax.vmap(lambda key: acted(solver, key)))(keys)
    shares = np.bincount(np.asarray(curious).ravel(), minlength=3) / curious.size
    assert (np.abs(shares - 1 / 3) < 4.5 * (2 / 9 / curious.size) ** 0.5).all()
    still = dataclasses.replace(solver, curiosity=0.0)
    assert not np.asarray(jax.jit(jax.vmap(lambda key: acted(still, key)))(keys)).any()
    with pytest.raises(InvalidConfig, match=r"curiosity: got 1\.5"):
        check_fits(small(solvers.Covariance, curiosity=1.5), Pay())
    with pytest.raises(InvalidConfig, match="its steps must be its own"):
        check_fits(solvers.Covariance(follower=ActorCritic(width=8), explorers=1), Pay())


def test_optimism_is_what_values_say_at_first():
    env, key = Pay().environment, jax.random.key(0)
    seen = jnp.ones((1, 1), jnp.float32)
    hopeful = SoftQ(width=8, optimism=1.0).init(env, key)
    assert float(hopeful.online.params["V"](seen)[0, 0]) == pytest.approx(1.0, abs=0.2)
    np.testing.assert_array_equal(hopeful.target(seen), hopeful.online.params["V"](seen))


def test_a_reward_of_the_wrong_shape_is_refused_before_any_work():
    class Vector(Pay):
        def reward(self, x, features):
            return x

    with pytest.raises(InvalidProblem, match=r"pay.reward: got float\d+\[3\]; it must be one float"):
        Vector().check(thorough=False)
    assert ControlProblem.temperature(Pay()) == 0.05
