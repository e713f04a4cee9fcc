"""Recipes by name and by parts, the generated page, and the solver that the bi-level layer sees."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest
import torch

from bilevel_rl.errors import InvalidConfig
from bilevel_rl.policy_gradient import Recipe, credit, losses
from bilevel_rl.policy_gradient.aggregate import per_sequence
from bilevel_rl.policy_gradient.batch import Batch
from bilevel_rl.policy_gradient.catalogue import render
from bilevel_rl.policy_gradient.checks import SETTING
from bilevel_rl.policy_gradient.losses.unified import ClipMask
from bilevel_rl.policy_gradient.optimiser import PolicyOptimiser
from bilevel_rl.policy_gradient.recipes import ALL, COMPONENTS, component, compose, named
from bilevel_rl.policy_gradient.regularizers import SampledKL
from bilevel_rl.policy_gradient.regularizers.kl import k3
from bilevel_rl.policy_gradient.steps import HARPG, SGD, Adam, ImplicitTransport
from bilevel_rl.schedules import PowerDecay

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "catalogue.md"


def test_the_catalogue_is_what_the_recipes_declare():
    assert PAGE.read_text() == render(), (
        "run: python -m bilevel_rl.policy_gradient.catalogue > docs/catalogue.md"
    )
    for cls in COMPONENTS:
        assert f"| `{cls.card.name}` |" in render()
    rows = [line for line in render().splitlines() if line.startswith("|")]
    columns = {line.replace("\\|", "").count("|") for line in rows}
    assert columns == {9}  # recipes and components


@pytest.mark.parametrize("recipe", ALL, ids=[r.name for r in ALL])
def test_every_recipe_runs_and_teaches(recipe, make_batch):
    """From rewards to a finite gradient that is not zero, on the batch with every field."""
    batch = make_batch(samples=8)
    recipe = recipe.configured(SETTING)
    recipe.check(batch.fields, group_size=8)
    ready = recipe.prepare(batch.replace(advantage=None, weight=None, memory=recipe.init()))
    field = recipe.loss.card.gradient[0]
    leaf = ready.inside(field).clone().requires_grad_()
    loss, terms = recipe.objective(ready.replace(**{field: leaf}))
    (gradient,) = torch.autograd.grad(loss, leaf)
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 0
    assert all(t.isfinite() for t in terms.values())
    recipe.update(ready.memory, ready)


def test_recipe_names_are_unique_and_every_component_is_in_one():
    names = [r.name for r in ALL]
    assert len(set(names)) == len(names)
    used = {type(c) for r in ALL for c in r.components}
    missing = {cls.card.name for cls in COMPONENTS if cls not in used and cls.card.slot != "step"}
    # the trainer adds regularisers and the KL reward by tau
    assert missing == {"exact_kl", "sampled_kl", "entropy", "kl_reward"}


def test_unknown_names_get_the_nearest():
    with pytest.raises(InvalidConfig, match="Did you mean 'grpo'"):
        named("grpoo")
    with pytest.raises(InvalidConfig, match="Did you mean 'group_norm'"):
        component("group_nrom")


def test_compose_builds_what_it_names():
    recipe = compose(
        "select=[dynamic_sampling, d3s(start=0.25)], credit=empg(adora(group_norm(eps=0.1)), zeta=0.2), "
        "weigh=clip_cov, loss=clipped(high=0.28, aggregate=per_sequence), regular=[0.01*sampled_kl(estimator=k3), entropy]"
    )
    assert recipe.credit == credit.EMPG(inner=credit.Adora(inner=credit.GroupNorm(eps=0.1)), zeta=0.2)
    assert recipe.loss == losses.Clipped(high=0.28, aggregate=per_sequence)
    assert recipe.regular[0] == (0.01, SampledKL(k3))
    assert recipe.regular[1][0] == 1.0
    assert [s.card.name for s in recipe.select] == ["dynamic_sampling", "d3s"]
    assert compose("grpo") is named("grpo")
    assert compose("loss=unified(stable=clip_mask(low=0.1))").loss.stable == ClipMask(low=0.1)
    assert compose("credit=batch_norm(inner=group_mean)").credit.inner == credit.GroupMean()


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("credit=empg(", "parse"),
        ("empg(group_norm)", "without its slot"),
        ("credits=empg", "Did you mean 'credit'"),
        ("credit=clipped", "belongs in 'loss'"),
        ("credit=[gae, rloo]", "takes one"),
        ("credit=gae(lamb=0.9)", "Did you mean 'lam'"),
        ("credit=gae(group_norm)", "wraps nothing"),
        ("credit=__import__('os').system('x')", "where a part is expected"),
        ("loss=clipped(high=open('x'))", "component"),
        ("loss=clipped(high=1+x)", "number"),
        ("loss=clipped(aggregate=per_tokn)", "Did you mean 'per_token'"),
        ("credit=nothing", "Known"),
    ],
)
def test_compose_says_what_is_wrong(text, match):
    with pytest.raises(InvalidConfig, match=match):
        compose(text)


# -- the solver -----------------------------------------------------------------------------------------------------------

ARMS = 5
G = torch.Generator().manual_seed(0)
REF = torch.randn(ARMS, generator=G).double().log_softmax(0)
REWARD = torch.randn(ARMS, generator=G).double()
COST = torch.randn(ARMS, generator=G).double()
TAU = 0.5


def rollout(parameters, iteration, n=256):
    """One-token responses to one prompt, four a group."""
    g = torch.Generator().manual_seed(iteration)
    law = parameters["theta"].log_softmax(0)
    token = torch.multinomial(law.exp(), n, replacement=True, generator=g)
    return Batch.make(
        mask=torch.ones(n, 1), reward=torch.zeros(n).double(), group=torch.arange(n) // 4, old=law[token][:, None],
        ref=REF[token][:, None], target=token[:, None],
    )  # fmt: skip


def evaluate(parameters, batch):
    token = batch.get("target")
    return batch.replace(logp=parameters["theta"].log_softmax(0)[token])


def solved(recipe, method, extra_loss=None, steps=600, tau=TAU):
    solver = PolicyOptimiser(recipe, rollout, evaluate, method)
    state = solver.init({"theta": torch.zeros(ARMS, dtype=torch.float64)})
    average = torch.zeros(ARMS, dtype=torch.float64)
    for k in range(steps):
        state, _ = solver.step(state, lambda b: REWARD[b.get("target")], tau, extra_loss)
        if k >= steps // 2:
            average += state.parameters["theta"].log_softmax(0) / (steps - steps // 2)
    assert state.iteration == steps
    assert state.samples == 256 * steps
    return average.softmax(0)


def distance(p, q):
    return 0.5 * (p - q).abs().sum().item()


@pytest.mark.parametrize(
    ("recipe", "method"),
    [
        (Recipe(), Adam(PowerDecay(0.1, 0.5))),
        (Recipe(), SGD(PowerDecay(2.0, 0.5))),
        (named("mdpo"), Adam(PowerDecay(0.1, 0.5))),
        (Recipe(), ImplicitTransport(PowerDecay(0.5, 0.7), eta=0.5)),
        (Recipe("clip", loss=losses.Clipped()), Adam(PowerDecay(0.1, 0.5))),
    ],
    ids=["adam", "sgd", "mdpo", "igt", "clipped"],
)
def test_solvers_reach_the_regularised_optimum(recipe, method):
    best = (REF + REWARD / TAU).softmax(0)
    assert distance(solved(recipe, method), best) < 2e-2
    assert distance(torch.full((ARMS,), 1 / ARMS).double(), best) > 0.2


def test_the_extra_loss_moves_the_follower_to_the_penalised_optimum():
    """Extra loss w f with f = E[cost], by score function: the optimum is ref exp((R - w cost)/tau)."""
    w = 0.6

    def extra(batch):
        cost = COST[batch.get("target")]
        return w * (cost - cost.mean()).mul(batch.logp).mean()

    best = (REF + (REWARD - w * COST) / TAU).softmax(0)
    assert distance(solved(Recipe(), Adam(PowerDecay(0.1, 0.5)), extra), best) < 2e-2
    assert distance((REF + REWARD / TAU).softmax(0), best) > 0.1


def test_decisions_are_made_once_and_can_be_shared():
    solver = PolicyOptimiser(Recipe(), rollout, evaluate, SGD())
    one = solver.init({"theta": torch.zeros(ARMS, dtype=torch.float64)})
    batch = solver.decide(one, lambda b: REWARD[b.get("target")], TAU)
    assert batch.reward.shape[-1] == 2
    first, terms = solver.learn(one, batch)
    second, more = solver.learn(one, batch, lambda b: 0.0 * b.logp.sum())
    assert torch.equal(first.parameters["theta"], second.parameters["theta"])
    assert set(more) == {*terms, "extra"}
    assert HARPG().card.slot == "step"


def test_the_package_example_runs(batch):
    recipe = compose("credit=empg(adora(group_norm)), loss=clipped(high=0.28), regular=0.01*sampled_kl")
    recipe.check({"logp", "old", "ref", "entropy", "turn"}, group_size=4)
    loss, terms = recipe.objective(recipe.prepare(batch))
    assert loss.item() == pytest.approx((terms["loss"] + 0.01 * terms["sampled_kl"]).item())


@pytest.mark.slow
def test_importing_the_engine_brings_no_jax():
    code = "import sys, bilevel_rl.policy_gradient; sys.exit('jax' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_component_named_return_can_be_composed():
    assert compose("credit=return, loss=policy_gradient").credit == credit.Return()
    assert compose("credit=empg(return)").credit.inner == credit.Return()
