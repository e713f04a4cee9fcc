r"""Holding the penalised follower near the plain one: what keeps errors of the two from being divided by w.

The hyper-gradient divides the difference of two policies by w, and theta^L follows theta only through the
samples they share. What the labels' noise adds to theta^L in one iteration stays in it until the KL to the
reference has pulled it out, about 1/(alpha tau) iterations later: on a language model that is longer than the
run. The noise adds up, is divided by w, and x follows it. A pull of theta^L towards theta after every
iteration,

    theta^L <- theta^L + kappa (theta - theta^L)

gives the difference a memory of 1/kappa iterations instead. The signal is what the last 1/kappa batches of
labels say; its direction is kept and its size shrinks, which the upper objective's weight makes good. kappa =
0 is the paper's algorithm; kappa = 1 is one look-ahead step. Measured on happy tweets:
docs/llm/happy-tweets.md.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import TrainerCallback

from bilevel_rl.errors import InvalidConfig, message


class Coupling(TrainerCallback):
    """A callback of `BilevelTrainer` that pulls the penalised policy towards the plain one after each
    iteration.

    It acts before checkpoints are written, so that a resumed run is the uninterrupted one.

    Args:
        kappa: share of the difference that goes each iteration, in [0, 1].

    Raises:
        InvalidConfig: kappa outside [0, 1].

    Example:
        >>> Coupling(0.5).kappa
        0.5
    """

    def __init__(self, kappa: float):
        if not 0 <= kappa <= 1:
            raise InvalidConfig(
                message("Coupling.kappa", kappa, "it is a share, in [0, 1]", "Set kappa accordingly")
            )
        self.kappa = kappa
        self.trainer: Any = None

    def attach(self, trainer: Any) -> Coupling:
        """Say whose policies are meant; a trainer is made after its callbacks."""
        self.trainer = trainer
        return self

    @torch.no_grad()
    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Pull."""
        if not self.kappa or self.trainer is None or not self.trainer.config.uses_penalised:
            return
        roles = self.trainer.roles
        for own, other in zip(
            roles.parameters("policy_l").values(), roles.parameters("policy").values(), strict=True
        ):
            own.lerp_(other, self.kappa)
