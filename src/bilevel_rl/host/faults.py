"""What an environment can do wrong, one named error each."""

from __future__ import annotations

from bilevel_rl.errors import BilevelError, InvalidProblem


class UnsupportedSpace(InvalidProblem):
    """An observation or action space that is neither Box nor Discrete, or actions without finite bounds."""


class EnvironmentFault(BilevelError, RuntimeError):
    """An environment broke its own contract while it ran; the host stays at the last good step."""


class ObservationOutsideSpace(EnvironmentFault):
    """An observation of another shape than its space, or beyond its bounds."""


class NotFiniteFromEnvironment(EnvironmentFault):
    """NaN or infinity in an observation, a reward or a number of `info`."""


class RewardOfWrongShape(EnvironmentFault):
    """A reward, `terminated` or `truncated` that is not one number for one environment."""


class SpacesChanged(EnvironmentFault):
    """An environment whose spaces are not those that it began with."""


class EnvironmentCrashed(EnvironmentFault):
    """An environment raised an error, or its process died or no longer answers."""
