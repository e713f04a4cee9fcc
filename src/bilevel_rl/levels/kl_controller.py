"""A controller of tau: the weight of the KL follows the KL, so that a run ends where it was told to."""

from __future__ import annotations

import math


class KlController:
    r"""$\tau_k \leftarrow \tau_k e^{c_k}$, $c_{k+1} = c_k + h\,\mathrm{clip}(\mathrm{KL}/\mathrm{target} - 1, -1, 1)$.

    Args:
        target: nats a completion; 0: tau is what the schedules say.
        rate: h, change of log tau an iteration at most.

    Attributes:
        log_factor: c_k.

    Example:
        >>> controller = KlController(target=2.0, rate=0.1)
        >>> controller.see(4.0)
        >>> round(controller.factor, 3)
        1.105

    References:
        Ziegler et al., "Fine-tuning language models from human preferences", 2019, section 2.2 (there multiplicative with
        a clip of .2; the bound and the exponential are ours).
    """

    def __init__(self, target: float = 0.0, rate: float = 0.1) -> None:
        self.target, self.rate, self.log_factor = target, rate, 0.0

    @property
    def factor(self) -> float:
        """What tau is multiplied by."""
        return math.exp(self.log_factor)

    def see(self, kl: float) -> None:
        """Take note of an iteration's KL, in nats a completion."""
        if self.target:
            self.log_factor += self.rate * max(-1.0, min(1.0, kl / self.target - 1.0))
