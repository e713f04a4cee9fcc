"""Rewards: Batch -> [N, T, K] reward terms."""

from __future__ import annotations

from bilevel_rl.policy_gradient.regularizers.kl import KLReward

ALL = (KLReward,)
