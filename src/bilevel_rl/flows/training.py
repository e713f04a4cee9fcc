"""A recipe by name, at work on a flow."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor, nn

from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.flows.engine import FlowEngine
from bilevel_rl.flows.likelihoods import Likelihood, Matching, PathLikelihood
from bilevel_rl.levels.labels import Labels
from bilevel_rl.levels.loop import Keeping, Loop
from bilevel_rl.levels.processes import Share
from bilevel_rl.levels.settings import Settings
from bilevel_rl.policy_gradient import recipes
from bilevel_rl.schedules import PowerDecay, TimeScales

_TIGHT = "loss=clipped(low=0.0001, high=0.0001, aggregate=per_sequence)"  # the releases' range, of means over coordinates

# name -> (recipe, what log-probabilities are)
METHODS: dict[str, tuple[str, Likelihood]] = {
    "awm": ("awm", Matching()),
    "flow_grpo": (f"credit=group_norm, {_TIGHT}", PathLikelihood(eta=0.7)),
    "ddpo": (f"credit=batch_norm, {_TIGHT}", PathLikelihood(eta=1.0)),
}


def train(
    velocity: nn.Module, reward: Callable[[Tensor, Tensor], Tensor], shape: tuple[int, ...], *, method: str = "awm",
    likelihood: Likelihood | None = None, conditions: Any = None, steps: int = 100, batch: int = 64, group: int = 8,
    rate: float = 1e-3, epochs: int = 1, tau: float = 0.0, micro_batch: int = 0, seed: int = 0, out: str = "",
    save_every: int = 0, resume: str = "never", **engine: Any,
) -> Loop:  # fmt: skip
    """Train a velocity network, in place, on a reward of its samples.

    Args:
        velocity: any `VelocityNetwork` that is an `nn.Module`.
        reward: (points [N, *D], group [N]) -> [N].
        shape: of one sample.
        method: of `METHODS`, or any recipe by name or by its parts (`policy_gradient.recipes.compose`).
        likelihood: what log-probabilities are; the method's own, or matching, when None.
        conditions: what the network sees of each prompt.
        steps: iterations.
        batch, group: samples of an iteration, and of one prompt in it.
        rate: step size of Adam.
        epochs: steps on one batch.
        tau: weight of the divergence from the flow as it was given.
        micro_batch: samples of a forward pass; 0: all at once.
        seed: of all that is drawn.
        out: folder of the run; "": nothing is written.
        save_every: iterations between checkpoints; 0: one at the end.
        resume: "auto" goes on with a folder that holds this very run, more iterations allowed; "never" refuses a used one,
            "replace" writes it anew.
        engine: further options of `FlowEngine`.

    Returns:
        The loop: `history` has the metrics, `engine.look(count)` draws samples.

    Raises:
        InvalidConfig: an unknown method, or a recipe that reads what a flow does not have.
        NonFiniteState: NaN or infinity, naming the quantity and the iteration.

    Example:
        >>> from bilevel_rl.flows.spots import Spots
        >>> spots = Spots()
        >>> loop = train(spots.pretrained(steps=2, width=4), spots.reward, (2,), conditions=spots.conditions, steps=2)
        >>> len(loop.history), loop.engine.samples
        (2, 128)
    """
    _check(steps, rate, tau)
    text, own = METHODS.get(method, (method, Matching()))
    recipe = recipes.compose(text)
    made = FlowEngine(
        velocity, reward, shape, conditions=conditions, likelihood=likelihood or own, batch=batch, group=group, seed=seed,
        **engine,
    )  # fmt: skip
    settings = Settings(
        method="plain", seed=seed, steps=steps, batch=batch, group=group, micro_batch=micro_batch, epochs=epochs,
        schedules=dataclasses.replace(TimeScales(), alpha=PowerDecay(rate, 0.0), tau=PowerDecay(tau, 0.0)),
    )  # fmt: skip
    values = {"method": method, "tau": tau, "rate": rate, "epochs": epochs, "batch": batch, "group": group, "seed": seed}
    loop = Loop(
        made, settings, None, NoLabels(), recipe, fields=made.given, starts=made.prompts,
        share=Share(0, batch, micro_batch), problem="flow",
        config=Keeping(out=out, save_every=save_every, resume=resume, method=method, seed=seed, steps=steps, values=values),
    )  # fmt: skip
    loop.begin_or_resume()
    loop.train()
    return loop


def _check(steps: int, rate: float, tau: float) -> None:
    if steps < 1 or not rate > 0 or tau < 0:
        raise InvalidConfig(
            message("flows.train", f"steps={steps}, rate={rate}, tau={tau}", "steps and rate are above 0, tau is at least 0",
                    "Change it")
        )  # fmt: skip


class NoLabels(Labels):
    """Nobody is asked: the reward is given."""

    refusal: ClassVar[tuple[str, str, str]] = (
        "flows.train", "a recipe or method that asks for labels", "a flow's reward is given",
    )  # fmt: skip

    def answers(self, rows: Any, pairs: Tensor) -> Tensor:
        raise self._refused()

    def rows(self, pairs: Any) -> tuple[Any, Any]:
        raise self._refused()

    def _refused(self) -> InvalidConfig:
        return InvalidConfig(message(*self.refusal, "Use levels.Loop with Labels of your own"))
