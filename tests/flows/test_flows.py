"""A flow under the recipes: exact likelihoods of its ways, gradients against closed forms, refusals by name."""

import copy

import pytest
import torch
from torch import nn

from bilevel_rl.errors import InvalidConfig, InvalidProblem
from bilevel_rl.flows import FlowEngine, Matching, PathLikelihood, PlaneVelocity, diffusers_velocity, train
from bilevel_rl.flows.spots import Spots
from bilevel_rl.levels.checks import check_engine

RING = Spots()
SMALL = PlaneVelocity(2, 0, 4)


class Linear(nn.Module):
    """v = a + b x, on the line."""

    def __init__(self, a=-0.3, b=0.4):
        super().__init__()
        self.a, self.b = (nn.Parameter(torch.tensor(v, dtype=torch.float64)) for v in (a, b))

    def forward(self, x, t, condition=None):
        return self.a + self.b * x


class Slope(nn.Module):
    """r_x = x . (1, point)."""

    def __init__(self):
        super().__init__()
        self.x = nn.Parameter(torch.tensor([0.1, 0.2, -0.3]))

    def forward(self, point, group):
        return self.x[0] + point @ self.x[1:]


@pytest.fixture(scope="module")
def ring():
    """A flow that draws the ring, roughly."""
    return RING.pretrained(steps=600, width=32)


@pytest.mark.parametrize("likelihood", [Matching(), PathLikelihood()], ids=["matching", "path"])
def test_it_is_an_engine(likelihood):
    engine = FlowEngine(
        PlaneVelocity(2, 4, 8), Slope(), (2,), conditions=RING.conditions, likelihood=likelihood, batch=8, group=4, levels=2
    )
    check_engine(engine)
    assert engine.names == ("policy", "policy_l", "reward")


def test_a_way_has_the_density_of_its_gaussian_steps_and_their_exact_divergence():
    likelihood, v, other = PathLikelihood(steps=4, sums=True), Linear(), Linear(0.2, -0.1)
    noise = torch.randn(5, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows = likelihood.draw(v, noise, None, torch.Generator().manual_seed(1))
    said, reference = (likelihood.say(one, rows, None) for one in (v, other))
    t = rows.time[..., None]
    laws = [torch.distributions.Normal(*likelihood.step(one(rows.x, t), rows.x, t)) for one in (v, other)]
    peak = laws[0].log_prob(laws[0].mean)
    assert (said.logp - (laws[0].log_prob(rows.target) - peak)[..., 0]).abs().max() < 1e-10
    exact = torch.distributions.kl_divergence(laws[0], laws[1])[..., 0]
    assert (likelihood.kl(said, reference, rows) - exact).abs().max() < 1e-10
    assert rows.x[:, 0].equal(noise)
    assert rows.target[:, -1].equal(rows.point)


def test_the_policy_gradient_of_a_way_is_the_derivative_of_the_mean_reward():
    """Both by sampling: likelihood ratios of the steps, and the derivative through the same steps."""
    likelihood, v, n = PathLikelihood(steps=4, sums=True), Linear(), 40_000
    noise = torch.randn(n, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows = likelihood.draw(v, noise, None, torch.Generator().manual_seed(1))
    reward = -((rows.point[:, 0] - 1) ** 2)
    # scores of each sample: d logp / d v times d v / d (a, b)
    leaf = v(rows.x, rows.time[..., None]).detach().requires_grad_()
    mean, std = likelihood.step(leaf, rows.x, rows.time[..., None])
    (s,) = torch.autograd.grad((-0.5 * ((rows.target - mean) / std) ** 2).sum(), leaf)
    scores = torch.stack([s.sum((1, 2)), (s * rows.x).sum((1, 2))], 1)
    each = (reward - reward.mean())[:, None] * scores
    # through the steps, with the noise that made them
    z = ((rows.target - mean) / std).detach()
    x = noise
    for k in range(4):
        at = rows.time[:, k, None]
        m, sd = likelihood.step(v(x, at), x, at)
        x = m + sd * z[:, k]
    expected = torch.stack(torch.autograd.grad((-((x[:, 0] - 1) ** 2)).mean(), [v.a, v.b]))
    assert ((each.mean(0) - expected).abs() < 4.5 * each.std(0) / n**0.5).all()
    assert (expected.abs() > 0.1).all()


def test_stochastic_ways_keep_the_law_of_the_flow():
    """Data N(.5, .3^2): the velocity is known, and many steps end there with or without noise on the way."""

    class Exact(nn.Module):
        def __init__(self):
            super().__init__()
            self.none = nn.Parameter(torch.zeros(()))

        def forward(self, x, t, condition=None):
            t = t[:, None]
            variance = (1 - t) ** 2 * 0.09 + t**2
            return -0.5 + (t - (1 - t) * 0.09) / variance * (x - (1 - t) * 0.5)

    n = 20_000
    noise = torch.randn(n, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows = PathLikelihood(steps=150).draw(Exact(), noise, None, torch.Generator().manual_seed(1))
    assert abs(rows.point.mean() - 0.5) < 4.5 * 0.3 / n**0.5 + 0.01
    assert abs(rows.point.std() / 0.3 - 1) < 4.5 / (2 * n) ** 0.5 + 0.02


def test_the_matching_error_is_that_of_the_straight_path():
    v, likelihood = Linear(), Matching(times=3, weighting="uniform")
    noise = torch.randn(4, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows = likelihood.draw(v, noise, None, torch.Generator().manual_seed(1))
    t = rows.time[..., None]
    eps = rows.target + rows.point[:, None]
    assert ((1 - t) * rows.point[:, None] + t * eps - rows.x).abs().max() < 1e-12
    error = ((v(rows.x, t) - rows.target) ** 2)[..., 0]
    assert (likelihood.say(v, rows, None).error - error).abs().max() < 1e-12
    assert ((rows.time * 3).long() == torch.arange(3)).all()


@pytest.mark.parametrize("method", ["awm", "flow_grpo", "ddpo", "rloo"])
def test_a_flow_learns_to_listen_to_its_prompt(method, ring):
    velocity = copy.deepcopy(ring)
    loop = train(velocity, RING.reward, (2,), method=method, conditions=RING.conditions, steps=60, rate=1e-2)
    before, after = (loop.engine.look(1000, reference=ref) for ref in (True, False))
    assert RING.reward(*after).mean() > RING.reward(*before).mean() + 0.25
    assert all(not a.equal(b) for a, b in zip(velocity.parameters(), ring.parameters(), strict=True))


# recipes that ask for nothing that a flow does not have
FITTING = (
    "reinforce", "token_rloo", "remax", "reinforce_pp", "reinforce_pp_baseline", "dr_grpo", "gspo",
    "gspo_token", "gpg", "cispo", "sapo", "vespo", "luspo", "lite_ppo", "gdpo", "off_policy_mask", "opo",
    "adora", "dvao", "d3s", "v0_thinned", "clip_cov", "kl_cov", "empg", "epo", "r3", "copg", "p3o", "inpo",
    "direct_advantage", "mdpo", "sft",
)


@pytest.mark.parametrize("method", FITTING)
def test_existing_recipes_train_it_unchanged(method):
    velocity = PlaneVelocity(2, 4, 8)
    before = copy.deepcopy(velocity)
    options = {"conditions": RING.conditions, "steps": 2, "batch": 16, "group": 4, "rate": 0.01}
    loop = train(velocity, RING.reward, (2,), method=method, **options)
    assert len(loop.history) == 2
    moved = [not a.equal(b) for a, b in zip(velocity.parameters(), before.parameters(), strict=True)]
    assert all(moved)


@pytest.mark.parametrize(
    ("method", "words"), [("ppo", "without 'value'"), ("precision", "without 'logits'"), ("subpo", "'cover'")]
)
def test_recipes_that_need_more_are_refused_before_training(method, words):
    with pytest.raises(InvalidConfig, match=words):
        train(PlaneVelocity(2, 0, 8), RING.reward, (2,), method=method, steps=1)


def test_matching_losses_are_refused_on_ways():
    with pytest.raises(InvalidConfig, match="matching_error"):
        train(PlaneVelocity(2, 0, 8), RING.reward, (2,), method="awm", likelihood=PathLikelihood(), steps=1)


def test_parts_of_a_batch_add_up(ring):
    found = []
    for part in (0, 5):
        velocity = copy.deepcopy(ring).double()
        train(velocity, RING.reward, (2,), conditions=RING.conditions.double(), steps=2, micro_batch=part, batch=16, group=4)
        found.append(torch.cat([p.detach().flatten() for p in velocity.parameters()]))
    torch.testing.assert_close(*found, rtol=1e-8, atol=1e-9)


def test_a_pull_to_the_reference_keeps_it_there(ring):
    far, near = copy.deepcopy(ring), copy.deepcopy(ring)
    for velocity, weight in ((far, 0.0), (near, 100.0)):
        recipe = f"awm, regular={weight}*velocity_gap"
        train(velocity, RING.reward, (2,), method=recipe, conditions=RING.conditions, steps=20, rate=3e-3)
    gap = lambda v: sum((a - b).square().sum() for a, b in zip(v.parameters(), ring.parameters(), strict=True))  # noqa: E731
    assert gap(near) < gap(far)


class Image(nn.Module):
    """The call of a diffusers transformer with two conditions."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Conv2d(3, 3, 1)

    def forward(self, hidden_states, encoder_hidden_states, pooled_projections, timestep, return_dict=True):
        assert float(timestep.max()) <= 1000
        assert len(encoder_hidden_states) == len(pooled_projections) == len(hidden_states)
        shift = pooled_projections.mean(1) + encoder_hidden_states.mean((1, 2)) + timestep / 1000
        return (self.mix(hidden_states) + shift[:, None, None, None],)


def test_image_shaped_models_with_the_call_of_diffusers_train():
    velocity = diffusers_velocity(Image(), ("encoder_hidden_states", "pooled_projections"))
    before = copy.deepcopy(velocity)
    conditions = torch.randn(2, 5, 3), torch.randn(2, 7)
    bright = lambda x, group: x.flatten(1).mean(1)  # noqa: E731
    loop = train(velocity, bright, (3, 4, 4), conditions=conditions, steps=2, batch=8, group=4)
    assert loop.engine.sample("policy", 0).point.shape == (8, 3, 4, 4)
    assert all(not a.equal(b) for a, b in zip(velocity.parameters(), before.parameters(), strict=True))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: FlowEngine(SMALL, RING.reward, (2,), batch=10, group=4), "whole number of groups"),
        (lambda: FlowEngine(nn.ReLU(), RING.reward, (2,)), "parameters that require a gradient"),
        (lambda: FlowEngine(SMALL, RING.reward, (2,), likelihood=Matching(times=0)), "at least one"),
        (lambda: FlowEngine(SMALL, RING.reward, (2,), likelihood=Matching(weighting="a")), "weightings are"),
        (lambda: FlowEngine(SMALL, RING.reward, (2,), likelihood=PathLikelihood(eta=0.0)), "eta above 0"),
        (lambda: diffusers_velocity(SMALL), "hidden_states or sample"),
        (lambda: diffusers_velocity(Image(), ("prompt",)), "'prompt'"),
        (lambda: Spots(prompts=9), "prompts <= modes"),
        (lambda: train(SMALL, RING.reward, (2,), steps=0), "steps and rate"),
        (lambda: train(SMALL, RING.reward, (2,), method="amw"), "Did you mean 'awm'"),
    ],
)
def test_what_is_not_allowed_is_named(make, words):
    with pytest.raises(InvalidConfig, match=words):
        make()


def test_velocities_that_do_not_fit_are_named():
    class Wide(Linear):
        def forward(self, x, t, condition=None):
            return torch.cat([x, x], 1)

    class Lost(Linear):
        def forward(self, x, t, condition=None):
            return x / 0

    for velocity, words in ((Wide(), r"shape \(2, 2\)"), (Lost(), "not finite")):
        with pytest.raises(InvalidProblem, match=words):
            FlowEngine(velocity, RING.reward, (1,))
