"""How x moves: no faster than the follower's answer can, and back to its best on evidence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel_rl.control import metric
from bilevel_rl.control.leader import BLOCKS, Leader
from bilevel_rl.schedules import PowerDecay


def moved(leader, g, pull, lag=100.0, k=10_000):
    x = jnp.zeros(2)
    return leader.move(lambda x: x, leader.init(x), x, jnp.asarray(g), pull, jnp.array(k), lag)


def test_the_gate_keeps_the_answer_within_the_drift_whatever_units_x_has():
    leader = Leader(zeta=PowerDecay(1.0), drift=0.5, every=4)
    for unit in (1e-3, 1.0, 1e3):
        # x in other units: slopes and pulls change with it, the speed in nats does not
        pull = jnp.ones((5, 3, 2), jnp.float32) * jnp.array([2.0, 0.0], jnp.float32) / unit
        motion, x = moved(leader, jnp.array([3.0, 0.0]) * min(1.0, unit), pull)
        nats = float(jnp.sqrt(3 * (pull[0, 0] @ x) ** 2)) * 100 / 4
        assert nats == pytest.approx(0.5, rel=1e-4) or float(motion.gate) == 1.0
        assert float(motion.speed) == pytest.approx(nats, rel=1e-4)


def test_without_pull_or_with_drift_zero_nothing_is_gated():
    far = jnp.full((5, 3, 2), 1e6, jnp.float32)
    for leader, pull in ((Leader(drift=0.0, zeta=PowerDecay(1.0)), far), (Leader(zeta=PowerDecay(1.0)), None)):
        assert moved(leader, [1.0, 0.0], pull)[1].tolist() == [-1.0, 0.0]


def test_x_is_held_at_first_and_slopes_are_clipped():
    assert moved(Leader(), [1.0, 1.0], None, k=3)[1].tolist() == [0.0, 0.0]
    x = moved(Leader(zeta=PowerDecay(1.0), clip=2.0), [300.0, 400.0], None)[1]
    assert np.allclose(x, [-1.2, -1.6])


def watched(outcomes, xs, **options):
    leader = Leader(hold=0.0, block=5, **options)
    motion, x = leader.init(jnp.zeros(1)), jnp.zeros(1)
    watch = jax.jit(lambda *args: leader.watch(*args, 1.0))
    for k, (outcome, x) in enumerate(zip(outcomes, xs, strict=True)):
        motion, x = watch(motion, jnp.array([x]), outcome, jnp.array(k))
    return motion, x


def test_x_goes_back_to_its_best_on_evidence_and_not_on_noise():
    steps = 5 * BLOCKS
    noise = 0.1 * np.sin(np.arange(2 * steps) ** 2)
    worse = np.r_[np.ones(steps), np.zeros(steps)] + noise
    places = np.r_[np.full(steps, 0.3), np.full(steps, 0.9)]
    motion, x = watched(worse, places)
    assert int(motion.restarts) >= 1
    assert float(motion.best_x[0]) == pytest.approx(0.3)
    assert float(motion.shrink) == 0.5 ** int(motion.restarts)
    motion, x = watched(np.ones(2 * steps) + noise, places)
    assert int(motion.restarts) == 0
    assert float(x[0]) == pytest.approx(0.9)
    assert int(watched(worse, places, evidence=0.0)[0].restarts) == 0


def test_the_best_is_measured_anew_once_x_is_back():
    """A record that no follower repeats, made on the way, leads back once; it did so every eight blocks for ever."""
    steps = 5 * BLOCKS
    noise = 0.1 * np.sin(np.arange(10 * steps) ** 2)
    lucky = np.r_[np.full(steps, 3.0), np.ones(9 * steps)] + noise
    motion, _ = watched(lucky, np.full(10 * steps, 0.3))
    assert int(motion.restarts) == 1
    assert float(motion.best) == pytest.approx(1.0, abs=0.1)
    assert float(motion.best_x[0]) == pytest.approx(0.3)


def test_outcomes_are_not_counted_while_critics_forget_a_jump():
    steps = 5 * BLOCKS
    noise = 0.1 * np.sin(np.arange(6 * steps) ** 2)
    worse = np.r_[np.ones(steps), np.zeros(5 * steps)] + noise
    leader = Leader(hold=0.0, block=5)
    watch = jax.jit(lambda *args: leader.watch(*args, 60.0))
    motion, back = leader.init(jnp.zeros(1)), None
    for k, outcome in enumerate(worse):
        motion, _ = watch(motion, jnp.zeros(1), outcome, jnp.array(k))
        back = k if back is None and int(motion.restarts) else back
        if back is not None and k <= back + 60:
            assert int(motion.filled) == 0
    assert int(motion.filled) > 0


def test_natural_steps_do_not_depend_on_the_units_of_x(monkeypatch):
    leader = Leader(zeta=PowerDecay(1.0), natural=True, drift=0.0)
    rng = np.random.default_rng(0)
    pull, g, A = rng.normal(size=(64, 8, 2)), np.array([0.3, -1.0]), np.array([[2.0, 1.0], [0.0, 0.01]])
    away = lambda x: x  # noqa: E731
    _, x = leader.move(away, leader.init(jnp.zeros(2)), jnp.zeros(2), g, jnp.asarray(pull), jnp.array(9999), 100.0)
    G = np.einsum("bmi,bmj->ij", pull, pull) / 64
    np.testing.assert_allclose(x, -np.linalg.solve(G + 0.01 * np.trace(G) / 2 * np.eye(2), g), rtol=1e-5)
    still, x = leader.move(away, leader.init(jnp.zeros(2)), jnp.zeros(2), g, jnp.zeros((4, 8, 2)), jnp.array(9999), 100.0)
    assert x.tolist() == [0.0, 0.0], "nothing is known of the answer yet"
    # x = A z: slopes and pulls in z are A' times those in x; but for the ridge the step is the same
    monkeypatch.setattr(metric, "RIDGE", 0.0)
    _, x = leader.move(away, leader.init(jnp.zeros(2)), jnp.zeros(2), g, jnp.asarray(pull), jnp.array(9999), 100.0)
    _, z = leader.move(away, leader.init(jnp.zeros(2)), jnp.zeros(2), A.T @ g, jnp.asarray(pull @ A), jnp.array(9999), 100.0)
    np.testing.assert_allclose(A @ z, x, rtol=1e-6)
