"""Rewards: Batch -> [N, T, K] reward terms."""

from __future__ import annotations

from bilevel_rl.policy_gradient.regularizers.kl import KLReward
from bilevel_rl.policy_gradient.reward.coverage import Coverage
from bilevel_rl.policy_gradient.reward.dominance import RankingReward
from bilevel_rl.policy_gradient.reward.novelty import Novelty
from bilevel_rl.policy_gradient.reward.overlong import SoftOverlong
from bilevel_rl.policy_gradient.reward.win_rate import WinRate

ALL = (KLReward, SoftOverlong, Coverage, Novelty, WinRate, RankingReward)
