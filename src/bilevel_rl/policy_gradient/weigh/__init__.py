"""Weights: Batch -> [N, T], multiplied with the advantage; several multiply each other."""

from __future__ import annotations

from bilevel_rl.policy_gradient.weigh.confident import Confident
from bilevel_rl.policy_gradient.weigh.covariance import ClipCovariance
from bilevel_rl.policy_gradient.weigh.curvature import Curvature
from bilevel_rl.policy_gradient.weigh.duration import Duration
from bilevel_rl.policy_gradient.weigh.entropy_tokens import EntropyTokens
from bilevel_rl.policy_gradient.weigh.high_entropy import HighEntropy
from bilevel_rl.policy_gradient.weigh.hints import HintWeight
from bilevel_rl.policy_gradient.weigh.off_policy import OffPolicyMask
from bilevel_rl.policy_gradient.weigh.window import Window

ALL = (
    Duration,
    ClipCovariance,
    EntropyTokens,
    Curvature,
    HintWeight,
    Window,
    Confident,
    HighEntropy,
    OffPolicyMask,
)
