"""Stochastic gradient descent with a schedule, and Adam."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from bilevel_rl.policy_gradient.component import Card, Effect, Scope, Slot
from bilevel_rl.schedules import PowerDecay

Tensors = dict[str, Tensor]
TensorsLike = Mapping[str, Tensor]


def norm(tensors: TensorsLike) -> Tensor:
    """Euclidean norm over all tensors, in 64 bit."""
    return torch.stack([t.detach().double().square().sum() for t in tensors.values()]).sum().sqrt()


def inner(one: TensorsLike, two: TensorsLike) -> Tensor:
    """Inner product over all tensors, in 64 bit."""
    return torch.stack([(one[k].detach().double() * two[k].detach().double()).sum() for k in one]).sum()


@dataclasses.dataclass(frozen=True)
class SGD:
    r"""$\theta_{k+1} = \theta_k - \alpha_k g_k$ with the step sizes of a schedule.

    Args:
        rate: $\alpha_k$.

    References:
        Robbins and Monro 1951. The step that the core paper's analysis assumes.
    """

    rate: PowerDecay = PowerDecay(1e-2, 0.5)

    card: ClassVar[Card] = Card(
        name="sgd",
        slot=Slot.STEP,
        effect=Effect.KEEPS,
        scope=Scope.BATCH,
        cost="O(parameters)",
        source="A Stochastic Approximation Method (1951)",
        cite=("robbins1951stochastic",),
    )

    def init(self, parameters: TensorsLike) -> Tensors:
        """The number of steps taken."""
        return {"k": torch.zeros((), dtype=torch.long)}

    def step(
        self, state: TensorsLike, parameters: TensorsLike, gradient: TensorsLike
    ) -> tuple[Tensors, Tensors]:
        """New parameters and state."""
        rate = float(self.rate(int(state["k"])))
        new = {name: p - rate * gradient[name] for name, p in parameters.items()}
        return new, {"k": state["k"] + 1}


@dataclasses.dataclass(frozen=True)
class Adam:
    r"""Adam with bias correction, its step size on a schedule.

    Args:
        rate: step sizes.
        betas: decay of the two moments.
        eps: added to the root of the second.

    References:
        Kingma and Ba, Adam: A Method for Stochastic Optimization, arXiv 1412.6980. Equal to
        torch.optim.Adam (tested).
    """

    rate: PowerDecay = PowerDecay(1e-3, 0.0)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    card: ClassVar[Card] = Card(
        name="adam",
        slot=Slot.STEP,
        effect=Effect.KEEPS,
        scope=Scope.BATCH,
        cost="O(parameters), two copies",
        source="Adam: A Method for Stochastic Optimization, arXiv 1412.6980",
        cite=("kingma2015adam",),
        note="the stationary points are the same; the path is not that of the gradient",
    )

    def init(self, parameters: TensorsLike) -> Tensors:
        """Both moments and the number of steps taken."""
        state = {"k": torch.zeros((), dtype=torch.long)}
        for name, p in parameters.items():
            state[f"first.{name}"] = torch.zeros_like(p)
            state[f"second.{name}"] = torch.zeros_like(p)
        return state

    def step(
        self, state: TensorsLike, parameters: TensorsLike, gradient: TensorsLike
    ) -> tuple[Tensors, Tensors]:
        """New parameters and state."""
        k = int(state["k"]) + 1
        rate = float(self.rate(k - 1))
        new, after = {}, {"k": state["k"] + 1}
        for name, p in parameters.items():
            g = gradient[name]
            m = self.betas[0] * state[f"first.{name}"] + (1 - self.betas[0]) * g
            v = self.betas[1] * state[f"second.{name}"] + (1 - self.betas[1]) * g.square()
            root = (v / (1 - self.betas[1] ** k)).sqrt() + self.eps
            new[name] = p - rate * (m / (1 - self.betas[0] ** k)) / root
            after[f"first.{name}"], after[f"second.{name}"] = m, v
        return new, after
