"""Learners from data, one file each: five yardsticks first."""

from bilevel_rl.control.offline.learner import OfflineLearner
from bilevel_rl.control.offline.learners.a2pr import A2PR
from bilevel_rl.control.offline.learners.bc import BC
from bilevel_rl.control.offline.learners.decision_mamba import DecisionMamba
from bilevel_rl.control.offline.learners.decoupled_chunking import DecoupledChunking
from bilevel_rl.control.offline.learners.direct_advantage import DirectAdvantage
from bilevel_rl.control.offline.learners.fql import FQL
from bilevel_rl.control.offline.learners.iql import IQL
from bilevel_rl.control.offline.learners.odice import ODICE
from bilevel_rl.control.offline.learners.pa_rl import PARL
from bilevel_rl.control.offline.learners.rebrac import ReBRAC
from bilevel_rl.control.offline.learners.td3_bc import TD3BC

YARDSTICKS: tuple[type[OfflineLearner], ...] = (BC, TD3BC, IQL, ReBRAC, FQL)
ALL: tuple[type[OfflineLearner], ...] = (*YARDSTICKS, ODICE, A2PR, DecoupledChunking, DecisionMamba, PARL, DirectAdvantage)

__all__ = [
    "A2PR", "ALL", "BC", "FQL", "IQL", "ODICE", "PARL", "TD3BC", "YARDSTICKS", "DecisionMamba", "DecoupledChunking",
    "DirectAdvantage", "ReBRAC",
]  # fmt: skip
