"""Upper objectives, one file each."""

from bilevel_rl.finite.objectives.policy_energy import PolicyEnergy
from bilevel_rl.finite.objectives.preference_likelihood import PreferenceLikelihood
from bilevel_rl.finite.objectives.visitation_utility import VisitationUtility

ALL = (VisitationUtility, PolicyEnergy, PreferenceLikelihood)

__all__ = ["ALL", "PolicyEnergy", "PreferenceLikelihood", "VisitationUtility"]
