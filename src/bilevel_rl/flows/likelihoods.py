r"""What stands for the log-probability of a sample, where a flow has none that is cheap: two answers, one interface.

`Matching` noises the clean sample anew and takes minus the weighted error of the velocity: a surrogate, whatever sampler
made the sample (advantage weighted matching). `PathLikelihood` samples by a stochastic way and takes the Gaussian density
of each of its steps: exact for the law of the whole way (DDPO, Flow-GRPO).

Both turn one sample into T "actions", so that every recipe reads them as it reads the tokens of a text.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.flows.velocities import euler
from bilevel_rl.policy_gradient.losses.advantage_matching import WEIGHTINGS, surrogate


class Actions(NamedTuple):
    """T actions of each of n samples.

    Attributes:
        point: [n, *D] the clean samples.
        x: [n, T, *D] where the velocity is asked.
        time: [n, T].
        target: [n, T, *D] what it is compared with: a straight path's velocity, or where the way's next step ended.
    """

    point: Tensor
    x: Tensor
    time: Tensor
    target: Tensor


class Said(NamedTuple):
    """What a velocity says of some actions, [n, T] each; means over coordinates.

    Attributes:
        logp: log-probability, or what stands for it; at most 0.
        error: squared distance of the velocity from the target, where that is a velocity.
        velocity: [n, T, *D] itself.
    """

    logp: Tensor
    error: Tensor
    velocity: Tensor


class Likelihood(abc.ABC):
    """How samples become actions with log-probabilities."""

    actions: int  # T
    matches: bool = False  # whether it has matching errors

    @abc.abstractmethod
    def draw(self, velocity: Any, noise: Tensor, condition: Any, generator: torch.Generator) -> Actions:
        """Samples from noise [n, *D], with all that later scoring needs fixed."""

    @abc.abstractmethod
    def say(self, velocity: Any, rows: Actions, condition: Any) -> Said:
        """What a velocity says of them, with a graph where gradients are enabled."""

    @abc.abstractmethod
    def kl(self, said: Said, reference: Said, rows: Actions) -> Tensor:
        """[n, T] divergence of the policy's actions from the reference's, a mean over coordinates."""

    @abc.abstractmethod
    def check(self) -> None:
        """Raise `InvalidConfig` for numbers that are not allowed."""


@dataclasses.dataclass(frozen=True)
class Matching(Likelihood):
    r"""Minus the weighted matching error at T fixed pairs of time and noise; the divergence is the squared velocity gap.

    Args:
        times: T.
        weighting, power: of `AdvantageMatching`.
        steps: of the sampler, Euler's.
    """

    times: int = 6
    weighting: str = "ghuber"
    power: float = 0.25
    steps: int = 10

    matches = True

    @property
    def actions(self) -> int:  # type: ignore[override]
        """T."""
        return self.times

    def check(self) -> None:
        """See `Likelihood`."""
        _at_least_one("Matching", times=self.times, steps=self.steps)
        if self.weighting not in WEIGHTINGS or not 0 < self.power <= 1:
            raise InvalidConfig(
                message("Matching", f"weighting={self.weighting!r}, power={self.power}",
                        f"weightings are {', '.join(WEIGHTINGS)}, power is in (0, 1]", "Use weighting='ghuber', power=0.25")
            )  # fmt: skip

    @torch.no_grad()
    def draw(self, velocity: Any, noise: Tensor, condition: Any, generator: torch.Generator) -> Actions:
        """See `Likelihood`."""
        point = euler(velocity, noise, condition, self.steps)
        n, shape = len(point), point.shape[1:]
        new = {"generator": generator, "dtype": noise.dtype, "device": noise.device}
        # one time in each of T equal parts of (0, 1): less scatter than T free ones, the same mean
        time = (torch.arange(self.times, device=noise.device) + torch.rand(n, self.times, **new)) / self.times
        eps = torch.randn(n, self.times, *shape, **new)
        t = _along(time, shape)
        return Actions(point, (1 - t) * point[:, None] + t * eps, time, eps - point[:, None])

    def say(self, velocity: Any, rows: Actions, condition: Any) -> Said:
        """See `Likelihood`."""
        v = _asked(velocity, rows, condition)
        error = _mean((v - rows.target) ** 2)
        return Said(surrogate(error, rows.time, self.weighting, self.power), error, v)

    def kl(self, said: Said, reference: Said, rows: Actions) -> Tensor:
        """See `Likelihood`."""
        return _mean((said.velocity - reference.velocity) ** 2)


@dataclasses.dataclass(frozen=True)
class PathLikelihood(Likelihood):
    r"""Gaussian steps of a stochastic way with the flow's laws at every time.

    $$x' = x - h\Big[v + \frac{\sigma^2}{2t}\big(x + (1-t)\,v\big)\Big] + \sigma\sqrt h\, z, \qquad
    \sigma = \eta\,\sqrt{t/(1-t)}, \qquad h = 1/T$$

    Log-probabilities are those of the step's end relative to the step's peak. With a mean over coordinates instead of
    their sum, as the releases have it, they are scaled by the number of coordinates.

    Args:
        steps: T.
        eta: size of the noise.
        sums: whether coordinates are summed: then these are the exact log-densities, up to a constant.

    References:
        Flow-GRPO: Training Flow Matching Models via Online RL, arXiv 2505.05470, equation 9; Training Diffusion Models
        with Reinforcement Learning (DDPO), arXiv 2305.13301.
    """

    steps: int = 10
    eta: float = 0.7
    sums: bool = False

    @property
    def actions(self) -> int:  # type: ignore[override]
        """T."""
        return self.steps

    def check(self) -> None:
        """See `Likelihood`."""
        _at_least_one("PathLikelihood", steps=self.steps - 1)
        if not self.eta > 0:
            raise InvalidConfig(
                message("PathLikelihood.eta", self.eta, "without noise a step has no density", "Give eta above 0")
            )

    def step(self, v: Tensor, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of a step's end; times with the axes of x."""
        h = 1.0 / self.steps
        # sigma has a pole at 1: the first step takes the next time's, as the release does
        inside = torch.where(t > 1 - h / 2, torch.full_like(t, 1 - h), t)
        sigma = self.eta * (t / (1 - inside)).sqrt()
        mean = x - h * (v + sigma**2 / (2 * t) * (x + (1 - t) * v))
        return mean, sigma * math.sqrt(h)

    @torch.no_grad()
    def draw(self, velocity: Any, noise: Tensor, condition: Any, generator: torch.Generator) -> Actions:
        """See `Likelihood`."""
        x, before, after, times = noise, [], [], []
        for k in range(self.steps):
            t = torch.full((len(x),), 1 - k / self.steps, dtype=x.dtype, device=x.device)
            mean, std = self.step(velocity(x, t, condition), x, t.reshape(-1, *(1,) * (x.ndim - 1)))
            z = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
            before.append(x)
            times.append(t)
            x = mean + std * z
            after.append(x)
        return Actions(x, torch.stack(before, 1), torch.stack(times, 1), torch.stack(after, 1))

    def say(self, velocity: Any, rows: Actions, condition: Any) -> Said:
        """See `Likelihood`."""
        v = _asked(velocity, rows, condition)
        mean, std = self.step(v, rows.x, _along(rows.time, rows.point.shape[1:]))
        z = (rows.target - mean) / std
        return Said(-0.5 * self._over(z**2), torch.zeros_like(rows.time), v)

    def kl(self, said: Said, reference: Said, rows: Actions) -> Tensor:
        """See `Likelihood`; exact: half the squared distance of the two means over the variance."""
        t = _along(rows.time, rows.point.shape[1:])
        (one, std), (other, _) = (self.step(s.velocity, rows.x, t) for s in (said, reference))
        return 0.5 * self._over(((one - other) / std) ** 2)

    def _over(self, values: Tensor) -> Tensor:
        return values.flatten(2).sum(2) if self.sums else _mean(values)


def _asked(velocity: Any, rows: Actions, condition: Any) -> Tensor:
    """[n, T, *D] velocities at all actions, in one call."""
    n, T = rows.time.shape
    repeat = lambda c: c.repeat_interleave(T, 0)  # noqa: E731
    if isinstance(condition, tuple | list):
        given: Any = tuple(repeat(c) for c in condition)
    else:
        given = None if condition is None else repeat(condition)
    return velocity(rows.x.flatten(0, 1), rows.time.flatten(), given).reshape(rows.x.shape)


def _along(time: Tensor, shape: torch.Size) -> Tensor:
    """Times [n, T] with the axes of points [n, T, *D]."""
    return time.reshape(*time.shape, *(1,) * len(shape))


def _mean(values: Tensor) -> Tensor:
    """[n, T, *D] -> [n, T]."""
    return values.flatten(2).mean(2)


def _at_least_one(where: str, **numbers: int) -> None:
    for name, value in numbers.items():
        if value < 1:
            raise InvalidConfig(message(f"{where}.{name}", value, "there is at least one (two steps of a way)", "Give more"))
