"""A pull of a flow's velocity to a reference's, where flows have no likelihood to compare."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from torch import Tensor

from bilevel_rl.policy_gradient.aggregate import Aggregate, per_sequence
from bilevel_rl.policy_gradient.batch import Batch
from bilevel_rl.policy_gradient.component import Card, Effect, Scope, Slot, Status


@dataclasses.dataclass(frozen=True)
class VelocityGap:
    r"""$|v_\theta(x_t, t) - v_{ref}(x_t, t)|^2$ at the points where the matching error is taken, a mean over coordinates.

    At one flow's own points, where the other's velocity has the Lipschitz constant L, it bounds how far their laws are:
    $W_2^2 \le e^{2L} \int_0^1 E|v_\theta - v_{ref}|^2\, dt$, times the number of coordinates (Groenwall;
    `control.policies.transport` has a sharper form).

    Args:
        aggregate: denominator.

    References:
        Advantage Weighted Matching: Aligning RL with Pretraining in Diffusion Models. SEEN (public repository, its
        coefficient .001). As a Wasserstein regulariser: Fine-tuning Flow Matching Generative Models with
        Intermediate Feedback, arXiv 2510.18072.
    """

    aggregate: Aggregate = per_sequence

    card: ClassVar[Card] = Card(
        name="velocity_gap",
        scope=Scope.RESPONSE,
        gradient=("velocity_gap",),
        slot=Slot.REGULAR,
        effect=Effect.CHANGES,
        needs=("velocity_gap",),
        source="Advantage Weighted Matching: Aligning RL with Pretraining in Diffusion Models; Fine-tuning Flow Matching "
        "Generative Models with Intermediate Feedback, arXiv 2510.18072",
        status=Status.SEEN,
        number=60,
    )

    def __call__(self, batch: Batch) -> Tensor:
        """Scalar, to be minimised."""
        (gap,) = self.card.take(batch, "velocity_gap")
        return self.aggregate(gap, batch)
