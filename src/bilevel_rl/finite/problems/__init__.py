"""Problems, one file (or one close family) each. Every class in `ALL` makes its default instance without arguments."""

from bilevel_rl.finite.problems.four_rooms import FourRooms, OneGoalFourRooms
from bilevel_rl.finite.problems.goal_placement import GoalDistribution, GoalPlacement, WalledGoalPlacement
from bilevel_rl.finite.problems.inverse_rl import InverseRL
from bilevel_rl.finite.problems.leader_toy import LeaderToy
from bilevel_rl.finite.problems.linear_leader import LinearLeader
from bilevel_rl.finite.problems.preference_learning import PreferenceLearning
from bilevel_rl.finite.problems.probes import PROBES
from bilevel_rl.finite.problems.random_mdp import RandomMDP
from bilevel_rl.finite.problems.reward_shaping import LakeShaping, RewardShaping, TaxiShaping
from bilevel_rl.finite.problems.routing import Braess, RoutingGame
from bilevel_rl.finite.problems.subsidy import Subsidy
from bilevel_rl.finite.problems.synthetic import Synthetic
from bilevel_rl.finite.problems.tax_design import SmallTaxDesign, TaxDesign
from bilevel_rl.finite.problems.thermal_control import ThermalControl
from bilevel_rl.finite.problems.toy_text import CliffWalking, FrozenLake, FrozenLake8x8, Incentives, Taxi

ALL = (
    GoalPlacement, WalledGoalPlacement, GoalDistribution, FrozenLake, FrozenLake8x8, CliffWalking, Taxi, RandomMDP,
    PreferenceLearning, InverseRL, LakeShaping, TaxiShaping, FourRooms, OneGoalFourRooms, LeaderToy, Synthetic,
    TaxDesign, SmallTaxDesign, ThermalControl, LinearLeader, Subsidy, Braess, *PROBES,
)  # fmt: skip

__all__ = [
    "ALL", "PROBES", "Braess", "CliffWalking", "FourRooms", "FrozenLake", "FrozenLake8x8", "GoalDistribution",
    "GoalPlacement", "Incentives", "InverseRL", "LakeShaping", "LeaderToy", "LinearLeader", "OneGoalFourRooms",
    "PreferenceLearning", "RandomMDP", "RewardShaping", "RoutingGame", "SmallTaxDesign", "Subsidy", "Synthetic", "TaxDesign",
    "Taxi", "TaxiShaping", "ThermalControl", "WalledGoalPlacement",
]  # fmt: skip
