r"""Two levels on a flow: x pays for points, the flow learns what it is paid for, the leader judges where the points come.

$$\min_x\ -E_{\pi_x}[\mathrm{gold}] + \lambda |x|^2, \qquad
\pi_x = \arg\max_\pi\ E_\pi[r_x] - \tau\, KL(\pi\,|\,\pi_\mathrm{ref})$$

The divergence is that of the stochastic ways, so it is exact, and so is the likelihood that the flow learns by.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.flows.engine import FlowEngine
from bilevel_rl.flows.likelihoods import Likelihood, PathLikelihood
from bilevel_rl.flows.training import NoLabels
from bilevel_rl.levels.loop import Keeping, Loop
from bilevel_rl.levels.objectives import Gold
from bilevel_rl.levels.processes import Share
from bilevel_rl.levels.settings import Settings
from bilevel_rl.policy_gradient import recipes
from bilevel_rl.schedules import PowerDecay, TimeScales


def two_levels(
    velocity: nn.Module, reward: nn.Module, gold: Callable[[Tensor, Tensor], Tensor], shape: tuple[int, ...], *,
    method: str = "bilevel", estimator: str = "tilted", recipe: str = "token_rloo",
    likelihood: Likelihood = PathLikelihood(steps=6, sums=True), conditions: Any = None, steps: int = 200, batch: int = 64,
    group: int = 16, rate: float = 3e-3, x_rate: float = 0.05, tau: float = 0.1, w: float = 0.1, x_penalty: float = 0.0,
    seed: int = 0, out: str = "", save_every: int = 0, resume: str = "never", **engine: Any,
) -> Loop:  # fmt: skip
    """Learn a reward whose optimal flow scores well, and the flow beside it, both in place.

    Args:
        velocity: any `VelocityNetwork` that is an `nn.Module`.
        reward: (points [N, *D], group [N]) -> [N], differentiable in its parameters, which are x.
        gold: (points [N, *D], group [N]) -> [N], what the leader wants; it need not be differentiable.
        shape: of one sample.
        method, estimator: of `levels.Settings`: bilevel by the closed form of the second flow (tilted) or by a second
            network (shared, paired). fisher asks for logits, and partial_sgd leaves out all there is: both are refused.
        recipe: by which the flow learns what it is paid for.
        likelihood: what log-probabilities are; with `sums` the divergence is that of whole ways.
        conditions: what the network sees of each prompt.
        steps: iterations.
        batch, group: samples of an iteration, and of one prompt in it.
        rate, x_rate: step sizes of Adam, of the flow and of x; Adam's steps have the size of the rate.
        tau: weight of the divergence from the flow as it was given.
        w: penalty constant of estimators with a second network.
        x_penalty: lambda.
        seed: of all that is drawn.
        out: folder of the run; "": nothing is written.
        save_every: iterations between checkpoints; 0: one at the end.
        resume: "auto" goes on with a folder that holds this very run, more iterations allowed; "never" refuses a used one,
            "replace" writes it anew.
        engine: further options of `FlowEngine`.

    Returns:
        The loop: `history` has the metrics, `engine.look(count)` draws samples, `reward` is trained.

    Raises:
        InvalidConfig: a reward without parameters, numbers or names that are not allowed.

    Example:
        >>> from bilevel_rl.flows.spots import Spots
        >>> spots = Spots()
        >>> loop = two_levels(spots.pretrained(steps=2, width=4), spots.prices(), spots.reward, (2,),
        ...                   conditions=spots.conditions, steps=2)
        >>> len(loop.history), sorted(loop.engine.names)
        (2, ['policy', 'reward'])
    """
    _check(reward, steps, rate, x_rate, tau, w, x_penalty)
    needs_second = method in ("bilevel", "nested") and estimator in ("shared", "paired")
    made = FlowEngine(
        velocity, reward, shape, conditions=conditions, likelihood=likelihood, batch=batch, group=group, seed=seed,
        levels=2 if needs_second else 1, **engine,
    )  # fmt: skip
    constant = lambda v: PowerDecay(v, 0.0)  # noqa: E731
    settings = Settings(
        method=method, estimator=estimator, seed=seed, steps=steps, batch=batch, group=group, x_penalty=x_penalty,
        schedules=dataclasses.replace(
            TimeScales(), zeta=constant(x_rate), alpha=constant(rate), tau=constant(tau), w=constant(w)
        ),
    )  # fmt: skip
    values = {
        "method": method, "recipe": recipe, "estimator": estimator, "tau": tau, "w": w, "x_penalty": x_penalty, "rate": rate,
        "x_rate": x_rate, "batch": batch, "group": group, "seed": seed,
    }  # fmt: skip
    loop = Loop(
        made, settings, Gold(), PointLabels(gold), recipes.compose(recipe), fields=made.given, starts=made.prompts,
        share=Share(0, batch, 0), problem="flow",
        config=Keeping(out=out, save_every=save_every, resume=resume, method=method, seed=seed, steps=steps, values=values),
    )  # fmt: skip
    loop.begin_or_resume()
    loop.train()
    return loop


class PointLabels(NoLabels):
    """Whoever can score points, and is asked for nothing else.

    Args:
        score: (points, group) -> [N].
    """

    refusal = ("flows.two_levels", "an objective that asks for preferences", "points are scored")

    def __init__(self, score: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.score = score

    @torch.no_grad()
    def gold(self, rows: Any) -> Tensor:
        return self.score(rows.point, rows.group)


def _check(reward: Any, steps: int, rate: float, x_rate: float, tau: float, w: float, x_penalty: float) -> None:
    if not isinstance(reward, nn.Module) or not any(p.requires_grad for p in reward.parameters()):
        raise InvalidConfig(
            message("flows.two_levels.reward", type(reward).__name__, "an nn.Module whose parameters are x",
                    "Wrap the function in a module, or use flows.train where nothing is to be learnt of the reward")
        )  # fmt: skip
    if steps < 1 or min(rate, x_rate, tau, w) <= 0 or x_penalty < 0:
        raise InvalidConfig(
            message("flows.two_levels",
                    f"steps={steps}, rate={rate}, x_rate={x_rate}, tau={tau}, w={w}, x_penalty={x_penalty}",
                    "all are above 0, x_penalty at least 0", "Change it")
        )  # fmt: skip
