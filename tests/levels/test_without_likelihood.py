"""A policy without a likelihood: its loss differentiates in what its card declares, and nothing else is asked for."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from bilevel_rl.errors import InvalidConfig
from bilevel_rl.levels.engine import Engine, Scores
from bilevel_rl.levels.labels import Labels
from bilevel_rl.levels.loop import Loop
from bilevel_rl.levels.processes import Share
from bilevel_rl.levels.settings import Settings
from bilevel_rl.policy_gradient.aggregate import per_sequence
from bilevel_rl.policy_gradient.batch import Batch
from bilevel_rl.policy_gradient.checks import check_component, random_batch
from bilevel_rl.policy_gradient.component import Card, Effect, Scope, Slot
from bilevel_rl.policy_gradient.credit import GroupMean
from bilevel_rl.policy_gradient.recipe import Recipe
from bilevel_rl.schedules import PowerDecay, TimeScales

ROWS = 64
TARGET = torch.tensor([1.0, -0.5]).double()


@dataclasses.dataclass(frozen=True)
class Matching:
    """Advantage-weighted flow matching: the error of the velocity at one's own samples, weighted by the advantage."""

    card: ClassVar[Card] = Card(
        name="matching", slot=Slot.LOSS, effect=Effect.CHANGES, needs=("advantage", "matching_error"), scope=Scope.RESPONSE,
        gradient=("matching_error",), fields={"matching_error": "A flow: its velocity's squared error at each action"},
    )  # fmt: skip

    def __call__(self, batch: Batch) -> Tensor:
        advantage, error = self.card.take(batch, "advantage", "matching_error")
        return per_sequence(advantage * error, batch)


@dataclasses.dataclass(frozen=True)
class Points:
    """Points that a flow has carried from noise, one action a row."""

    point: Tensor
    group: Tensor

    @property
    def size(self) -> int:
        return len(self.point)

    @property
    def mask(self) -> Tensor:
        return torch.ones(self.size, 1, dtype=torch.double)

    @property
    def lengths(self) -> Tensor:
        return torch.ones(self.size, dtype=torch.long)

    @property
    def ended(self) -> Tensor:
        return torch.ones(self.size, dtype=torch.bool)

    def rows(self, index) -> Points:
        return Points(self.point[index], self.group[index])


class Flow(Engine):
    """A constant velocity on the plane: noise z becomes z + v, and of fresh noise the mean error is |y - v|^2 + 2."""

    names = ("policy",)
    differentiates = frozenset({"matching_error"})

    def __init__(self) -> None:
        self.velocity = nn.Parameter(torch.zeros(2).double())
        self.scored = 0

    def sample(self, role, k):
        noise = torch.randn(ROWS, 2, generator=torch.Generator().manual_seed(k)).double()
        self.samples += ROWS
        return Points(noise + self.velocity.detach(), torch.arange(ROWS) // 8)

    def score(self, role, rows):
        self.scored += 1
        nothing = torch.zeros(rows.size, 1, dtype=torch.double)
        return Scores(nothing, nothing, nothing, nothing)

    def tensors(self, role, rows, names):
        return {"matching_error": (rows.point - self.velocity).square().sum(-1, keepdim=True)}

    def rewards(self, rows):
        return -(rows.point - TARGET).square().sum(-1)

    def parameters(self, role):
        return {"velocity": self.velocity}


class Nobody(Labels):
    def answers(self, rows, pairs):
        raise AssertionError("plain learning asks for no label")

    def gold(self, rows):
        return None

    def kept(self, rows, pairs):
        return []

    def rows(self, pairs):
        raise AssertionError("plain learning stores no pair")


RECIPE = Recipe("matching", credit=GroupMean(), loss=Matching())


def loop(recipe=RECIPE, **changes):
    engine = Flow()
    values = {"method": "plain", "steps": 60, "batch": ROWS, "group": 8, "kl_estimator": "k1", "optimizer": "sgd"}
    alpha = changes.pop("alpha", 0.05)
    settings = Settings(**values | changes, schedules=dataclasses.replace(TimeScales(), alpha=PowerDecay(alpha, 0.0)))
    share = Share(0, settings.batch, settings.micro_batch)
    return Loop(engine, settings, None, Nobody(), recipe, fields=("matching_error",), share=share), engine


def test_a_flow_learns_by_a_loss_that_reads_no_likelihood():
    one, engine = loop()
    one.train()
    assert (engine.velocity - TARGET).abs().max() < 0.3
    # scored once an iteration, as every engine is; the backward passes asked for the error alone
    assert engine.scored == 60


def test_its_gradient_is_autograds_whole_and_in_parts():
    found = []
    for part in (0, 7):
        one, engine = loop(steps=1, micro_batch=part, clip_norm=0.0, alpha=1.0)
        rows = engine.sample("policy", 0)
        reward = engine.rewards(rows)
        advantage = reward - reward.reshape(-1, 8).mean(1).repeat_interleave(8)
        error = engine.tensors("policy", rows, ["matching_error"])["matching_error"][:, 0]
        (expected,) = torch.autograd.grad((advantage * error).mean(), engine.velocity)
        one.train()
        torch.testing.assert_close(engine.velocity.detach(), -expected)
        found.append(engine.velocity.detach())
    torch.testing.assert_close(*found)


def test_a_tensor_that_the_engine_does_not_differentiate_is_named_before_training():
    class Other(Matching):
        card = dataclasses.replace(Matching.card, gradient=("velocity",))

    with pytest.raises(InvalidConfig, match=r"loss 'matching': got a gradient in 'velocity'; Flow differentiates .*error"):
        loop(Recipe("other", credit=GroupMean(), loss=Other()))


def test_such_a_loss_passes_the_public_check():
    batch = random_batch()
    batch = batch.replace(matching_error=batch.get("kl").square())
    assert check_component(Matching(), batch) == []
