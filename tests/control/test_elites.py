"""Quality diversity: archives only improve, injected policies are the actor's, and rewards fade with distance."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel_rl.control import nets
from bilevel_rl.control.elites import Archive, BehaviourTask, MapElites, inject, similarity
from bilevel_rl.control.elites.conditioned import squashed, told
from bilevel_rl.control.environments import Arm
from bilevel_rl.errors import InvalidConfig

F32 = jnp.float32


def test_similarity_is_one_at_home_and_falls():
    far = jnp.stack([jnp.zeros(5), jnp.linspace(0, 1, 5)], 1)
    found = similarity(far, jnp.zeros(2), 0.5)
    assert float(found[0]) == pytest.approx(1.0, abs=1e-5)
    assert (np.diff(found) < 0).all()
    assert float(found[-1]) == pytest.approx(np.exp(-2), rel=1e-5)


def test_an_injected_policy_is_the_actor_for_that_descriptor():
    actor, wanted = nets.MLP.make((5, 8, 8, 2), jax.random.key(0)), jnp.array([0.3, -0.7], F32)
    states = jax.random.normal(jax.random.key(1), (20, 3), F32)
    both = squashed(inject(actor, wanted), states), squashed(actor, told(states, jnp.broadcast_to(wanted, (20, 2))))
    np.testing.assert_allclose(*both, atol=1e-6)


@pytest.mark.slow
def test_cells_keep_the_best_and_the_first_of_equals():
    empty = Archive.empty(jnp.zeros(1), (0.0, 0.0), (1.0, 1.0), 2)
    assert float(empty.score()) == 0
    d = jnp.array([[0.1, 0.1], [0.2, 0.2], [0.1, 0.9], [5.0, 5.0], [0.3, 0.3]])
    made = empty.add(jnp.arange(5.0)[:, None], jnp.array([1.0, 3.0, 2.0, jnp.nan, 3.0]), d)
    assert made.params[:, 0].tolist() == [1, 2, 0, 0]
    assert made.fitness[:2].tolist() == [3, 2]
    assert made.filled.tolist() == [True, True, False, False]
    again = made.add(jnp.array([[9.0], [8.0]]), jnp.array([2.5, 2.5]), jnp.array([[0.0, 0.0], [0.0, 1.0]]))
    assert again.params[:2, 0].tolist() == [1, 8]
    assert float(again.score()) == 5.5
    drawn = again.parents(50, jax.random.key(0))
    assert set(drawn.tolist()) == {0, 1}


def test_an_archive_only_improves():
    archive, rng, scores = Archive.empty(jnp.zeros(1), (0.0, 0.0), (1.0, 1.0), 3), np.random.default_rng(0), [0.0]
    add = jax.jit(Archive.add)
    for _ in range(10):
        before = archive.fitness
        archive = add(archive, jnp.asarray(rng.normal(size=(8, 1)), F32), jnp.asarray(rng.uniform(size=8), F32),
                      jnp.asarray(rng.uniform(size=(8, 2)), F32))  # fmt: skip
        assert (archive.fitness >= before).all()
        assert (archive.cell(archive.descriptor)[archive.filled] == jnp.arange(9)[archive.filled]).all()
        scores.append(float(archive.score()))
    assert (np.diff(scores) >= 0).all()


@pytest.mark.slow
def test_a_search_fills_its_archive_and_never_loses_score():
    task = BehaviourTask(Arm(joints=2, steps=6), steps=6)
    small = {"chance": 8, "climbed": 4, "injected": 4, "climbs": 2, "taught": 4, "batch": 16, "width": 8, "capacity": 512}
    search = MapElites(cells=6, **small)
    found, log = search.run(task, 4, seed=1)
    assert (np.diff(log["score"]) >= 0).all()
    assert (np.diff(log["coverage"]) >= 0).all()
    assert log["coverage"][-1] > 1 / 36
    assert log["transitions"].tolist() == [6 * (8 + 16 * k) for k in range(1, 5)]
    # what an elite is said to be is what it is
    best = int(jnp.argmax(found.archive.fitness))
    policy = jax.tree.map(lambda v: v[best], found.archive.params)
    fitness, _, rows = task.play(policy, jax.random.key(0))
    assert 0 < float(fitness) <= 6
    assert rows.shape == (6, 2 * 8 + 2 + 3)
    with pytest.raises(InvalidConfig, match="chance"):
        MapElites(chance=0).check()
