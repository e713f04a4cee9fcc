r"""What a flow is here: a callable $v(x_t, t, c) \approx \varepsilon - x_0$ with $x_t = (1-t)\,x_0 + t\,\varepsilon$.

Time runs as in image models: 0 at the clean sample, 1 at the noise. (`control.policies.flow` runs it the other way.)
"""

from __future__ import annotations

import inspect
import math
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from bilevel_rl.errors import InvalidConfig, message

WAVES = 4  # ours: pairs of sine and cosine by which a small network sees the time
THOUSAND = 1000.0  # timesteps of image models lie in [0, 1000]


class VelocityNetwork(Protocol):
    """Any network or function with this call; an `nn.Module` where its parameters are to train."""

    def __call__(self, x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        """Velocities [n, *D] at points [n, *D] and times [n], given conditions [n, ...] or None."""
        ...


class PlaneVelocity(nn.Module):
    """A small network for points of few coordinates.

    Args:
        size: coordinates of a point.
        conditions: numbers of a condition; 0 for none.
        width: units of each of two hidden layers.
        seed: of its first weights.

    Example:
        >>> PlaneVelocity(2, 0, 8)(torch.zeros(3, 2), torch.zeros(3), None).shape
        torch.Size([3, 2])
    """

    def __init__(self, size: int = 2, conditions: int = 0, width: int = 64, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            inputs = size + 1 + 2 * WAVES + conditions
            self.net = nn.Sequential(
                nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, size)
            )

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """[n, size]."""
        turns = math.pi * t[:, None] * torch.arange(1, WAVES + 1, dtype=x.dtype, device=x.device)
        parts = [x, t[:, None].to(x), turns.sin(), turns.cos()]
        if condition is not None:
            parts.append(condition.to(x))
        return self.net(torch.cat(parts, 1))


class _Diffusers(nn.Module):
    def __init__(self, model: Any, first: str, conditions: tuple[str, ...], fixed: dict[str, Any]) -> None:
        super().__init__()
        self.model, self.first, self.conditions, self.fixed = model, first, conditions, fixed

    def forward(self, x: Tensor, t: Tensor, condition: Any = None) -> Tensor:
        given: dict[str, Any] = {self.first: x, "timestep": THOUSAND * t, "return_dict": False, **self.fixed}
        if self.conditions:
            values = condition if isinstance(condition, tuple | list) else (condition,)
            given |= dict(zip(self.conditions, values, strict=True))
        return self.model(**given)[0]


def diffusers_velocity(model: nn.Module, conditions: tuple[str, ...] = (), **fixed: Any) -> nn.Module:
    """A model with the call of the diffusers library as a velocity network.

    It calls `model(hidden_states=x, timestep=1000 t, ..., return_dict=False)[0]` (`sample=` where the model calls it so),
    which is the velocity for models trained by flow matching on straight paths, as Stable Diffusion 3 and FLUX are. Models
    that say the noise, or work on other schedules, need a wrapper of one's own.

    Args:
        model: a transformer or U-Net.
        conditions: names of the arguments that the condition is given as; one, or one for each entry of a tuple.
        fixed: further arguments that never change.

    Raises:
        InvalidConfig: a model without a timestep, or without one of the names.

    Example:
        >>> class Tiny(nn.Module):
        ...     def forward(self, sample, timestep, return_dict=True):
        ...         return (sample * timestep[:, None] / 1000,)
        >>> diffusers_velocity(Tiny())(torch.ones(1, 2), torch.tensor([0.5]), None)
        tensor([[0.5000, 0.5000]])
    """
    known = set(inspect.signature(model.forward).parameters)
    first = next((name for name in ("hidden_states", "sample") if name in known), None)
    missing = [name for name in ("timestep", "return_dict", *conditions, *fixed) if name not in known]
    if first is None or missing:
        raise InvalidConfig(
            message("diffusers_velocity.model",
                    f"{type(model).__name__}, whose forward has no {missing[0] if missing else 'hidden_states or sample'!r}",
                    "its forward takes hidden_states or sample, timestep, return_dict and the named conditions",
                    "Wrap it in a callable (x, t, condition) -> velocity of your own")
        )  # fmt: skip
    return _Diffusers(model, first, tuple(conditions), fixed)


def euler(velocity: Any, noise: Tensor, condition: Any, steps: int) -> Tensor:
    """Clean samples from noise along the flow, in equal steps from time 1 to 0; no gradient is kept by it."""
    x = noise
    for k in range(steps):
        t = torch.full((len(x),), 1 - k / steps, dtype=x.dtype, device=x.device)
        x = x - velocity(x, t, condition) / steps
    return x
