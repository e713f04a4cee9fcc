"""What a recipe requires of a method and of an engine: fields, rows and gradients; said before training starts."""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Any

from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.levels.engine import Engine
from bilevel_rl.levels.methods.base import Method
from bilevel_rl.policy_gradient.component import Effect, Slot, needs_of
from bilevel_rl.policy_gradient.recipe import Recipe

log = logging.getLogger(__name__)
SCORED = ("logp", "kl", "entropy")  # what `Scores` differentiates
DEMONSTRATION = "demonstration"  # the field that marks rows that were shown
# fields that every engine's batches have
OWN = {"reward", "group", "logp", "old", "ref", "entropy", "kl", "winner", "prompt_value"}


def needs(recipe: Recipe) -> set[str]:
    """Fields that the components of a recipe read."""
    return {name for c in recipe.components for name in needs_of(c)}


def beyond_scores(recipe: Recipe) -> list[str]:
    """Tensors that its losses and regularisers differentiate in, besides those that every engine scores."""
    return sorted({name for c in recipe.components for name in c.card.gradient} - set(SCORED))


def chooses(recipe: Recipe) -> bool:
    """Whether the rows that are learned from are others than those that were drawn."""
    return bool(recipe.select) or DEMONSTRATION in needs(recipe)


def check(recipe: Recipe, method: Method, have: Collection[str], engine: Engine) -> None:
    """Say before training what can't work.

    Args:
        recipe: as given.
        method: which policies there are, and what x learns from.
        have: fields that the engine provides, besides `OWN`.
        engine: whose policies learn.

    Raises:
        InvalidConfig: naming the component and what to do.
    """
    settings = method.settings
    recipe.check(OWN | set(have), settings.group)
    for component in recipe.components:
        if component.card.rows > settings.batch:
            raise _refuse(component.card, f"a batch of {settings.batch}", "it compares responses with one another",
                          "Set group to 2 or more")  # fmt: skip
    _check_gradients(recipe, engine)
    name = f"method={settings.method}"
    loss = getattr(recipe.loss, "card", None)
    if loss is not None:
        _check_loss(loss, method, name)
    for select in recipe.select:
        card = getattr(select, "card", None)
        if card is not None and method.own_rows and not card.by_prompt:
            raise _refuse(card, f"{settings.method} with two rollouts", "it picks responses, and each policy has its own",
                          "Choose estimator=tilted or shared")  # fmt: skip
    for rollout in recipe.rollout:
        card = getattr(rollout, "card", None)
        if getattr(rollout, "one_policy", False) and method.own_rows:
            raise _refuse(card, f"{settings.method} with two rollouts", "each policy would write other starts",
                          "Choose estimator=tilted or shared, or leave rollout out")  # fmt: skip
    card = getattr(recipe.step, "card", None)
    if card is not None and card.name == "harpg":
        raise _refuse(card, "a language model", "the trainer takes no Hessian-vector products",
                      "Choose step=n_pg_igt, the variant without them")  # fmt: skip
    if card is not None and card.name == "adam" and method.networks == 2:
        raise _refuse(card, "two policies", "their denominators must be one",
                      "Leave step out: optimizer=adam shares them")  # fmt: skip
    if method.answers:
        for c in recipe.components:
            if c.card.effect is Effect.CHANGES and c.card.slot not in (Slot.STEP, Slot.LOSS):
                log.info(
                    "%s '%s' changes the objective: x follows the hyper-gradient of J_tau, which this policy "
                    "does not maximise exactly", c.card.slot, c.card.name,
                )  # fmt: skip


def _check_gradients(recipe: Recipe, engine: Engine) -> None:
    """Raise unless the engine has, with a graph, every tensor that a loss or regulariser differentiates in."""
    for c in recipe.components:
        missing = [n for n in c.card.gradient if n not in SCORED and n not in engine.differentiates]
        if missing:
            raise _refuse(c.card, f"a gradient in '{missing[0]}'",
                          f"{type(engine).__name__} differentiates {', '.join((*SCORED, *sorted(engine.differentiates)))}",
                          "Choose another, or give the engine `tensors` and `differentiates`")  # fmt: skip


def _check_loss(loss: Any, method: Method, name: str) -> None:
    settings = method.settings
    reads = {"advantage", "reward", "winner"} & set(loss.needs)
    if not reads and method.answers:
        raise _refuse(loss, name, "it imitates and reads no reward, so the policy answers no x",
                      "Choose method=plain or partial_sgd, or another loss")  # fmt: skip
    if "advantage" not in loss.needs and method.networks == 2 and not method.own_rows:
        raise _refuse(loss, "estimator=shared", "it does not read the advantage, which the importance ratios weigh",
                      "Choose estimator=tilted or paired")  # fmt: skip
    if settings.epochs > 1 and reads and not {"old", "ref"} & set(loss.needs):
        raise _refuse(loss, f"epochs={settings.epochs}", "it is right for fresh samples only",
                      "Set epochs to 1, or choose loss=clipped")  # fmt: skip


def _refuse(card: Any, got: str, why: str, do: str) -> InvalidConfig:
    return InvalidConfig(message(f"{card.slot} '{card.name}'", got, why, do))
