"""Losses: Batch -> scalar, minimised; one file a method or a close family."""

from __future__ import annotations

from bilevel_rl.policy_gradient.losses.advantage_matching import AdvantageMatching
from bilevel_rl.policy_gradient.losses.clipped import Clipped
from bilevel_rl.policy_gradient.losses.clipped_weight import ClippedWeight
from bilevel_rl.policy_gradient.losses.gamma_weight import GammaWeight
from bilevel_rl.policy_gradient.losses.hybrid import Hybrid
from bilevel_rl.policy_gradient.losses.mirror_descent import MirrorDescent, NashMirrorProx
from bilevel_rl.policy_gradient.losses.pairwise import (
    Contrastive,
    DirectAdvantage,
    NashPreference,
    PairwisePPO,
)
from bilevel_rl.policy_gradient.losses.policy_gradient import PolicyGradient, Supervised
from bilevel_rl.policy_gradient.losses.precision import Precision
from bilevel_rl.policy_gradient.losses.sequence_ratio import SequenceRatio
from bilevel_rl.policy_gradient.losses.soft_gate import SoftGate
from bilevel_rl.policy_gradient.losses.unified import Unified

ALL = (
    PolicyGradient, Supervised, Clipped, SequenceRatio, ClippedWeight, Unified, Contrastive, PairwisePPO,
    DirectAdvantage, NashPreference, Precision, MirrorDescent, NashMirrorProx,
    Hybrid, SoftGate, GammaWeight, AdvantageMatching,
)  # fmt: skip
