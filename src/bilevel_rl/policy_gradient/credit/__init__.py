"""Credit: Batch -> [N, T] advantages, one file a method."""

from __future__ import annotations

from bilevel_rl.policy_gradient.credit.adora import Adora
from bilevel_rl.policy_gradient.credit.alignment import Alignment
from bilevel_rl.policy_gradient.credit.consistency import Consistency
from bilevel_rl.policy_gradient.credit.decoupled import Decoupled
from bilevel_rl.policy_gradient.credit.empg import EMPG
from bilevel_rl.policy_gradient.credit.gae import GAE
from bilevel_rl.policy_gradient.credit.gate import Gate
from bilevel_rl.policy_gradient.credit.gpg import GPG
from bilevel_rl.policy_gradient.credit.group_normalised import BatchNorm, GroupMean, GroupNorm
from bilevel_rl.policy_gradient.credit.hierarchical import Hierarchical
from bilevel_rl.policy_gradient.credit.hierarchy_of_groups import HierarchyOfGroups
from bilevel_rl.policy_gradient.credit.hints import HintCredit
from bilevel_rl.policy_gradient.credit.leave_one_out import Greedy, LeaveOneOut, Return
from bilevel_rl.policy_gradient.credit.multi_reward import MultiReward
from bilevel_rl.policy_gradient.credit.optimal_baseline import LengthBaseline, OptimalBaseline
from bilevel_rl.policy_gradient.credit.polychromic import Polychromic
from bilevel_rl.policy_gradient.credit.replay import ReplayCredit
from bilevel_rl.policy_gradient.credit.reward_to_go import RewardToGo
from bilevel_rl.policy_gradient.credit.segment import SegmentChain, SegmentTree
from bilevel_rl.policy_gradient.credit.state_values import StateValues
from bilevel_rl.policy_gradient.credit.step_groups import Episode, StepGroups
from bilevel_rl.policy_gradient.credit.step_level import StepLevel
from bilevel_rl.policy_gradient.credit.step_potential import StepPotential
from bilevel_rl.policy_gradient.credit.sums import Sum
from bilevel_rl.policy_gradient.credit.to_go import ToGoLeaveOneOut
from bilevel_rl.policy_gradient.credit.trajectory_graph import TrajectoryGraph
from bilevel_rl.policy_gradient.credit.truncated import TruncatedGAE

ALL = (
    LeaveOneOut, Return, Greedy, GroupNorm, GroupMean, BatchNorm, GAE, OptimalBaseline, LengthBaseline, EMPG,
    Consistency, Adora, TruncatedGAE, Hierarchical, MultiReward, TrajectoryGraph, StepPotential, Alignment,
    HierarchyOfGroups, StepLevel, Polychromic, SegmentChain, SegmentTree, Gate, HintCredit,
    ReplayCredit, RewardToGo, Episode, StepGroups, Sum, GPG, Decoupled, ToGoLeaveOneOut, StateValues,
)  # fmt: skip
