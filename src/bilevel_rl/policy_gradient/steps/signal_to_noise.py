"""OBLR-PO's step size: as long as the signal in the gradient deserves, from two half-batches."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch

from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.policy_gradient.component import Card, Effect, Scope, Slot, Status
from bilevel_rl.policy_gradient.steps.plain import Tensors, TensorsLike, inner
from bilevel_rl.schedules import PowerDecay


def signal_and_noise(one: TensorsLike, two: TensorsLike) -> tuple[float, float]:
    r"""Unbiased $\|\nabla J\|^2$ and $\mathrm{Var}(\hat g)$ from the gradients of two independent halves.

    $$\|\nabla J\|^2 \approx \langle g_1, g_2\rangle, \qquad \mathrm{Var}\left(\tfrac{g_1+g_2}{2}\right)
    \approx \tfrac14\|g_1-g_2\|^2$$

    Example:
        >>> import torch
        >>> signal_and_noise({"a": torch.tensor([1.0])}, {"a": torch.tensor([3.0])})
        (3.0, 1.0)
    """
    cross = inner(one, two)
    square = inner(one, one) + inner(two, two) - 2 * cross
    return float(cross), float(square.clamp(min=0)) / 4


@dataclasses.dataclass(frozen=True)
class SignalToNoise:
    r"""Gradient descent with $\eta_k = \alpha_k\,\frac{\mathrm{SNR}}{1+\mathrm{SNR}}$, $\mathrm{SNR} =
    \|\nabla J\|^2/\mathrm{Var}(\hat g)$.

    With $\alpha_k = 1/L$ it maximises the ascent lemma's bound $\eta\|\nabla J\|^2 -
    \tfrac{L\eta^2}{2}(\|\nabla J\|^2 + \mathrm{Var})$.

    Args:
        rate: $\alpha_k$, in the place of $1/L$; its decay keeps the core paper's schedule.
        decay: of the moving averages of signal and noise, in [0, 1).

    References:
        OBLR-PO: A Theoretical Framework for Stable Reinforcement Learning, arXiv 2511.23310. In the spirit
        of: INFERRED from the abstract. Needs two gradients a step, of the two halves of the batch.
    """

    rate: PowerDecay = PowerDecay(1e-2, 0.5)
    decay: float = 0.9

    card: ClassVar[Card] = Card(
        name="snr",
        slot=Slot.STEP,
        effect=Effect.KEEPS,
        scope=Scope.BATCH,
        status=Status.INFERRED,
        number=3,
        source="OBLR-PO: A Theoretical Framework for Stable Reinforcement Learning, arXiv 2511.23310",
        cost="O(parameters), two half-batch gradients",
    )

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise InvalidConfig(message("SignalToNoise.decay", self.decay, "it must be in [0, 1)", "Use 0.9"))

    def init(self, parameters: TensorsLike) -> Tensors:
        """Moving averages and the number of steps taken."""
        zero = torch.zeros((), dtype=torch.float64)
        return {"k": torch.zeros((), dtype=torch.long), "signal": zero, "noise": zero}

    def factor(self, state: TensorsLike) -> float:
        """SNR / (1 + SNR) from the averages: in [0, 1], 0 when there is no signal."""
        signal, noise = max(float(state["signal"]), 0.0), float(state["noise"])
        return signal / (signal + noise) if signal > 0 else 0.0

    def step(
        self, state: TensorsLike, parameters: TensorsLike, one: TensorsLike, two: TensorsLike
    ) -> tuple[Tensors, Tensors]:
        """New parameters and state from the gradients of the two halves."""
        k = int(state["k"])
        keep = self.decay if k else 0.0
        signal, noise = signal_and_noise(one, two)
        after: Tensors = {
            "k": state["k"] + 1,
            "signal": keep * state["signal"] + (1 - keep) * signal,
            "noise": keep * state["noise"] + (1 - keep) * noise,
        }
        rate = float(self.rate(k)) * self.factor(after)
        return {name: p - rate * (one[name] + two[name]) / 2 for name, p in parameters.items()}, after
