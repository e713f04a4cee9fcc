"""A flow under the recipes: exact likelihoods of its ways, gradients against closed forms, refusals by name."""

import copy

import pytest
import torch
from torch import nn

from bilevel_rl.errors import InvalidConfig, InvalidProblem
from bilevel_rl.flows import (
    FlowEngine,
    Matching,
    PathLikelihood,
    PlaneVelocity,
    diffusers_velocity,
    train,
    two_levels,
)
from bilevel_rl.flows.spots import Spots
from bilevel_rl.levels.checks import check_engine
from bilevel_rl.policy_gradient.recipes import COMPONENTS

RING = Spots()
SMALL = PlaneVelocity(2, 0, 4)


class Linear(nn.Module):
    """v = a + b x, on the line."""

    def __init__(self, a=-0.3, b=0.4):
        super().__init__()
        self.a, self.b = (nn.Parameter(torch.tensor(v, dtype=torch.float64)) for v in (a, b))

    def forward(self, x, t, condition=None):
        return self.a + self.b * x


class Gaussian(nn.Module):
    """The velocity of matching on N(m, s^2)."""

    def __init__(self):
        super().__init__()
        self.m, self.s = (nn.Parameter(torch.tensor(v, dtype=torch.float64)) for v in (0.5, 0.3))

    def forward(self, x, t, condition=None):
        t = t[:, None]
        variance = ((1 - t) * self.s) ** 2 + t**2
        return -self.m + (t - (1 - t) * self.s**2) / variance * (x - (1 - t) * self.m)


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


# parts alone, by slot, each in the place of GRPO's own: what asks for nothing that a flow does not have
PARTS = {
    "credit": "leave_one_out return remax group_norm group_mean batch_norm length_baseline empg adora dvao reward_to_go "
              "episode gpg gdpo to_go_leave_one_out",
    "weigh": "clip_cov d3s_tokens probability_mask high_entropy off_policy_mask",
    "loss": "policy_gradient supervised clipped gspo cispo unified copg p3o direct_advantage inpo mdpo nash_mirror_prox "
            "sapo vespo advantage_matching",
    "regular": "exact_kl sampled_kl entropy epo kl_cov safe velocity_gap",
    "reward": "kl_reward win_rate ranking_reward",
    "select": "d3s dynamic_sampling pcl v0_budget replay",
}  # fmt: skip


@pytest.mark.parametrize("slot", PARTS)
def test_every_part_trains_a_flow_or_says_what_it_lacks(slot):
    """Nothing in between: no part runs and leaves weights where they were, or fails in other words."""
    fitting, lacking = set(), {}
    for card in (cls.card for cls in COMPONENTS if cls.card.slot.value == slot and cls.card.name != "sum"):
        velocity = PlaneVelocity(2, 4, 8)
        before = copy.deepcopy(velocity)
        recipe = f"grpo, {slot}={'0.1*' if slot == 'regular' else ''}{card.name}"
        options = {"conditions": RING.conditions, "steps": 2, "batch": 16, "group": 4, "rate": 0.01}
        try:
            train(velocity, RING.reward, (2,), method=recipe, **options)
        except InvalidConfig as error:
            lacking[card.name] = str(error)
            continue
        fitting.add(card.name)
        pairs = list(zip(velocity.parameters(), before.parameters(), strict=True))
        assert all(not a.equal(b) and bool(a.isfinite().all()) for a, b in pairs), card.name
    assert fitting == set(PARTS[slot].split())
    assert all("without" in words or "limit" in words for words in lacking.values()), lacking


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


def test_matching_scatters_less_than_the_ways_of_ddpo_and_points_the_same_way():
    """One Gaussian flow, its exact velocity, one reward: gradients of both likelihoods over 60 batches of 64."""
    found = {}
    for name, likelihood in (("matching", Matching(weighting="uniform")), ("ddpo", PathLikelihood(eta=1.0))):
        each = []
        for k in range(60):
            v, generator = Gaussian(), torch.Generator().manual_seed(k)
            noise = torch.randn(64, 1, generator=generator, dtype=torch.float64)
            rows = likelihood.draw(v, noise, None, generator)
            reward = -((rows.point[:, 0] - 1) ** 2)
            advantage = (reward - reward.mean()) / reward.std()
            loss = (advantage[:, None] * likelihood.say(v, rows, None).logp).mean()
            each.append(torch.stack(torch.autograd.grad(loss, [v.m, v.s])))
        found[name] = torch.stack(each)
    means = {name: g.mean(0) for name, g in found.items()}
    scatter = {name: g.var(0).sum() / means[name].square().sum() for name, g in found.items()}
    assert torch.cosine_similarity(means["matching"], means["ddpo"], 0) > 0.9
    assert scatter["matching"] < 0.7 * scatter["ddpo"]  # .05 and .12 over 400 batches


def test_a_reference_that_follows_is_the_average_of_the_weights_and_comes_back(ring):
    v, moved = Linear(), []
    engine = FlowEngine(v, lambda x, group: x[:, 0], (1,), batch=8, group=4, reference_decay=0.9)
    expected = v.a.detach().clone()
    for k in range(5):
        with torch.no_grad():
            v.a += k
        engine.moved()
        expected = 0.9 * expected + 0.1 * v.a.detach()
    assert abs(float(engine.reference.a - expected)) < 1e-12
    again = FlowEngine(Linear(), lambda x, group: x[:, 0], (1,), batch=8, group=4, reference_decay=0.9)
    again.load(engine.state())
    assert again.reference.a.equal(engine.reference.a)
    assert again.velocities["policy"].a.equal(v.a)
    with pytest.raises(InvalidConfig, match="no reference"):
        again.load({key: value for key, value in engine.state().items() if "reference" not in key})
    # in training the pull is to where the flow lately was, so it goes further
    recipe = "awm, regular=30*velocity_gap"
    for decay in (1.0, 0.5):
        velocity = copy.deepcopy(ring)
        train(velocity, RING.reward, (2,), method=recipe, conditions=RING.conditions, steps=20, rate=3e-3,
              reference_decay=decay)  # fmt: skip
        pairs = zip(velocity.parameters(), ring.parameters(), strict=True)
        moved.append(sum(float((a - b).detach().square().sum()) for a, b in pairs))
    assert moved[1] > 1.5 * moved[0]


@pytest.mark.parametrize("estimator", ["tilted", "shared"])
def test_a_leader_learns_what_to_pay_a_flow(estimator, ring):
    """Every prompt's highest price ends at the spot that the leader wants, which it is told by scores alone."""
    prices, velocity = RING.prices(), copy.deepcopy(ring)
    loop = two_levels(velocity, prices, RING.reward, (2,), conditions=RING.conditions, steps=80, estimator=estimator, w=0.3)
    assert (prices.x.argmax(1) == torch.arange(4) * 2).all()
    before, after = (RING.reward(*loop.engine.look(1000, reference=ref)).mean() for ref in (True, False))
    assert after > before + 0.3
    assert loop.history[-1]["gold"] > loop.history[0]["gold"] + 0.3


def test_without_the_flows_answer_nothing_would_move_a_reward_that_is_judged_by_points(ring):
    options = {"conditions": RING.conditions, "steps": 3, "method": "partial_sgd"}
    with pytest.raises(InvalidConfig, match="Gold alone with method=partial_sgd; x has no direct gradient there"):
        two_levels(copy.deepcopy(ring), RING.prices(), RING.reward, (2,), **options)


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
        (lambda: train(SMALL, RING.reward, (2,), reference_decay=1.5), "it must be in"),
        (lambda: two_levels(SMALL, RING.reward, RING.reward, (2,)), "whose parameters are x"),
        (lambda: two_levels(SMALL, Slope(), RING.reward, (2,), tau=0.0), "all are above 0"),
        (lambda: two_levels(SMALL, Slope(), RING.reward, (2,), estimator="fisher", steps=1), "logits"),
        (lambda: train(SMALL, RING.reward, (2,), method="amw"), "Did you mean 'awm'"),
    ],
)
def test_flow_settings_that_are_not_allowed_are_named(make, words):
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
