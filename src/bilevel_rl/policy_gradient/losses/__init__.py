"""Losses: Batch -> scalar, minimised; one file a method or a close family."""

from __future__ import annotations

from bilevel_rl.policy_gradient.losses.clipped import Clipped
from bilevel_rl.policy_gradient.losses.policy_gradient import PolicyGradient, Supervised

ALL = (PolicyGradient, Supervised, Clipped)
