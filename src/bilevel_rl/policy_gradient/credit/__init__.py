"""Credit: Batch -> [N, T] advantages, one file a method."""

from __future__ import annotations

from bilevel_rl.policy_gradient.credit.gae import GAE
from bilevel_rl.policy_gradient.credit.group_normalised import BatchNorm, GroupMean, GroupNorm
from bilevel_rl.policy_gradient.credit.leave_one_out import Greedy, LeaveOneOut, Return

ALL = (LeaveOneOut, Return, Greedy, GroupNorm, GroupMean, BatchNorm, GAE)
