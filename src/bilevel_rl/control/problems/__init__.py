"""Problems whose followers learn in environments, one file (or one close family) each."""

from bilevel_rl.control.problems.archive_target import ArchiveTarget
from bilevel_rl.control.problems.bounded_shaping import BoundedShaping
from bilevel_rl.control.problems.decision_frequency import DecisionFrequency
from bilevel_rl.control.problems.feed_incentive import FeedIncentive
from bilevel_rl.control.problems.gymnasium_shaping import GymnasiumShaping
from bilevel_rl.control.problems.imitation import ArmImitation, PendulumImitation
from bilevel_rl.control.problems.inventory_contract import InventoryContract
from bilevel_rl.control.problems.learner_settings import PessimismChoice, TemperatureChoice
from bilevel_rl.control.problems.lock_shaping import LockShaping
from bilevel_rl.control.problems.lqg_shaping import LQGShaping
from bilevel_rl.control.problems.market_subsidy import MarketSubsidy
from bilevel_rl.control.problems.maze_curriculum import MazeCurriculum
from bilevel_rl.control.problems.offline import (
    PendulumMixture,
    PendulumOfflineImitation,
    PendulumOfflinePreferences,
)
from bilevel_rl.control.problems.pendulum_policies import PendulumComposition, PendulumGuidance
from bilevel_rl.control.problems.pendulum_shaping import PendulumShaping
from bilevel_rl.control.problems.preferences import PendulumPreferences

ALL = (
    PendulumShaping, LQGShaping, BoundedShaping, LockShaping, InventoryContract, MarketSubsidy, FeedIncentive,
    PendulumImitation, ArmImitation, PendulumPreferences, MazeCurriculum,
    GymnasiumShaping, PendulumMixture, PendulumOfflineImitation, PendulumOfflinePreferences, TemperatureChoice,
    PessimismChoice, DecisionFrequency, ArchiveTarget, PendulumComposition, PendulumGuidance,
)  # fmt: skip

__all__ = [
    "ALL", "ArchiveTarget", "ArmImitation", "BoundedShaping", "DecisionFrequency", "FeedIncentive",
    "GymnasiumShaping", "InventoryContract", "LQGShaping", "LockShaping", "MarketSubsidy", "MazeCurriculum",
    "PendulumComposition", "PendulumGuidance", "PendulumImitation", "PendulumMixture", "PendulumOfflineImitation",
    "PendulumOfflinePreferences", "PendulumPreferences", "PendulumShaping", "PessimismChoice", "TemperatureChoice",
]  # fmt: skip
