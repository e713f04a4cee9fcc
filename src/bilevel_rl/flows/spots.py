"""A task for flows that trains in seconds: eight spots on a ring, and a prompt that wants one of them."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor, nn

from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.flows.velocities import PlaneVelocity

NEAR = 0.3  # ours: how far a price reaches; neighbouring spots of eight are .77 apart


class SpotPrices(nn.Module):
    """Prices of all spots, prompt by prompt.

    Args:
        spots: the task.

    Attributes:
        x: [prompts, modes].

    Example:
        >>> SpotPrices(Spots())(torch.zeros(3, 2), torch.tensor([0, 1, 2])).tolist()
        [0.0, 0.0, 0.0]
    """

    def __init__(self, spots: Spots) -> None:
        super().__init__()
        self.spots = spots
        self.x = nn.Parameter(torch.zeros(spots.prompts, spots.modes))

    def forward(self, point: Tensor, group: Tensor) -> Tensor:
        """[N]."""
        away = torch.cdist(point, self.spots.centres.to(point)).square()
        return (self.x[group] * (-away / (2 * NEAR**2)).exp()).sum(1)


@dataclasses.dataclass(frozen=True)
class Spots:
    r"""Points near `modes` spots on a circle; prompt g is paid $e^{-|x - m_g|^2 / 2 s^2}$ for coming near its own.

    The pre-trained flow draws all spots alike whatever the prompt says; what it should learn is to listen.

    Args:
        modes: spots.
        prompts: each wants another spot, evenly spread.
        spread: standard deviation of a spot.
        reach: s, of the reward; on the scale of the circle's radius, 1.

    Example:
        >>> spots = Spots()
        >>> spots.reward(spots.wanted, torch.arange(4)).tolist()
        [1.0, 1.0, 1.0, 1.0]
    """

    modes: int = 8
    prompts: int = 4
    spread: float = 0.1
    reach: float = 0.5

    def __post_init__(self) -> None:
        if not (2 <= self.prompts <= self.modes and self.spread > 0 and self.reach > 0):
            raise InvalidConfig(
                message("Spots", f"modes={self.modes}, prompts={self.prompts}, spread={self.spread}, reach={self.reach}",
                        "2 <= prompts <= modes, and both widths are above 0", "Use Spots()")
            )  # fmt: skip

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample."""
        return (2,)

    @property
    def centres(self) -> Tensor:
        """[modes, 2]."""
        angle = 2 * math.pi * torch.arange(self.modes) / self.modes
        return torch.stack([angle.cos(), angle.sin()], 1)

    @property
    def wanted(self) -> Tensor:
        """[prompts, 2] the spot of each prompt."""
        return self.centres[torch.arange(self.prompts) * self.modes // self.prompts]

    @property
    def conditions(self) -> Tensor:
        """[prompts, prompts] what the network sees of each."""
        return torch.eye(self.prompts)

    def reward(self, point: Tensor, group: Tensor) -> Tensor:
        """[N], in (0, 1]."""
        away = (point - self.wanted.to(point)[group]).square().sum(-1)
        return (-away / (2 * self.reach**2)).exp()

    def prices(self) -> SpotPrices:
        """A reward to be learnt: x[g, m] is paid for coming near spot m when prompt g is given; all are 0 at first."""
        return SpotPrices(self)

    def data(self, count: int, generator: torch.Generator) -> Tensor:
        """[count, 2] points that the flow is pre-trained on."""
        mode = torch.randint(self.modes, (count,), generator=generator)
        return self.centres[mode] + self.spread * torch.randn(count, 2, generator=generator)

    def shares(self, point: Tensor) -> Tensor:
        """[modes] the share of points nearest to each spot."""
        nearest = torch.cdist(point, self.centres.to(point)).argmin(1)
        return torch.bincount(nearest, minlength=self.modes).to(point) / len(point)

    def pretrained(self, seed: int = 0, steps: int = 1500, width: int = 64, batch: int = 256) -> PlaneVelocity:
        """A flow that draws the ring, by plain flow matching with Adam; some seconds."""
        velocity = PlaneVelocity(2, self.prompts, width, seed)
        generator = torch.Generator().manual_seed(seed)
        adam = torch.optim.Adam(velocity.parameters(), 3e-3)
        for k in range(steps):
            for group in adam.param_groups:
                group["lr"] = 3e-3 * (1 - k / steps) + 1e-5
            x0, noise = self.data(batch, generator), torch.randn(batch, 2, generator=generator)
            t = torch.rand(batch, generator=generator)
            seen = self.conditions[torch.randint(self.prompts, (batch,), generator=generator)]
            at = (1 - t[:, None]) * x0 + t[:, None] * noise
            loss = (velocity(at, t, seen) - (noise - x0)).square().mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
        return velocity
