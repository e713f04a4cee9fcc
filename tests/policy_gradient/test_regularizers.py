"""Regularisers with memory: bands, controllers, the entropy's derivative; and that they have gradients at
all.
"""

from __future__ import annotations

import math

import pytest
import torch

from bilevel_rl.policy_gradient.batch import Batch
from bilevel_rl.policy_gradient.recipe import Recipe
from bilevel_rl.policy_gradient.regularizers import CovarianceKL, PredictiveKL, TurnEntropy
from bilevel_rl.policy_gradient.regularizers.covariance import covariances, entropy_forecast
from bilevel_rl.policy_gradient.regularizers.predictive import PHASES, preview_scale, soft_min


def with_entropy(values, turn=None, **fields):
    values = torch.as_tensor(values, dtype=torch.float64)
    return Batch.make(
        mask=torch.ones_like(values), reward=[0.0] * len(values), entropy=values.requires_grad_(),
        turn=torch.zeros_like(values).long() if turn is None else turn, **fields,
    )  # fmt: skip


def gradient(loss, leaf):
    return torch.autograd.grad(loss, leaf, retain_graph=True)[0]


# -- 24 EPO -------------------------------------------------------------------------------------------------


def epo_memory(mean):
    seen = torch.ones(64)
    return {"epo": {"mean": torch.full((64,), mean), "seen": seen}}


def test_epo_inside_the_band_is_the_entropy_bonus_alone():
    b = with_entropy([[0.9, 1.1, 1.0]], memory=epo_memory(1.0))
    loss = TurnEntropy()(b)
    assert loss.item() == pytest.approx(-1.0)
    assert gradient(loss, b.entropy)[0].tolist() == pytest.approx([-1 / 3] * 3)


def test_epo_outside_the_band_pulls_back_with_a_gradient():
    """Smoothing alone: twice the loss with the penalty minus once without it."""
    b = with_entropy([[0.2, 3.0, 1.0]], memory=epo_memory(1.0))
    penalty = TurnEntropy()(b) - TurnEntropy(smooth=0.0)(b)
    assert penalty.item() == pytest.approx((0.6 + 1.8) / 3)
    assert gradient(penalty, b.entropy)[0].tolist() == pytest.approx([-1 / 3, 1 / 3, 0.0])


def test_the_released_form_has_no_gradient():
    """Why ours is a hinge: the public release selects between two constants."""
    h = torch.tensor([0.2, 3.0], dtype=torch.float64, requires_grad=True)
    released = torch.where((h > 0.8) & (h < 1.2), 0.0, 0.1).mean()
    assert not released.requires_grad


def test_epo_history_is_the_running_mean_by_turn():
    rule = TurnEntropy()
    state = rule.init()
    for values in ([[1.0, 3.0, 7.0]], [[2.0, 2.0, 1.0]]):
        state = rule.update(state, with_entropy(values, turn=torch.tensor([[0, 0, 1]])))
    assert state["mean"][:3].tolist() == pytest.approx([2.0, 4.0, 0.0])
    assert state["seen"][:3].tolist() == [2, 2, 0]
    fresh = with_entropy([[50.0]])
    assert TurnEntropy()(fresh).item() == -50  # no history: no penalty


def test_epo_phase_weights():
    """Two halves with a clock each; the second begins where the first weighs .827, at .8."""
    assert TurnEntropy.phase(0.0) == 1.0
    assert TurnEntropy.phase(0.25) == pytest.approx(1 - 0.2 * (1 - math.exp(-1)))
    assert TurnEntropy.phase(0.5) == pytest.approx(1 - 0.2 * (1 - math.exp(-2)))
    assert TurnEntropy.phase(0.5 + 1e-9) == pytest.approx(0.8)
    assert TurnEntropy.phase(0.75) == pytest.approx(0.8 * math.exp(-1.5))
    assert TurnEntropy.phase(1.0) == pytest.approx(0.8 * math.exp(-3))


# -- 29 KL-Cov ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("natural", [True, False])
def test_entropy_falls_by_the_covariance(natural):
    """One small step on the logits against the forecast, to first order."""
    g = torch.Generator().manual_seed(0)
    logits, a = torch.randn(5, generator=g).double(), torch.randn(5, generator=g).double()
    p = logits.softmax(0)
    a = a - (p * a).sum()

    def entropy(x):
        return -(x.softmax(0) * x.log_softmax(0)).sum().item()

    errors = []
    for eta in (1e-3, 1e-4):
        step = eta * (a if natural else p * a)
        change = entropy(logits + step) - entropy(logits)
        errors.append(abs(change - entropy_forecast(logits, a, eta, natural).item()))
    assert math.log10(errors[0] / errors[1]) == pytest.approx(2, abs=0.15)
    assert abs(entropy_forecast(logits, a, 1.0, natural).item()) > 1e-2


def test_kl_cov_touches_the_top_tokens_and_at_least_one(batch):
    cov = covariances(batch.inside("logp"), batch.inside("advantage"), batch.mask)
    n = int(batch.mask.sum())
    for share in (0.0, 0.1):
        logp = batch.inside("logp").clone().requires_grad_()
        loss = CovarianceKL(share)(batch.replace(logp=logp))
        touched = gradient(loss, logp) != 0
        number = max(int(share * n), 1)
        assert int(touched.sum()) == number
        assert cov[touched].min() >= cov[batch.mask & ~touched].max()
        expected = (batch.logp - batch.old).abs()[touched].sum() / n
        assert loss.item() == pytest.approx(expected.item(), rel=1e-12)


# -- 67 SAFE ------------------------------------------------------------------------------------------------


def test_soft_min_lies_between_the_smallest_and_the_mean():
    v = torch.tensor([[1.0, 3.0], [2.0, 2.0], [-5.0, 0.5]], dtype=torch.float64)
    for alpha in (0.05, 0.3, 3.0):
        out = soft_min(v, alpha)
        assert (out >= v.amin(1) - 1e-12).all()
        assert (out <= v.mean(1) + 1e-12).all()
    torch.testing.assert_close(soft_min(v, 1e-4), v.amin(1), rtol=0, atol=1e-3)
    torch.testing.assert_close(soft_min(v, 1e5), v.mean(1), rtol=0, atol=1e-3)


def safe_batch(kl, entropy=1.0, **fields):
    kl = torch.full((2, 3), kl, dtype=torch.float64).requires_grad_()
    return Batch.make(
        mask=torch.ones(2, 3),
        reward=torch.zeros(2).double(),
        kl=kl,
        entropy=torch.full((2, 3), entropy).double(),
        **fields,
    )


def seen(rewards, **other):
    """SAFE's memory after these rewards, with some entries set."""
    rule, state = PredictiveKL(), PredictiveKL().init()
    for reward in rewards:
        state = rule.update(state, safe_batch(0.0).replace(reward=torch.full((2, 3, 1), reward / 3).double()))
    return state | {name: torch.tensor(value).double() for name, value in other.items()}


def test_safe_penalty_is_zero_below_and_has_a_gradient_above():
    rule = PredictiveKL()  # at the first batch: threshold .3 x 1.5, average .1 of the batch's KL
    assert rule(safe_batch(4.0)).item() == 0
    low, high = safe_batch(5.0), safe_batch(9.0)
    assert rule(low).item() == pytest.approx(0.1 * (0.5 - 0.45) ** 2 * (2 / 1.1))
    assert gradient(rule(high), high.kl).abs().min() > 0
    assert rule(safe_batch(9.0, entropy=0.0)) > rule(high)
    assert rule(safe_batch(9.0, entropy=100.0)).item() == pytest.approx(0.1 * 0.45**2 * 0.5)


def test_safe_averages_the_kl_and_the_gradient_is_the_new_batchs_share():
    rule = PredictiveKL()
    state = seen([0.0] * 60, kl_short=2.0)
    b = safe_batch(1.0, memory={"safe": state})
    over = 0.9 * 2.0 + 0.1 * 1.0 - rule.threshold(rule.update(state, b))
    assert rule(b).item() == pytest.approx(0.1 * over**2 * 2 / 1.1)
    assert gradient(rule(b), b.kl).sum().item() == pytest.approx(0.1 * 2 * over * 0.1 * 2 / 1.1)


def test_safes_phases_are_read_from_the_last_rewards():
    rule = PredictiveKL()
    phases = {
        "WARMUP": seen([0.9] * 49),
        "CONVERGED": seen([0.9] * 50),
        "PLATEAU": seen([0.5] * 50),
        "CLIMBING": seen([0.5] * 50 + [0.52] * 50),
    }
    for phase, state in phases.items():
        assert rule.phase(state) == phase
        calm = state | {"adjustment": torch.zeros(())}
        assert rule.threshold(calm) == pytest.approx(0.3 * PHASES[phase])
    assert rule.phase(seen([0.5] * 50 + [0.509] * 50)) == "PLATEAU"
    assert rule.phase(seen([0.8, 0.95] * 25)) == "PLATEAU"  # high, not steady


def test_the_controller_rests_at_the_target_velocity():
    rule = PredictiveKL(target=0.5)
    state = rule.init()
    for k in range(400):
        b = safe_batch(0.2).replace(reward=torch.full((2, 3, 1), 0.5 * k / 3).double())
        state = rule.update(state, b)
    assert state["error"].item() == pytest.approx(0, abs=1e-6)
    assert state["integral"].item() == pytest.approx(-1, abs=1e-6)  # wound up on the way, and no further
    assert rule.threshold(state | {"adjustment": torch.tensor(99.0)}) == 0.6
    assert rule.threshold(state | {"adjustment": torch.tensor(-99.0)}) == 0.1


def test_preview_scales_a_step_that_goes_too_far():
    assert preview_scale(0.3) == 1
    assert preview_scale(2.0) == 0.25


def test_recipes_carry_memory_as_plain_tensors(batch):
    recipe = Recipe(regular=((0.01, TurnEntropy()), (1.0, PredictiveKL())))
    memory = recipe.init()
    assert set(memory) == {"epo", "safe"}
    for _ in range(3):
        memory = recipe.update(memory, batch.replace(memory=memory))
    assert memory["safe"]["batches"] == 3
    assert memory["epo"]["seen"][0] == 3
    assert all(isinstance(v, torch.Tensor) for state in memory.values() for v in state.values())
    _, terms = recipe.objective(batch.replace(memory=memory))
    assert set(terms) == {"loss", "epo", "safe"}
