"""How a network's outputs become actions: one file a law; and, in files of their own, actions that flow out of noise."""

from bilevel_rl.control.environment import Box, Discrete
from bilevel_rl.control.policies.categorical import Categorical
from bilevel_rl.control.policies.cut import Cut
from bilevel_rl.control.policies.diffusion import Diffusion
from bilevel_rl.control.policies.flow import Flow
from bilevel_rl.control.policies.gaussian import Gaussian
from bilevel_rl.control.policies.mixture import ExpertMixture
from bilevel_rl.control.policies.policy import Policy
from bilevel_rl.control.policies.squashed import Squashed

ALL: tuple[type[Policy], ...] = (Categorical, Gaussian, Squashed, Cut, ExpertMixture)
__all__ = ["ALL", "Categorical", "Cut", "Diffusion", "ExpertMixture", "Flow", "Gaussian", "Policy", "Squashed", "policy_for"]


def policy_for(space: Box | Discrete) -> Policy:
    """The usual law of a space: categorical for choices, squashed where bounds are finite, Gaussian where they are not.

    Example:
        >>> policy_for(Discrete(3)).outputs, policy_for(Box((-2.0,), (2.0,))).outputs
        (3, 2)
    """
    if isinstance(space, Discrete):
        return Categorical(space)
    return Squashed(space) if space.bounded else Gaussian(space)
