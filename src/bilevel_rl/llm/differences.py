"""The finite-difference baseline: x shifted along a random direction, one follower at each end.

    f(x + c d, pi(x + c d)) - f(x - c d, pi(x - c d))
    -------------------------------------------------  along d
                        2 c

References:
    Spall, simultaneous perturbation stochastic approximation, 1992.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from bilevel_rl.levels.objectives import Upper
from bilevel_rl.llm.config import Config
from bilevel_rl.llm.roles.backend import Roles

DIRECTION = 0x24  # random stream, beside those of `trainer` and `leader`


class Differences:
    """Shifts of x along one random direction an inner loop.

    Args:
        config: half-width, seed, length of the inner loop.
        roles: whose reward model is shifted.
    """

    def __init__(self, config: Config, roles: Roles) -> None:
        self.config, self.roles = config, roles

    def direction(self, k: int) -> list[Tensor]:
        """Random signs, one for each number in x, fixed during the inner loop that iteration k belongs to."""
        random = np.random.default_rng([self.config.seed, DIRECTION, k // self.config.inner_steps])
        parameters = self.roles.parameters("reward").values()
        return [torch.from_numpy(random.choice([-1.0, 1.0], size=tuple(p.shape))).to(p) for p in parameters]

    @contextlib.contextmanager
    def shifted(self, role: str, k: int) -> Iterator[None]:
        """theta answers x + c d, theta^L answers x - c d; nothing happens with other methods."""
        if self.config.method != "finite_difference":
            yield
            return
        parameters = list(self.roles.parameters("reward").values())
        kept = [p.detach().clone() for p in parameters]
        c = self.config.difference if role == "policy" else -self.config.difference
        with torch.no_grad():
            for p, d in zip(parameters, self.direction(k), strict=True):
                p.add_(c * d)
        try:
            yield
        finally:
            with torch.no_grad():
                for p, value in zip(parameters, kept, strict=True):
                    p.copy_(value)

    def slope(
        self, plus: Upper | None, minus: Upper | None, k: int
    ) -> tuple[list[Tensor], list[Tensor]] | None:
        """The estimate of the hyper-gradient from f at both ends, in the two parts of `trainer.hyper_gradient`."""
        if plus is None or minus is None:
            return None
        slope = (plus.value - minus.value) / (2 * self.config.difference)
        parameters, d = self.roles.parameters("reward").values(), self.direction(k)
        lam = self.config.x_penalty
        direct = [slope * e + 2 * lam * p.detach() for e, p in zip(d, parameters, strict=True)]
        return direct, [torch.zeros_like(e) for e in d]
