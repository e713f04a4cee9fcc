"""Gymnasium's environments as any engine sees them: batches of NumPy arrays, checked. No JAX and no Torch here."""

from bilevel_rl.host.faults import (
    EnvironmentCrashed,
    EnvironmentFault,
    NotFiniteFromEnvironment,
    ObservationOutsideSpace,
    RewardOfWrongShape,
    SpacesChanged,
    UnsupportedSpace,
)
from bilevel_rl.host.vector import GymnasiumHost, HostStep

__all__ = [
    "EnvironmentCrashed", "EnvironmentFault", "GymnasiumHost", "HostStep", "NotFiniteFromEnvironment",
    "ObservationOutsideSpace", "RewardOfWrongShape", "SpacesChanged", "UnsupportedSpace",
]  # fmt: skip
