"""A controller of tau: the weight of the KL follows the KL, so that a run ends where it was told to."""

from __future__ import annotations

import math


class KlController:
    r"""$\tau_k \leftarrow \tau_k e^{c_k + g e_k}$ with $e_k = \mathrm{clip}(\mathrm{KL}_k/\mathrm{target} - 1, -1, 1)$ and
    $c_{k+1} = c_k + h e_k$.

    The sum $c_k$ alone swings: the policy answers tau with a lag, and meanwhile the sum runs on. The share in proportion to
    the error itself damps it.

    Args:
        target: nats a completion; 0: tau is what the schedules say.
        rate: h, change of the sum an iteration at most.
        gain: g, weight of the last error; 0: the sum alone.

    Attributes:
        total: c_k.
        error: e_k of the last iteration.

    Example:
        >>> controller = KlController(target=2.0, rate=0.1)
        >>> controller.see(4.0)
        >>> round(controller.factor, 3)
        3.004

    References:
        Ziegler et al., "Fine-tuning language models from human preferences", 2019, section 2.2 (there the sum alone,
        multiplicative with a clip of .2; the bound, the exponential and the share in proportion are ours).
    """

    def __init__(self, target: float = 0.0, rate: float = 0.1, gain: float = 1.0) -> None:
        self.target, self.rate, self.gain, self.total, self.error = target, rate, gain, 0.0, 0.0

    @property
    def factor(self) -> float:
        """What tau is multiplied by."""
        return math.exp(self.total + self.gain * self.error)

    def see(self, kl: float) -> None:
        """Take note of an iteration's KL, in nats a completion."""
        if self.target:
            self.error = max(-1.0, min(1.0, kl / self.target - 1.0))
            self.total += self.rate * self.error

    def state(self) -> dict[str, float]:
        """What a checkpoint keeps."""
        return {"total": self.total, "error": self.error}

    def restore(self, state: dict[str, float]) -> None:
        """Go on from a checkpoint's `state`."""
        self.total, self.error = state["total"], state["error"]
