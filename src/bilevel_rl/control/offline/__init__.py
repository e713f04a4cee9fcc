"""Learning from stored data: data sets, the learners that need nothing else, and how they are compared.

A data set is a replay that does not grow. Learners have one contract (`offline.learner`), one protocol scores them
(`offline.protocol`), and on tables they are compared with exact answers (`offline.tabular`).
"""

from bilevel_rl.control.offline.data import OfflineData
from bilevel_rl.control.offline.learner import OfflineLearner

__all__ = ["OfflineData", "OfflineLearner"]
